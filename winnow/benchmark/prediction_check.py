"""Compare the predictions of a runtime with the candidate's own (validation_logits.npy), before it is timed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from winnow.data.dataset import VALIDATION, ImageSet, spread_indices
from winnow.deploy.runtime_properties import Predict
from winnow.errors import ArtifactError
from winnow.evaluation.metrics import load_logits

CHECKED_IMAGES = 256


def sample_check_images(
    images: ImageSet, folders: Mapping[str, Path]
) -> tuple[NDArray[np.uint8], dict[str, NDArray[np.int64]]]:
    """Return pixels spread evenly over the validation split, and the class that each candidate's file predicts.

    Raises ArtifactError without validation images.
    """
    indices = images.indices(VALIDATION)
    if not len(indices):
        raise ArtifactError("there are no validation images to check the files on; run winnow again with more images")
    positions = spread_indices(len(indices), CHECKED_IMAGES)
    predictions = {
        name: load_logits(folder, images)[positions].argmax(1).astype(np.int64) for name, folder in folders.items()
    }
    return np.ascontiguousarray(images.images_NHWC[indices[positions]]), predictions


def agreement(predict: Predict, batch: int, pixels_NHWC: NDArray[np.uint8], expected_N: NDArray[np.int64]) -> float:
    """Return the share of images for which `predict`, called in full batches, gives the class in `expected_N`."""
    logits_NC = predict_all(predict, batch, pixels_NHWC, np.arange(len(pixels_NHWC)))
    return float((logits_NC.argmax(1) == expected_N).mean())


def predict_all(
    predict: Predict, batch: int, images_NHWC: NDArray[np.uint8], indices_N: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Return logits (N, C) of the given images, computed in full batches; the last one is filled from the start."""
    count = len(indices_N)
    batches = (indices_N[np.arange(start, start + batch) % count] for start in range(0, count, batch))
    return np.concatenate([predict(np.ascontiguousarray(images_NHWC[chosen_B])) for chosen_B in batches])[:count]
