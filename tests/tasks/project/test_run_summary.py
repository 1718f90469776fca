from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from tasks.project.paths import ProjectPaths
from tasks.project.run_summary import candidate_table, report_warnings, training_lines, unchecked_lines
from tasks.registry.deployment_card import deployment_card
from tasks.tracking.run_content import _verdict
from tests.conftest import tiny_params
from tests.records import candidate_card, make_record, report_details
from tests.tiny_run import CANDIDATES, build, rewrite, select_and_refit
from winnow.config import check_config
from winnow.evaluation.metrics import benchmark_logits_file
from winnow.records import FinetuneRecord, SelectionRecord, read_record, write_record
from winnow.records.candidate import CrossValidationSummary
from winnow.reporting.run_records import read_run_records
from winnow.steps.select import select


@pytest.fixture
def paths(tiny_data: Path, tmp_path: Path) -> ProjectPaths:
    paths = ProjectPaths(tmp_path)
    at = build(tiny_data, paths.artifacts)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(tiny_params()))
    config = check_config(tiny_params())
    select_and_refit(config, at)
    (at / "report").mkdir()
    write_record(at / "report", make_record("report", report_details(), metrics={"test/images": 30.0}))
    return paths


def test_a_row_names_gates_as_people_do_and_tells_the_share_of_the_peak(paths: ProjectPaths) -> None:
    rows = {row["candidate"]: row for row in candidate_table(paths)}
    assert rows["student"]["verdict"] == "fails: drop"
    failing = " ".join(row["verdict"] for row in rows.values())
    assert "speed-up" in failing
    assert "speedup" not in failing
    shown = {name: row["of peak, %"] for name, row in rows.items()}
    assert shown == {name: f"1 / 10 {'int8' if name.endswith('int8') else 'f32'}" for name in rows}


def test_a_gate_that_was_not_checked_is_told(paths: ProjectPaths) -> None:
    rows = {row["candidate"]: row["verdict"] for row in candidate_table(paths)}
    assert rows["pruned-int8"] == "winner (not checked: int8 executed)"
    assert rows["pruned"] == "passed"
    told = [line for line in unchecked_lines(paths) if line.startswith("pruned-int8, int8 executed: not checked on ")]
    assert len(told) == 1
    verdict, reason = _verdict("pruned-int8", SelectionRecord.read(paths.artifacts / "select").details)
    assert verdict == "winner"
    assert "int8 executed: not checked on " in reason


def test_labels_and_gain_are_told(paths: ProjectPaths) -> None:
    labels, gain, *_ = training_lines(paths)
    assert (
        labels
        == "labels used: 30 for training, 60 for choosing, 30 for the test; 30 trained the model that is deployed"
    )
    assert gain.startswith("pretrained against from scratch, same labels and steps: +17.5 points")
    assert not any("torch.compile" in line for line in training_lines(paths))


def test_accuracy_elsewhere_than_on_validation_is_told(paths: ProjectPaths) -> None:
    assert not any("top-1 " in line for line in training_lines(paths)[2:])
    dense = paths.artifacts / "candidates" / "dense"
    crossed = {"cross_validation/top1": 0.46, "cross_validation/top1_low": 0.366, "cross_validation/top1_high": 0.557}
    record = FinetuneRecord.read(dense)
    summary = CrossValidationSummary(labels=100, folds=5, per_class={})
    details = record.details.model_copy(update={"cross_validation": summary})
    rewrite(dense, metrics=record.metrics | crossed, details=details)
    test = {f"test/{who}_top1{end}": 0.5 for who in ("dense", "winner") for end in ("", "_low", "_high")}
    where = report_details(baseline="dense-kd", measured_in="openvino int8, batches of 1")
    test |= {f"test/dense-kd_top1{end}": 0.6 for end in ("", "_low", "_high")}
    rewrite(paths.artifacts / "report", metrics={"test/images": 30.0, **test}, details=where)
    rows = {row["candidate"]: row for row in candidate_table(paths)}
    assert list(rows["dense"])[:3] == ["candidate", "top-1 %", "test top-1 %"]
    shown = {name: row["test top-1 %"] for name, row in rows.items()}
    tested = {"dense": "50.0 ± 0.0", "dense-kd": "60.0 ± 0.0", "pruned-int8": "50.0 ± 0.0"}
    assert shown == {name: tested.get(name, "-") for name in rows}
    told = training_lines(paths)
    assert told[1] == "dense, cross-validated: top-1 46.0 % (95 % interval 36.6 to 55.7), 100 labels"
    assert told[2] == (
        "on the test images: dense top-1 50.0 % (95 % interval 50.0 to 50.0), dense-kd top-1 60.0 % (95 % interval "
        "60.0 to 60.0), the winner top-1 50.0 % (95 % interval 50.0 to 50.0) in openvino int8, batches of 1"
    )


def test_warnings_of_every_step_each_once_and_those_of_the_report_before_the_table(paths: ProjectPaths) -> None:
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
    at, config = paths.artifacts, check_config(tiny_params())
    row = SelectionRecord.read(at / "select").details.served["pruned-int8"]
    assert row is not None
    logits = np.load(at / "benchmark" / benchmark_logits_file(row))
    logits[0] = np.roll(logits[0], 1)  # one image gets another answer where the file serves
    np.save(at / "benchmark" / benchmark_logits_file(row), logits)
    selection = select(config, at / "data", at / "candidates", at / "benchmark", at / "select", at.parent)
    own = read_record(at / "candidates" / "pruned-int8").metrics
    served = selection.details.quality["pruned-int8"]
    assert served["quality/top1"] == pytest.approx(own["quality/top1"] - 1 / 60)
    assert served["quality/agreement"] == selection.details.agreement["pruned-int8"]
    shown = next(shown for shown in candidate_table(paths) if shown["candidate"] == "pruned-int8")
    assert shown["top-1 %"].startswith(f"{served['quality/top1'] * 100:.1f} ")
    facts = read_run_records(at, tuple(CANDIDATES))
    assert {key: facts.quality("pruned-int8")[key] for key in served} == served
    candidate_card(name="pruned-int8", metrics=own).write(at / "candidates" / "pruned-int8")
    card = deployment_card(paths, config, selection, "pruned-int8", at / "candidates" / "pruned-int8")
    assert {key: card.metrics[key] for key in served} == served
