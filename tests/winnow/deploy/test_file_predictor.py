from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import CLASSES, SIZE, draw
from tests.records import serve_with
from winnow.cli import predict
from winnow.data.dataset import decode
from winnow.data.decoding import MAX_CHUNK_IMAGES
from winnow.deploy.batch_inference import predict_file
from winnow.deploy.file_predictor import list_files, predict_batches, predict_files
from winnow.deploy.inference_runtimes import open_case
from winnow.deploy.runtime_properties import Predict
from winnow.errors import DataError
from winnow.evaluation.metrics import softmax
from winnow.records.benchmark import BenchmarkCase

RUNTIMES = [("ort", "f32"), ("openvino", "f32")]


@pytest.fixture
def model_folder(tiny_candidate: Callable[[str], Path], tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """Return a candidate's folder with the card of a promoted model."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_candidate("dense"), folder)
    runtime, precision = getattr(request, "param", RUNTIMES[0])
    serve_with(folder, runtime=runtime, precision=precision)
    return folder


def write_photos(folder: Path, count: int) -> list[Path]:
    rng = np.random.default_rng(1)
    folder.mkdir()
    for index in range(count):
        Image.fromarray(draw(index % 3, (20, 24), rng)).save(folder / f"{index:04d}.png")
    return sorted(folder.iterdir())


@pytest.mark.thorough
@pytest.mark.parametrize("model_folder", RUNTIMES, indirect=True)
@pytest.mark.parametrize("count", [1, 5, MAX_CHUNK_IMAGES + 3, 2 * MAX_CHUNK_IMAGES + 70])
def test_predictions_equal_those_of_single_files(model_folder: Path, tmp_path: Path, count: int) -> None:
    files = write_photos(tmp_path / "photos", count)
    pixels = np.stack([decode(file.read_bytes(), SIZE)[0] for file in files])
    scale = json.loads((model_folder / "card.json").read_text())["temperature"]
    assert scale != 1.0
    expected = softmax(predict_file(model_folder / "model.onnx", pixels, np.arange(count)), scale)
    total, predictions = predict_files(model_folder, [tmp_path / "photos"], top=2)
    rows = list(predictions)
    assert total == len(rows) == count
    assert [row.path for row in rows] == list(map(str, files))
    np.testing.assert_allclose([row.probabilities for row in rows], np.sort(expected, axis=1)[:, :-3:-1], atol=1e-3)
    assert [row.classes[0] for row in rows] == [CLASSES[index] for index in expected.argmax(1)]


@pytest.mark.thorough
@pytest.mark.parametrize("model_folder", [("openvino-throughput", "f32")], indirect=True)
def test_every_stream_gets_its_share_of_a_batch(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = write_photos(tmp_path / "photos", 100)  # decoded in chunks of 17
    serve_with(model_folder, runtime="openvino-throughput", threads=2)
    monkeypatch.setattr("winnow.data.decoding.cores", lambda: 2)
    monkeypatch.setattr("winnow.deploy.file_predictor.cores", lambda: 3)  # the card's two threads count, not all
    batches: list[int] = []

    def recording_open_case(folder: Path, case: BenchmarkCase) -> Predict:
        batches.append(case.batch)
        return open_case(folder, case)

    monkeypatch.setattr("winnow.deploy.file_predictor.open_case", recording_open_case)
    pixels = np.stack([decode(file.read_bytes(), SIZE)[0] for file in files])
    labels = predict_file(model_folder / "model.onnx", pixels, np.arange(100)).argmax(1)
    assert [row.classes[0] for row in predict_files(model_folder, [tmp_path / "photos"])[1]] == [
        CLASSES[index] for index in labels
    ]
    assert batches == [18]


@pytest.mark.thorough
def test_batches_are_not_padded_to_a_size_above_a_chunk(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_photos(tmp_path / "photos", 40)
    monkeypatch.setattr("winnow.data.decoding.cores", lambda: 2)
    monkeypatch.setattr("winnow.data.decoding.CHUNK_BYTES", 4 * SIZE * SIZE * 3)
    batches: list[int] = []

    def recording_predict_batches(predict: Callable[..., object], pixels: np.ndarray, batch: int) -> np.ndarray:
        batches.append(batch)
        return predict_batches(predict, pixels, batch)

    monkeypatch.setattr("winnow.deploy.file_predictor.predict_batches", recording_predict_batches)
    assert len(list(predict_files(model_folder, [tmp_path / "photos"])[1])) == 40
    assert batches == [4] * 10


def test_files_folders_and_unusable_files(model_folder: Path, tmp_path: Path) -> None:
    files = write_photos(tmp_path / "photos", 3)
    (tmp_path / "photos" / "broken.png").write_bytes(b"no image")
    (tmp_path / "photos" / "notes.txt").write_text("passed over")
    paths = [files[2], tmp_path / "photos"]
    assert len(list(list_files(paths))) == 5
    count, predictions = predict_files(model_folder, paths)
    rows = {row.path: row for row in predictions}
    assert count == 5
    assert rows[str(tmp_path / "photos" / "broken.png")].reason == "not a supported image format"
    assert sum(bool(row.reason) for row in rows.values()) == 1
    missing = [tmp_path / "gone.png", tmp_path / "photos" / "broken.png" / "below.png", tmp_path / ("x" * 300)]
    count, predictions = predict_files(model_folder, [missing[0], *files, *missing[1:]])
    rows_in_order = list(predictions)
    assert count == len(rows_in_order) == 6
    assert [bool(row.classes) for row in rows_in_order] == [False, True, True, True, False, False]
    assert rows_in_order[0].reason == "cannot be read (No such file or directory)"
    assert rows_in_order[4].reason == "cannot be read (Not a directory)"
    with pytest.raises(DataError, match="has 3 classes; it cannot give the top 4"):
        predict_files(model_folder, paths, top=4)


@pytest.mark.thorough
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_predictions_are_written_to_a_file(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    monkeypatch.setattr(predict, "ROWS_PER_GROUP", 7)
    write_photos(tmp_path / "photos", 20)
    (tmp_path / "photos" / "broken.png").write_bytes(b"")
    _, predictions = predict_files(model_folder, [tmp_path / "photos"], top=2)
    rejected: list = []
    options = predict.PredictOptions(top=2, abstain_below=0.6)
    out = tmp_path / f"predictions{suffix}"
    predict._write(predict._rows(predictions, options, rejected), out, 2)
    rows = read_predictions(out)
    assert list(rows[0]) == ["path", "class", "probability", "class_2", "probability_2", "reason"]
    assert len(rows) == 21
    assert [row.path for row in rejected] == [str(tmp_path / "photos" / "broken.png")]
    by_reason = {row["reason"]: row for row in rows}
    assert by_reason["empty"]["class"] == ""
    for row in rows:
        if row["reason"] != "empty":
            is_abstained = float(row["probability"]) < 0.6
            assert (row["class"] == "") == is_abstained == row["reason"].startswith("abstained: less than 0.6")
            assert row["class_2"] in (("",) if is_abstained else CLASSES)
            assert float(row["probability_2"]) <= float(row["probability"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "photos", out.name]


def test_an_interrupted_file_is_not_written(tmp_path: Path) -> None:
    def interrupted_rows():
        yield ["a.png", "cat", 0.5, ""]
        raise KeyboardInterrupt

    out = tmp_path / "predictions.csv"
    out.write_text("of before")
    with pytest.raises(KeyboardInterrupt):
        predict._write(interrupted_rows(), out, 1)
    assert out.read_text() == "of before"
    assert len(list(tmp_path.iterdir())) == 1
    with pytest.raises(DataError, match="cannot be written"):
        predict._write(iter(()), tmp_path / "gone" / "predictions.csv", 1)


def read_predictions(path: Path) -> list[dict]:
    if path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    parquet = pytest.importorskip("pyarrow.parquet")
    rows: list[dict] = parquet.read_table(path).to_pylist()
    return rows
