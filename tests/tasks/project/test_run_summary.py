from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from tasks.project.paths import ProjectPaths
from tasks.project.run_summary import candidate_table, closing_table, report_warnings, training_lines, unchecked_lines
from tasks.registry.deployment_card import deployment_card
from tasks.tracking.run_content import _verdict
from tests.conftest import tiny_params
from tests.records import candidate_card, make_record, report_details
from tests.tiny_run import CANDIDATES, build, rewrite, select_and_refit
from winnow.cli.run import show_results
from winnow.config import check_config
from winnow.evaluation.metrics import benchmark_logits_file
from winnow.records import BenchmarkRecord, FinetuneRecord, SelectionRecord, read_record, write_record
from winnow.records.finetune import CrossValidationSummary, PretrainingGain, UnlabelledComparison
from winnow.reporting.run_records import read_run_records
from winnow.steps.select import select


@pytest.fixture
def paths(tiny_data: Path, tmp_path: Path) -> ProjectPaths:
    paths = ProjectPaths(tmp_path)
    artifacts = build(tiny_data, paths.artifacts)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(tiny_params()))
    config = check_config(tiny_params())
    select_and_refit(config, artifacts)
    (artifacts / "report").mkdir()
    write_record(artifacts / "report", make_record("report", report_details(), metrics={"test/images": 30.0}))
    return paths


def test_a_row_shows_gate_names_and_the_share_of_the_peak(paths: ProjectPaths) -> None:
    rows = {row["candidate"]: row for row in candidate_table(paths)}
    assert rows["student"]["verdict"] == "fails: drop"
    verdicts = " ".join(row["verdict"] for row in rows.values())
    assert "speed-up" in verdicts
    assert "speedup" not in verdicts
    shares = {name: row["of peak, %"] for name, row in rows.items()}
    assert shares == {name: f"1 / 10 {'int8' if name.endswith('int8') else 'f32'}" for name in rows}


def test_the_closing_table_shows_the_speed_of_the_objective(paths: ProjectPaths) -> None:
    large = BenchmarkRecord.read(paths.artifacts / "benchmark").parameters["large_batch"]
    full = {row["candidate"]: row for row in candidate_table(paths)}
    for objective, speed, number in (("latency", "one image ms", 0), ("throughput", f"images/s batch {large}", 1)):
        table = closing_table(paths, objective)
        assert [row["candidate"] for row in table] == list(full)
        for row in table:
            every = full[row["candidate"]]
            assert row[speed] == every["p50 ms, b1" if objective == "latency" else f"images/s, b{large}"]
            assert row["x PyTorch dense"] == every["x eager f32"].split(" / ")[number]
            assert row["x fastest dense"] == every["x best float"].split(" / ")[number]


def test_the_closing_table_fits_100_columns(paths: ProjectPaths, capsys: pytest.CaptureFixture[str]) -> None:
    show_results(paths, check_config(tiny_params()))
    lines = capsys.readouterr().out.splitlines()
    title = next(number for number, line in enumerate(lines) if line.startswith("Candidates on"))
    table = lines[title : next(number for number, line in enumerate(lines) if line.startswith("Accuracy is top-1"))]
    assert max(map(len, table)) <= 100
    for name in ("dense", *CANDIDATES):
        assert any(line.split()[:1] == [name] for line in table)
    assert "winner (not checked: int8 executed)" in " ".join(" ".join(line[80:] for line in table).split())


def test_an_unchecked_gate_is_reported(paths: ProjectPaths) -> None:
    rows = {row["candidate"]: row["verdict"] for row in candidate_table(paths)}
    assert rows["pruned-int8"] == "winner (not checked: int8 executed)"
    assert rows["pruned"] == "passed"
    lines = [line for line in unchecked_lines(paths) if line.startswith("pruned-int8, int8 executed: not checked on ")]
    assert len(lines) == 1
    verdict, reason = _verdict("pruned-int8", SelectionRecord.read(paths.artifacts / "select").details)
    assert verdict == "winner"
    assert "int8 executed: not checked on " in reason


def test_labels_and_gain_are_reported(paths: ProjectPaths) -> None:
    labels, gain, *_ = training_lines(paths)
    assert (
        labels
        == "labels used: 30 for training, 60 for selection, 30 for the test; 30 trained the model that is deployed"
    )
    assert gain.startswith("pretrained against from scratch, same labels and steps: +17.5 points")
    assert not any("torch.compile" in line for line in training_lines(paths))


def test_cross_validation_and_test_accuracy_are_reported(paths: ProjectPaths) -> None:
    assert not any("top-1 " in line for line in training_lines(paths)[2:])
    dense = paths.artifacts / "candidates" / "dense"
    cross_validated = {
        "cross_validation/top1": 0.46,
        "cross_validation/top1_low": 0.366,
        "cross_validation/top1_high": 0.557,
    }
    record = FinetuneRecord.read(dense)
    summary = CrossValidationSummary(labels=100, folds=5, per_class={})
    details = record.details.model_copy(update={"cross_validation": summary})
    rewrite(dense, metrics=record.metrics | cross_validated, details=details)
    test_metrics = {
        f"test/{model}_top1{suffix}": 0.5 for model in ("dense", "winner") for suffix in ("", "_low", "_high")
    }
    report = report_details(baseline="dense-kd", measured_in="openvino int8, batches of 1")
    test_metrics |= {f"test/dense-kd_top1{suffix}": 0.6 for suffix in ("", "_low", "_high")}
    rewrite(paths.artifacts / "report", metrics={"test/images": 30.0, **test_metrics}, details=report)
    rows = {row["candidate"]: row for row in candidate_table(paths)}
    assert list(rows["dense"])[:3] == ["candidate", "top-1 %", "test top-1 %"]
    accuracies = {name: row["test top-1 %"] for name, row in rows.items()}
    expected = {"dense": "50.0 ± 0.0", "dense-kd": "60.0 ± 0.0", "pruned-int8": "50.0 ± 0.0"}
    assert accuracies == {name: expected.get(name, "-") for name in rows}
    lines = training_lines(paths)
    assert lines[1] == "dense, cross-validated: top-1 46.0 % (95 % interval 36.6 to 55.7), 100 labels"
    assert lines[2] == (
        "on the test images: dense top-1 50.0 % (95 % interval 50.0 to 50.0), dense-kd top-1 60.0 % (95 % interval "
        "60.0 to 60.0), the winner top-1 50.0 % (95 % interval 50.0 to 50.0) in openvino int8, batches of 1"
    )


@pytest.mark.parametrize("kept", [True, False])
def test_the_gain_by_images_without_labels_is_reported(paths: ProjectPaths, kept: bool) -> None:
    dense = paths.artifacts / "candidates" / "dense"
    gain = PretrainingGain(arm="unlabelled", mean=15.25, low=12.0, high=18.5, pairs=2)
    unlabelled = UnlabelledComparison(method="propagation", kept=kept, trainings=[], gain=gain)
    rewrite(dense, details=FinetuneRecord.read(dense).details.model_copy(update={"unlabelled": unlabelled}))
    assert training_lines(paths)[2] == (
        "training on images without labels (propagation) against labels alone: +15.2 points of top-1 (95 % interval "
        f"+12.0 to +18.5), 2 label seeds; {'dense is the result' if kept else 'not used, since it did not help'}"
    )


def test_warnings_are_listed_once_and_those_of_the_report_come_first(paths: ProjectPaths) -> None:
    rewrite(paths.artifacts / "report", warnings=("of report",))
    assert report_warnings(paths) == ["of report"]
    folders = ["data", "pretrain", "candidates/dense", "candidates/pruned", "benchmark", "select"]
    for folder in folders:
        rewrite(paths.artifacts / folder, warnings=("of all", f"of {folder}"))
    lines = training_lines(paths)
    assert [line.partition(": ")[2] for line in lines if ": of " in line] == [
        "of all",
        *(f"of {folder}" for folder in folders),
    ]
    assert "pruned: of candidates/pruned" in lines


@pytest.mark.thorough
def test_table_report_and_card_show_one_value_where_runtimes_differ(paths: ProjectPaths) -> None:
    artifacts, config = paths.artifacts, check_config(tiny_params())
    best_row = SelectionRecord.read(artifacts / "select").details.served["pruned-int8"]
    assert best_row is not None
    logits = np.load(artifacts / "benchmark" / benchmark_logits_file(best_row))
    logits[0] = np.roll(logits[0], 1)  # the serving runtime predicts another class for one image
    np.save(artifacts / "benchmark" / benchmark_logits_file(best_row), logits)
    selection = select(
        config,
        artifacts / "data",
        artifacts / "candidates",
        artifacts / "benchmark",
        artifacts / "select",
        artifacts.parent,
    )
    metrics = read_record(artifacts / "candidates" / "pruned-int8").metrics
    quality = selection.details.quality["pruned-int8"]
    assert quality["quality/top1"] == pytest.approx(metrics["quality/top1"] - 1 / 60)
    assert quality["quality/agreement"] == selection.details.agreement["pruned-int8"]
    row = next(row for row in candidate_table(paths) if row["candidate"] == "pruned-int8")
    assert row["top-1 %"].startswith(f"{quality['quality/top1'] * 100:.1f} ")
    run_records = read_run_records(artifacts, tuple(CANDIDATES))
    assert {key: run_records.quality("pruned-int8")[key] for key in quality} == quality
    candidate_card(name="pruned-int8", metrics=metrics).write(artifacts / "candidates" / "pruned-int8")
    card = deployment_card(paths, config, selection, "pruned-int8", artifacts / "candidates" / "pruned-int8")
    assert {key: card.metrics[key] for key in quality} == quality
