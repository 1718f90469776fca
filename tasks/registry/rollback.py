"""Roll back: make the previous champion the champion again, and store why.

A version that was rolled back is promoted again only with `--replace` (tasks/registry/promotion.py).

`champion` moves last. So a champion that is marked as rolled back belongs to a rollback that was interrupted, and
repeating the command completes it.
"""

from __future__ import annotations

import logging

from tasks.project import run_lock
from tasks.project.paths import ProjectPaths, registered_model_name
from tasks.registry import promotion_state, registered_models
from tasks.registry.promotion import PromotionResult, local_time, version_number
from tasks.registry.registered_models import CHAMPION, PREVIOUS, ModelVersion
from tasks.tracking.mlflow_client import StoreError
from tasks.tracking.tags import REPLACED_TAG, ROLLED_BACK_TAG
from winnow.config import Config
from winnow.errors import WinnowError

log = logging.getLogger(__name__)


def rollback(paths: ProjectPaths, config: Config, reason: str) -> PromotionResult:
    """Make the previous champion the champion again, and store the reason with the version that was rolled back.

    Raises WinnowError where there is no champion, or no previous one.
    """
    model, note = registered_model_name(config), reason or "no reason given"
    with run_lock.lock_registry(paths):
        champion = registered_models.find(paths, model, CHAMPION)
        if champion is None:
            raise WinnowError(f"{model} has no champion, so there is nothing to roll back")
        previous = _previous(paths, model, champion)
        if previous is None:
            raise WinnowError(f"{model} has no previous champion to roll back to; {champion} stays champion")
        dated_note = f"{local_time()}: {note}"
        registered_models.annotate(paths, model, champion, {ROLLED_BACK_TAG: dated_note})
        try:
            registered_models.annotate(paths, model, champion, {}, f"rolled back {dated_note}")
        except StoreError as error:
            log.warning("the description of %s does not say that it was rolled back: %s", champion, error)
        registered_models.set_alias(paths, model, PREVIOUS, version_number(_replaced_by(paths, model, previous)))
        registered_models.set_alias(paths, model, CHAMPION, previous.number)
        line = f"{previous} is the champion of {model} again; {champion} was rolled back: {note}"
        if promotion_state.is_awaiting_approval(paths):
            promotion_state.clear(paths)  # the open request was against the champion that was rolled back
        else:
            promotion_state.update(paths, model, line)
        return PromotionResult(
            (line,), previous.sha256, previous.number, CHAMPION, champion=previous.number, is_new=True
        )


def _previous(paths: ProjectPaths, model: str, champion: ModelVersion) -> ModelVersion | None:
    """Return the version to roll back to; None where there is none.

    It is the version that the champion replaced, by its tag, where `previous` has moved and `champion` has not: by a
    promotion that was interrupted (both name the same version), or by a rollback (the champion is marked).
    """
    previous = registered_models.find(paths, model, PREVIOUS)
    was_promotion = previous is not None and previous.number == champion.number
    is_interrupted = was_promotion or ROLLED_BACK_TAG in champion.tags
    return _replaced_by(paths, model, champion) if is_interrupted else previous


def _replaced_by(paths: ProjectPaths, model: str, version: ModelVersion) -> ModelVersion | None:
    """Return the champion that this version replaced; None for the first one."""
    replaced = version.tags.get(REPLACED_TAG, "")
    return registered_models.find(paths, model, replaced) if replaced else None
