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
from winnow.data.images import decode
from winnow.evaluation import softmax
from winnow.inference import predict_file
from winnow.serving import Model, Unusable, pixels_of, told


def encoded(seed: int = 0, form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(draw(seed % 3, (30, 40), np.random.default_rng(seed))).save(buffer, form)
    return buffer.getvalue()


@pytest.fixture(params=[("ort", "f32"), ("openvino", "f32")])
def folder(tiny_candidate: Callable[[str], Path], tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    there = Path(shutil.copytree(tiny_candidate("dense"), tmp_path / "model"))
    card = json.loads((there / "card.json").read_text())
    card["serving"] = {"runtime": request.param[0], "precision": request.param[1], "threads": 1}
    (there / "card.json").write_text(json.dumps(card))
    return there


@pytest.mark.parametrize("count", [1, 2, 3, 5, 6])
def test_batches_of_any_size_are_answered_as_alone(folder: Path, count: int) -> None:
    model = Model(folder, max_batch=6)
    pixels = np.stack([pixels_of(encoded(seed), "image/png", SIZE) for seed in range(count)])
    alone = predict_file(folder / "model.onnx", pixels, np.arange(count))
    np.testing.assert_allclose(model(pixels), softmax(alone, model.card["temperature"]), atol=1e-4)


def test_a_batch_larger_than_the_largest_is_a_bug(folder: Path) -> None:
    with pytest.raises(StopIteration):
        Model(folder, max_batch=2)(np.zeros((3, SIZE, SIZE, 3), np.uint8))


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("kind", ["image/jpeg", "application/octet-stream", ""])
def test_bytes_give_the_pixels_of_training(form: str, kind: str) -> None:
    data = encoded(1, form)
    np.testing.assert_array_equal(pixels_of(data, kind, SIZE), decode(data, SIZE)[0])


def test_pixels_are_taken_as_they_are() -> None:
    pixels = decode(encoded(), SIZE)[0]
    body = json.dumps({"pixels": pixels.tolist()}).encode()
    np.testing.assert_array_equal(pixels_of(body, "application/json; charset=utf-8", SIZE), pixels)


ROW = [[0, 0, 0]] * SIZE


@pytest.mark.parametrize(
    ("body", "kind", "said"),
    [
        (b"", "image/jpeg", "empty"),
        (b"\xff\xd8 no JPEG", "image/jpeg", "no image format that is read here"),
        (encoded(0, "JPEG")[:200], "image/jpeg", "damaged"),
        (b"{", "application/json", "JSON is to hold"),
        (b"[1]", "application/json", "JSON is to hold"),
        (b'{"image": 1}', "application/json", "JSON is to hold"),
        (json.dumps({"pixels": [[1, 2], [3]]}).encode(), "application/json", "JSON is to hold"),
        (json.dumps({"pixels": [ROW]}).encode(), "application/json", "these are (1, 16, 3)"),
        (json.dumps({"pixels": [[[0.5] * 3] * SIZE] * SIZE}).encode(), "application/json", "whole numbers"),
        (json.dumps({"pixels": [[[256] * 3] * SIZE] * SIZE}).encode(), "application/json", "from 0 to 255"),
        (json.dumps({"pixels": [[[-1] * 3] * SIZE] * SIZE}).encode(), "application/json", "from 0 to 255"),
        (json.dumps({"pixels": [[["a"] * 3] * SIZE] * SIZE}).encode(), "application/json", "whole numbers"),
        (json.dumps({"pixels": [[[1e300] * 3] * SIZE] * SIZE}).encode(), "application/json", "whole numbers"),
    ],
)
def test_what_is_no_image_is_said(body: bytes, kind: str, said: str) -> None:
    with pytest.raises(Unusable, match=said.replace("(", r"\(").replace(")", r"\)")):
        pixels_of(body, kind, SIZE)


def test_the_answer_names_the_likeliest_first() -> None:
    card, chances = {"classes": list(CLASSES)}, np.array([0.2, 0.5, 0.3])
    assert told(chances, card, 1) == {"class": CLASSES[1], "probability": 0.5}
    assert told(chances, card, 2)["top"] == [
        {"class": CLASSES[1], "probability": 0.5},
        {"class": CLASSES[2], "probability": 0.3},
    ]
