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


def encoded_image(seed: int = 0, image_format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(draw(seed % 3, (30, 40), np.random.default_rng(seed))).save(buffer, image_format)
    return buffer.getvalue()


@pytest.fixture(params=[("ort", 1), ("openvino", 1), ("openvino-throughput", 2)])
def model_folder(tiny_candidate: Callable[[str], Path], tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    path = Path(shutil.copytree(tiny_candidate("dense"), tmp_path / "model"))
    runtime, threads = request.param
    serve_with(path, runtime=runtime, threads=threads)
    return path


@pytest.mark.thorough
@pytest.mark.parametrize("count", [1, 2, 3, 5, 6])
def test_probabilities_do_not_depend_on_the_batch(model_folder: Path, count: int) -> None:
    model = RequestPredictor(model_folder, max_batch=6)
    pixels = np.stack([decode(encoded_image(seed), SIZE)[0] for seed in range(count)])
    expected = predict_file(model_folder / "model.onnx", pixels, np.arange(count))
    np.testing.assert_allclose(model(pixels), softmax(expected, model.card.temperature), atol=1e-4)


def test_a_batch_above_the_maximum_is_a_bug(model_folder: Path) -> None:
    with pytest.raises(StopIteration):
        RequestPredictor(model_folder, max_batch=2)(np.zeros((3, SIZE, SIZE, 3), np.uint8))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("application/json", True), ("Application/JSON; charset=utf-8", True), ("image/jpeg", False), ("", False)],
)
def test_content_types_of_json(kind: str, expected: bool) -> None:
    assert is_json(kind) is expected


def test_pixels_are_parsed_unchanged() -> None:
    pixels = decode(encoded_image(), SIZE)[0]
    body = json.dumps({"pixels": pixels.tolist()}).encode()
    np.testing.assert_array_equal(parse_json_pixels(body, SIZE), pixels)


PIXEL_ROW = [[0, 0, 0]] * SIZE


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "JSON must hold"),
        (b"[" * 100_000, "JSON must hold"),
        (b"[1]", "JSON must hold"),
        (b'{"image": 1}', "JSON must hold"),
        (json.dumps({"pixels": [[1, 2], [3]]}).encode(), "JSON must hold"),
        (json.dumps({"pixels": [PIXEL_ROW]}).encode(), "these are (1, 16, 3)"),
        (json.dumps({"pixels": [[[0.5] * 3] * SIZE] * SIZE}).encode(), "whole numbers"),
        (json.dumps({"pixels": [[[256] * 3] * SIZE] * SIZE}).encode(), "from 0 to 255"),
        (json.dumps({"pixels": [[[-1] * 3] * SIZE] * SIZE}).encode(), "from 0 to 255"),
        (json.dumps({"pixels": [[["a"] * 3] * SIZE] * SIZE}).encode(), "whole numbers"),
        (json.dumps({"pixels": [[[1e300] * 3] * SIZE] * SIZE}).encode(), "whole numbers"),
    ],
)
def test_invalid_requests_are_refused_with_a_reason(body: bytes, message: str) -> None:
    with pytest.raises(UnusableRequest, match=message.replace("(", r"\(").replace(")", r"\)")):
        parse_json_pixels(body, SIZE)


def test_the_prediction_lists_the_most_probable_class_first() -> None:
    probabilities = np.array([0.2, 0.5, 0.3])
    assert format_prediction(probabilities, list(CLASSES), 1) == {"class": CLASSES[1], "probability": 0.5}
    assert format_prediction(probabilities, list(CLASSES), 2)["top"] == [
        {"class": CLASSES[1], "probability": 0.5},
        {"class": CLASSES[2], "probability": 0.3},
    ]
