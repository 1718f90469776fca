from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import tiny_params
from tests.tiny_run import CANDIDATES, build, record_benchmark, rewrite, rewrite_details
from winnow.benchmark.speedups import ratio_metrics
from winnow.config import Config, check_config
from winnow.data.dataset import TEST, VALIDATION, load_images
from winnow.errors import ArtifactError
from winnow.evaluation.ablations import control_gains
from winnow.evaluation.intervals import Ratio, paired_drop, simultaneous_confidence
from winnow.records import BenchmarkRecord, Gate, SelectionRecord, read_record, record_digest, sha256_of, this_machine
from winnow.records.benchmark import Int8Coverage
from winnow.records.selection import Drop, DropEvidence
from winnow.selection.selection_warnings import ValidationImages, selection_warnings
from winnow.steps.select import select


def run(artifacts: Path, config: Config | None = None, out: str = "select") -> SelectionRecord:
    config = config or check_config(tiny_params())
    return select(
        config, artifacts / "data", artifacts / "candidates", artifacts / "benchmark", artifacts / out, artifacts.parent
    )


def make_config(**promotion: Any) -> Config:
    params = tiny_params()
    params["promotion"] |= promotion
    return check_config(params)


@pytest.fixture
def artifacts(tiny_data: Path, tmp_path: Path) -> Path:
    return build(tiny_data, tmp_path / "artifacts")


WIDE_F1_LIMIT = {"max_macro_f1_drop_points": 20.0}


def gates_by_name(record: SelectionRecord, name: str) -> dict[str, Gate]:
    verdict = record.details.verdict(name)
    assert verdict is not None
    return {gate.name: gate for gate in verdict.gates}


def test_the_fastest_passing_candidate_wins(artifacts: Path) -> None:
    record = run(artifacts)
    assert read_record(artifacts / "select") == record
    assert record.details.winner == "pruned-int8"
    assert [row.candidate for row in record.details.verdicts] == list(CANDIDATES)[1:]
    assert record.details.reference == "dense"
    assert record.metrics["select/passed"] == sum(row.passed for row in record.details.verdicts) == 3
    assert record.metrics["winner/speedup"] == pytest.approx(4.0)
    assert record.metrics["winner/size_ratio"] == pytest.approx(0.15)
    assert set(record.details.front) == {"pruned-int8", "student"}
    assert record.inputs["student"] == record_digest(artifacts / "candidates" / "student")
    assert record.inputs["benchmark"] == record_digest(artifacts / "benchmark")
    assert record.machine is None


@pytest.mark.thorough
def test_the_same_inputs_give_the_same_bytes(artifacts: Path) -> None:
    run(artifacts, out="first")
    run(artifacts, out="second")
    for name in ("record.json", "metrics.json", "winner.json"):
        assert (artifacts / "first" / name).read_bytes() == (artifacts / "second" / name).read_bytes()


def test_drops_are_paired_on_the_validation_images(artifacts: Path) -> None:
    record = run(artifacts, make_config())
    images = load_images(artifacts / "data")
    labels = images.labels_N[images.indices(VALIDATION)]
    correct = {
        name: np.load(artifacts / "candidates" / name / "validation_logits.npy").argmax(1) == labels
        for name in ("dense", "student")
    }
    assert record.details.competitors == record.metrics["select/competitors"] == 5  # dense-kd and sparse cost more
    expected = paired_drop(correct["dense"], correct["student"], simultaneous_confidence(5))
    assert record.details.drops["student"].labelled == expected
    assert expected.points == pytest.approx(3 / 60 * 100)
    assert not gates_by_name(record, "student")["drop"].passed
    assert gates_by_name(record, "pruned")["drop"].passed


def test_a_better_control_becomes_the_reference(tiny_data: Path, tmp_path: Path) -> None:
    artifacts = build(tiny_data, tmp_path / "artifacts", {"dense-kd": {"damping": 0.34}})
    record = run(artifacts)
    assert record.details.reference == "dense-kd"
    drops = {name: record.details.drops[name].labelled for name in ("dense", "dense-kd")}
    assert drops["dense"] is not None
    assert drops["dense"].points == pytest.approx(100 / 60)
    assert drops["dense-kd"] is not None
    assert drops["dense-kd"].points == 0.0
    assert record.details.winner is None
    assert "no candidate passes every gate" in record.details.why
    assert "winner/speedup" not in record.metrics
    gains = {row.bought_by: row for row in record.details.controls}
    assert gains["training on"].points == pytest.approx(100 / 60)


def test_controls_give_the_gain_of_a_teacher(artifacts: Path) -> None:
    rows = run(artifacts).details.controls
    teacher = next(row for row in rows if row.bought_by == "a teacher")
    accuracies = [
        read_record(artifacts / "candidates" / name).metrics["quality/top1"] for name in ("student", "student-alone")
    ]
    assert (teacher.candidate, teacher.control) == ("student", "student-alone")
    assert teacher.points == pytest.approx((accuracies[0] - accuracies[1]) * 100)
    assert 0 < teacher.low < teacher.points < teacher.high


def test_a_control_can_have_its_own_augmentation(artifacts: Path) -> None:
    """Labels alone need stronger views than a teacher; everything else must be as in the taught candidate."""
    correct = {name: np.ones(20, bool) for name in ("dense", "dense-kd", "student", "student-alone")}
    changes = (("augmentation", {"crop_scale_min": 0.3}, 1), ("hint_weight", 0.5, 1), ("epochs", 7, 0))
    for key, value, expected in changes:
        raw = tiny_params()
        raw["candidates"]["student-alone"]["recovery"] |= {key: value}
        rows = control_gains(check_config(raw), correct)
        assert sum(row.bought_by == "a teacher" for row in rows) == expected


def test_a_missing_control_is_warned_of(tiny_data: Path, tmp_path: Path) -> None:
    artifacts = build(tiny_data, tmp_path / "artifacts")
    params = tiny_params()
    del params["candidates"]["dense-kd"]
    record = run(artifacts, check_config(params))
    assert any(
        "dense-kd is not among the candidates: pruned, sparse, student" in warning for warning in record.warnings
    )
    assert [row.bought_by for row in record.details.controls] == ["a teacher"]


def test_quantization_aware_training_needs_a_control(tiny_data: Path, tmp_path: Path) -> None:
    artifacts, params = build(tiny_data, tmp_path / "artifacts"), tiny_params()
    recovery = params["candidates"]["pruned"]["recovery"]
    params["candidates"]["pruned-int8"] |= {"scheme": "qat", "recovery": recovery}
    expected = "the control is {from: pruned, method: distill, student: same}"
    assert any(expected in warning for warning in run(artifacts, check_config(params)).warnings)
    control = {"from": "pruned", "method": "distill", "student": "same", "recovery": recovery}
    assert control_warnings(check_config(params | {"candidates": params["candidates"] | {"pruned-on": control}})) == []
    control |= {"recovery": {**recovery, "batch_size": 2 * recovery["batch_size"]}}  # half of the steps
    assert control_warnings(check_config(params | {"candidates": params["candidates"] | {"pruned-on": control}}))


@pytest.mark.thorough
@pytest.mark.parametrize(("flags", "is_warned"), [(("avx2",), True), (("avx2", "avx_vnni"), False)])
def test_saturating_int8_sums_are_warned_of(
    artifacts: Path, flags: tuple[str, ...], is_warned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = this_machine().model_copy(update={"flags": flags})
    monkeypatch.setattr("winnow.steps.selection_inputs.this_machine", lambda: machine)
    record_benchmark(artifacts, CANDIDATES, machine=machine)
    command = " -S candidates.pruned-int8.overflow_safe=true"
    assert any(command in warning for warning in run(artifacts).warnings) is is_warned


def control_warnings(config: Config) -> list[str]:
    """Return the warnings about missing controls in the candidate tree."""
    no_drop = Drop(0.0, 0.0, 0.0)
    labels_V = np.arange(600) % 2
    warnings = selection_warnings(
        config, "dense", DropEvidence(no_drop, no_drop), ValidationImages(labels_V, labels_V, ("a", "b"))
    )
    return [warning for warning in warnings if "among the candidates" in warning or "the control is" in warning]


def test_timings_of_another_machine_are_refused(artifacts: Path) -> None:
    machine = this_machine()
    for change in ({"cpu": "Another 9000"}, {"threads": machine.threads + 1}, {"flags": ("amx_int8", "never")}):
        record_benchmark(artifacts, CANDIDATES, machine=machine.model_copy(update=change))
        with pytest.raises(ArtifactError, match=r"one machine only.*dvc repro"):
            run(artifacts)
    record_benchmark(artifacts, CANDIDATES, machine=machine.model_copy(update={"memory_gb": 1.0, "versions": {}}))
    assert run(artifacts).details.winner == "pruned-int8"


def test_a_candidate_changed_after_the_benchmark_is_refused(artifacts: Path) -> None:
    rewrite(artifacts / "candidates" / "pruned", warnings=("made again",))
    with pytest.raises(ArtifactError, match=r"has not timed the present pruned; run the benchmark again"):
        run(artifacts)
    assert not (artifacts / "select").exists()


@pytest.mark.parametrize("content", [None, b"no array", "short"])
def test_missing_damaged_or_foreign_logits_are_refused(artifacts: Path, content: bytes | str | None) -> None:
    path = artifacts / "candidates" / "sparse" / "validation_logits.npy"
    if content is None:
        path.unlink()
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, np.load(path)[:-1])
    with pytest.raises(ArtifactError, match=r"sparse/validation_logits\.npy (is missing or damaged|belongs to other)"):
        run(artifacts)


@pytest.mark.thorough
def test_the_objective_decides_the_batch_of_the_gate(tiny_data: Path, tmp_path: Path) -> None:
    artifacts = build(tiny_data, tmp_path / "artifacts")
    candidates = BenchmarkRecord.read(artifacts / "benchmark").details.candidates
    candidates["pruned-int8"] |= ratio_metrics("speedup/float_b8", Ratio(1.1, 1.05, 1.15))
    rewrite_details(artifacts / "benchmark", candidates=candidates)
    for objective, passed in (("latency", True), ("size", True), ("throughput", False)):
        record = run(artifacts, make_config(objective=objective))
        gate = gates_by_name(record, "pruned-int8")["speedup"]
        assert gate.passed is passed
        assert ("4.00 times (" if passed else "1.10 times (1.05 to 1.15)") in gate.reason


def test_without_labels_predictions_decide(tiny_data: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(tiny_data, data)
    labels, split = np.load(data / "labels.npy"), np.load(data / "split.npy")
    labels[split == VALIDATION] = -1
    np.save(data / "labels.npy", labels)
    record = run(build(data, tmp_path / "artifacts"))
    assert record.details.drops["student"].labelled is None
    assert record.details.controls == []
    assert record.details.winner == "pruned-int8"
    assert "no label; predictions differ on 5.0 %" in gates_by_name(record, "student")["drop"].reason
    assert not gates_by_name(record, "student")["drop"].passed
    assert not gates_by_name(record, "student-alone")["agreement"].passed
    assert any("no validation image has a label" in warning for warning in record.warnings)


def test_a_candidate_that_was_not_timed_cannot_win(tiny_data: Path, tmp_path: Path) -> None:
    record = run(build(tiny_data, tmp_path / "artifacts", {"pruned-int8": {"ms": None}}))
    assert "not timed" in gates_by_name(record, "pruned-int8")["speedup"].reason
    assert record.details.winner == "pruned"
    assert "pruned-int8" not in record.details.front


def test_dense_is_the_only_candidate(artifacts: Path) -> None:
    params = tiny_params()
    params["candidates"] = {}
    record = run(artifacts, check_config(params))
    assert (record.details.winner, record.details.verdicts) == (None, [])
    assert record.details.front == ["dense"]


def test_gates_use_predictions_of_the_serving_runtime(artifacts: Path) -> None:
    path = artifacts / "benchmark" / "pruned-int8-openvino-int8.npy"
    logits = np.load(path)
    np.save(path, np.roll(logits, 1, axis=1))  # equally fast, but always wrong
    record = run(artifacts)
    served = record.details.served["pruned-int8"]
    assert served is not None
    assert served.runtime == "openvino"
    assert not gates_by_name(record, "pruned-int8")["drop"].passed
    assert not gates_by_name(record, "pruned-int8")["agreement"].passed
    assert record.details.winner != "pruned-int8"
    path.unlink()
    with pytest.raises(ArtifactError, match=r"pruned-int8-openvino-int8\.npy is missing"):
        run(artifacts, out="again")


@pytest.mark.thorough
def test_a_gate_that_cannot_pass_with_few_labels_is_warned_of(artifacts: Path) -> None:
    record = run(artifacts, make_config(gates=WIDE_F1_LIMIT | {"max_drop_points": 1.0}))
    assert record.details.winner is None
    warning = next(text for text in record.warnings if "no candidate can pass" in text)
    assert (
        "60 labelled validation images, the interval of a file that loses nothing reaches 10.0 points, more " in warning
    )
    suggested = float(warning.rpartition("promotion.gates.max_drop_points to at least ")[2])
    passing = run(artifacts, make_config(gates=WIDE_F1_LIMIT | {"max_drop_points": suggested}), out="again")
    assert passing.details.winner is not None
    assert not any("no candidate can pass" in text for text in passing.warnings)


def test_a_lost_rare_class_fails_only_the_macro_f1_gate(tiny_data: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(tiny_data, data)
    labels, split = np.load(data / "labels.npy"), np.load(data / "split.npy")
    rare = np.flatnonzero((split == VALIDATION) & (labels == 1))
    split[rare[2:]] = TEST  # two images of the class remain: five points of top-1
    np.save(data / "split.npy", split)
    artifacts = build(data, tmp_path / "artifacts")
    limits = {"max_drop_points": 15.0, "max_macro_f1_drop_points": 20.0, "min_agreement": 0.5}
    record = run(artifacts, make_config(gates=limits))
    student_gates = gates_by_name(record, "student-alone")  # it never predicts the second class
    assert student_gates["drop"].passed
    assert not student_gates["macro-f1"].passed
    assert gates_by_name(record, "pruned")["macro-f1"].passed


def test_unlabelled_images_show_what_few_labels_cannot(tiny_data: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(tiny_data, data)
    labels, split = np.load(data / "labels.npy"), np.load(data / "split.npy")
    validation = np.flatnonzero(split == VALIDATION)
    labels[validation[np.arange(len(validation)) % 5 > 0]] = -1
    np.save(data / "labels.npy", labels)
    record = run(build(data, tmp_path / "artifacts"))
    reason = gates_by_name(record, "pruned-int8")["drop"].reason
    assert (
        "predictions differ on 0.0 % of the images, at most 10.0 %, which bounds the drop; 95 % over 5 candidates"
        in reason
    )
    assert record.details.winner == "pruned-int8"
    assert any(text.startswith("only 12 labelled validation images: the loss is also") for text in record.warnings)
    warning = next(text for text in record.warnings if text.startswith("labels cannot show that macro F1 is preserved"))
    assert "12 labelled validation images, 4 of class" in warning
    assert "with the reference's predictions as truth" in gates_by_name(record, "pruned-int8")["macro-f1"].reason


def write_target(artifacts: Path, fastest: str, **changes: Any) -> Path:
    """Write host.json of another machine, on which `fastest` is the fastest."""
    rows = []
    for name in CANDIDATES:
        for batch in (1, 8):
            p50 = (0.1 if name == fastest else 5.0 + len(name)) * batch
            row = {"candidate": name, "sha256": sha256_of(artifacts / "candidates" / name / "model.onnx")}
            row |= {"runtime": "ort", "precision": "int8" if "int8" in name else "f32", "batch": batch, "threads": 4}
            row |= {
                "round_ms": [p50] * 6,
                "p50_ms": p50,
                "p95_ms": None,
                "images_per_s": batch / p50 * 1e3,
                "samples": 20,
                "spread": 0.1,
            }
            rows.append(row | {"agreement": 1.0})
    machine = this_machine().model_copy(update={"cpu": "Cortex-A76"}).model_dump(mode="json")
    content = {"format": 2, "machine": machine, "large_batch": 8, "rows": rows, "refused": []} | changes
    (artifacts / "target.json").write_text(json.dumps(content))
    return artifacts / "target.json"


def test_with_a_target_only_its_measurements_count(tiny_data: Path, tmp_path: Path) -> None:
    changes = {name: {"damping": 0.36 + index / 1e5} for index, name in enumerate(CANDIDATES)}  # files that differ
    artifacts = build(tiny_data, tmp_path / "artifacts", changes)
    params = tiny_params()
    params["promotion"]["gates"] |= {"max_size_ratio": 9.0}
    params["benchmark"]["target"] = str(write_target(artifacts, "sparse"))
    other_machine = this_machine().model_copy(update={"cpu": "Another 9000"})
    record_benchmark(artifacts, {name: CANDIDATES[name] | changes[name] for name in CANDIDATES}, machine=other_machine)
    record = run(artifacts, check_config(params))
    assert record.details.winner == "sparse"
    assert read_record(artifacts / "select") == record
    assert record.details.speeds.is_target
    assert record.details.speeds.machine.cpu == "Cortex-A76"
    served = record.details.served["sparse"]
    assert served is not None
    assert served.p50_ms == 0.1
    assert record.inputs["target"] == sha256_of(artifacts / "target.json")


@pytest.mark.thorough
def test_candidates_not_timed_on_the_target_cannot_win(artifacts: Path) -> None:
    path = write_target(artifacts, "pruned-int8")
    target = json.loads(path.read_text())
    digest = sha256_of(artifacts / "candidates" / "student" / "model.onnx")
    target["rows"] = [row for row in target["rows"] if row["sha256"] != digest]
    path.write_text(json.dumps(target))
    params = tiny_params()
    params["benchmark"]["target"] = str(path)
    record = run(artifacts, check_config(params))
    assert "not timed" in gates_by_name(record, "student")["speedup"].reason
    dense = sha256_of(artifacts / "candidates" / "dense" / "model.onnx")
    target["rows"] = [row for row in target["rows"] if row["sha256"] != dense]
    path.write_text(json.dumps(target))
    without_dense = run(artifacts, check_config(params), out="again")
    assert without_dense.details.winner is None  # and the run continues
    assert all(not gates_by_name(without_dense, name)["speedup"].passed for name in ("pruned", "pruned-int8"))


@pytest.mark.thorough
def test_the_target_path_is_relative_to_the_project(
    artifacts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_target(artifacts, "sparse")
    params = tiny_params()
    params["benchmark"]["target"] = path.relative_to(tmp_path).as_posix()
    working_directory = tmp_path / "elsewhere"
    working_directory.mkdir()
    monkeypatch.chdir(working_directory)
    record = run(artifacts, check_config(params))
    assert record.details.speeds.is_target
    assert record.inputs["target"] == sha256_of(path)


def test_unchecked_int8_on_the_target_is_warned_of(tiny_data: Path, tmp_path: Path) -> None:
    changes = {name: {"damping": 0.36 + index / 1e5} for index, name in enumerate(CANDIDATES)}  # files that differ
    artifacts = build(tiny_data, tmp_path / "artifacts", changes)
    params = tiny_params()
    params["benchmark"]["target"] = str(write_target(artifacts, "pruned-int8"))
    record = run(artifacts, check_config(params))
    assert not gates_by_name(record, "pruned-int8")["int8"].checked
    assert "int8" not in gates_by_name(record, "pruned")
    warnings = [
        warning for warning in record.warnings if warning.startswith("int8 executed: not checked on Cortex-A76")
    ]
    assert len(warnings) == 1
    assert "(dense-int8, pruned-int8)" in warnings[0]


@pytest.mark.thorough
def test_predictions_that_this_machine_cannot_compute_are_warned_of(artifacts: Path) -> None:
    path = write_target(artifacts, "sparse")
    target = json.loads(path.read_text())
    target["machine"]["flags"] = []
    target["rows"] = [
        row | ({"runtime": "openvino", "precision": "bf16"} if row["candidate"] == "sparse" else {})
        for row in target["rows"]
    ]
    path.write_text(json.dumps(target))
    params = tiny_params()
    params["benchmark"]["target"] = str(path)
    warnings = run(artifacts, check_config(params)).warnings
    expected = (
        "top-1, drop, macro F1 and agreement of sparse are of its file in ONNX Runtime: it will serve in openvino"
    )
    assert any(warning.startswith(f"{expected} bf16 on Cortex-A76") for warning in warnings)
    assert any("saturate on Cortex-A76 is not checked" in warning for warning in warnings)


def test_int8_is_checked_if_the_benchmark_read_the_kernels(artifacts: Path) -> None:
    row = BenchmarkRecord.read(artifacts / "benchmark").details.best["pruned-int8"].latency
    assert row is not None
    coverage = Int8Coverage(
        candidate="pruned-int8", runtime=row.runtime, precision=row.precision, int8_share=0.25, kernels={}
    )
    rewrite_details(artifacts / "benchmark", executed=[coverage])
    record = run(artifacts)
    assert gates_by_name(record, "pruned-int8")["int8"].checked
    assert "25.0 %, less than" in gates_by_name(record, "pruned-int8")["int8"].reason
    assert not gates_by_name(record, "dense-int8")["int8"].checked
