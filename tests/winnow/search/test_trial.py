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


def config(**changes: Any) -> Config:
    small = {"epochs": 4, "min_steps": 1, "batch_size": 32, "runtime": "ort"}
    return check_config(params_without_control() | {"search": {**small, **changes}})


@pytest.fixture
def place(tiny_dense: Path, tiny_data: Path, tmp_path: Path) -> SearchContext:
    folders = CandidateFolders(
        tiny_data, tiny_dense.parent.parent / "pretrain", tiny_dense.parent, tmp_path / "scratch"
    )
    return SearchContext(config(), folders, tmp_path / "trials")


@pytest.fixture
def meter(tiny_dense: Path) -> CostMeasurer:
    return CostMeasurer(config(), tiny_dense, 16)


@pytest.mark.thorough
def test_a_trial_leaves_candidates_and_figures(
    place: SearchContext, meter: CostMeasurer, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(module.log, "info", lambda text, *given: said.append(text % given))
    look, first = evaluate_chain(place, 3, Point("prune", 0.4, "none", int8=True), [], meter)
    assert look.names == ("found", "found-int8")
    assert first is not None
    assert said == ["short evaluation: 1 of 4 epochs", "continuing with all 4 epochs"]
    home = place.trials / "0003"
    for epochs in (1, 4):
        for name in look.names:
            assert read_record(home / f"epochs-{epochs}" / "candidates" / name).name == name
    assert not list(home.glob("*/scratch"))
    record = CandidateRecord.read(home / "epochs-4" / "candidates" / "found-int8")
    assert look.metrics == record.metrics
    images = load_images(place.folders.data)
    answers_VC = load_trial_logits(place, 3, images)
    np.testing.assert_array_equal(
        answers_VC.argmax(1), load_logits(home / "epochs-4/candidates/found-int8", images).argmax(1)
    )
    judged = points_lost(reference_logits(place.references, images), answers_VC, images, selection_half(images))
    assert (look.drop, look.high) == (judged.points, judged.high)
    assert record.details.lineage == ["dense", "found", "found-int8"]
    assert look.cost > 0
    # Made candidates are not made again.
    stamp = (home / "epochs-4" / "candidates" / "found" / "record.json").stat().st_mtime_ns
    evaluate_chain(place, 3, Point("prune", 0.4, "none", int8=True), [], meter)
    assert (home / "epochs-4" / "candidates" / "found" / "record.json").stat().st_mtime_ns == stamp


@pytest.mark.thorough
def test_who_is_behind_at_a_first_look_is_given_up(place: SearchContext, meter: CostMeasurer) -> None:
    better = [EarlierTrial("student", drop=-500.0, cost=0.0)]
    with pytest.raises(
        TrialPruned, match=r"points lost after 1 epochs; .* that were faster and more accurate then: 1"
    ) as end:
        evaluate_chain(place, 0, Point("student", 1.0, "none", width=0.5), better, meter)
    assert end.value.look.names == ("found",)
    assert not (place.trials / "0000" / "epochs-4").exists()
    # Faster but worse, better but slower, or of another structure, is no reason.
    for earlier in (
        EarlierTrial("student", drop=500.0, cost=0.0),
        EarlierTrial("student", drop=-500.0, cost=1e9),
        EarlierTrial("prune", drop=-500.0, cost=0.0),
    ):
        look, _ = evaluate_chain(place, 0, Point("student", 1.0, "none", width=0.5), [earlier], meter)
        assert look.drop < 500


def test_another_machines_figures_are_refused(place: SearchContext) -> None:
    elsewhere = dataclasses.replace(place, machine="another processor, 4 threads")
    with pytest.raises(ConfigError, match="are measured on another processor, 4 threads; this is"):
        run_point(elsewhere, 0, Point("student", 1.0, "none", width=0.5), [], 1.0)
    assert not (place.trials / "0000").exists()


def test_points_are_lost_against_the_better_reference(place: SearchContext, tiny_dense: Path, tiny_data: Path) -> None:
    images = load_images(tiny_data)
    labels_V = images.labels_N[images.indices(VALIDATION)]
    here = place.trials.parent / "candidates"
    for name, wrong in (("dense", 2), ("dense-kd", 1)):
        answers_V = labels_V.copy()
        answers_V[:wrong] = (answers_V[:wrong] + 1) % len(images.classes)
        np.save(
            shutil.copytree(tiny_dense, here / name) / VALIDATION_LOGITS,
            np.eye(len(images.classes), dtype=np.float32)[answers_V],
        )
    beside = dataclasses.replace(
        place, folders=dataclasses.replace(place.folders, candidates=here), config=check_config(tiny_params())
    )
    a_point = 100 / len(labels_V)
    whole_V, dense_VC = np.ones(len(labels_V), bool), load_logits(here / "dense", images)
    assert points_lost(reference_logits(beside.references, images), dense_VC, images, whole_V).points == pytest.approx(
        a_point
    )
    beside = dataclasses.replace(beside, config=place.config)  # its folder stays where it left the tree
    assert points_lost(reference_logits(beside.references, images), dense_VC, images, whole_V).points == 0


@pytest.mark.thorough
def test_what_answers_otherwise_where_it_is_timed_is_not_timed(
    meter: CostMeasurer, tiny_dense: Path, tiny_data: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(tiny_dense, tmp_path / "other")
    np.save(other / VALIDATION_LOGITS, np.roll(np.load(tiny_dense / VALIDATION_LOGITS), 1, axis=1))
    with pytest.raises(ArtifactError, match=r"ort f32 agrees with the file in ONNX Runtime on 0\.0% of .* images"):
        meter.check_answers(other, "f32", load_images(tiny_data))
    meter.check_answers(tiny_dense, "f32", load_images(tiny_data))


@pytest.mark.thorough
def test_with_int8_and_without_share_their_float_network(place: SearchContext, meter: CostMeasurer) -> None:
    evaluate_chain(place, 1, Point("prune", 0.4, "none", int8=True), [], meter)
    look, _ = evaluate_chain(place, 2, Point("prune", 0.4, "none"), [], meter)
    mine, its = (candidates_folder(place, number, 4) / "found" for number in (1, 2))
    assert mine.resolve() == its.resolve()
    assert look.metrics == read_record(mine).metrics
    elsewhere = dataclasses.replace(place, trials=place.trials.rename(place.trials.with_name("moved")))
    assert read_record(candidates_folder(elsewhere, 2, 4) / "found").metrics == look.metrics


@pytest.mark.thorough
def test_a_chosen_trial_beside_the_front_is_no_part_of_its_line(
    place: SearchContext, meter: CostMeasurer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    point = Point("student", 1.0, "none", width=0.5)
    look, _ = evaluate_chain(place, 0, point, [], meter)
    sure = dataclasses.replace(look, drop=look.drop + 1, cost=look.cost * 2)
    trials = [EndedTrial(number, 0, point, "finished", each, "", 1.0) for number, each in enumerate((look, sure))]
    chosen = trials[1].found
    monkeypatch.setattr("winnow.cli.search_front.cheapest_fitting", lambda *_: chosen)
    impossible = EndedTrial(2, 2, point, "impossible", None, "no <channel> can go", 1.0)
    progress = SearchProgress([*trials, impossible], 2.0, look.cost, {})
    place = dataclasses.replace(place, config=config(max_drop_points=100.0))
    rows = front_rows(progress, place)
    assert [(row.number, row.marks) for row in rows] == [(0, ()), (1, ("chosen",))]
    drawn: list[SearchPoint] = []
    monkeypatch.setattr("winnow.cli.search_results.plot_search", lambda points, *_: drawn.extend(points) or b"")
    write_files(tmp_path, progress, rows, place, "Trial 1.")
    assert [each.on_front for each in drawn] == [True, False]
    html = (tmp_path / "report.html").read_text()
    assert "Every trial" in html
    assert html.count(describe_point(point)) == 5  # two as the front's rows, and all three
    assert "impossible: no &lt;channel&gt; can go" in html
    assert [each["on_front"] for each in read_json(tmp_path / "search.json")["trials"]] == [True, False, False]


def test_a_winner_that_is_faster_on_another_runtime_is_told(tmp_path: Path) -> None:
    def remark(name: str | None, **changes: Any) -> str:
        best = {
            "dense": BestRows(latency=benchmark_row("dense", "ort"), throughput=None),
            "pruned": BestRows(latency=benchmark_row("pruned", "openvino"), throughput=None),
        }
        details = selection_details(winner=name, speeds=serving_speeds(best=best))
        (tmp_path / "select").mkdir(exist_ok=True)
        write_record(tmp_path / "select", make_record("select", details))
        return runtime_note(tmp_path, config(**changes))

    assert "pruned was fastest on OpenVINO, while this search measures on ONNX Runtime" in remark("pruned")
    assert remark(None) == ""  # dense is fastest where the search measures
    assert "dense was fastest on ONNX Runtime" in remark(None, runtime="openvino")
    assert remark("pruned", objective="size") == ""
    (tmp_path / "select" / "record.json").write_text("{")
    assert runtime_note(tmp_path, config()) == ""


@pytest.mark.thorough
def test_a_few_images_give_nobody_up(place: SearchContext, meter: CostMeasurer) -> None:
    point = Point("student", 1.0, "none", width=0.5)
    _, first = evaluate_chain(place, 0, point, [], meter)
    assert first is not None
    margin = first.high - first.drop
    assert margin > 1  # one of these few images is more than a point
    evaluate_chain(place, 1, point, [EarlierTrial(point.structure, first.drop - 0.9 * margin, 0.0)], meter)
    with pytest.raises(TrialPruned):
        evaluate_chain(place, 2, point, [EarlierTrial(point.structure, first.drop - 1.1 * margin, 0.0)], meter)


def spoil(place: SearchContext, number: int, part: str) -> None:
    """Let a trial answer the half that chooses, or the other, never right."""
    images = load_images(place.folders.data)
    chooses_V = selection_half(images)
    spoilt_V = chooses_V if part == "chooses" else ~chooses_V
    path = candidates_folder(place, number, 4).parent / "answers.npy"
    answers_VC, labels_V = (
        reference_logits(place.references, images).copy(),
        images.labels_N[images.indices(VALIDATION)],
    )
    answers_VC[spoilt_V] = np.eye(len(images.classes), dtype=np.float32)[(labels_V[spoilt_V] + 1) % len(images.classes)]
    np.save(path, answers_VC)


@pytest.mark.thorough
def test_a_choice_that_other_images_do_not_confirm_is_not_taken_nor_is_the_next(
    place: SearchContext, meter: CostMeasurer
) -> None:
    point = Point("student", 1.0, "none", width=0.5)
    trials = []
    for number in (0, 1):
        look, _ = evaluate_chain(place, number, point, [], meter)
        spoil(place, number, "confirms" if number == 0 else "neither")
        cheap = dataclasses.replace(look, drop=1.0 - number, cost=1.0 + number)
        trials.append(EndedTrial(number, number, point, "finished", cheap, "", 1.0))
    np.save(
        candidates_folder(place, 1, 4).parent / "answers.npy",
        reference_logits(place.references, load_images(place.folders.data)),
    )
    allowing = dataclasses.replace(place, config=config(max_drop_points=10.0))
    found = SearchProgress(trials, 1.0, 9.0, {})
    rows = front_rows(found, allowing)
    assert [row.marks for row in rows] == [("not confirmed",), ()]
    assert not any(row.chosen for row in rows)
    told = describe_verdict(rows, found, config())
    assert "Trial 0 (student at width 0.5) was chosen, but the confirming half of validation does not" in told
    assert "exceeds 10. No other trial is chosen instead" in told
    # A search that goes on and chooses another widens its interval by the one that was looked at before.
    spoil(place, 0, "chooses")
    rows = front_rows(found, allowing)
    assert CONFIRMATIONS.read_at(place.trials.parent / "confirmations.json") == [0, 1]
    assert rows[-1].drop.confidence == pytest.approx(0.975)
    assert rows[-1].marks in (("chosen",), ("not confirmed",))


@pytest.mark.thorough
def test_a_trial_is_judged_where_its_cost_is_measured(
    place: SearchContext, meter: CostMeasurer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def always_the_first(folder: Path, _cell: Any) -> Any:
        return lambda pixels: np.eye(3, dtype=np.float32)[np.zeros(len(pixels), int)]

    monkeypatch.setitem(OPENERS, "ort", always_the_first)
    monkeypatch.setattr(CostMeasurer, "check_answers", lambda *_: None)
    look, _ = evaluate_chain(place, 0, Point("student", 1.0, "none", width=0.5), [], meter)
    assert load_trial_logits(place, 0, load_images(place.folders.data)).argmax(1).max() == 0
    images = load_images(place.folders.data)
    labels = images.labels_N[images.indices(VALIDATION)][selection_half(images)]
    reference = reference_logits(place.references, images)[selection_half(images)].argmax(1)
    assert look.drop == pytest.approx(((reference == labels).mean() - (labels == 0).mean()) * 100)


@pytest.mark.thorough
def test_costs_are_told_as_if_dense_cost_what_it_did_at_first(
    tiny_dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    larger = shutil.copytree(tiny_dense, tmp_path / "larger")
    (larger / "model.onnx").write_bytes((tiny_dense / "model.onnx").read_bytes() + bytes(1_000_000))
    size = CostMeasurer(config(objective="size"), tiny_dense, 16)
    assert size.cost(larger, "f32") == pytest.approx(size.dense_cost + 1.0)  # MB
    for objective, runtime in (("latency", "ort"), ("throughput", "ort"), ("throughput", "openvino-throughput")):
        meter = CostMeasurer(config(objective=objective, runtime=runtime), tiny_dense, 16)
        assert 0 < meter.cost(tiny_dense, "f32") < math.inf  # how much, a busy machine decides
    times = iter(
        [([4.0] * 5, [4.0] * 5), ([2.0] * 5, [8.0] * 5)] * 2
    )  # ms a call of the file and of dense; meanwhile the machine grew slow
    monkeypatch.setattr("winnow.search.cost.time_pair", lambda *_: next(times))
    for objective, dense_cost in (("latency", 4.0), ("throughput", 4.0 / 1e3 / 8)):  # ms, seconds an image
        meter = CostMeasurer(config(objective=objective), tiny_dense, 16)
        assert meter.dense_cost == pytest.approx(dense_cost)
        assert meter.cost(tiny_dense, "f32") == pytest.approx(dense_cost / 4)


@pytest.mark.thorough
def test_energy_is_an_images(tiny_dense: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(step=0.25)
    readings = iter([0.0, 0.009, 0.003, 0.003, 0.009, 0.009, 0.003])  # J of three calls, of the file and of dense
    monkeypatch.setattr("winnow.search.cost.time.perf_counter", lambda: next(clock))
    monkeypatch.setattr("winnow.search.cost.wait_until_idle", lambda: True)
    monkeypatch.setattr("winnow.search.cost.measure_joules", lambda act: (act(), next(readings))[1])
    meter = CostMeasurer(config(objective="energy"), tiny_dense, 16, dense_cost=5.0)
    assert meter.cost(tiny_dense, "f32") == pytest.approx(15.0)  # mJ: 3 against 1, as if dense took 5


def test_what_cannot_be_dealt_out_is_refused(tiny_dense: Path) -> None:
    odd = check_config(tiny_params() | {"search": {"objective": "throughput", "runtime": "openvino-throughput"}})
    odd = odd.model_copy(update={"benchmark": odd.benchmark.model_copy(update={"large_batch": 7})})
    with pytest.raises(ConfigError, match=r"batches of 7 cannot be split over streams on .* threads: set"):
        CostMeasurer(odd, tiny_dense, 16)
    assert describe_cost(config().search, 0.1234) == "0.123 ms"
    assert describe_cost(config(objective="throughput").search, 0.001) == "1,000 images/s"


@pytest.mark.thorough
def test_only_a_time_has_a_share_of_the_peak(tiny_dense: Path) -> None:
    timed, small = config().search, config(objective="size").search
    assert seconds_per_image(timed, 2.0) == 0.002
    assert seconds_per_image(config(objective="throughput").search, 0.001) == 0.001
    assert seconds_per_image(small, 2.0) is None
    assert CostMeasurer(config(), tiny_dense, 16).peaks()["f32"] > 0
    assert CostMeasurer(config(objective="size"), tiny_dense, 16).peaks() == {}


@pytest.mark.parametrize(
    ("name", "add", "message"),
    [
        ("/tmp/x", "", "--name /tmp/x: not a valid name"),
        ("..", "", "--name ..: not a valid name"),
        ("mine", "My_Net", "--add My_Net: not a valid name"),
        ("mine", "dense", "--add dense: dense, dense-int8 exists already"),
        ("mine", "pruned", "--add pruned: pruned, pruned-int8 exists already"),
    ],
)
def test_names_are_looked_at_before_anything_is_searched(name: str, add: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        check_names(config(), name, add)
    check_names(config(), "mine", "found")


def test_energy_is_read_where_it_can_be(tmp_path: Path, tiny_dense: Path) -> None:
    package = tmp_path / "intel-rapl:0"
    (package / "intel-rapl:0:0").mkdir(parents=True)  # a part of the package counts with it
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
            CostMeasurer(config(objective="energy"), tiny_dense, 16)


@pytest.mark.thorough
def test_pixels_are_those_of_the_batch(tiny_dense: Path) -> None:
    assert CostMeasurer(config(objective="throughput"), tiny_dense, 16).pixels_NHWC.shape == (8, 16, 16, 3)
    assert CostMeasurer(config(), tiny_dense, 16).pixels_NHWC.dtype == np.uint8


@pytest.mark.thorough
def test_the_interval_is_of_the_whole_look(place: SearchContext, meter: CostMeasurer, tiny_data: Path) -> None:
    look, _ = evaluate_chain(place, 5, Point("student", 1.0, "none", width=0.5), [], meter)
    trial = EndedTrial(
        9, 5, Point("student", 1.0, "none", width=0.5), "finished", look, "", 1.0
    )  # taken up in the folder of another
    macs_per_ms = look.metrics["compute/macs"] / look.cost
    found = SearchProgress([trial], 1.0, 2 * look.cost, {"f32": 4e3 * macs_per_ms, "int8": macs_per_ms})
    (row,) = front_rows(found, place)
    assert row.drop_to_dense.low <= row.drop_to_dense.points <= row.drop_to_dense.high
    assert (row.times_dense, row.marks) == (2.0, ())  # so few images show no loss to be within a point
    assert row.of_peak == pytest.approx(0.25)
    images = load_images(tiny_data)
    reference_VC, answers_VC, chooses_V = (
        reference_logits(place.references, images),
        load_trial_logits(place, 5, images),
        selection_half(images),
    )
    assert row.drop == points_lost(reference_VC, answers_VC, images, chooses_V)
    mine = points_lost(reference_VC, answers_VC, images, ~chooses_V)
    assert not (place.trials.parent / "confirmations.json").exists()
    allowing = dataclasses.replace(place, config=config(max_drop_points=100.0))
    assert front_rows(found, allowing)[0].marks == ("chosen",)
    rows = front_rows(found, allowing)
    assert rows[0].drop == mine  # of the half that did not choose
    assert CONFIRMATIONS.read_at(place.trials.parent / "confirmations.json") == [9]
    told = describe_verdict(rows, found, config())
    assert (
        "2.00 times faster than dense on ONNX Runtime, at 25\xa0% of the processor's peak. Points lost on the "
        "half of validation that confirms, 95 %" in told
    )
    assert told.count("against") == 1  # there is no control: both intervals are one
    apart = dataclasses.replace(rows[0], drop=dataclasses.replace(mine, high=9.0))
    to_dense = format_interval(rows[0].drop_to_dense)
    judged = f"{format_interval(apart.drop)} against the better of dense and dense-kd, {to_dense} against dense."
    assert judged in describe_verdict([apart], found, config())
    assert front_rows(dataclasses.replace(found, peaks={}), place)[0].of_peak is None
    dear = dataclasses.replace(found, dense_cost=look.cost / 2)
    assert front_rows(dear, allowing)[0].marks == ()  # what costs more than dense is no choice
    assert "No candidate faster than dense is shown to lose" in describe_verdict(
        front_rows(dear, allowing), dear, config()
    )
    shutil.rmtree(candidates_folder(place, 5, 1))
    assert front_rows(found, place) == [row]
    shutil.rmtree(candidates_folder(place, 5, 4))
    with pytest.raises(ArtifactError):
        front_rows(found, place)
