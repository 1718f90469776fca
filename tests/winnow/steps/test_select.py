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
from winnow.records import (
    BenchmarkRecord,
    Gate,
    SelectionRecord,
    read_record,
    record_digest,
    sha256_of,
    this_machine,
)
from winnow.records.benchmark import Int8Coverage
from winnow.records.selection import Drop, DropEvidence
from winnow.selection.selection_warnings import ValidationImages, selection_warnings
from winnow.steps.select import select


def run(artifacts: Path, config: Config | None = None, out: str = "select") -> SelectionRecord:
    config = config or check_config(tiny_params())
    return select(
        config, artifacts / "data", artifacts / "candidates", artifacts / "benchmark", artifacts / out, artifacts.parent
    )


def configured(**promotion: Any) -> Config:
    params = tiny_params()
    params["promotion"] |= promotion
    return check_config(params)


@pytest.fixture
def artifacts(tiny_data: Path, tmp_path: Path) -> Path:
    return build(tiny_data, tmp_path / "artifacts")


WIDE = {"max_macro_f1_drop_points": 20.0}


def gates(record: SelectionRecord, name: str) -> dict[str, Gate]:
    verdict = record.details.verdict(name)
    assert verdict is not None
    return {gate.name: gate for gate in verdict.gates}


def test_the_fastest_of_those_who_pass_wins(artifacts: Path) -> None:
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
    for name in ("record.json", "pareto.png"):
        assert (artifacts / "first" / name).read_bytes() == (artifacts / "second" / name).read_bytes()


def test_drops_are_paired_on_the_validation_images(artifacts: Path) -> None:
    record = run(artifacts, configured())
    images = load_images(artifacts / "data")
    labels = images.labels_N[images.indices(VALIDATION)]
    right = {
        name: np.load(artifacts / "candidates" / name / "validation_logits.npy").argmax(1) == labels
        for name in ("dense", "student")
    }
    assert record.details.competitors == record.metrics["select/competitors"] == 5  # dense-kd and sparse cost more
    expected = paired_drop(right["dense"], right["student"], simultaneous_confidence(5))
    assert record.details.drops["student"].labelled == expected
    assert expected.points == pytest.approx(3 / 60 * 100)
    assert not gates(record, "student")["drop"].passed
    assert gates(record, "pruned")["drop"].passed


def test_a_better_control_becomes_the_reference(tiny_data: Path, tmp_path: Path) -> None:
    artifacts = build(tiny_data, tmp_path / "artifacts", {"dense-kd": {"damping": 0.34}})
    record = run(artifacts)
    assert record.details.reference == "dense-kd"
    lost = {name: record.details.drops[name].labelled for name in ("dense", "dense-kd")}
    assert lost["dense"] is not None
    assert lost["dense"].points == pytest.approx(100 / 60)
    assert lost["dense-kd"] is not None
    assert lost["dense-kd"].points == 0.0
    assert record.details.winner is None
    assert "no candidate passes every gate" in record.details.why
    assert "winner/speedup" not in record.metrics
    bought = {row.bought_by: row for row in record.details.controls}
    assert bought["training on"].points == pytest.approx(100 / 60)


def test_controls_say_what_a_teacher_bought(artifacts: Path) -> None:
    rows = run(artifacts).details.controls
    teacher = next(row for row in rows if row.bought_by == "a teacher")
    right = [
        read_record(artifacts / "candidates" / name).metrics["quality/top1"] for name in ("student", "student-alone")
    ]
    assert (teacher.candidate, teacher.control) == ("student", "student-alone")
    assert teacher.points == pytest.approx((right[0] - right[1]) * 100)
    assert 0 < teacher.low < teacher.points < teacher.high


def test_a_control_may_have_its_own_augmentation(artifacts: Path) -> None:
    """Labels alone want stronger views than a teacher; all else must be as in the taught twin."""
    right = {name: np.ones(20, bool) for name in ("dense", "dense-kd", "student", "student-alone")}
    for key, value, found in (("augmentation", {"crop_scale_min": 0.3}, 1), ("epochs", 7, 0)):
        raw = tiny_params()
        raw["candidates"]["student-alone"]["recovery"] |= {key: value}
        rows = control_gains(check_config(raw), right)
        assert sum(row.bought_by == "a teacher" for row in rows) == found


def test_a_tree_without_the_control_is_told(tiny_data: Path, tmp_path: Path) -> None:
    artifacts = build(tiny_data, tmp_path / "artifacts")
    params = tiny_params()
    del params["candidates"]["dense-kd"]
    record = run(artifacts, check_config(params))
    assert any(
        "dense-kd is not among the candidates: pruned, sparse, student" in warning for warning in record.warnings
    )
    assert [row.bought_by for row in record.details.controls] == ["a teacher"]


def test_rounding_that_trains_on_wants_a_control(tiny_data: Path, tmp_path: Path) -> None:
    artifacts, params = build(tiny_data, tmp_path / "artifacts"), tiny_params()
    recovery = params["candidates"]["pruned"]["recovery"]
    params["candidates"]["pruned-int8"] |= {"scheme": "qat", "recovery": recovery}
    told = "the control is {from: pruned, method: distill, student: same}"
    assert any(told in warning for warning in run(artifacts, check_config(params)).warnings)
    control = {"from": "pruned", "method": "distill", "student": "same", "recovery": recovery}
    assert remarks_of(check_config(params | {"candidates": params["candidates"] | {"pruned-on": control}})) == []
    control |= {"recovery": {**recovery, "batch_size": 2 * recovery["batch_size"]}}  # half as many steps
    assert remarks_of(check_config(params | {"candidates": params["candidates"] | {"pruned-on": control}}))


@pytest.mark.thorough
@pytest.mark.parametrize(("flags", "told"), [(("avx2",), True), (("avx2", "avx_vnni"), False)])
def test_sums_that_saturate_where_a_file_will_serve_are_told(
    artifacts: Path, flags: tuple[str, ...], told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = this_machine().model_copy(update={"flags": flags})
    monkeypatch.setattr("winnow.steps.select.this_machine", lambda: here)
    record_benchmark(artifacts, CANDIDATES, machine=here)
    command = " -S candidates.pruned-int8.overflow_safe=true"
    assert any(command in warning for warning in run(artifacts).warnings) is told


def remarks_of(config: Config) -> list[str]:
    """Those on the tree alone."""
    nothing = Drop(0.0, 0.0, 0.0)
    labels_V = np.arange(600) % 2
    found = selection_warnings(
        config, "dense", DropEvidence(nothing, nothing), ValidationImages(labels_V, labels_V, ("a", "b"))
    )
    return [each for each in found if "among the candidates" in each or "the control is" in each]


def test_times_of_another_machine_are_refused(artifacts: Path) -> None:
    here = this_machine()
    for change in ({"cpu": "Another 9000"}, {"threads": here.threads + 1}, {"flags": ("amx_int8", "never")}):
        record_benchmark(artifacts, CANDIDATES, machine=here.model_copy(update=change))
        with pytest.raises(ArtifactError, match=r"one machine only.*dvc repro"):
            run(artifacts)
    record_benchmark(artifacts, CANDIDATES, machine=here.model_copy(update={"memory_gb": 1.0, "versions": {}}))
    assert run(artifacts).details.winner == "pruned-int8"


def test_a_candidate_changed_after_the_benchmark_is_refused(artifacts: Path) -> None:
    rewrite(artifacts / "candidates" / "pruned", warnings=("made again",))
    with pytest.raises(ArtifactError, match=r"has not timed the present pruned; run the benchmark again"):
        run(artifacts)
    assert not (artifacts / "select").exists()


@pytest.mark.parametrize("content", [None, b"no array", "short"])
def test_answers_that_are_missing_damaged_or_of_other_data(artifacts: Path, content: bytes | str | None) -> None:
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
def test_the_objective_says_which_batch_the_gate_looks_at(tiny_data: Path, tmp_path: Path) -> None:
    artifacts = build(tiny_data, tmp_path / "artifacts")
    candidates = BenchmarkRecord.read(artifacts / "benchmark").details.candidates
    candidates["pruned-int8"] |= ratio_metrics("speedup/float_b8", Ratio(1.1, 1.05, 1.15))
    rewrite_details(artifacts / "benchmark", candidates=candidates)
    for objective, passed in (("latency", True), ("size", True), ("throughput", False)):
        record = run(artifacts, configured(objective=objective))
        gate = gates(record, "pruned-int8")["speedup"]
        assert gate.passed is passed
        assert ("4.00 times (" if passed else "1.10 times (1.05 to 1.15)") in gate.reason


def test_without_labels_the_answers_decide(tiny_data: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(tiny_data, data)
    labels, split = np.load(data / "labels.npy"), np.load(data / "split.npy")
    labels[split == VALIDATION] = -1
    np.save(data / "labels.npy", labels)
    record = run(build(data, tmp_path / "artifacts"))
    assert record.details.drops["student"].labelled is None
    assert record.details.controls == []
    assert record.details.winner == "pruned-int8"
    assert "no label; answers differ on 5.0 %" in gates(record, "student")["drop"].reason
    assert not gates(record, "student")["drop"].passed
    assert not gates(record, "student-alone")["agreement"].passed
    assert any("no validation image has a label" in warning for warning in record.warnings)


def test_a_candidate_that_was_not_timed_cannot_win(tiny_data: Path, tmp_path: Path) -> None:
    record = run(build(tiny_data, tmp_path / "artifacts", {"pruned-int8": {"ms": None}}))
    assert "not timed" in gates(record, "pruned-int8")["speedup"].reason
    assert record.details.winner == "pruned"
    assert "pruned-int8" not in record.details.front


def test_a_tree_of_dense_alone(artifacts: Path) -> None:
    params = tiny_params()
    params["candidates"] = {}
    record = run(artifacts, check_config(params))
    assert (record.details.winner, record.details.verdicts) == (None, [])
    assert record.details.front == ["dense"]


def test_judged_by_the_answers_of_the_runtime_that_will_serve(artifacts: Path) -> None:
    path = artifacts / "benchmark" / "pruned-int8-openvino-int8.npy"
    answers = np.load(path)
    np.save(path, np.roll(answers, 1, axis=1))  # as fast, and never right
    record = run(artifacts)
    served = record.details.served["pruned-int8"]
    assert served is not None
    assert served.runtime == "openvino"
    assert not gates(record, "pruned-int8")["drop"].passed
    assert not gates(record, "pruned-int8")["agreement"].passed
    assert record.details.winner != "pruned-int8"
    path.unlink()
    with pytest.raises(ArtifactError, match=r"pruned-int8-openvino-int8\.npy is missing"):
        run(artifacts, out="again")


@pytest.mark.thorough
def test_a_gate_that_too_few_labels_cannot_pass_is_told(artifacts: Path) -> None:
    record = run(artifacts, configured(gates=WIDE | {"max_drop_points": 1.0}))
    assert record.details.winner is None
    told = next(text for text in record.warnings if "no candidate can pass" in text)
    assert "60 labelled validation images, the interval of a file that loses nothing reaches 10.0 points, more " in told
    least = float(told.rpartition("promotion.gates.max_drop_points to at least ")[2])
    passing = run(artifacts, configured(gates=WIDE | {"max_drop_points": least}), out="again")
    assert passing.details.winner is not None
    assert not any("no candidate can pass" in text for text in passing.warnings)


def test_a_rare_class_that_died_fails_the_macro_gate_alone(tiny_data: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(tiny_data, data)
    labels, split = np.load(data / "labels.npy"), np.load(data / "split.npy")
    rare = np.flatnonzero((split == VALIDATION) & (labels == 1))
    split[rare[2:]] = TEST  # two of the class are left: five points of top-1
    np.save(data / "split.npy", split)
    artifacts = build(data, tmp_path / "artifacts")
    allowed = {"max_drop_points": 15.0, "max_macro_f1_drop_points": 20.0, "min_agreement": 0.5}
    record = run(artifacts, configured(gates=allowed))
    judged = gates(record, "student-alone")  # blind to the second class
    assert judged["drop"].passed
    assert not judged["macro-f1"].passed
    assert gates(record, "pruned")["macro-f1"].passed


def test_images_without_labels_show_what_few_labels_cannot(tiny_data: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(tiny_data, data)
    labels, split = np.load(data / "labels.npy"), np.load(data / "split.npy")
    validation = np.flatnonzero(split == VALIDATION)
    labels[validation[np.arange(len(validation)) % 5 > 0]] = -1
    np.save(data / "labels.npy", labels)
    record = run(build(data, tmp_path / "artifacts"))
    reason = gates(record, "pruned-int8")["drop"].reason
    assert "answers differ on 0.0 % of the images, at most 10.0 %, so no more; 95 % over 5 candidates" in reason
    assert record.details.winner == "pruned-int8"
    assert any(text.startswith("only 12 labelled validation images: the loss is also") for text in record.warnings)
    told = next(text for text in record.warnings if text.startswith("labels cannot show that macro F1 is preserved"))
    assert "12 labelled validation images, 4 of class" in told
    assert "with the reference's answers as truth" in gates(record, "pruned-int8")["macro-f1"].reason


def there(artifacts: Path, faster: str, **changes: Any) -> Path:
    """host.json of another machine, on which `faster` is the fastest."""
    rows = []
    for name in CANDIDATES:
        for batch in (1, 8):
            p50 = (0.1 if name == faster else 5.0 + len(name)) * batch
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
    told = {"format": 2, "machine": machine, "large_batch": 8, "rows": rows, "refused": []} | changes
    (artifacts / "target.json").write_text(json.dumps(told))
    return artifacts / "target.json"


def test_with_a_target_its_figures_alone_count(tiny_data: Path, tmp_path: Path) -> None:
    changes = {name: {"damping": 0.36 + at / 1e5} for at, name in enumerate(CANDIDATES)}  # files that differ
    artifacts = build(tiny_data, tmp_path / "artifacts", changes)
    params = tiny_params()
    params["promotion"]["gates"] |= {"max_size_ratio": 9.0}
    params["benchmark"]["target"] = str(there(artifacts, "sparse"))
    elsewhere = this_machine().model_copy(update={"cpu": "Another 9000"})
    record_benchmark(artifacts, {name: CANDIDATES[name] | changes[name] for name in CANDIDATES}, machine=elsewhere)
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
def test_what_the_target_has_not_timed_cannot_win(artifacts: Path) -> None:
    path = there(artifacts, "pruned-int8")
    told = json.loads(path.read_text())
    digest = sha256_of(artifacts / "candidates" / "student" / "model.onnx")
    told["rows"] = [row for row in told["rows"] if row["sha256"] != digest]
    path.write_text(json.dumps(told))
    params = tiny_params()
    params["benchmark"]["target"] = str(path)
    record = run(artifacts, check_config(params))
    assert "not timed" in gates(record, "student")["speedup"].reason
    dense = sha256_of(artifacts / "candidates" / "dense" / "model.onnx")
    told["rows"] = [row for row in told["rows"] if row["sha256"] != dense]
    path.write_text(json.dumps(told))
    nobody = run(artifacts, check_config(params), out="again")
    assert nobody.details.winner is None  # and the run goes on to its end
    assert all(not gates(nobody, name)["speedup"].passed for name in ("pruned", "pruned-int8"))


@pytest.mark.thorough
def test_a_target_is_looked_for_in_the_project_and_not_in_the_working_directory(
    artifacts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = there(artifacts, "sparse")
    params = tiny_params()
    params["benchmark"]["target"] = path.relative_to(tmp_path).as_posix()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    record = run(artifacts, check_config(params))
    assert record.details.speeds.is_target
    assert record.inputs["target"] == sha256_of(path)


def test_int8_that_was_not_read_on_the_target_is_told(tiny_data: Path, tmp_path: Path) -> None:
    changes = {name: {"damping": 0.36 + at / 1e5} for at, name in enumerate(CANDIDATES)}  # files that differ
    artifacts = build(tiny_data, tmp_path / "artifacts", changes)
    params = tiny_params()
    params["benchmark"]["target"] = str(there(artifacts, "pruned-int8"))
    record = run(artifacts, check_config(params))
    assert not gates(record, "pruned-int8")["int8"].checked
    assert "int8" not in gates(record, "pruned")
    told = [warning for warning in record.warnings if warning.startswith("int8 executed: not checked on Cortex-A76")]
    assert len(told) == 1
    assert "(dense-int8, pruned-int8)" in told[0]


@pytest.mark.thorough
def test_answers_that_this_machine_cannot_give_are_told(artifacts: Path) -> None:
    path = there(artifacts, "sparse")
    told = json.loads(path.read_text())
    told["machine"]["flags"] = []
    told["rows"] = [
        row | ({"runtime": "openvino", "precision": "bf16"} if row["candidate"] == "sparse" else {})
        for row in told["rows"]
    ]
    path.write_text(json.dumps(told))
    params = tiny_params()
    params["benchmark"]["target"] = str(path)
    warnings = run(artifacts, check_config(params)).warnings
    start = "top-1, drop, macro F1 and agreement of sparse are of its file in ONNX Runtime: it will serve in openvino"
    assert any(told.startswith(f"{start} bf16 on Cortex-A76") for told in warnings)
    assert any("saturate on Cortex-A76 is not checked" in told for told in warnings)


def test_int8_is_checked_where_the_benchmark_read_the_kernels(artifacts: Path) -> None:
    row = BenchmarkRecord.read(artifacts / "benchmark").details.best["pruned-int8"].latency
    assert row is not None
    coverage = Int8Coverage(
        candidate="pruned-int8", runtime=row.runtime, precision=row.precision, int8_share=0.25, kernels={}
    )
    rewrite_details(artifacts / "benchmark", executed=[coverage])
    record = run(artifacts)
    assert gates(record, "pruned-int8")["int8"].checked
    assert "25.0 %, less than" in gates(record, "pruned-int8")["int8"].reason
    assert not gates(record, "dense-int8")["int8"].checked
