from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.conftest import tiny_params
from tests.tiny_run import build, rewrite_details, select_and_refit, write_network
from tests.winnow.labels.embedded_project import taught_params, write_embeddings
from winnow.config import Config, check_config
from winnow.data.dataset import TEST, TRAIN, load_images
from winnow.deploy.batch_inference import predict_file
from winnow.deploy.inference_runtimes import OPENERS
from winnow.deploy.runtime_properties import RuntimeUnavailable
from winnow.errors import ArtifactError
from winnow.evaluation.intervals import paired_drop
from winnow.records import ReportRecord, SelectionRecord, read_record, record_digest
from winnow.records.benchmark import BenchmarkCase
from winnow.records.ingest import NearDuplicates
from winnow.records.refit import RefitLabels
from winnow.reporting.thumbnails import GAP, SIDE, draw_pairs
from winnow.selection.test_readings import digest_test_split
from winnow.steps.report import report


def run_select_and_refit(artifacts: Path, config: Config | None = None) -> Path:
    config = config or check_config(tiny_params())
    return select_and_refit(config, artifacts)


@pytest.fixture
def artifacts(tiny_data: Path, tmp_path: Path) -> Path:
    """Return artifacts in which pruned-int8 wins, and is worse than dense on the test split."""
    root = build(tiny_data, tmp_path / "artifacts")
    return run_select_and_refit(root)


def run(artifacts: Path, config: Config | None = None, out: str = "report") -> ReportRecord:
    config = config or check_config(tiny_params())
    return report(config, artifacts, artifacts / out)


def test_dense_and_the_winner_are_tested(artifacts: Path) -> None:
    write_network(artifacts / "candidates" / "pruned-int8" / "model.onnx", 0.38)
    record = run(artifacts)
    assert record.details.measured_in == "openvino int8, batches of 1"
    assert record.details.baseline == "dense"
    images = load_images(artifacts / "data")
    indices = images.indices(TEST)
    labels = images.labels_N[indices]
    correct = {}
    for name in ("dense", "pruned-int8"):
        logits = predict_file(artifacts / "candidates" / name / "model.onnx", images.images_NHWC, indices)
        correct[name] = logits.argmax(1) == labels
    drop = paired_drop(correct["dense"], correct["pruned-int8"])
    metrics = record.metrics
    assert read_record(artifacts / "report") == record
    assert metrics["test/images"] == 30
    assert metrics["test/dense_top1"] == pytest.approx(correct["dense"].mean())
    assert metrics["test/winner_top1"] == pytest.approx(correct["pruned-int8"].mean())
    assert 0 < metrics["test/drop_from_dense_points"] == pytest.approx(drop.points)
    assert (metrics["test/drop_from_dense_low"], metrics["test/drop_from_dense_high"]) == (drop.low, drop.high)
    assert metrics["test/winner_top1_low"] < metrics["test/winner_top1"] < metrics["test/winner_top1_high"]
    assert record.details.test["pruned-int8"].per_class["stripes"].support == 10
    assert record.inputs["select"] == record_digest(artifacts / "select")
    page = (artifacts / "report" / "report.html").read_text(encoding="utf-8")
    assert f"{metrics['test/winner_top1'] * 100:.1f}" in page
    assert digest_test_split(images) in page


def serve_wrong_predictions(artifacts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make OpenVINO predict the second class for every image; ONNX Runtime is unchanged."""

    def open_constant_model(folder: Path, case: BenchmarkCase) -> Any:
        assert (case.runtime, case.batch) == ("openvino", 1)
        return lambda pixels_NHWC: np.eye(3, dtype=np.float32)[np.ones(len(pixels_NHWC), np.int64)]

    monkeypatch.setitem(OPENERS, "openvino", open_constant_model)


def test_the_winner_is_tested_in_its_serving_runtime(artifacts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve_wrong_predictions(artifacts, monkeypatch)
    record = run(artifacts)
    assert record.metrics["test/winner_top1"] == pytest.approx(1 / 3)
    assert record.metrics["test/dense_top1"] > 0.9
    assert record.details.measured_in == "openvino int8, batches of 1"
    assert record.details.fallback == ""
    page = (artifacts / "report" / "report.html").read_text(encoding="utf-8")
    assert "measured in openvino int8, batches of 1" in page


def test_a_disagreement_of_test_and_validation_is_the_first_warning(
    artifacts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(artifacts).warnings == ()
    serve_wrong_predictions(artifacts, monkeypatch)
    warning = run(artifacts).warnings[0]
    assert warning.startswith("pruned-int8 has 33.3 % top-1 on the test split (95 % interval 19.2 to 51.2), below the")
    assert "98.3 % on validation (91.1 to 99.7): the intervals do not overlap" in warning
    page = (artifacts / "report" / "report.html").read_text(encoding="utf-8")
    assert page.index("the intervals do not overlap") < page.index("smaller than dense")


def test_a_disagreement_of_dense_is_reported_without_a_winner(artifacts: Path) -> None:
    params = tiny_params()
    params["promotion"]["gates"] |= {"min_speedup": 50.0}
    config = check_config(params)
    run_select_and_refit(artifacts, config)
    write_network(artifacts / "candidates" / "dense" / "model.onnx", 0.99)
    assert "dense has 66.7 % top-1 on the test split" in run(artifacts, config).warnings[0]


def read_page(artifacts: Path) -> str:
    return (artifacts / "report" / "report.html").read_text(encoding="utf-8")


def test_the_page_shows_a_map_and_neighbours_by_the_network_that_embedded(artifacts: Path) -> None:
    record = run(artifacts)
    assert {artifact.name for artifact in record.artifacts} >= {"embedding_map.png", "neighbours.png"}
    assert "those of the backbone resnet8 before fine-tuning (" in read_page(artifacts)
    config = check_config(taught_params())
    write_embeddings(artifacts, config)
    run(artifacts, config)
    assert "those of the teacher package:efficientnet-lite0" in read_page(artifacts)


def test_suspicious_labels_are_listed_shown_and_counted(artifacts: Path) -> None:
    config = check_config(taught_params())
    write_embeddings(artifacts, config)
    record = run(artifacts, config)
    assert record.metrics["labels/suspicious"] == 0
    assert "none is suspicious by the features of the teacher" in read_page(artifacts)
    images = load_images(artifacts / "data")
    labels_N = np.array(images.labels_N)
    wrong = int(images.indices(TRAIN, labelled=True)[3])
    labels_N[wrong] = (labels_N[wrong] + 1) % 3
    np.save(artifacts / "data" / "labels.npy", labels_N)
    record = run(artifacts, config)
    assert {artifact.name for artifact in record.artifacts} >= {"label_check.csv", "label_check.png"}
    assert record.metrics["labels/checked"] == 170
    assert record.metrics["labels/suspicious"] == 1
    assert record.metrics["labels/predicted"] > 0.98
    listed = (artifacts / "report" / "label_check.csv").read_text(encoding="utf-8").splitlines()
    assert [line.split(",")[0] for line in listed] == ["path", images.files[wrong]]
    assert "The most suspicious label:" in read_page(artifacts)


def test_classes_of_one_group_each_cannot_be_judged(artifacts: Path) -> None:
    config = check_config(taught_params())
    write_embeddings(artifacts, config)
    images = load_images(artifacts / "data")
    np.save(artifacts / "data" / "groups.npy", np.array(images.labels_N))
    record = run(artifacts, config)
    assert "labels/predicted" not in record.metrics
    assert "Too few labels or groups to judge: disc, stripes, wedge" in read_page(artifacts)


def test_many_labels_are_checked_in_part(artifacts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = check_config(taught_params())
    write_embeddings(artifacts, config)
    monkeypatch.setattr("winnow.steps.report.MOST_CHECKED", 60)
    record = run(artifacts, config)
    assert record.metrics["labels/checked"] == 60
    assert "Of 60 labels of training and validation, a random part of 170" in read_page(artifacts)
    first = [(artifacts / "report" / name).read_bytes() for name in ("record.json", "report.html")]
    run(artifacts, config)
    assert [(artifacts / "report" / name).read_bytes() for name in ("record.json", "report.html")] == first


def test_labels_are_not_judged_by_features_that_do_not_tell_classes_apart(artifacts: Path) -> None:
    config = check_config(taught_params())
    images = load_images(artifacts / "data")
    write_embeddings(artifacts, config, np.random.default_rng(0).normal(size=(len(images.labels_N), 8)))
    record = run(artifacts, config)
    assert record.metrics["labels/predicted"] < 0.6
    assert "label_check.csv" not in {artifact.name for artifact in record.artifacts}
    assert "the features do not separate the classes" in read_page(artifacts)


@pytest.mark.thorough
def test_the_drop_is_relative_to_the_stronger_baseline(tiny_data: Path, tmp_path: Path) -> None:
    root = build(tiny_data, tmp_path / "artifacts", {"dense-kd": {"damping": 0.34}, "student": {"damping": 0.5}})
    params = tiny_params()
    params["promotion"]["gates"] |= {"max_drop_points": 40.0, "max_macro_f1_drop_points": 40.0, "min_agreement": 0.5}
    config = check_config(params)
    record = run(run_select_and_refit(root, config), config)
    assert record.details.baseline == "dense-kd"
    metrics = record.metrics
    drop_points = (metrics["test/dense-kd_top1"] - metrics["test/winner_top1"]) * 100
    assert metrics["test/drop_from_dense-kd_points"] == pytest.approx(drop_points)
    assert {"test/dense-kd_top1", "test/dense_top1", "test/winner_top1"} <= set(metrics)
    assert not any(key.startswith("test/drop_from_dense_") for key in metrics)
    page = (root / "report" / "report.html").read_text(encoding="utf-8")
    assert "against dense-kd (95\xa0% interval" in page.replace("95 %", "95\xa0%")


@pytest.mark.parametrize("cause", ["another machine", "no such runtime"])
def test_without_the_serving_runtime_the_file_is_tested_with_a_warning(
    artifacts: Path, monkeypatch: pytest.MonkeyPatch, cause: str
) -> None:
    if cause == "another machine":
        speeds = SelectionRecord.read(artifacts / "select").details.speeds
        rewrite_details(artifacts / "select", speeds=speeds.model_copy(update={"is_target": True}))
        (artifacts / "benchmark" / "pruned-int8-openvino-int8.npy").unlink()
    else:

        def raise_unavailable(folder: Path, case: BenchmarkCase) -> Any:
            raise RuntimeUnavailable("no such processor")

        monkeypatch.setitem(OPENERS, "openvino", raise_unavailable)
    record = run(artifacts)
    assert record.details.measured_in == "ONNX Runtime, the file as it is"
    expected = (
        "has no predictions" if cause == "another machine" else "does not run on this machine (no such processor)"
    )
    assert record.details.fallback.startswith("it is deployed in openvino int8")
    assert expected in record.details.fallback
    assert record.warnings[0].startswith("pruned-int8 was tested in ONNX Runtime")
    assert expected in (artifacts / "report" / "report.html").read_text(encoding="utf-8")


def test_no_other_candidate_is_tested(artifacts: Path) -> None:
    for folder in (artifacts / "candidates").iterdir():
        if folder.name not in ("dense", "pruned-int8"):
            (folder / "model.onnx").write_bytes(b"must not be read")
    assert run(artifacts).details.winner == "pruned-int8"
    (artifacts / "candidates" / "pruned-int8" / "model.onnx").write_bytes(b"must be read")
    with pytest.raises(ArtifactError, match=r"pruned-int8/model\.onnx"):
        run(artifacts)


@pytest.mark.thorough
def test_without_a_winner_only_dense_is_tested(artifacts: Path) -> None:
    params = tiny_params()
    params["promotion"]["gates"] |= {"min_speedup": 50.0}
    config = check_config(params)
    record = run(run_select_and_refit(artifacts, config), config)
    assert record.details.winner is None
    assert "test/dense_top1" in record.metrics
    assert not {key for key in record.metrics if key.startswith(("test/winner", "test/drop"))}
    page = (artifacts / "report" / "report.html").read_text(encoding="utf-8")
    assert "Nothing is proposed for production" in page
    assert "is less than 50" in page


def test_the_page_without_test_images(artifacts: Path) -> None:
    split = np.load(artifacts / "data" / "split.npy")
    split[split == TEST] = 0
    np.save(artifacts / "data" / "split.npy", split)
    record = run(artifacts)
    assert {name for name in record.metrics if name.startswith("test/")} == {"test/images"}
    assert record.metrics["test/images"] == 0
    assert "no labelled test image" in record.warnings[0]
    assert "no labelled test image" in (artifacts / "report" / "report.html").read_text(encoding="utf-8")


def test_a_failure_keeps_the_old_page(artifacts: Path) -> None:
    run(artifacts)
    page = (artifacts / "report" / "report.html").read_bytes()
    (artifacts / "select" / "record.json").unlink()
    with pytest.raises(ArtifactError, match=r"select/record\.json"):
        run(artifacts)
    assert (artifacts / "report" / "report.html").read_bytes() == page


def test_a_refitted_winner_is_tested_beside_the_selected_file(artifacts: Path) -> None:
    (artifacts / "refit" / "selected").mkdir()
    write_network(artifacts / "refit" / "model.onnx", 0.38)
    labels = RefitLabels(training=30, choosing=60, deployed=90)
    rewrite_details(artifacts / "refit", is_refitted=True, labels=labels)
    record = run(artifacts)
    images = load_images(artifacts / "data")
    indices = images.indices(TEST)
    files = {"winner": artifacts / "refit", "selected": artifacts / "candidates" / "pruned-int8"}
    for role, folder in files.items():
        predictions = predict_file(folder / "model.onnx", images.images_NHWC, indices).argmax(1)
        assert record.metrics[f"test/{role}_top1"] == pytest.approx((predictions == images.labels_N[indices]).mean())
    assert record.metrics["test/winner_top1"] < record.metrics["test/selected_top1"]
    assert record.inputs["refit"] == record_digest(artifacts / "refit")
    assert {"pruned-int8", "pruned-int8 before the refit"} <= set(record.details.test)
    page = (artifacts / "report" / "report.html").read_text(encoding="utf-8")
    assert "90 labels trained the file that is deployed" in page
    assert "pruned-int8, refitted on 90 labels, loses" in page
    assert "The deployed file was also trained on the 60 validation labels" in page


def test_a_class_with_zero_recall_is_among_the_first_warnings(artifacts: Path) -> None:
    write_network(artifacts / "candidates" / "pruned-int8" / "model.onnx", 0.7)
    record = run(artifacts)
    warnings = [warning for warning in record.warnings if "recall of 0 %" in warning]
    assert len(warnings) == 1
    assert "pruned-int8 recognises none of its 10 test images" in warnings[0]
    page = (artifacts / "report" / "report.html").read_text(encoding="utf-8")
    assert page.index("recall of 0") < page.index("top-1 on validation") < page.index("top-1 on test")
    assert "--abstain-below" in page


def test_abstention_is_counted_on_both_splits(artifacts: Path) -> None:
    abstention = run(artifacts).details.abstention
    assert abstention.validation is not None
    assert abstention.test is not None
    assert (abstention.validation.images, abstention.test.images) == (60, 30)
    for counts in (abstention.validation, abstention.test):
        assert counts.answered[0] == counts.images
        assert counts.answered == sorted(counts.answered, reverse=True)
        assert all(right <= answered for right, answered in zip(counts.right, counts.answered, strict=True))


def test_the_page_shows_near_duplicates(artifacts: Path) -> None:
    duplicates = NearDuplicates(looked_at=90, found=20, pairs=[("a<b>.jpg", "c.jpg")] * 20, positions=[(0, 130)] * 20)
    rewrite_details(artifacts / "data", near_duplicates=duplicates)
    run(artifacts)
    page = (artifacts / "report" / "report.html").read_text(encoding="utf-8")
    assert "20 of 90 held-out images almost equal a training image, the 16 most similar" in page
    assert "16. a&lt;b&gt;.jpg and c.jpg" in page
    assert "17. " not in page


def test_thumbnails_are_side_by_side() -> None:
    images = np.stack([np.full((8, 8, 3), level, dtype=np.uint8) for level in (0, 120)])
    with Image.open(io.BytesIO(draw_pairs(images, [[0, 1]] * 6))) as image:
        pixels = np.asarray(image)
    assert pixels.shape == (2 * SIDE + GAP, 4 * (2 * SIDE + GAP) - GAP, 3)
    assert (pixels[:SIDE, :SIDE] == 0).all()
    assert (pixels[:SIDE, SIDE : 2 * SIDE] == 120).all()
    assert (pixels[:SIDE, 2 * SIDE : 2 * SIDE + GAP] == 255).all()
    assert draw_pairs(images, []) == b""
