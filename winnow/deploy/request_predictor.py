"""Predict the images of requests, independent of the server: calibrated probabilities of the most probable classes.

    predictor = RequestPredictor(folder, max_batch=16)
    probabilities_NC = predictor(pixels_NHWC)        # of decoded images

The folder is a promoted model's: model.onnx and a card that names runtime, precision, threads and temperature. OpenVINO
compiles a file for one batch size, so it is opened for 1, 2, 4, ... images, and a batch uses the next larger size.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from winnow.deploy.file_predictor import open_card_runtime, predict_batches
from winnow.deploy.runtime_properties import OPENVINO_RUNTIMES
from winnow.errors import WinnowError
from winnow.evaluation.metrics import softmax
from winnow.records import DeploymentCard

JSON_CONTENT_TYPE = "application/json"


class UnusableRequest(WinnowError):
    """The body of a request holds no usable image; the client receives the message."""


class RequestPredictor:
    """A promoted file, opened once for each batch size."""

    def __init__(self, folder: Path, max_batch: int) -> None:
        self.card = DeploymentCard.read(folder)
        self._has_fixed_batch = self.card.serving.runtime in OPENVINO_RUNTIMES
        self.sizes = _batch_sizes(max_batch) if self._has_fixed_batch else (max_batch,)
        self._predictors = {size: open_card_runtime(folder, self.card, size) for size in self.sizes}

    def __call__(self, pixels_NHWC: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Return the probabilities (N, C) of uint8 images (N, S, S, 3), at most `max_batch` of them."""
        count = len(pixels_NHWC)
        size = next(size for size in self.sizes if size >= count)
        logits_NC = predict_batches(self._predictors[size], pixels_NHWC, size if self._has_fixed_batch else count)
        return softmax(logits_NC, self.card.temperature)


def _batch_sizes(max_batch: int) -> tuple[int, ...]:
    """Return 1, 2, 4, ... and `max_batch` itself."""
    powers = [2**power for power in range(max_batch.bit_length()) if 2**power < max_batch]
    return (*powers, max_batch)


def is_json(content_type: str) -> bool:
    """Return whether a Content-Type announces JSON pixels, not an image file."""
    return content_type.partition(";")[0].strip().lower() == JSON_CONTENT_TYPE


def parse_json_pixels(body: bytes, side: int) -> NDArray[np.uint8]:
    """Return the pixels (S, S, 3) of JSON {"pixels": [[[r, g, b], ...], ...]}.

    Raises UnusableRequest with the reason.
    """
    try:
        pixels = np.asarray(json.loads(body)["pixels"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UnusableRequest('JSON must hold {"pixels": [[[r, g, b], ...], ...]}') from error
    if pixels.shape != (side, side, 3) or pixels.dtype.kind not in "iu":
        raise UnusableRequest(
            f"pixels must be {side} rows of {side} [r, g, b], whole numbers; these are {pixels.shape}"
        )
    if pixels.min() < 0 or pixels.max() > 255:
        raise UnusableRequest("pixels must be from 0 to 255")
    return pixels.astype(np.uint8)


def format_prediction(probabilities_C: NDArray[np.float64], classes: list[str], top: int) -> dict[str, Any]:
    """Return the response for JSON: the most probable class with its probability, and the `top` most probable ones."""
    order = np.argsort(-probabilities_C, kind="stable")[:top].tolist()
    rows = [{"class": classes[index], "probability": round(float(probabilities_C[index]), 6)} for index in order]
    return {**rows[0], "top": rows} if top > 1 else rows[0]
