"""Promotion: register the winner of a run, let it challenge the champion, and move the alias or record why not.

    no candidate passed the gates     nothing is registered, the champion stays
    the winner is the champion        nothing to do
    the winner was rolled back        it is not promoted, except by `winnow promote --replace`
    there is no champion              the winner becomes champion
    the two cannot be compared        the champion stays, or is replaced with `--replace`
    the champion's file, refitted     the refitted file becomes champion: the refit step has compared the two
    otherwise                         both are measured side by side (tasks/registry/champion_challenger.py)
    it won, and promotion.approval    approval is requested (approval_request.py); once approved, it becomes champion

Each operation is idempotent: a version that was registered before a crash is found by its file, and `champion` moves
last, after the reasons are written and `previous` is set. promotion_state.py stores the outcome. There is no lock
between two machines; the champion is looked up again just before it is moved.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path

from tasks.project import run_lock
from tasks.project.paths import ProjectPaths, registered_model_name
from tasks.registry import approval_request, model_upload, promotion_state, registered_models
from tasks.registry.approval_request import ApprovalRequest
from tasks.registry.deployment_card import accuracy_tags, deployment_card
from tasks.registry.registered_models import CHALLENGER, CHAMPION, PREVIOUS, ModelVersion
from tasks.tracking import mlflow_runs, tracked_runs
from tasks.tracking.mlflow_client import RESUME_HINT
from tasks.tracking.tags import CHAMPION_SINCE_TAG, PROMOTION_TAG, REASON_TAG, REPLACED_TAG, ROLLED_BACK_TAG
from winnow.benchmark.target_measurements import read_target, target_digest
from winnow.config import Config
from winnow.deploy.onnx_session import MODEL
from winnow.errors import ArtifactError, WinnowError
from winnow.records import DeploymentCard, SelectionRecord, read_record, record_digest, sha256_of
from winnow.refit.deployed_folder import deployed_folder, selected_folder


@dataclass(frozen=True)
class PromotionResult:
    """The result of a promotion."""

    reasons: tuple[str, ...]
    """At least one reason; the last one is about the champion."""
    sha256: str | None = None
    """Digest of the winner's file."""
    version: str | None = None
    """The version number of the winner, if it was registered."""
    alias: str | None = None
    """The winner's alias, champion or challenger; None where it has none."""
    champion: str | None = None
    """The version number of the champion after the promotion."""
    waits: ApprovalRequest | None = None
    """The open approval request of the winner, if there is one."""
    is_new: bool = False
    """True where the champion has changed."""


def promote(paths: ProjectPaths, config: Config, replace: bool = False) -> PromotionResult:
    """Register the winner of the last selection and let it challenge the champion.

    `replace`: promote the winner even where it was rolled back or denied, or cannot be compared. Raises ArtifactError
    where artifacts have changed since the selection.
    """
    with run_lock.lock_registry(paths):
        selection, model = SelectionRecord.read(paths.artifacts / "select"), registered_model_name(config)
        champion = registered_models.find(paths, model, CHAMPION, hint=RESUME_HINT)
        winner = selection.details.winner
        if winner is None:
            stays = f"{champion} stays champion of {model}" if champion else f"{model} has no champion yet"
            reason = f"nothing is promoted: {selection.details.why}; {stays}"
            result = PromotionResult((reason,), champion=version_number(champion))
        else:
            result = _promote_winner(paths, config, selection, winner, champion, replace)
        waits_until = result.waits.until if result.waits else ""
        promotion_state.save(paths, model, result.sha256, result.reasons, waits_until)
        return result


def _promote_winner(
    paths: ProjectPaths,
    config: Config,
    selection: SelectionRecord,
    winner: str,
    champion: ModelVersion | None,
    replace: bool,
) -> PromotionResult:
    model = registered_model_name(config)
    folder, sha256 = _checked(paths, config, selection, winner)
    result = partial(PromotionResult, sha256=sha256, champion=version_number(champion))
    if champion and champion.sha256 == sha256:
        reason = f"{winner} is the champion of {model} already: {champion} is the same file"
        return result((reason,), version=champion.number, alias=CHAMPION)
    existing = registered_models.find_by_digest(paths, model, sha256)
    if existing and ROLLED_BACK_TAG in existing.tags and not replace:
        rejection = (
            f"{existing} of {model} was rolled back ({existing.tags[ROLLED_BACK_TAG]}) and is promoted again "
            "only by `winnow promote --replace`"
        )
        return result((rejection,), version=existing.number)
    card = deployment_card(paths, config, selection, winner, folder)
    run_id = tracked_runs.candidate_run(paths, config, winner)
    if run_id is None:  # never tracked, or MLflow has lost it
        tracked_runs.track(paths, config)
        run_id = tracked_runs.candidate_run(paths, config, winner)
    version = model_upload.register(paths, config, folder, card, run_id)
    registered_models.annotate(paths, model, version, accuracy_tags(card))
    approval_request.supersede(paths, model, version)
    registered_models.set_alias(paths, model, CHALLENGER, version.number)
    registered = f"{winner} is version {version.number} of {model}"
    result = partial(result, version=version.number, alias=CHALLENGER)
    request = None if replace else _request(paths, config, version, champion)
    if request is None:
        passed, reason = _contest(paths, config, champion, (folder, card), replace)
        _write_reason(paths, model, version, run_id, reason)
        if not passed:
            return result((registered, f"{champion} stays champion: {reason}"))
        if config.promotion.approval:
            hours = config.promotion.approval_hours
            request = approval_request.create_request(paths, model, version, champion, reason, hours)
    if request and request.state != "approved":
        stays = f"{champion} stays champion" if champion else f"{model} has no champion yet"
        conclusion = f"{version} {request.words}; {stays}. Result of the comparison: {request.why}"
        return result((registered, conclusion), waits=request if request.state == "asked" else None)
    if request:
        reason = f"{request.why}; {request.words}"
    make_champion(paths, model, version, champion)
    conclusion = f"{version} is the new champion: {reason}"
    return result((registered, conclusion), alias=CHAMPION, champion=version.number, is_new=True)


def _request(
    paths: ProjectPaths, config: Config, version: ModelVersion, champion: ModelVersion | None
) -> ApprovalRequest | None:
    """Return the approval request of this version against the current champion, or None.

    Without promotion.approval only a denial counts.
    """
    request = approval_request.read_request(paths, registered_model_name(config), version)
    if request is None or request.state == "superseded" or request.champion != version_number(champion):
        return None
    return request if config.promotion.approval or request.state == "denied" else None


def version_number(version: ModelVersion | None) -> str | None:
    """Return the number of a version, or None."""
    return version.number if version else None


def _checked(paths: ProjectPaths, config: Config, selection: SelectionRecord, winner: str) -> tuple[Path, str]:
    """Return (folder, sha256) of the file to deploy. Raises ArtifactError where the selection's inputs have changed."""
    folder = paths.artifacts / "candidates" / winner
    if selection.inputs.get(winner) != record_digest(folder):
        raise ArtifactError(f"{folder} has changed since it was selected; run winnow again")
    if selection.inputs.get("benchmark") != record_digest(paths.artifacts / "benchmark"):
        raise ArtifactError(f"{paths.artifacts / 'benchmark'} has changed since the selection; run winnow again")
    if selection.inputs.get("target") != target_digest(config, paths.root):
        raise ArtifactError("benchmark.target has changed since the selection; run winnow again")
    folder = deployed_folder(paths.artifacts, winner)
    sha256 = sha256_of(folder / MODEL) if (folder / MODEL).is_file() else "missing"
    if sha256 not in {artifact.sha256 for artifact in read_record(folder).artifacts if artifact.name == MODEL}:
        raise ArtifactError(f"{folder / MODEL} does not match its record; `winnow run` creates it again")
    return folder, sha256


def _contest(
    paths: ProjectPaths,
    config: Config,
    champion: ModelVersion | None,
    challenger: tuple[Path, DeploymentCard],
    replace: bool,
) -> tuple[bool, str]:
    """Return (whether the challenger replaces the champion, the reason)."""
    from tasks.registry.champion_challenger import judge_challenge, measure_contest
    from tasks.registry.comparability import find_difference, find_refit

    if champion is None:
        return True, "it is the first champion"
    try:
        champion_folder = registered_models.fetch(paths, registered_model_name(config), champion)
        card = DeploymentCard.read(champion_folder)
        obstacle = find_difference(card, challenger[1])
    except ArtifactError as error:
        obstacle = str(error)
    if not obstacle:
        if reason := find_refit((champion_folder, card), challenger):
            return True, reason
        target = read_target(config, paths.root)
        sides = [
            (selected_folder(folder), card_of_side) for folder, card_of_side in ((champion_folder, card), challenger)
        ]
        contest = measure_contest(config, paths.artifacts / "data", sides[0], sides[1], target)
        return judge_challenge(contest, config.promotion)
    if replace:
        return True, f"{champion} is replaced without a comparison, as asked for with --replace: {obstacle}"
    return False, f"the two cannot be compared: {obstacle}. `winnow promote --replace` promotes the challenger anyway"


def _write_reason(paths: ProjectPaths, model: str, version: ModelVersion, run_id: str | None, reason: str) -> None:
    registered_models.annotate(paths, model, version, {REASON_TAG: reason}, f"{local_time()}: {reason}")
    if run_id:
        mlflow_runs.tag_run(paths, run_id, {PROMOTION_TAG: f"version {version.number} of {model}: {reason}"})


def make_champion(paths: ProjectPaths, model: str, version: ModelVersion, champion: ModelVersion | None) -> None:
    """Move the aliases champion and previous. Raises WinnowError where the champion has changed meanwhile."""
    if version_number(registered_models.find(paths, model, CHAMPION)) != version_number(champion):
        raise WinnowError(f"the champion of {model} has changed while its challenger was measured; run winnow promote")
    tags = {REPLACED_TAG: version_number(champion), CHAMPION_SINCE_TAG: local_time(), ROLLED_BACK_TAG: None}
    registered_models.annotate(paths, model, version, tags)
    if champion:
        registered_models.set_alias(paths, model, PREVIOUS, champion.number)
    registered_models.set_alias(paths, model, CHAMPION, version.number)


def local_time() -> str:
    """Return the date, the time to the minute and the time zone."""
    return f"{datetime.now().astimezone():%Y-%m-%d %H:%M %Z}"
