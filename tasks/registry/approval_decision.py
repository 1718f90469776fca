"""A person's word on the challenger: what waits for one, and what follows from it. The registry alone, no artifacts."""

from __future__ import annotations

from dataclasses import dataclass

from tasks.project import run_lock
from tasks.project.paths import ProjectPaths, registered_model_name
from tasks.registry import approval_request, promotion_state, registered_models
from tasks.registry.approval_request import Request
from tasks.registry.promotion import PromotionResult, make_champion, number_of
from tasks.registry.registered_models import CHALLENGER, CHAMPION, Version
from tasks.tracking import tracked_runs
from winnow.config import Config
from winnow.errors import WinnowError


@dataclass(frozen=True)
class Waiting:
    """A challenger about which a person is asked."""

    model: str
    version: Version
    request: Request


def waiting(places: ProjectPaths, config: Config) -> Waiting | None:
    """The challenger that waits for an answer against the champion of today, if there is one."""
    model = registered_model_name(config)
    challenger, champion = (
        registered_models.find(places, model, CHALLENGER),
        registered_models.find(places, model, CHAMPION),
    )
    request = approval_request.stored(challenger) if challenger else None
    if challenger is None or request is None or request.state != "asked" or request.champion != number_of(champion):
        return None
    return Waiting(model, challenger, request)


def answer(places: ProjectPaths, config: Config, approve: bool, who: str, reason: str) -> PromotionResult:
    """Write a person's word down and act on it: the challenger becomes champion, or stays out."""
    with run_lock.state_alone(places):
        return _answer(places, config, approve, who, reason)


def _answer(places: ProjectPaths, config: Config, approve: bool, who: str, reason: str) -> PromotionResult:
    model = registered_model_name(config)
    challenger, champion = (
        registered_models.find(places, model, CHALLENGER),
        registered_models.find(places, model, CHAMPION),
    )
    if challenger is None:
        where = tracked_runs.without_password(tracked_runs.registry_address(places))
        raise WinnowError(f"{model} at {where} has no challenger, so nothing waits for an answer; winnow run makes one")
    request = approval_request.stored(challenger)
    if approve and request and request.state != "approved" and request.champion != number_of(champion):
        raise WinnowError(f"the champion of {model} has changed since approval was asked for; run winnow promote")
    request = approval_request.answer(places, model, challenger, approve, who, reason)
    if approve:
        make_champion(places, model, challenger, champion)
        told = f"{challenger} is the new champion: {request.why}; {request.words}"
    else:
        told = f"{challenger} {request.words}; {champion or 'nobody'} stays champion"
    serves = challenger if approve else champion
    promotion_state.update(places, model, number_of(serves), told)
    return PromotionResult(
        (told,),
        *(challenger.candidate, challenger.sha256, challenger.number),
        CHAMPION if approve else CHALLENGER,
        number_of(serves),
        is_new=approve,
    )
