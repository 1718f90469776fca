"""What a server answers, whatever serves it: one image in, its likeliest classes with calibrated probabilities out.

    model = Model(folder, max_batch=16)
    rows = model(pixels_NHWC)                        # probabilities (N, C) of decoded images

The folder is a promoted model's: model.onnx and a card that names runtime, precision, threads and temperature. OpenVINO
compiles a file for one size of batch, so it is opened for 1, 2, 4, ... images, and a batch takes the next larger one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from winnow.deploy.file_predictor import answered, opened
from winnow.deploy.runtimes import OPENVINO
from winnow.errors import WinnowError
from winnow.evaluation.metrics import softmax
from winnow.records import read_json

JSON = "application/json"


class Unusable(WinnowError):
    """The body of a request holds no image that can be answered; the message goes to whoever asked."""


class Model:
    """A promoted file, opened once for the batches that a server makes."""

    def __init__(self, folder: Path, max_batch: int) -> None:
        self.card: dict[str, Any] = read_json(folder / "card.json")
        fixed = self.card["serving"]["runtime"] in OPENVINO
        self.sizes = _sizes(max_batch) if fixed else (max_batch,)
        self._answers = {size: opened(folder, self.card, size) for size in self.sizes}
        self._is_fixed = fixed

    def __call__(self, pixels_NHWC: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Probabilities (N, C) of uint8 images (N, S, S, 3), at most `max_batch` of them."""
        count = len(pixels_NHWC)
        size = next(size for size in self.sizes if size >= count)
        logits_NC = answered(self._answers[size], pixels_NHWC, size if self._is_fixed else count)
        return softmax(logits_NC, self.card.get("temperature", 1.0))


def _sizes(max_batch: int) -> tuple[int, ...]:
    """1, 2, 4, ... and the largest itself."""
    powers = [2**power for power in range(max_batch.bit_length()) if 2**power < max_batch]
    return (*powers, max_batch)


def is_json(kind: str) -> bool:
    """Whether a Content-Type says that pixels come, not an image file."""
    return kind.partition(";")[0].strip().lower() == JSON


def pixels_of_json(body: bytes, side: int) -> NDArray[np.uint8]:
    """Pixels (S, S, 3) of JSON {"pixels": [[[r, g, b], ...], ...]}. Raises Unusable with what is wrong."""
    try:
        pixels = np.asarray(json.loads(body)["pixels"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Unusable('JSON is to hold {"pixels": [[[r, g, b], ...], ...]}') from error
    if pixels.shape != (side, side, 3) or pixels.dtype.kind not in "iu":
        raise Unusable(f"pixels are to be {side} rows of {side} [r, g, b], whole numbers; these are {pixels.shape}")
    if pixels.min() < 0 or pixels.max() > 255:
        raise Unusable("pixels are to be from 0 to 255")
    return pixels.astype(np.uint8)


def told(chances_C: NDArray[np.float64], card: Mapping[str, Any], top: int) -> dict[str, Any]:
    """The answer in JSON: the likeliest class and its probability, and the first `top` of them."""
    order = np.argsort(-chances_C, kind="stable")[:top].tolist()
    rows = [{"class": card["classes"][at], "probability": round(float(chances_C[at]), 6)} for at in order]
    return {**rows[0], "top": rows} if top > 1 else rows[0]
