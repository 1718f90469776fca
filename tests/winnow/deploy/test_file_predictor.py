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
from winnow.deploy.inference_runtimes import Predict, open_case
from winnow.errors import DataError
from winnow.evaluation.metrics import softmax
from winnow.records.benchmark import BenchmarkCase

RUNTIMES = [("ort", "f32"), ("openvino", "f32")]


@pytest.fixture
def model(tiny_candidate: Callable[[str], Path], tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A candidate's folder whose card says how it serves, as a promoted one's does."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_candidate("dense"), folder)
    runtime, precision = getattr(request, "param", RUNTIMES[0])
    serve_with(folder, runtime=runtime, precision=precision)
    return folder


def photos(folder: Path, count: int) -> list[Path]:
    rng = np.random.default_rng(1)
    folder.mkdir()
    for index in range(count):
        Image.fromarray(draw(index % 3, (20, 24), rng)).save(folder / f"{index:04d}.png")
    return sorted(folder.iterdir())


@pytest.mark.thorough
@pytest.mark.parametrize("model", RUNTIMES, indirect=True)
@pytest.mark.parametrize("count", [1, 5, MAX_CHUNK_IMAGES + 3, 2 * MAX_CHUNK_IMAGES + 70])
def test_every_file_is_answered_as_alone(model: Path, tmp_path: Path, count: int) -> None:
    files = photos(tmp_path / "photos", count)
    pixels = np.stack([decode(file.read_bytes(), SIZE)[0] for file in files])
    scale = json.loads((model / "card.json").read_text())["temperature"]
    assert scale != 1.0
    expected = softmax(predict_file(model / "model.onnx", pixels, np.arange(count)), scale)
    found, predictions = predict_files(model, [tmp_path / "photos"], top=2)
    rows = list(predictions)
    assert found == len(rows) == count
    assert [row.path for row in rows] == list(map(str, files))
    np.testing.assert_allclose([row.probabilities for row in rows], np.sort(expected, axis=1)[:, :-3:-1], atol=1e-3)
    assert [row.classes[0] for row in rows] == [CLASSES[at] for at in expected.argmax(1)]


@pytest.mark.thorough
@pytest.mark.parametrize("model", [("openvino-throughput", "f32")], indirect=True)
def test_every_stream_has_its_part(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = photos(tmp_path / "photos", 100)  # decoded in seventeens
    serve_with(model, runtime="openvino-throughput", threads=2)
    monkeypatch.setattr("winnow.data.decoding.cores", lambda: 2)
    monkeypatch.setattr("winnow.deploy.file_predictor.cores", lambda: 3)  # the card's two threads count, not all
    opened: list[int] = []

    def watched(folder: Path, cell: BenchmarkCase) -> Predict:
        opened.append(cell.batch)
        return open_case(folder, cell)

    monkeypatch.setattr("winnow.deploy.file_predictor.open_case", watched)
    pixels = np.stack([decode(file.read_bytes(), SIZE)[0] for file in files])
    answers = predict_file(model / "model.onnx", pixels, np.arange(100)).argmax(1)
    assert [row.classes[0] for row in predict_files(model, [tmp_path / "photos"])[1]] == [CLASSES[at] for at in answers]
    assert opened == [18]


@pytest.mark.thorough
def test_no_large_image_is_answered_among_copies_that_fill_up_a_batch(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos(tmp_path / "photos", 40)
    monkeypatch.setattr("winnow.data.decoding.cores", lambda: 2)
    monkeypatch.setattr("winnow.data.decoding.CHUNK_BYTES", 4 * SIZE * SIZE * 3)
    given: list[int] = []

    def watched(answer: Callable[..., object], pixels: np.ndarray, batch: int) -> np.ndarray:
        given.append(batch)
        return predict_batches(answer, pixels, batch)

    monkeypatch.setattr("winnow.deploy.file_predictor.predict_batches", watched)
    assert len(list(predict_files(model, [tmp_path / "photos"])[1])) == 40
    assert given == [4] * 10


def test_files_folders_and_what_cannot_be_used(model: Path, tmp_path: Path) -> None:
    files = photos(tmp_path / "photos", 3)
    (tmp_path / "photos" / "broken.png").write_bytes(b"no image")
    (tmp_path / "photos" / "notes.txt").write_text("passed over")
    named = [files[2], tmp_path / "photos"]
    assert len(list(list_files(named))) == 5
    count, predictions = predict_files(model, named)
    rows = {row.path: row for row in predictions}
    assert count == 5
    assert rows[str(tmp_path / "photos" / "broken.png")].reason == "not a supported image format"
    assert sum(bool(row.reason) for row in rows.values()) == 1
    nowhere = [tmp_path / "gone.png", tmp_path / "photos" / "broken.png" / "below.png", tmp_path / ("x" * 300)]
    count, predictions = predict_files(model, [nowhere[0], *files, *nowhere[1:]])
    answers = list(predictions)
    assert count == len(answers) == 6
    assert [bool(row.classes) for row in answers] == [False, True, True, True, False, False]
    assert answers[0].reason == "cannot be read (No such file or directory)"
    assert answers[4].reason == "cannot be read (Not a directory)"
    with pytest.raises(DataError, match="has 3 classes; it cannot give the top 4"):
        predict_files(model, named, top=4)


@pytest.mark.thorough
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_file_of_predictions(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    monkeypatch.setattr(predict, "ROWS_PER_GROUP", 7)
    photos(tmp_path / "photos", 20)
    (tmp_path / "photos" / "broken.png").write_bytes(b"")
    _, predictions = predict_files(model, [tmp_path / "photos"], top=2)
    rejected: list = []
    wanted = predict.PredictOptions(top=2, abstain_below=0.6)
    out = tmp_path / f"predictions{suffix}"
    predict._write(predict._rows(predictions, wanted, rejected), out, 2)
    rows = read(out)
    assert list(rows[0]) == ["path", "class", "probability", "class_2", "probability_2", "reason"]
    assert len(rows) == 21
    assert [row.path for row in rejected] == [str(tmp_path / "photos" / "broken.png")]
    by_reason = {row["reason"]: row for row in rows}
    assert by_reason["empty"]["class"] == ""
    for row in rows:
        if row["reason"] != "empty":
            unsure = float(row["probability"]) < 0.6
            assert (row["class"] == "") == unsure == row["reason"].startswith("abstained: less than 0.6")
            assert row["class_2"] in (("",) if unsure else CLASSES)
            assert float(row["probability_2"]) <= float(row["probability"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "photos", out.name]


def test_a_half_file_is_none(tmp_path: Path) -> None:
    def breaks():
        yield ["a.png", "cat", 0.5, ""]
        raise KeyboardInterrupt

    out = tmp_path / "predictions.csv"
    out.write_text("of before")
    with pytest.raises(KeyboardInterrupt):
        predict._write(breaks(), out, 1)
    assert out.read_text() == "of before"
    assert len(list(tmp_path.iterdir())) == 1
    with pytest.raises(DataError, match="cannot be written"):
        predict._write(iter(()), tmp_path / "gone" / "predictions.csv", 1)


def read(path: Path) -> list[dict]:
    if path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    parquet = pytest.importorskip("pyarrow.parquet")
    rows: list[dict] = parquet.read_table(path).to_pylist()
    return rows
