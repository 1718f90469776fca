from __future__ import annotations

import dataclasses
import itertools
import math
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks.project.state_files import CONFIRMATIONS
from tests.conftest import params_without_control, tiny_params
from tests.records import benchmark_row, make_record, selection_details, serving_speeds
from winnow.benchmark.energy import measure_joules
from winnow.cli.search import check_names
from winnow.cli.search_front import front_rows
from winnow.cli.search_results import describe_verdict, runtime_note, write_files
from winnow.config import Config, check_config
from winnow.data.dataset import VALIDATION, load_images
from winnow.data.splits import selection_half
from winnow.deploy.inference_runtimes import OPENERS
from winnow.errors import ArtifactError, ConfigError
from winnow.evaluation.metrics import VALIDATION_LOGITS, load_logits
from winnow.records import CandidateRecord, read_json, read_record, write_record
from winnow.records.benchmark import BestRows
from winnow.reporting.exploration_plots import SearchPoint
from winnow.reporting.search_page import format_interval
from winnow.search import trial as module
from winnow.search.cost import CostMeasurer, describe_cost, seconds_per_image
from winnow.search.loop import SearchProgress, describe_point
from winnow.search.optuna_study import EndedTrial
from winnow.search.space import Point
from winnow.search.trial import (
    EarlierTrial,
    SearchContext,
    TrialPruned,
    candidates_folder,
    evaluate_chain,
    load_trial_logits,
    run_point,
)
from winnow.search.trial_accuracy import points_lost, reference_logits
from winnow.steps.compress import CandidateFolders


def make_config(**changes: Any) -> Config:
    settings = {"epochs": 4, "min_steps": 1, "batch_size": 32, "runtime": "ort"}
    return check_config(params_without_control() | {"search": {**settings, **changes}})


@pytest.fixture
def context(tiny_dense: Path, tiny_data: Path, tmp_path: Path) -> SearchContext:
    folders = CandidateFolders(
        tiny_data, tiny_dense.parent.parent / "pretrain", tiny_dense.parent, tmp_path / "scratch"
    )
    return SearchContext(make_config(), folders, tmp_path / "trials")


@pytest.fixture
def measurer(tiny_dense: Path) -> CostMeasurer:
    return CostMeasurer(make_config(), tiny_dense, 16)


@pytest.mark.thorough
def test_a_trial_writes_candidates_and_metrics(
    context: SearchContext, measurer: CostMeasurer, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages: list[str] = []
    monkeypatch.setattr(module.log, "info", lambda text, *arguments: messages.append(text % arguments))
    evaluation, short_evaluation = evaluate_chain(context, 3, Point("prune", 0.4, "none", int8=True), [], measurer)
    assert evaluation.names == ("found", "found-int8")
    assert short_evaluation is not None
    assert messages == ["short evaluation: 1 of 4 epochs", "continuing with all 4 epochs"]
    trial_folder = context.trials / "0003"
    for epochs in (1, 4):
        for name in evaluation.names:
            assert read_record(trial_folder / f"epochs-{epochs}" / "candidates" / name).name == name
    assert not list(trial_folder.glob("*/scratch"))
    record = CandidateRecord.read(trial_folder / "epochs-4" / "candidates" / "found-int8")
    assert evaluation.metrics == record.metrics
    images = load_images(context.folders.data)
    logits_VC = load_trial_logits(context, 3, images)
    np.testing.assert_array_equal(
        logits_VC.argmax(1), load_logits(trial_folder / "epochs-4/candidates/found-int8", images).argmax(1)
    )
    drop = points_lost(reference_logits(context.references, images), logits_VC, images, selection_half(images))
    assert (evaluation.drop, evaluation.high) == (drop.points, drop.high)
    assert record.details.lineage == ["dense", "found", "found-int8"]
    assert evaluation.cost > 0
    # Existing candidates are not computed again.
    mtime = (trial_folder / "epochs-4" / "candidates" / "found" / "record.json").stat().st_mtime_ns
    evaluate_chain(context, 3, Point("prune", 0.4, "none", int8=True), [], measurer)
    assert (trial_folder / "epochs-4" / "candidates" / "found" / "record.json").stat().st_mtime_ns == mtime


@pytest.mark.thorough
def test_a_dominated_trial_is_pruned_after_the_short_evaluation(context: SearchContext, measurer: CostMeasurer) -> None:
    better = [EarlierTrial("student", drop=-500.0, cost=0.0)]
    with pytest.raises(
        TrialPruned, match=r"points lost after 1 epochs; .* that were faster and more accurate then: 1"
    ) as exc_info:
        evaluate_chain(context, 0, Point("student", 1.0, "none", width=0.5), better, measurer)
    assert exc_info.value.evaluation.names == ("found",)
    assert not (context.trials / "0000" / "epochs-4").exists()
    # A trial that is faster but worse, better but slower, or of another structure does not prune.
    for earlier in (
        EarlierTrial("student", drop=500.0, cost=0.0),
        EarlierTrial("student", drop=-500.0, cost=1e9),
        EarlierTrial("prune", drop=-500.0, cost=0.0),
    ):
        evaluation, _ = evaluate_chain(context, 0, Point("student", 1.0, "none", width=0.5), [earlier], measurer)
        assert evaluation.drop < 500


def test_measurements_of_another_machine_are_refused(context: SearchContext) -> None:
    other_context = dataclasses.replace(context, machine="another processor, 4 threads")
    with pytest.raises(ConfigError, match="are measured on another processor, 4 threads; this is"):
        run_point(other_context, 0, Point("student", 1.0, "none", width=0.5), [], 1.0)
    assert not (context.trials / "0000").exists()


def test_points_lost_are_relative_to_the_stronger_reference(
    context: SearchContext, tiny_dense: Path, tiny_data: Path
) -> None:
    images = load_images(tiny_data)
    labels_V = images.labels_N[images.indices(VALIDATION)]
    candidates = context.trials.parent / "candidates"
    for name, wrong_count in (("dense", 2), ("dense-kd", 1)):
        predictions_V = labels_V.copy()
        predictions_V[:wrong_count] = (predictions_V[:wrong_count] + 1) % len(images.classes)
        np.save(
            shutil.copytree(tiny_dense, candidates / name) / VALIDATION_LOGITS,
            np.eye(len(images.classes), dtype=np.float32)[predictions_V],
        )
    with_control = dataclasses.replace(
        context, folders=dataclasses.replace(context.folders, candidates=candidates), config=check_config(tiny_params())
    )
    one_image_points = 100 / len(labels_V)
    all_V, dense_logits_VC = np.ones(len(labels_V), bool), load_logits(candidates / "dense", images)
    assert points_lost(
        reference_logits(with_control.references, images), dense_logits_VC, images, all_V
    ).points == pytest.approx(one_image_points)
    with_control = dataclasses.replace(
        with_control, config=context.config
    )  # its folder remains although it is not in the tree
    assert points_lost(reference_logits(with_control.references, images), dense_logits_VC, images, all_V).points == 0


@pytest.mark.thorough
def test_a_runtime_with_other_predictions_is_not_timed(
    measurer: CostMeasurer, tiny_dense: Path, tiny_data: Path, tmp_path: Path
) -> None:
    other_folder = shutil.copytree(tiny_dense, tmp_path / "other")
    np.save(other_folder / VALIDATION_LOGITS, np.roll(np.load(tiny_dense / VALIDATION_LOGITS), 1, axis=1))
    with pytest.raises(ArtifactError, match=r"ort f32 agrees with the file in ONNX Runtime on 0\.0% of .* images"):
        measurer.check_answers(other_folder, "f32", load_images(tiny_data))
    measurer.check_answers(tiny_dense, "f32", load_images(tiny_data))


@pytest.mark.thorough
def test_int8_and_float_points_share_the_float_network(context: SearchContext, measurer: CostMeasurer) -> None:
    evaluate_chain(context, 1, Point("prune", 0.4, "none", int8=True), [], measurer)
    evaluation, _ = evaluate_chain(context, 2, Point("prune", 0.4, "none"), [], measurer)
    int8_parent, float_network = (candidates_folder(context, number, 4) / "found" for number in (1, 2))
    assert int8_parent.resolve() == float_network.resolve()
    assert evaluation.metrics == read_record(int8_parent).metrics
    moved_context = dataclasses.replace(context, trials=context.trials.rename(context.trials.with_name("moved")))
    assert read_record(candidates_folder(moved_context, 2, 4) / "found").metrics == evaluation.metrics


@pytest.mark.thorough
def test_a_chosen_trial_off_the_front_is_not_on_its_line(
    context: SearchContext, measurer: CostMeasurer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    point = Point("student", 1.0, "none", width=0.5)
    evaluation, _ = evaluate_chain(context, 0, point, [], measurer)
    dominated = dataclasses.replace(evaluation, drop=evaluation.drop + 1, cost=evaluation.cost * 2)
    trials = [
        EndedTrial(number, 0, point, "finished", item, "", 1.0) for number, item in enumerate((evaluation, dominated))
    ]
    chosen_evaluation = trials[1].finished_point
    monkeypatch.setattr("winnow.cli.search_front.cheapest_fitting", lambda *_: chosen_evaluation)
    failed = EndedTrial(2, 2, point, "impossible", None, "no <channel> can go", 1.0)
    progress = SearchProgress([*trials, failed], 2.0, evaluation.cost, {})
    context = dataclasses.replace(context, config=make_config(max_drop_points=100.0))
    rows = front_rows(progress, context)
    assert [(row.number, row.marks) for row in rows] == [(0, ()), (1, ("chosen",))]
    plotted_points: list[SearchPoint] = []
    monkeypatch.setattr(
        "winnow.cli.search_results.plot_search", lambda points, *_: plotted_points.extend(points) or b""
    )
    write_files(tmp_path, progress, rows, context, "Trial 1.")
    assert [item.on_front for item in plotted_points] == [True, False]
    html = (tmp_path / "report.html").read_text()
    assert "Every trial" in html
    assert html.count(describe_point(point)) == 5  # two in the rows of the front, three in the list
    assert "impossible: no &lt;channel&gt; can go" in html
    assert [item["on_front"] for item in read_json(tmp_path / "search.json")["trials"]] == [True, False, False]


def test_a_winner_on_another_runtime_is_noted(tmp_path: Path) -> None:
    def note_for(name: str | None, **changes: Any) -> str:
        best = {
            "dense": BestRows(latency=benchmark_row("dense", "ort"), throughput=None),
            "pruned": BestRows(latency=benchmark_row("pruned", "openvino"), throughput=None),
        }
        details = selection_details(winner=name, speeds=serving_speeds(best=best))
        (tmp_path / "select").mkdir(exist_ok=True)
        write_record(tmp_path / "select", make_record("select", details))
        return runtime_note(tmp_path, make_config(**changes))

    assert "pruned was fastest on OpenVINO, while this search measures on ONNX Runtime" in note_for("pruned")
    assert note_for(None) == ""  # dense is fastest on the runtime of the search
    assert "dense was fastest on ONNX Runtime" in note_for(None, runtime="openvino")
    assert note_for("pruned", objective="size") == ""
    (tmp_path / "select" / "record.json").write_text("{")
    assert runtime_note(tmp_path, make_config()) == ""


@pytest.mark.thorough
def test_pruning_considers_the_interval_of_few_images(context: SearchContext, measurer: CostMeasurer) -> None:
    point = Point("student", 1.0, "none", width=0.5)
    _, short_evaluation = evaluate_chain(context, 0, point, [], measurer)
    assert short_evaluation is not None
    margin = short_evaluation.high - short_evaluation.drop
    assert margin > 1  # one of these few images is more than a point
    evaluate_chain(
        context, 1, point, [EarlierTrial(point.structure, short_evaluation.drop - 0.9 * margin, 0.0)], measurer
    )
    with pytest.raises(TrialPruned):
        evaluate_chain(
            context, 2, point, [EarlierTrial(point.structure, short_evaluation.drop - 1.1 * margin, 0.0)], measurer
        )


def write_wrong_logits(context: SearchContext, number: int, half: str) -> None:
    """Write logits of a trial that are always wrong on the selecting half, or on the confirming one."""
    images = load_images(context.folders.data)
    is_selecting_V = selection_half(images)
    is_wrong_V = is_selecting_V if half == "chooses" else ~is_selecting_V
    path = candidates_folder(context, number, 4).parent / "answers.npy"
    logits_VC, labels_V = (
        reference_logits(context.references, images).copy(),
        images.labels_N[images.indices(VALIDATION)],
    )
    logits_VC[is_wrong_V] = np.eye(len(images.classes), dtype=np.float32)[
        (labels_V[is_wrong_V] + 1) % len(images.classes)
    ]
    np.save(path, logits_VC)


@pytest.mark.thorough
def test_an_unconfirmed_choice_is_not_replaced_by_the_next(context: SearchContext, measurer: CostMeasurer) -> None:
    point = Point("student", 1.0, "none", width=0.5)
    trials = []
    for number in (0, 1):
        evaluation, _ = evaluate_chain(context, number, point, [], measurer)
        write_wrong_logits(context, number, "confirms" if number == 0 else "neither")
        cheap_evaluation = dataclasses.replace(evaluation, drop=1.0 - number, cost=1.0 + number)
        trials.append(EndedTrial(number, number, point, "finished", cheap_evaluation, "", 1.0))
    np.save(
        candidates_folder(context, 1, 4).parent / "answers.npy",
        reference_logits(context.references, load_images(context.folders.data)),
    )
    tolerant_context = dataclasses.replace(context, config=make_config(max_drop_points=10.0))
    progress = SearchProgress(trials, 1.0, 9.0, {})
    rows = front_rows(progress, tolerant_context)
    assert [row.marks for row in rows] == [("not confirmed",), ()]
    assert not any(row.chosen for row in rows)
    text = describe_verdict(rows, progress, make_config())
    assert "Trial 0 (student at width 0.5) was selected, but the confirming half of validation does not" in text
    assert "exceeds 10. No other trial is selected instead" in text
    # A resumed search that chooses another trial widens its interval, since one was checked before.
    write_wrong_logits(context, 0, "chooses")
    rows = front_rows(progress, tolerant_context)
    assert CONFIRMATIONS.read_at(context.trials.parent / "confirmations.json") == [0, 1]
    assert rows[-1].drop.confidence == pytest.approx(0.975)
    assert rows[-1].marks in (("chosen",), ("not confirmed",))


@pytest.mark.thorough
def test_a_trial_is_evaluated_in_the_runtime_of_its_cost(
    context: SearchContext, measurer: CostMeasurer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def open_constant_model(folder: Path, _case: Any) -> Any:
        return lambda pixels: np.eye(3, dtype=np.float32)[np.zeros(len(pixels), int)]

    monkeypatch.setitem(OPENERS, "ort", open_constant_model)
    monkeypatch.setattr(CostMeasurer, "check_answers", lambda *_: None)
    evaluation, _ = evaluate_chain(context, 0, Point("student", 1.0, "none", width=0.5), [], measurer)
    assert load_trial_logits(context, 0, load_images(context.folders.data)).argmax(1).max() == 0
    images = load_images(context.folders.data)
    labels = images.labels_N[images.indices(VALIDATION)][selection_half(images)]
    reference_predictions = reference_logits(context.references, images)[selection_half(images)].argmax(1)
    assert evaluation.drop == pytest.approx(((reference_predictions == labels).mean() - (labels == 0).mean()) * 100)


@pytest.mark.thorough
def test_costs_are_relative_to_the_first_cost_of_dense(
    tiny_dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    larger = shutil.copytree(tiny_dense, tmp_path / "larger")
    (larger / "model.onnx").write_bytes((tiny_dense / "model.onnx").read_bytes() + bytes(1_000_000))
    size = CostMeasurer(make_config(objective="size"), tiny_dense, 16)
    assert size.cost(larger, "f32") == pytest.approx(size.dense_cost + 1.0)  # MB
    for objective, runtime in (("latency", "ort"), ("throughput", "ort"), ("throughput", "openvino-throughput")):
        measurer = CostMeasurer(make_config(objective=objective, runtime=runtime), tiny_dense, 16)
        assert 0 < measurer.cost(tiny_dense, "f32") < math.inf  # the value depends on the load of the machine
    timings = iter(
        [([4.0] * 5, [4.0] * 5), ([2.0] * 5, [8.0] * 5)] * 2
    )  # ms per call of the file and of dense, on a machine that becomes slower
    monkeypatch.setattr("winnow.search.cost.time_pair", lambda *_: next(timings))
    for objective, dense_cost in (("latency", 4.0), ("throughput", 4.0 / 1e3 / 8)):  # ms, seconds an image
        measurer = CostMeasurer(make_config(objective=objective), tiny_dense, 16)
        assert measurer.dense_cost == pytest.approx(dense_cost)
        assert measurer.cost(tiny_dense, "f32") == pytest.approx(dense_cost / 4)


@pytest.mark.thorough
def test_energy_is_per_image(tiny_dense: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(step=0.25)
    readings = iter([0.0, 0.009, 0.003, 0.003, 0.009, 0.009, 0.003])  # J of three calls, of the file and of dense
    monkeypatch.setattr("winnow.search.cost.time.perf_counter", lambda: next(clock))
    monkeypatch.setattr("winnow.search.cost.wait_until_idle", lambda: True)
    monkeypatch.setattr("winnow.search.cost.measure_joules", lambda function: (function(), next(readings))[1])
    measurer = CostMeasurer(make_config(objective="energy"), tiny_dense, 16, dense_cost=5.0)
    assert measurer.cost(tiny_dense, "f32") == pytest.approx(15.0)  # mJ: 3 against 1, as if dense took 5


def test_batches_that_cannot_be_split_over_streams_are_refused(tiny_dense: Path) -> None:
    config_of_7 = check_config(
        tiny_params() | {"search": {"objective": "throughput", "runtime": "openvino-throughput"}}
    )
    config_of_7 = config_of_7.model_copy(
        update={"benchmark": config_of_7.benchmark.model_copy(update={"large_batch": 7})}
    )
    with pytest.raises(ConfigError, match=r"batches of 7 cannot be split over streams on .* threads: set"):
        CostMeasurer(config_of_7, tiny_dense, 16)
    assert describe_cost(make_config().search, 0.1234) == "0.123 ms"
    assert describe_cost(make_config(objective="throughput").search, 0.001) == "1,000 images/s"


@pytest.mark.thorough
def test_only_times_have_a_share_of_the_peak(tiny_dense: Path) -> None:
    latency_search, size_search = make_config().search, make_config(objective="size").search
    assert seconds_per_image(latency_search, 2.0) == 0.002
    assert seconds_per_image(make_config(objective="throughput").search, 0.001) == 0.001
    assert seconds_per_image(size_search, 2.0) is None
    assert CostMeasurer(make_config(), tiny_dense, 16).peaks()["f32"] > 0
    assert CostMeasurer(make_config(objective="size"), tiny_dense, 16).peaks() == {}


@pytest.mark.parametrize(
    ("name", "add", "message"),
    [
        ("/tmp/x", "", "--name '/tmp/x': not a valid name"),
        ("..", "", "--name '..': not a valid name"),
        ("mine", "My_Net", "--add 'My_Net': not a valid name"),
        ("mine", "dense", "--add dense: dense, dense-int8 exists already"),
        ("mine", "pruned", "--add pruned: pruned, pruned-int8 exists already"),
    ],
)
def test_names_are_checked_before_the_search(name: str, add: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        check_names(make_config(), name, add)
    check_names(make_config(), "mine", "found")


def test_energy_is_read_from_rapl_counters(tmp_path: Path, tiny_dense: Path) -> None:
    package = tmp_path / "intel-rapl:0"
    (package / "intel-rapl:0:0").mkdir(parents=True)  # a part of the package
    counter = package / "energy_uj"
    counter.write_text("1000000\n")
    (package / "max_energy_range_uj").write_text("5000000")
    assert measure_joules(lambda: counter.write_text("3500000"), tmp_path) == pytest.approx(2.5)
    assert measure_joules(lambda: counter.write_text("500000"), tmp_path) == pytest.approx(
        2.0
    )  # 3.5 -> wraps at 5 -> 0.5
    assert measure_joules(lambda: None, tmp_path / "none") is None
    if measure_joules(lambda: None) is None:
        with pytest.raises(ConfigError, match="energy cannot be measured here"):
            CostMeasurer(make_config(objective="energy"), tiny_dense, 16)


@pytest.mark.thorough
def test_pixels_have_the_batch_size(tiny_dense: Path) -> None:
    assert CostMeasurer(make_config(objective="throughput"), tiny_dense, 16).pixels_NHWC.shape == (8, 16, 16, 3)
    assert CostMeasurer(make_config(), tiny_dense, 16).pixels_NHWC.dtype == np.uint8


@pytest.mark.thorough
def test_intervals_of_the_front_and_its_confirmation(
    context: SearchContext, measurer: CostMeasurer, tiny_data: Path
) -> None:
    evaluation, _ = evaluate_chain(context, 5, Point("student", 1.0, "none", width=0.5), [], measurer)
    trial = EndedTrial(
        9, 5, Point("student", 1.0, "none", width=0.5), "finished", evaluation, "", 1.0
    )  # resumed in the folder of another trial
    macs_per_ms = evaluation.metrics["compute/macs"] / evaluation.cost
    progress = SearchProgress([trial], 1.0, 2 * evaluation.cost, {"f32": 4e3 * macs_per_ms, "int8": macs_per_ms})
    (row,) = front_rows(progress, context)
    assert row.drop_to_dense.low <= row.drop_to_dense.points <= row.drop_to_dense.high
    assert (row.times_dense, row.marks) == (2.0, ())  # few images cannot show a loss within a point
    assert row.of_peak == pytest.approx(0.25)
    images = load_images(tiny_data)
    reference_logits_VC, logits_VC, is_selecting_V = (
        reference_logits(context.references, images),
        load_trial_logits(context, 5, images),
        selection_half(images),
    )
    assert row.drop == points_lost(reference_logits_VC, logits_VC, images, is_selecting_V)
    confirming_drop = points_lost(reference_logits_VC, logits_VC, images, ~is_selecting_V)
    assert not (context.trials.parent / "confirmations.json").exists()
    tolerant_context = dataclasses.replace(context, config=make_config(max_drop_points=100.0))
    assert front_rows(progress, tolerant_context)[0].marks == ("chosen",)
    rows = front_rows(progress, tolerant_context)
    assert rows[0].drop == confirming_drop  # of the confirming half
    assert CONFIRMATIONS.read_at(context.trials.parent / "confirmations.json") == [9]
    text = describe_verdict(rows, progress, make_config())
    assert (
        "2.00 times faster than dense on ONNX Runtime, at 25\xa0% of the processor's peak. Points lost on the "
        "half of validation that confirms, 95 %" in text
    )
    assert text.count("against") == 1  # without a control, both intervals are equal
    changed_row = dataclasses.replace(rows[0], drop=dataclasses.replace(confirming_drop, high=9.0))
    to_dense = format_interval(rows[0].drop_to_dense.low, rows[0].drop_to_dense.high)
    to_reference = format_interval(changed_row.drop.low, changed_row.drop.high)
    expected = f"{to_reference} against the better of dense and dense-kd, {to_dense} against dense."
    assert expected in describe_verdict([changed_row], progress, make_config())
    assert front_rows(dataclasses.replace(progress, peaks={}), context)[0].of_peak is None
    slower_progress = dataclasses.replace(progress, dense_cost=evaluation.cost / 2)
    assert front_rows(slower_progress, tolerant_context)[0].marks == ()  # a trial slower than dense is not chosen
    assert "No candidate faster than dense is shown to lose" in describe_verdict(
        front_rows(slower_progress, tolerant_context), slower_progress, make_config()
    )
    shutil.rmtree(candidates_folder(context, 5, 1))
    assert front_rows(progress, context) == [row]
    shutil.rmtree(candidates_folder(context, 5, 4))
    with pytest.raises(ArtifactError):
        front_rows(progress, context)
