"""Events on models: flows/deployments.py has them sent as notifications."""

from __future__ import annotations

from prefect.events import emit_event

from tasks.registry.approval_request import ApprovalRequest
from tasks.registry.promotion import PromotionResult
from tasks.registry.registered_models import CHAMPION, ModelVersion

PROMOTED, DRIFTED, WAITING = "winnow.model.promoted", "winnow.model.drifted", "winnow.model.waiting"
"""The champion has changed; fresh images have drifted; a challenger waits for approval."""


def emit_promoted(result: PromotionResult, model: str) -> None:
    """Emit an event if the champion has changed."""
    if result.alias == CHAMPION and result.is_new:
        reason = "\n".join(result.reasons)
        _emit(
            PROMOTED,
            model,
            f"version {result.version} is the champion of {model}",
            version=result.version,
            reason=reason,
        )


def emit_waiting(model: str, version: ModelVersion, request: ApprovalRequest) -> None:
    """Emit an event that a challenger waits for approval."""
    reason = f"{request.why}; {request.words}"
    _emit(WAITING, model, f"{version} of {model} waits for approval", version=version.number, reason=reason)


def emit_drifted(model: str, reason: str) -> None:
    """Emit an event that fresh images have drifted."""
    _emit(DRIFTED, model, f"the images of {model} have drifted", reason=reason)


def _emit(event: str, model: str, title: str, **payload: str | int | None) -> None:
    resource = {"prefect.resource.id": f"winnow.model.{model}", "prefect.resource.name": title}
    emit_event(event, resource, payload=payload)
