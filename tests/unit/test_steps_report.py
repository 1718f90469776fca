from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import tiny_params
from tests.tiny_run import build, write_network
from winnow.config import Config, check_config
from winnow.data.images import TEST, load_images
from winnow.errors import ArtifactError
from winnow.inference import predict_file
from winnow.intervals import paired_drop
from winnow.records import StepRecord, read_record, record_digest
from winnow.steps.report import count_reading, report, version_of
from winnow.steps.select import select


def chosen(artifacts: Path, config: Config | None = None) -> Path:
    config = config or check_config(tiny_params())
    select(config, artifacts / "data", artifacts / "candidates", artifacts / "benchmark", artifacts / "select")
    return artifacts


@pytest.fixture
def artifacts(tiny_data: Path, tmp_path: Path) -> Path:
    """pruned-int8 wins; on the test split it is worse than dense."""
    built = build(tiny_data, tmp_path / "artifacts")
    return chosen(built)


def run(artifacts: Path, config: Config | None = None, out: str = "report") -> StepRecord:
    config = config or check_config(tiny_params())
    return report(config, artifacts, artifacts.parent / "hidden" / "test-readings.json", artifacts / out)


def test_dense_and_the_winner_are_tested(artifacts: Path) -> None:
    write_network(artifacts / "candidates" / "pruned-int8" / "model.onnx", 0.38)
    record = run(artifacts)
    images = load_images(artifacts / "data")
    indices = images.indices(TEST)
    labels = images.labels_N[indices]
    right = {}
    for name in ("dense", "pruned-int8"):
        logits = predict_file(artifacts / "candidates" / name / "model.onnx", images.images_NHWC, indices)
        right[name] = logits.argmax(1) == labels
    drop = paired_drop(right["dense"], right["pruned-int8"])
    told = record.metrics
    assert read_record(artifacts / "report") == record
    assert told["test/images"] == 30
    assert told["test/dense_top1"] == pytest.approx(right["dense"].mean())
    assert told["test/winner_top1"] == pytest.approx(right["pruned-int8"].mean())
    assert 0 < told["test/drop_points"] == pytest.approx(drop.points)
    assert (told["test/drop_low"], told["test/drop_high"]) == (drop.low, drop.high)
    assert told["test/winner_top1_low"] < told["test/winner_top1"] < told["test/winner_top1_high"]
    assert record.details["test"]["pruned-int8"]["per_class"]["stripes"]["support"] == 10
    assert record.inputs["select"] == record_digest(artifacts / "select")
    page = (artifacts / "report" / "report.html").read_text(encoding="utf-8")
    assert f"{told['test/winner_top1'] * 100:.1f}" in page
    assert version_of(images) in page


def test_nobody_else_is_tested(artifacts: Path) -> None:
    for folder in (artifacts / "candidates").iterdir():
        if folder.name not in ("dense", "pruned-int8"):
            (folder / "model.onnx").write_bytes(b"must not be read")
    assert run(artifacts).details["winner"] == "pruned-int8"
    (artifacts / "candidates" / "pruned-int8" / "model.onnx").write_bytes(b"must be read")
    with pytest.raises(ArtifactError, match=r"pruned-int8/model\.onnx"):
        run(artifacts)


def test_without_a_winner_only_dense_is_tested(artifacts: Path) -> None:
    params = tiny_params()
    params["promotion"]["gates"] |= {"min_speedup": 50.0}
    config = check_config(params)
    record = run(chosen(artifacts, config), config)
    assert record.details["winner"] is None
    assert "test/dense_top1" in record.metrics
    assert not {key for key in record.metrics if key.startswith(("test/winner", "test/drop"))}
    page = (artifacts / "report" / "report.html").read_text(encoding="utf-8")
    assert "Nothing is proposed for production" in page
    assert "is less than 50" in page


def test_readings_are_counted_and_told(artifacts: Path, caplog: pytest.LogCaptureFixture) -> None:
    counts = artifacts.parent / "hidden" / "test-readings.json"
    with caplog.at_level(logging.INFO, logger="winnow.steps.report"):
        first = run(artifacts, out="first")
        second = run(artifacts, out="second")
    assert "test split read 1 time (" in caplog.text
    assert "test split read 2 times (" in caplog.text
    assert json.loads(counts.read_text()) == {first.details["test_version"]: 2}
    assert first == second
    assert (artifacts / "first" / "report.html").read_bytes() == (artifacts / "second" / "report.html").read_bytes()


def test_another_test_split_is_another_version(artifacts: Path, tmp_path: Path) -> None:
    images = load_images(artifacts / "data")
    before = version_of(images)
    keys, split = np.array(images.keys_N16), np.array(images.split_N)
    keys[split != TEST] += 1
    np.save(artifacts / "data" / "keys.npy", keys)
    assert version_of(load_images(artifacts / "data")) == before
    keys[np.flatnonzero(split == TEST)[0], 0] += 1
    np.save(artifacts / "data" / "keys.npy", keys)
    after = version_of(load_images(artifacts / "data"))
    assert after != before
    counts = tmp_path / "counts.json"
    assert [count_reading(counts, version) for version in (before, after, before)] == [1, 1, 2]
    assert list(tmp_path.glob("counts*")) == [counts]


@pytest.mark.parametrize("content", ["{", "[]", '{"a": null}', '{"a": "many"}'])
def test_a_damaged_count_is_told(tmp_path: Path, content: str) -> None:
    path = tmp_path / "counts.json"
    path.write_text(content)
    with pytest.raises(ArtifactError, match=r"counts\.json is damaged.*delete it"):
        count_reading(path, "a")
    assert path.read_text() == content


def test_without_test_images_the_page_says_so(artifacts: Path) -> None:
    split = np.load(artifacts / "data" / "split.npy")
    split[split == TEST] = 0
    np.save(artifacts / "data" / "split.npy", split)
    record = run(artifacts)
    assert record.metrics == {"test/images": 0.0}
    assert "no labelled test image" in record.warnings[0]
    assert not (artifacts.parent / "hidden").exists()
    assert "no labelled test image" in (artifacts / "report" / "report.html").read_text(encoding="utf-8")


def test_a_failure_leaves_the_old_page(artifacts: Path) -> None:
    run(artifacts)
    before = (artifacts / "report" / "report.html").read_bytes()
    (artifacts / "select" / "pareto.png").unlink()
    with pytest.raises(ArtifactError, match=r"pareto\.png is missing"):
        run(artifacts)
    assert (artifacts / "report" / "report.html").read_bytes() == before
