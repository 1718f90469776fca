"""Manual approval of the challenger: find the one that waits, and act on the decision.

Uses only the registry, no artifacts, so that a decision can be given from any machine.
"""

from __future__ import annotations

from dataclasses import dataclass

from tasks.project import run_lock
from tasks.project.paths import ProjectPaths, registered_model_name
from tasks.registry import approval_request, promotion_state, registered_models
from tasks.registry.approval_request import ApprovalRequest
from tasks.registry.promotion import PromotionResult, make_champion, version_number
from tasks.registry.registered_models import CHALLENGER, CHAMPION, ModelVersion
from tasks.tracking import tracking_store
from winnow.config import Config
from winnow.errors import WinnowError


@dataclass(frozen=True)
class PendingApproval:
    """A challenger that waits for approval."""

    model: str
    version: ModelVersion
    request: ApprovalRequest


def pending_approval(paths: ProjectPaths, config: Config) -> PendingApproval | None:
    """Return the challenger that waits for approval against the current champion, or None."""
    model = registered_model_name(config)
    challenger, champion = _challenger_and_champion(paths, model)
    request = approval_request.parse_request(challenger) if challenger else None
    if challenger and request and request.state == "asked" and request.champion == version_number(champion):
        return PendingApproval(model, challenger, request)
    return None


def _challenger_and_champion(paths: ProjectPaths, model: str) -> tuple[ModelVersion | None, ModelVersion | None]:
    return registered_models.find(paths, model, CHALLENGER), registered_models.find(paths, model, CHAMPION)


def decide(
    paths: ProjectPaths, config: Config, approve: bool, by: str, reason: str, expected: str | None
) -> PromotionResult:
    """Record a decision and act on it: an approved challenger becomes champion.

    `expected`: the number of the version that was reviewed; None for the challenger, whichever it is. Raises
    WinnowError where no challenger waits, it is another version, the champion has changed since, or a denial has no
    reason.
    """
    model = registered_model_name(config)
    with run_lock.lock_registry(paths):
        challenger, champion = _challenger_and_champion(paths, model)
        if challenger is None:
            address = tracking_store.redact_password(tracking_store.registry_address(paths))
            raise WinnowError(
                f"{model} at {address} has no challenger, so nothing waits for approval; run winnow first"
            )
        if expected not in (None, challenger.number):
            raise WinnowError(
                f"version {expected} of {model} is not the challenger any more: {challenger} is; review that one, and "
                f"decide with --version {challenger.number}"
            )
        request = approval_request.parse_request(challenger)
        if approve and request and request.state != "approved" and request.champion != version_number(champion):
            raise WinnowError(f"the champion of {model} has changed since approval was asked for; run winnow promote")
        request = approval_request.answer_request(paths, model, challenger, approve, by, reason)
        if approve:
            make_champion(paths, model, challenger, champion)
            line = f"{challenger} is the new champion: {request.why}; {request.words}"
        else:
            line = f"{challenger} {request.words}; {champion or 'no version'} stays champion"
        in_production = version_number(challenger if approve else champion)
        promotion_state.update(paths, model, line)
        alias = CHAMPION if approve else CHALLENGER
        return PromotionResult(
            (line,), challenger.sha256, challenger.number, alias, champion=in_production, is_new=approve
        )
