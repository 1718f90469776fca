from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import CLASSES, SIZE, draw
from tests.records import serve_with
from winnow.data.dataset import decode
from winnow.deploy.batch_inference import predict_file
from winnow.deploy.request_predictor import (
    RequestPredictor,
    UnusableRequest,
    format_prediction,
    is_json,
    parse_json_pixels,
)
from winnow.evaluation.metrics import softmax


def encoded(seed: int = 0, form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(draw(seed % 3, (30, 40), np.random.default_rng(seed))).save(buffer, form)
    return buffer.getvalue()


@pytest.fixture(params=[("ort", 1), ("openvino", 1), ("openvino-throughput", 2)])
def folder(tiny_candidate: Callable[[str], Path], tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    there = Path(shutil.copytree(tiny_candidate("dense"), tmp_path / "model"))
    runtime, threads = request.param
    serve_with(there, runtime=runtime, threads=threads)
    return there


@pytest.mark.thorough
@pytest.mark.parametrize("count", [1, 2, 3, 5, 6])
def test_batches_of_any_size_are_answered_as_alone(folder: Path, count: int) -> None:
    model = RequestPredictor(folder, max_batch=6)
    pixels = np.stack([decode(encoded(seed), SIZE)[0] for seed in range(count)])
    alone = predict_file(folder / "model.onnx", pixels, np.arange(count))
    np.testing.assert_allclose(model(pixels), softmax(alone, model.card.temperature), atol=1e-4)


def test_a_batch_larger_than_the_largest_is_a_bug(folder: Path) -> None:
    with pytest.raises(StopIteration):
        RequestPredictor(folder, max_batch=2)(np.zeros((3, SIZE, SIZE, 3), np.uint8))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("application/json", True), ("Application/JSON; charset=utf-8", True), ("image/jpeg", False), ("", False)],
)
def test_what_says_that_pixels_come(kind: str, expected: bool) -> None:
    assert is_json(kind) is expected


def test_pixels_are_taken_as_they_are() -> None:
    pixels = decode(encoded(), SIZE)[0]
    body = json.dumps({"pixels": pixels.tolist()}).encode()
    np.testing.assert_array_equal(parse_json_pixels(body, SIZE), pixels)


ROW = [[0, 0, 0]] * SIZE


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"{", "JSON must hold"),
        (b"[" * 100_000, "JSON must hold"),
        (b"[1]", "JSON must hold"),
        (b'{"image": 1}', "JSON must hold"),
        (json.dumps({"pixels": [[1, 2], [3]]}).encode(), "JSON must hold"),
        (json.dumps({"pixels": [ROW]}).encode(), "these are (1, 16, 3)"),
        (json.dumps({"pixels": [[[0.5] * 3] * SIZE] * SIZE}).encode(), "whole numbers"),
        (json.dumps({"pixels": [[[256] * 3] * SIZE] * SIZE}).encode(), "from 0 to 255"),
        (json.dumps({"pixels": [[[-1] * 3] * SIZE] * SIZE}).encode(), "from 0 to 255"),
        (json.dumps({"pixels": [[["a"] * 3] * SIZE] * SIZE}).encode(), "whole numbers"),
        (json.dumps({"pixels": [[[1e300] * 3] * SIZE] * SIZE}).encode(), "whole numbers"),
    ],
)
def test_what_is_no_image_is_said(body: bytes, said: str) -> None:
    with pytest.raises(UnusableRequest, match=said.replace("(", r"\(").replace(")", r"\)")):
        parse_json_pixels(body, SIZE)


def test_the_answer_names_the_likeliest_first() -> None:
    chances = np.array([0.2, 0.5, 0.3])
    assert format_prediction(chances, list(CLASSES), 1) == {"class": CLASSES[1], "probability": 0.5}
    assert format_prediction(chances, list(CLASSES), 2)["top"] == [
        {"class": CLASSES[1], "probability": 0.5},
        {"class": CLASSES[2], "probability": 0.3},
    ]
