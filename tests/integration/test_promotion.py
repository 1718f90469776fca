"""Test promotion on a real MLflow registry: which version becomes champion, the reasons, and rollback."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import PIL
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from tasks.project import run_lock
from tasks.project.paths import ProjectPaths, registered_model_name
from tasks.project.state_files import PROMOTED, PromotionState
from tasks.registry import (
    approval_decision,
    deployment_card,
    model_upload,
    promotion,
    promotion_state,
    registered_models,
)
from tasks.registry.champion_challenger import ContestResult, benchmark_cases, judge_challenge, measure_contest
from tasks.registry.comparability import find_difference
from tasks.registry.promotion import promote
from tasks.registry.registered_models import CHAMPION, PREVIOUS
from tasks.registry.registered_weights import fetch_weights
from tasks.registry.rollback import rollback
from tasks.tracking import mlflow_client, tracked_runs
from tasks.tracking.tags import CARD_SHA256_TAG, ROLLED_BACK_TAG
from tests import records
from tests.conftest import CLASSES, SIZE
from tests.handmade import (
    DATA_VERSION,
    MODEL,
    aliases,
    clear_local_state,
    fetch_version,
    tag,
    with_size_objective,
    write_run,
)
from tests.records import make_record, report_details
from winnow.config import Config, Promotion
from winnow.data.dataset import VALIDATION, load_images
from winnow.errors import ArtifactError, WinnowError
from winnow.evaluation.accuracy_drop import DropReport
from winnow.evaluation.intervals import Ratio
from winnow.records import (
    DeploymentCard,
    SelectionRecord,
    read_json,
    record_digest,
    sha256_of,
    this_machine,
    write_json,
    write_record,
)
from winnow.records.selection import Drop, DropEvidence

pytest_plugins = "tests.stores"
SLOW, FAST = {"quick": {"ballast": 700}}, {"quick": {}}


def read_promotion(paths: ProjectPaths) -> PromotionState:
    state = PROMOTED.read(paths)
    assert state is not None
    return state


def write_next_run(paths: ProjectPaths, winner: str | None = "quick", **models: dict[str, Any]) -> Config:
    """Write the next run of the same project with another file of the winner."""
    return write_run(paths.root, winner, models)


@pytest.mark.thorough
def test_the_first_winner_becomes_champion(paths: ProjectPaths, config: Config) -> None:
    tracked_runs.track(paths, config)
    assert not promotion_state.is_up_to_date(paths, config)
    result = promote(paths, config)
    assert (result.version, result.alias, result.champion) == ("1", "champion", "1")
    assert "it is the first champion" in result.reasons[-1]
    assert aliases(paths) == {"champion": "1", "challenger": "1"}
    assert promotion_state.is_up_to_date(paths, config)
    saved_state = read_promotion(paths)
    assert saved_state["reasons"] == list(result.reasons)
    assert saved_state["sha256"] == sha256_of(paths.artifacts / "candidates" / "quick" / "model.onnx")
    version = mlflow_client.connect(paths).get_model_version(MODEL, "1")
    assert version.run_id == tracked_runs.candidate_run(paths, config, "quick")
    assert "it is the first champion" in version.description
    run = mlflow_client.connect(paths).get_run(version.run_id)
    assert run.data.tags["winnow.promotion"].startswith(f"version 1 of {MODEL}")
    logged = mlflow_client.connect(paths).get_logged_model(version.source.removeprefix("models:/"))
    assert {metric.key: metric.value for metric in logged.metrics}["quality/top1"] == 1.0
    assert {metric.dataset_digest for metric in logged.metrics} == {DATA_VERSION}
    assert logged.params["optimiser.learning_rate"] == "0.05"


def test_a_version_holds_its_file_and_card_and_can_be_served(paths: ProjectPaths, config: Config) -> None:
    promote(paths, config)
    folder = fetch_version(paths, "champion")
    original = paths.artifacts / "candidates" / "quick" / "model.onnx"
    assert (folder / "model.onnx").read_bytes() == original.read_bytes()
    card = read_json(folder / "card.json")
    assert card["serving"] == {
        **{"runtime": "ort", "precision": "f32", "threads": 1, "batch": 1, "p50_ms": 0.5},
        "objective": "latency",
    }
    assert card["machine"]["cpu"] == this_machine().cpu
    assert card["pillow"] == PIL.__version__
    assert (card["data_version"], card["lineage"], card["labels"]["training"]) == (
        DATA_VERSION,
        ["dense", "quick"],
        110,
    )
    import mlflow.pyfunc

    pyfunc_model = mlflow.pyfunc.load_model(str(folder))
    (input_spec,), (output_spec,) = (
        pyfunc_model.metadata.signature.inputs.inputs,
        pyfunc_model.metadata.signature.outputs.inputs,
    )
    assert (input_spec.type, input_spec.shape) == (np.dtype("uint8"), (-1, SIZE, SIZE, 3))
    assert (output_spec.type, output_spec.shape) == (np.dtype("float32"), (-1, len(CLASSES)))
    images = load_images(paths.artifacts / "data")
    indices = images.indices(VALIDATION)
    for count in (1, 7):
        logits = pyfunc_model.predict(images.images_NHWC[indices[:count]])["logits"]
        np.testing.assert_array_equal(logits.argmax(1), images.labels_N[indices[:count]])
    requirements = (folder / "requirements.txt").read_text().split()
    assert all("==" in line for line in requirements)
    assert any(line.startswith("onnxruntime==") for line in requirements)


@pytest.mark.parametrize("report_of", ["this selection", "another"])
def test_the_card_holds_test_metrics_of_this_selection_only(
    paths: ProjectPaths, config: Config, report_of: str
) -> None:
    select = record_digest(paths.artifacts / "select") if report_of == "this selection" else "0" * 64
    figures = {"top1": 0.5, "top1_low": 0.4, "top1_high": 0.6}
    drop = {"points": 1.0, "low": -1.0, "high": 3.0}
    report = make_record(
        "report",
        report_details(winner="quick", baseline="dense-kd", measured_in="ort f32, batches of 1"),
        inputs={"select": select, "refit": record_digest(paths.artifacts / "refit")},
        metrics={
            "test/images": 50.0,
            **{f"test/winner_{key}": value for key, value in figures.items()},
            **{f"test/drop_from_dense-kd_{suffix}": value for suffix, value in drop.items()},
        },
        warnings=("test and validation disagree",),
    )
    write_record(paths.artifacts / "report", report)
    promote(paths, config)
    card = read_json(fetch_version(paths, "champion") / "card.json")
    expected = figures | {f"drop_{suffix}": value for suffix, value in drop.items()}
    expected |= {"images": 50.0, "baseline": "dense-kd", "measured_in": "ort f32, batches of 1"}
    expected |= {"warnings": ["test and validation disagree"], "abstention": {}}
    assert card["test"] == (expected if report_of == "this selection" else {})
    assert card["fastest"]["throughput"] == {"runtime": "ort", "precision": "f32", "threads": 1, "batch": 8}


def test_the_same_file_is_registered_once(paths: ProjectPaths, config: Config) -> None:
    promote(paths, config)
    clear_local_state(paths)
    assert not promotion_state.is_up_to_date(paths, config)
    result = promote(paths, config)
    assert "is the same file" in result.reasons[-1]
    assert len(mlflow_client.connect(paths).search_model_versions(f"name = '{MODEL}'")) == 1
    assert promotion_state.is_up_to_date(paths, config)


def test_a_version_that_a_crash_left_without_alias_is_completed(paths: ProjectPaths, config: Config) -> None:
    folder, selection = paths.artifacts / "candidates" / "quick", SelectionRecord.read(paths.artifacts / "select")
    card = deployment_card.deployment_card(paths, config, selection, "quick", folder)
    model_upload.register(paths, config, folder, card, run_id="0" * 32)
    assert aliases(paths) == {}
    assert promote(paths, config).champion == "1"
    assert aliases(paths) == {"champion": "1", "challenger": "1"}


def test_without_a_winner_nothing_is_registered(paths: ProjectPaths, config: Config) -> None:
    write_next_run(paths, winner=None)
    result = promote(paths, config)
    assert (result.version, result.champion) == (None, None)
    assert "no candidate passes every gate" in result.reasons[-1]
    assert aliases(paths) == {}
    assert promotion_state.is_up_to_date(paths, config)
    with pytest.raises(WinnowError, match="nothing has been promoted yet"):
        fetch_version(paths, "champion")


def test_without_a_winner_the_champion_stays(paths: ProjectPaths, config: Config) -> None:
    promote(paths, config)
    next_config = write_next_run(paths, winner=None)
    assert not promotion_state.is_up_to_date(paths, next_config)
    result = promote(paths, next_config)
    assert (result.version, result.alias, result.champion) == (None, None, "1")
    assert "no candidate passes every gate; version 1 (quick) stays champion of photos" in result.reasons[-1]
    assert aliases(paths) == {"champion": "1", "challenger": "1"}
    assert promotion_state.is_up_to_date(paths, next_config)


@pytest.mark.thorough
def test_a_champion_changed_during_the_measurement_is_not_overwritten(paths: ProjectPaths, config: Config) -> None:
    promote(paths, with_size_objective(write_next_run(paths, quick={"ballast": 400})))
    stale = registered_models.find(paths, MODEL, "champion")
    promote(paths, with_size_objective(write_next_run(paths)))
    promote(paths, with_size_objective(write_next_run(paths, quick={"never_predicted": 1})))
    aliases_before = aliases(paths)
    assert aliases_before == {"champion": "2", "challenger": "3", "previous": "1"}
    challenger = registered_models.find(paths, MODEL, "challenger")
    assert challenger is not None
    with pytest.raises(WinnowError, match="has changed while its challenger was measured"):
        promotion.make_champion(paths, MODEL, challenger, stale)
    assert aliases(paths) == aliases_before
    assert tag(paths, "3", "winnow.champion_since") == ""


def test_a_less_accurate_winner_is_registered_but_not_promoted(paths: ProjectPaths, config: Config) -> None:
    promote(paths, config)
    next_config = with_size_objective(write_next_run(paths, quick={"never_predicted": 1}))
    assert not promotion_state.is_up_to_date(paths, next_config)
    result = promote(paths, next_config)
    assert (result.version, result.alias, result.champion) == ("2", "challenger", "1")
    assert aliases(paths) == {"champion": "1", "challenger": "2"}
    assert "top-1 against the champion: drop 33.3 points" in result.reasons[-1]
    assert "top-1 against the champion: drop 33.3 points" in tag(paths, "2", "winnow.reason")
    assert promotion_state.is_up_to_date(paths, next_config)


def test_a_winner_that_is_not_better_is_not_promoted(paths: ProjectPaths, config: Config) -> None:
    promote(paths, config)
    next_config = with_size_objective(write_next_run(paths, quick={"salt": 3.0}))
    result = promote(paths, next_config)
    assert (result.version, result.champion) == ("2", "1")
    assert "+0.0 %), not 5 % better" in result.reasons[-1]


@pytest.mark.thorough
def test_a_faster_winner_is_promoted_and_rolled_back(paths: ProjectPaths, config: Config) -> None:
    promote(paths, write_next_run(paths, **SLOW))
    next_config = write_next_run(paths, **FAST)
    result = promote(paths, next_config)
    assert (result.version, result.champion) == ("2", "2")
    assert "latency" in result.reasons[-1]
    assert "at least 5 % better" in result.reasons[-1]
    assert aliases(paths) == {"champion": "2", "challenger": "2", "previous": "1"}

    line = rollback(paths, next_config, "wrong on Mondays").reasons[-1]
    assert line.startswith("version 1 (quick) is the champion")
    assert aliases(paths) == {"champion": "1", "challenger": "2"}
    assert "wrong on Mondays" in tag(paths, "2", "winnow.rolled_back")
    assert promotion_state.is_up_to_date(paths, next_config)
    assert "wrong on Mondays" in read_promotion(paths)["reasons"][0]

    repeated = promote(paths, next_config)
    assert (repeated.alias, repeated.champion) == (None, "1")
    assert "wrong on Mondays" in repeated.reasons[-1]
    assert "--replace" in repeated.reasons[-1]
    assert promote(paths, next_config, replace=True).champion == "2"
    assert tag(paths, "2", "winnow.rolled_back") == ""
    assert aliases(paths)["previous"] == "1"


@pytest.mark.thorough
def test_rollback_goes_back_step_by_step(paths: ProjectPaths, config: Config) -> None:
    for ballast in (900, 400, 0):
        config = with_size_objective(write_next_run(paths, quick={"ballast": ballast}))
        promote(paths, config)
    assert aliases(paths) == {"champion": "3", "challenger": "3", "previous": "2"}
    rollback(paths, config, "")
    assert aliases(paths) == {"champion": "2", "challenger": "3", "previous": "1"}
    rollback(paths, config, "")
    assert aliases(paths) == {"champion": "1", "challenger": "3"}
    with pytest.raises(WinnowError, match="no previous champion"):
        rollback(paths, config, "")
    assert aliases(paths)["champion"] == "1"


@pytest.mark.thorough
def test_a_change_that_was_cut_off_between_its_two_aliases_can_be_rolled_back(
    paths: ProjectPaths, config: Config
) -> None:
    for ballast in (900, 400, 0):
        config = with_size_objective(write_next_run(paths, quick={"ballast": ballast}))
        promote(paths, config)
    registered_models.set_alias(paths, MODEL, "champion", "2")  # killed: `previous` was written, `champion` was not
    rollback(paths, config, "")
    assert aliases(paths) == {"champion": "1", "challenger": "3"}


@pytest.mark.thorough
@pytest.mark.parametrize("interrupted", [PREVIOUS, CHAMPION])
def test_a_rollback_that_was_cut_off_between_its_two_aliases_goes_on(
    paths: ProjectPaths, config: Config, monkeypatch: pytest.MonkeyPatch, interrupted: str
) -> None:
    for ballast in (900, 400, 0):
        config = with_size_objective(write_next_run(paths, quick={"ballast": ballast}))
        promote(paths, config)
    for expected in ({"champion": "2", "challenger": "3", "previous": "1"}, {"champion": "1", "challenger": "3"}):
        with monkeypatch.context() as patch:
            patch.setattr(registered_models, "set_alias", interrupt_at(interrupted))
            with pytest.raises(KeyboardInterrupt):
                rollback(paths, config, "")
        rollback(paths, config, "")
        assert aliases(paths) == expected
        assert [number for number in "123" if tag(paths, number, ROLLED_BACK_TAG)] == [
            number for number in "123" if number > expected["champion"]
        ]
    with pytest.raises(WinnowError, match="no previous champion"):
        rollback(paths, config, "")


def interrupt_at(interrupted: str) -> Callable[[ProjectPaths, str, str, str | None], None]:
    """Return a `set_alias` that is interrupted before it changes this alias."""
    original = registered_models.set_alias

    def set_alias(paths: ProjectPaths, model: str, alias: str, number: str | None) -> None:
        if alias == interrupted:
            raise KeyboardInterrupt
        original(paths, model, alias, number)

    return set_alias


def read_description(paths: ProjectPaths, number: str) -> str:
    return str(mlflow_client.connect(paths).get_model_version(MODEL, number).description)


def test_a_description_keeps_its_beginning_and_its_last_lines_within_mlflows_limit(
    paths: ProjectPaths, config: Config
) -> None:
    promote(paths, config)
    beginning = read_description(paths, "1").partition("\n- ")[0]
    version = registered_models.get(paths, MODEL, "1")
    for number in range(9):
        registered_models.annotate(paths, MODEL, version, {}, f"line {number} {'x' * 6000}")
        assert len(read_description(paths, "1")) <= registered_models.DESCRIPTION_LENGTH
    first, *lines = read_description(paths, "1").split("\n- ")
    assert first == beginning
    assert [line[:6] for line in lines] == ["line 5", "line 6", "line 7", "line 8"]
    mlflow_client.connect(paths).update_model_version(MODEL, "1", "y" * 5000)  # as a user may write it
    registered_models.annotate(paths, MODEL, version, {}, "the last")
    assert len(read_description(paths, "1")) == registered_models.DESCRIPTION_LENGTH
    assert read_description(paths, "1").endswith("y\n- the last")


def test_a_rollback_needs_no_description(
    paths: ProjectPaths, config: Config, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for ballast in (400, 0):
        config = with_size_objective(write_next_run(paths, quick={"ballast": ballast}))
        promote(paths, config)

    def refuse(*_: Any) -> None:
        raise MlflowException("value too long for type character varying(5000)")

    monkeypatch.setattr(MlflowClient, "update_model_version", refuse)
    assert rollback(paths, config, "wrong on Mondays").champion == "1"
    assert aliases(paths) == {"champion": "1", "challenger": "2"}
    assert "wrong on Mondays" in tag(paths, "2", ROLLED_BACK_TAG)
    assert "value too long" in caplog.text


@pytest.mark.thorough
def test_who_changes_what_serves_waits_for_another_who_does(paths: ProjectPaths, config: Config) -> None:
    promote(paths, write_next_run(paths, **SLOW))
    next_config = write_next_run(paths, **FAST)
    promote(paths, next_config)
    reasons: list[str] = []
    with run_lock.lock_registry(paths):
        child = Thread(target=lambda: reasons.append(rollback(paths, next_config, "").reasons[-1]))
        child.start()
        child.join(1)
        assert child.is_alive()
        assert aliases(paths)["champion"] == "2"
    child.join(60)
    assert reasons
    assert aliases(paths)["champion"] == "1"


def test_promotion_after_the_store_was_emptied(paths: ProjectPaths, config: Config) -> None:
    """The run ids that this checkout has saved no longer exist."""
    tracked_runs.track(paths, config)
    assert tracked_runs.candidate_run(paths, config, "quick") is not None
    client = mlflow_client.connect(paths)
    for run in client.search_runs([mlflow_client.experiment_id(paths, config)]):
        client.delete_run(run.info.run_id)
    assert tracked_runs.candidate_run(paths, config, "quick") is None
    assert tracked_runs.last_execution(paths, config) is None
    assert promote(paths, config).champion == "1"
    run = client.get_run(client.get_model_version(MODEL, "1").run_id)
    assert (run.info.lifecycle_stage, run.data.tags["winnow.name"]) == ("active", "quick")
    assert run.info.run_id == tracked_runs.candidate_run(paths, config, "quick")


def test_a_registration_that_was_cut_off_leaves_no_pending_model(paths: ProjectPaths, config: Config) -> None:
    client, sha256 = mlflow_client.connect(paths), sha256_of(paths.artifacts / "candidates" / "quick" / "model.onnx")
    pending_model = client.create_logged_model(
        mlflow_client.experiment_id(paths, config),
        "quick",
        None,
        {"winnow.sha256": sha256},
        {},
        model_type="image-classifier",
    )
    promote(paths, config)
    assert str(client.get_logged_model(pending_model.model_id).status) == "FAILED"


def test_rollback_without_a_champion_is_an_error(paths: ProjectPaths, config: Config) -> None:
    with pytest.raises(WinnowError, match="has no champion, so there is nothing"):
        rollback(paths, config, "")


def test_an_incomparable_champion_is_replaced_only_on_request(paths: ProjectPaths, config: Config) -> None:
    promote(paths, write_next_run(paths, **SLOW))
    card = fetch_version(paths, "champion") / "card.json"
    write_json(card, read_json(card) | {"classes": ["cat", "dog", "cow"]})
    registered_models.annotate(
        paths, MODEL, registered_models.get(paths, MODEL, "1"), {"winnow.card_sha256": sha256_of(card)}
    )
    config = write_next_run(paths, **FAST)
    result = promote(paths, config)
    assert (result.version, result.champion) == ("2", "1")
    assert "its classes are cat, dog, cow" in result.reasons[-1]
    assert "--replace" in result.reasons[-1]
    result = promote(paths, config, replace=True)
    assert (result.version, result.champion) == ("2", "2")
    assert "without a comparison" in tag(paths, "2", "winnow.reason")
    assert aliases(paths)["previous"] == "1"


def test_files_changed_since_the_selection_are_refused(paths: ProjectPaths, config: Config) -> None:
    model = paths.artifacts / "candidates" / "quick" / "model.onnx"
    model.write_bytes(model.read_bytes() + b" ")
    with pytest.raises(ArtifactError, match="does not match its record"):
        promote(paths, config)
    assert aliases(paths) == {}


def test_fetching_names_a_missing_version_and_repairs_its_copy(paths: ProjectPaths, config: Config) -> None:
    promote(paths, config)
    with pytest.raises(WinnowError, match="no version or alias '7'"):
        fetch_version(paths, "7")
    with pytest.raises(WinnowError, match="no version or alias 'previous'"):
        fetch_version(paths, "previous")
    folder = fetch_version(paths, "1")
    assert folder == fetch_version(paths, "champion")
    content = (folder / "model.onnx").read_bytes()
    (folder / "model.onnx").write_bytes(content[:-1])
    assert (fetch_version(paths, "champion") / "model.onnx").read_bytes() == content
    assert [path.name for path in folder.parent.iterdir()] == ["1"]


def rename_class(card: Path) -> None:
    card.write_text(card.read_text().replace(CLASSES[0], "something else"))


@pytest.mark.parametrize("is_old", [False, True])
def test_a_card_that_was_changed_is_fetched_anew(paths: ProjectPaths, config: Config, is_old: bool) -> None:
    promote(paths, config)
    if is_old:  # registered before cards had digests
        mlflow_client.connect(paths).delete_model_version_tag(MODEL, "1", CARD_SHA256_TAG)
    card = fetch_version(paths, "champion") / "card.json"
    content = card.read_bytes()
    rename_class(card)
    assert card.read_bytes() != content
    assert (fetch_version(paths, "champion") / "card.json").read_bytes() == content


def test_a_card_that_was_changed_in_the_store_is_refused(paths: ProjectPaths, config: Config) -> None:
    promote(paths, config)
    for card in paths.mlflow_artifacts.rglob("card.json"):
        rename_class(card)
    with pytest.raises(ArtifactError, match=r"the card\.json of version 1 .* is not the one that was registered"):
        fetch_version(paths, "champion")


def test_the_promotion_state_is_for_this_address_and_store_only(
    paths: ProjectPaths, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    promote(paths, config)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert not promotion_state.is_up_to_date(paths, config)
    with pytest.raises(mlflow_client.StoreError, match="winnow promote"):
        promote(paths, config)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", paths.mlflow_store)
    assert promotion_state.is_up_to_date(paths, config)
    (paths.state_dir / "mlflow" / "mlflow.db").unlink()
    assert not promotion_state.is_up_to_date(paths, config)


def test_only_commands_on_results_say_how_to_send_them(
    paths: ProjectPaths, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    weights = config.model_copy(
        update={"pretrain": config.pretrain.model_copy(update={"start": "models:/flowers@best"})}
    )
    calls: list[tuple[Callable[[], object], str]] = [
        (lambda: promote(paths, config), mlflow_client.RESUME_HINT),
        (lambda: tracked_runs.track(paths, config), mlflow_client.RESUME_HINT),
        (lambda: approval_decision.decide(paths, config, True, "Ann", "", None), mlflow_client.AGAIN_HINT),
        (lambda: approval_decision.pending_approval(paths, config), mlflow_client.AGAIN_HINT),
        (lambda: rollback(paths, config, ""), mlflow_client.AGAIN_HINT),
        (lambda: registered_models.find(paths, MODEL, "champion"), mlflow_client.AGAIN_HINT),
        (lambda: fetch_weights(paths, weights), mlflow_client.AGAIN_HINT),
    ]
    for call, hint in calls:
        with pytest.raises(mlflow_client.StoreError) as exc_info:
            call()
        assert str(exc_info.value).endswith(hint)


NO_DROP = Drop(0.0, -0.5, 0.5)
UNCERTAIN = Drop(9.0, 8.0, 10.0)
"""Interval that is too wide to show anything."""


def top1_drop(points: float, low: float, high: float) -> DropReport:
    """Return a drop of top-1 without a drop of macro F1."""
    return DropReport(DropEvidence(Drop(points, low, high), UNCERTAIN), DropEvidence(NO_DROP, UNCERTAIN))


def unlabelled_drop(points: float) -> DropReport:
    """Return a report in which this share of predictions differs and no image has a label."""
    return DropReport(DropEvidence(None, Drop(points, points - 0.3, points + 0.3)), DropEvidence(None, NO_DROP))


EQUAL = top1_drop(0.0, -0.5, 0.5)
LOST_RARE_CLASS = DropReport(DropEvidence(NO_DROP, UNCERTAIN), DropEvidence(Drop(3.0, 1.0, 5.0), UNCERTAIN))
"""A rare class is no longer recognised."""


def make_contest(
    losses: DropReport,
    champion: float | None,
    challenger: float | None,
    interval_factor: float = 1.0,
    is_rate: bool = False,
) -> ContestResult:
    """Return a contest of times, or of images/s with `is_rate`; `interval_factor` scales both ends of the interval."""
    if champion is None or challenger is None:
        return ContestResult(losses, champion, challenger, None)
    ratio = challenger / champion if is_rate else champion / challenger
    return ContestResult(losses, champion, challenger, Ratio(ratio, ratio / interval_factor, ratio * interval_factor))


@pytest.mark.parametrize(
    ("result", "objective", "passed", "expected"),
    [
        (
            make_contest(EQUAL, 1.0, 0.90),
            "latency",
            True,
            "+10.0 to +10.0 %), at least 5 % better",
        ),
        (
            make_contest(EQUAL, 1.0, 0.90, 1.07),
            "latency",
            False,
            "+3.7 to +15.9 %), not shown to be 5 %",
        ),
        (make_contest(EQUAL, 1.0, 0.96), "latency", False, "+4.0 to +4.0 %), not 5 % better"),
        (
            make_contest(EQUAL, 1000.0, 1100.0, is_rate=True),
            "throughput",
            True,
            "1100 images/s against 1000 (+10.0 %, 95 %",
        ),
        (make_contest(EQUAL, 1000.0, 900.0, is_rate=True), "throughput", False, "-10.0 to -10.0 %), not 5 % better"),
        (make_contest(EQUAL, 2.0, 1.0), "size", True, "size 1 MB against 2 (+50.0 %)"),
        (make_contest(top1_drop(1.1, 0.2, 1.9), 1.0, 0.1), "latency", False, "exceeds 1"),
        (make_contest(top1_drop(0.5, -1.1, 2.1), 1.0, 0.1), "latency", False, "top-1 against the champion: not shown"),
        (make_contest(top1_drop(1.0, 0.0, 2.0), 1.0, 0.1), "latency", True, "top-1 -1.0 points (-2.0 to +0.0)"),
        (make_contest(top1_drop(-2.0, -3.0, -1.0), 1.0, 3.0), "latency", True, "which is shown to be better"),
        (make_contest(top1_drop(-2.0, -4.0, 0.0), 1.0, 3.0), "latency", False, "not shown to be more accurate"),
        (make_contest(top1_drop(-2.0, -3.0, -1.0), None, 3.0), "latency", True, "the champion has no times"),
        (make_contest(EQUAL, 1.0, None), "latency", False, "the challenger has no times"),
        (
            make_contest(LOST_RARE_CLASS, 1.0, 0.1),
            "latency",
            False,
            "macro F1 against the champion: macro F1 drop 3.0 points",
        ),
        (make_contest(unlabelled_drop(1.2), 1.0, 0.1), "latency", False, "predictions differ on 1.2 % of the images"),
        (
            make_contest(unlabelled_drop(0.8), 1.0, 0.1),
            "latency",
            True,
            "0.8 % of the validation images get another prediction",
        ),
        (make_contest(unlabelled_drop(0.8), 1.0, 1.0), "latency", False, "not 5 % better"),
    ],
)
def test_judgement_of_a_challenge(result: ContestResult, objective: str, passed: bool, expected: str) -> None:
    verdict, reason = judge_challenge(result, Promotion(objective=objective))
    assert verdict is passed, reason
    assert expected in reason


def test_target_measurements_changed_since_the_selection_are_refused(paths: ProjectPaths, config: Config) -> None:
    write_json(paths.root / "target.json", {})
    changed_config = config.model_copy(
        update={"benchmark": config.benchmark.model_copy(update={"target": "target.json"})}
    )
    with pytest.raises(ArtifactError, match=r"benchmark\.target has changed since the selection; run winnow again"):
        promote(paths, changed_config)
    assert aliases(paths) == {}


def test_no_gain_is_not_promoted_even_with_min_gain_zero() -> None:
    assert not judge_challenge(make_contest(EQUAL, 1.0, 1.0), Promotion(min_gain=0))[0]
    assert judge_challenge(make_contest(EQUAL, 1.0, 0.99), Promotion(min_gain=0))[0]


def test_comparability_of_two_cards() -> None:
    card = records.deployment_card(image_size=32)
    assert find_difference(card, records.deployment_card(image_size=32)) == ""
    assert "32 pixels, the challenger 64" in find_difference(card, card.model_copy(update={"image_size": 64}))
    assert "b, a" in find_difference(card, card.model_copy(update={"classes": ["b", "a"]}))


def card_with_serving(**settings: Any) -> DeploymentCard:
    """Return a card of this machine with these serving settings."""
    return records.deployment_card(serving=dict(records.deployment_card().serving) | settings)


def test_the_runtime_of_another_machine_objective_or_batch_is_not_used(config: Config) -> None:
    machine = this_machine()
    card = card_with_serving(runtime="openvino")
    (case,) = benchmark_cases(card, config, machine)
    assert (case.runtime, case.precision, case.threads, case.batch) == ("openvino", "f32", 1, 1)
    other_machine = machine.model_copy(update={"cpu": "another"})
    for cases in (
        benchmark_cases(card, config, other_machine),
        benchmark_cases(card_with_serving(runtime="openvino", objective="throughput"), config, machine),
        benchmark_cases(card_with_serving(runtime="openvino", batch=64), config, machine),
    ):
        assert {(case.runtime, case.layout, case.batch) for case in cases} == {
            ("ort", "file", 1),
            ("openvino", "file", 1),
        }


def test_openvino_is_timed_in_both_modes(config: Config) -> None:
    config = config.model_copy(update={"promotion": config.promotion.model_copy(update={"objective": "throughput"})})
    machine, batch = this_machine(), config.benchmark.large_batch
    for runtime, expected in (
        ("openvino", ["openvino", "openvino-throughput"]),
        ("openvino-throughput", ["openvino", "openvino-throughput"]),
        ("ort", ["ort"]),
    ):
        card = card_with_serving(runtime=runtime, threads=2, batch=batch, objective="throughput")
        assert [case.runtime for case in benchmark_cases(card, config, machine)] == expected


def test_a_card_of_another_machine_can_be_compared(paths: ProjectPaths, config: Config) -> None:
    folder, other_machine = paths.artifacts / "candidates", this_machine().model_copy(update={"cpu": "another"})
    card = records.deployment_card(machine=other_machine)
    contest = measure_contest(config, paths.artifacts / "data", (folder / "quick", card), (folder / "wrong", card))
    assert contest.champion is not None
    assert contest.challenger is not None
    assert 0 < contest.champion < 50
    top1_evidence = contest.losses.top1
    assert top1_evidence.labelled is not None
    assert top1_evidence.labelled.points == top1_evidence.answers.points == pytest.approx(100 / 3)


def test_a_champion_without_its_runtime_is_evaluated_as_a_file(paths: ProjectPaths, config: Config) -> None:
    folder = paths.artifacts / "candidates"
    available, unavailable = (
        card_with_serving(objective="size"),
        card_with_serving(objective="size", runtime="ort-cuda"),
    )
    policy = config.promotion.model_copy(update={"objective": "size"})
    size_config = config.model_copy(update={"promotion": policy})
    contest = measure_contest(
        size_config, paths.artifacts / "data", (folder / "quick", unavailable), (folder / "quick", available)
    )
    _, reason = judge_challenge(contest, policy)
    assert "the champion was evaluated in ONNX Runtime, as ort-cuda f32 (this ONNX Runtime has no CUDA" in reason
    assert "the challenger answered" not in reason


def test_the_registered_model_is_named_after_the_data(config: Config) -> None:
    assert registered_model_name(config) == MODEL
