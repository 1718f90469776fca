"""From the winner of a run to what serves: register it, let it challenge the champion, move the alias or say why not.

    nobody passed the gates           nothing is registered, the champion stays
    the winner is the champion        nothing to do
    the winner was rolled back        it stays out until `winnow promote --replace`
    there is no champion              the winner becomes it
    the two cannot be compared        the champion stays, or is replaced by `--replace`
    the champion's file, refitted     the refitted file takes its place: it was accepted against this very file
    otherwise                         both are measured side by side (tasks/registry/champion_challenger.py)
    it won, and promotion.approval    a person is asked (approval_request.py); once approved, it becomes champion

Each operation may be repeated: a version that was registered before a crash is found by its file, and `champion` moves
last, after the reasons are written and `previous` is set. promotion_state.py remembers the outcome. Two promotions on
two machines are not locked against each other; the champion is looked up again just before it is moved.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from tasks.project import benchmark_target, run_lock
from tasks.project.paths import ProjectPaths, registered_model_name
from tasks.registry import approval_request, promotion_state, registered_models
from tasks.registry.approval_request import REASON, Request
from tasks.registry.registered_models import CARD, CHALLENGER, CHAMPION, PREVIOUS, Version
from tasks.tracking import mlflow_runs
from tasks.tracking.run_content import data_version
from winnow.benchmark.target_measurements import target_digest
from winnow.config import Config
from winnow.deploy.onnx_session import MODEL
from winnow.deploy.runtimes import streams_of
from winnow.errors import ArtifactError, WinnowError
from winnow.evaluation.metrics import drop_metrics_on_test
from winnow.records import RECORD, StepRecord, quality_as_served, read_json, read_record, record_digest, sha256_of
from winnow.refit.deployed_folder import REFIT, deployed_folder, selected_folder
from winnow.selection.decision import SERVES

ACCURACY, TEST_WARNING = "winnow.accuracy", "winnow.test.warning"
ROLLED_BACK, REPLACED, SINCE = "winnow.rolled_back", "winnow.replaced", "winnow.champion_since"


@dataclass(frozen=True)
class PromotionResult:
    """What `promote` did."""

    reasons: tuple[str, ...]
    """At least one; the last says what became of the champion."""
    winner: str | None = None
    sha256: str | None = None
    version: str | None = None
    """The winner's, where it has one."""
    alias: str | None = None
    """champion or challenger; None where the winner did not come so far."""
    champion: str | None = None
    """The version that serves now."""
    waits: Request | None = None
    """What a person is asked, where the winner waits for an answer."""
    is_new: bool = False
    """Whether the champion has changed."""


def promote(places: ProjectPaths, config: Config, replace: bool = False) -> PromotionResult:
    """Register the winner of the last selection and let it challenge the champion."""
    with run_lock.state_alone(places):
        return _promote(places, config, replace)


def _promote(places: ProjectPaths, config: Config, replace: bool) -> PromotionResult:
    selection, model = read_record(places.artifacts / "select"), registered_model_name(config)
    champion = registered_models.find(places, model, CHAMPION)
    winner: str | None = selection.details["winner"]
    if winner is None:
        stays = f"{champion} stays champion of {model}" if champion else f"{model} has no champion yet"
        reason = f"nothing is promoted: {selection.details['why']}; {stays}"
        outcome = PromotionResult((reason,), champion=number_of(champion))
    else:
        outcome = _promote_winner(places, config, selection, winner, champion, replace)
    told = asdict(outcome) | {"reasons": list(outcome.reasons)}
    told["waits_until"] = outcome.waits.until if outcome.waits else ""
    del told["waits"]
    promotion_state.save(places, model, promotion_state.chosen_digest(places), told)
    return outcome


def _promote_winner(
    places: ProjectPaths, config: Config, selection: StepRecord, winner: str, champion: Version | None, replace: bool
) -> PromotionResult:
    model = registered_model_name(config)
    folder, sha256 = _checked(places, config, selection, winner)
    if champion and champion.sha256 == sha256:
        return PromotionResult(
            (f"{winner} is the champion of {model} already: {champion} is the same file",),
            *(winner, sha256, champion.number, CHAMPION, champion.number),
        )
    known = registered_models.find_file(places, model, sha256)
    if known and ROLLED_BACK in known.tags and not replace:
        why = (
            f"{known} of {model} was rolled back ({known.tags[ROLLED_BACK]}) and is not promoted again "
            "unless by `winnow promote --replace`"
        )
        return PromotionResult((why,), winner, sha256, known.number, None, number_of(champion))
    card = _card(places, config, selection, winner, folder)
    run_id = mlflow_runs.candidate_run(places, config, winner)
    version = registered_models.register(places, config, folder, card, run_id)
    registered_models.note(places, model, version, accuracy_tags(card))
    _supersede(places, model, version)
    registered_models.set_alias(places, model, CHALLENGER, version.number)
    registered = f"{winner} is version {version.number} of {model}"
    request = None if replace else _request(places, config, version, champion)
    if request is None:
        passed, reason = _contest(places, config, champion, (folder, card), replace)
        _write_reason(places, model, version, run_id, reason)
        if not passed:
            last = f"{champion} stays champion: {reason}"
            return PromotionResult((registered, last), winner, sha256, version.number, CHALLENGER, number_of(champion))
        if config.promotion.approval:
            request = approval_request.ask(places, model, version, champion, reason, config.promotion.approval_hours)
    if request and request.state != "approved":
        stays = f"{champion} stays champion" if champion else f"{model} has no champion yet"
        last = f"{version} {request.words}; {stays}. What it showed: {request.why}"
        waits = request if request.state == "asked" else None
        return PromotionResult(
            (registered, last), winner, sha256, version.number, CHALLENGER, number_of(champion), waits
        )
    if request:
        reason = f"{request.why}; {request.words}"
    make_champion(places, model, version, champion)
    last = f"{version} is the new champion: {reason}"
    return PromotionResult((registered, last), winner, sha256, version.number, CHAMPION, version.number, is_new=True)


def _supersede(places: ProjectPaths, model: str, version: Version) -> None:
    """A challenger that still waits for a person waits no more: this one stands in its place."""
    former = registered_models.find(places, model, CHALLENGER)
    if former and former.number != version.number:
        approval_request.supersede(places, model, former, version)


def _request(places: ProjectPaths, config: Config, version: Version, champion: Version | None) -> Request | None:
    """What was asked about this version against the champion of today. A denial holds, also where nobody asks now."""
    request = approval_request.read(places, registered_model_name(config), version)
    if request is None or request.state == "superseded" or request.champion != number_of(champion):
        return None
    return request if config.promotion.approval or request.state == "denied" else None


def number_of(version: Version | None) -> str | None:
    """Its number, for tags and records."""
    return version.number if version else None


def _checked(places: ProjectPaths, config: Config, selection: StepRecord, winner: str) -> tuple[Path, str]:
    """The folder of the file that is deployed and the file's digest, if they are what was selected and refitted."""
    folder = places.artifacts / "candidates" / winner
    if selection.inputs.get(winner) != record_digest(folder):
        raise ArtifactError(f"{folder} has changed since it was selected; run winnow again")
    if selection.inputs.get("benchmark") != record_digest(places.artifacts / "benchmark"):
        raise ArtifactError(f"{places.artifacts / 'benchmark'} has changed since the selection; run winnow again")
    if selection.inputs.get("target") != target_digest(config, places.root):
        raise ArtifactError("benchmark.target has changed since the selection; run winnow again")
    folder = deployed_folder(places.artifacts, winner)
    sha256 = sha256_of(folder / MODEL) if (folder / MODEL).is_file() else "missing"
    if sha256 not in {artifact.sha256 for artifact in read_record(folder).artifacts if artifact.name == MODEL}:
        raise ArtifactError(f"{folder / MODEL} is not the file of its record; `winnow run` makes it again")
    return folder, sha256


def _card(places: ProjectPaths, config: Config, selection: StepRecord, winner: str, folder: Path) -> dict[str, Any]:
    """The candidate's card with what only the whole run knows: speed, machine, how to serve it, data version, why.

    Its figures on the test split, too, where the report has looked: nothing is chosen by them (decision 0017).
    """
    speeds, objective = selection.details["speeds"], config.promotion.objective
    fastest = speeds["best"][winner]
    best = fastest[SERVES[objective]]
    if best is None:
        raise ArtifactError(f"{winner} was timed on no runtime, so nobody knows how to serve it; run winnow again")
    serving = _how(best) | {"p50_ms": best["p50_ms"]}
    own = read_json(folder / CARD)
    return {
        **own,
        # One value for one figure: what the report shows is of the runtime that serves, too.
        "metrics": own["metrics"] | quality_as_served(selection, winner),
        "serving": {**serving, "objective": objective},
        "speed": speeds["candidates"][winner],
        "fastest": {what: _how(row) for what, row in fastest.items() if row is not None},
        "machine": speeds["machine"],
        "test": _tested(places, winner),
        "data_version": data_version(places),
        "split": _split(read_record(places.artifacts / "data")),
        "pillow": importlib.metadata.version("pillow"),
        "why": selection.details["why"],
    }


def _how(row: Mapping[str, Any]) -> dict[str, Any]:
    """The cell of a timed row: how the file ran."""
    how = {key: row[key] for key in ("runtime", "precision", "threads", "batch")}
    if (streams := streams_of(row["runtime"], row["batch"], row["threads"])) > 1:
        how["streams"] = streams
    return how


def _tested(places: ProjectPaths, winner: str) -> dict[str, Any]:
    """Return the report's figures on the test split, where it is of this selection; {} without one.

    images, groups where data.group_by says them; top1, top1_low, top1_high; baseline, drop_points, drop_low, drop_high
    against it; measured_in; warnings; abstention.
    """
    folder = places.artifacts / "report"
    if not (folder / RECORD).is_file():
        return {}
    report, prefix = read_record(folder), "test/winner_"
    seen = all(report.inputs.get(step) == record_digest(places.artifacts / step) for step in ("select", REFIT))
    if not seen or report.details["winner"] != winner or f"{prefix}top1" not in report.metrics:
        return {}
    baseline = str(report.details["baseline"])
    drop = zip(("drop_points", "drop_low", "drop_high"), drop_metrics_on_test(baseline), strict=True)
    return {
        "images": report.metrics["test/images"],
        **({"groups": report.metrics["test/groups"]} if "test/groups" in report.metrics else {}),
        **{key: report.metrics[prefix + key] for key in ("top1", "top1_low", "top1_high")},
        "baseline": baseline,
        **{key: report.metrics[name] for key, name in drop},
        "measured_in": report.details["measured_in"],
        "warnings": list(report.warnings),
        **({"abstention": report.details["abstention"]} if "abstention" in report.details else {}),
    }


def accuracy_tags(card: Mapping[str, Any]) -> dict[str, str | None]:
    """Return what whoever approves a version must know first: its accuracy on both splits, warnings of the test."""
    test = card["test"]
    shares = [("validation", card["metrics"].get("quality/top1")), ("test", test.get("top1"))]
    told = ", ".join(f"{share * 100:.1f} % top-1 on {split}" for split, share in shares if share is not None)
    return {ACCURACY: told or None, TEST_WARNING: "; ".join(test.get("warnings", [])) or None}


def _split(data: StepRecord) -> dict[str, Any]:
    """Return the rule by which images were split, as far as the record of ingest says it.

    The fractions (a test set that the source names needs none), the group key, and the digest of the decoder.
    """
    keys = ["validation_fraction", "group_by"]
    if data.details.get("test_set") != "named by the source":
        keys.insert(1, "test_fraction")
    found = {key: data.parameters[key] for key in keys if key in data.parameters}
    return found | {key: data.details[key] for key in ("decoder",) if key in data.details}


def _contest(
    places: ProjectPaths,
    config: Config,
    champion: Version | None,
    challenger: tuple[Path, dict[str, Any]],
    replace: bool,
) -> tuple[bool, str]:
    """Whether the challenger may take the champion's place, and why."""
    from tasks.registry.champion_challenger import incomparable, judge_challenge, measure, newly_refitted

    if champion is None:
        return True, "there was none before it"
    try:
        there = registered_models.fetch(places, registered_model_name(config), champion)
        card = read_json(there / CARD)
        obstacle = incomparable(card, challenger[1])
    except ArtifactError as error:
        obstacle = str(error)
    if not obstacle:
        if reason := newly_refitted((there, card), challenger):
            return True, reason
        host = benchmark_target.target_of(places, config)
        both = [(selected_folder(folder), told) for folder, told in ((there, card), challenger)]
        contest = measure(config, places.artifacts / "data", both[0], both[1], host)
        return judge_challenge(contest, config.promotion)
    if replace:
        return True, f"{champion} is replaced without a comparison, as asked for with --replace: {obstacle}"
    return False, f"the two cannot be compared: {obstacle}. `winnow promote --replace` puts the challenger in its place"


def _write_reason(places: ProjectPaths, model: str, version: Version, run_id: str | None, reason: str) -> None:
    registered_models.note(places, model, version, {REASON: reason}, f"{_today()}: {reason}")
    if run_id:
        mlflow_runs.tag_run(places, run_id, {"winnow.promotion": f"version {version.number} of {model}: {reason}"})


def make_champion(places: ProjectPaths, model: str, version: Version, champion: Version | None) -> None:
    """Move the alias, last of all."""
    if number_of(registered_models.find(places, model, CHAMPION)) != number_of(champion):
        raise WinnowError(f"the champion of {model} has changed while its challenger was measured; run winnow promote")
    tags = {REPLACED: number_of(champion), SINCE: _today(), ROLLED_BACK: None}
    registered_models.note(places, model, version, tags)
    if champion:
        registered_models.set_alias(places, model, PREVIOUS, champion.number)
    registered_models.set_alias(places, model, CHAMPION, version.number)


def rollback(places: ProjectPaths, config: Config, reason: str) -> PromotionResult:
    """Put the previous champion back; the version that leaves keeps the reason."""
    with run_lock.state_alone(places):
        return _rollback(places, config, reason)


def _rollback(places: ProjectPaths, config: Config, reason: str) -> PromotionResult:
    model = registered_model_name(config)
    champion = registered_models.find(places, model, CHAMPION)
    if champion is None:
        raise WinnowError(f"{model} has no champion, so there is nothing to roll back")
    previous = _previous(places, model, champion)
    if previous is None:
        raise WinnowError(f"there is no previous champion of {model} to go back to; {champion} stays")
    told = f"{_today()}: {reason or 'no reason given'}"
    registered_models.note(places, model, champion, {ROLLED_BACK: told}, f"rolled back {told}")
    registered_models.set_alias(places, model, CHAMPION, previous.number)
    before = previous.tags.get(REPLACED, "")
    older = registered_models.find(places, model, before) if before else None
    registered_models.set_alias(places, model, PREVIOUS, number_of(older))
    line = f"{previous} is the champion of {model} again; {champion} was rolled back: {reason or 'no reason given'}"
    if promotion_state.waits(places):
        promotion_state.clear(places)  # a person was asked about the champion that leaves
    else:
        promotion_state.update(places, model, previous.number, line)
    return PromotionResult(
        (line,),
        *(previous.candidate, previous.sha256, previous.number, CHAMPION, previous.number),
        is_new=True,
    )


def _previous(places: ProjectPaths, model: str, champion: Version) -> Version | None:
    """Return the version to go back to; None where there is none.

    Where the alias names the champion itself, its change was cut off between the two aliases: the champion's own tag
    says what it replaced.
    """
    previous = registered_models.find(places, model, PREVIOUS)
    if previous is None or previous.number != champion.number:
        return previous
    before = champion.tags.get(REPLACED, "")
    return registered_models.find(places, model, before) if before else None


def _today() -> str:
    return f"{datetime.now().astimezone():%Y-%m-%d %H:%M %Z}"
