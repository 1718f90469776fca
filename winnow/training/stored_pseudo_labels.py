"""The pseudo-labels that dense was trained on, kept in its folder: recoveries learn them in place of its outputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from winnow.data.dataset import TRAIN, ImageSet
from winnow.errors import ArtifactError

PSEUDO_LABELS_FILE = "pseudo_labels.npy"


def are_labels_few(labels: int, images: int) -> bool:
    """Return whether less than half of the training images have a visible label.

    Otherwise most pseudo-labels are the labels themselves, and the outputs of dense tell a recovery more.
    """
    return 2 * labels < images


def has_pseudo_labels(folder: Path) -> bool:
    """Return whether the folder of dense holds pseudo-labels."""
    return (folder / PSEUDO_LABELS_FILE).is_file()


def write_pseudo_labels(folder: Path, probabilities_NC: NDArray[np.float32], images: ImageSet) -> None:
    """Write the class probabilities (N, C) of all images as float16; rows outside the training split become 0."""
    stored_NC = np.zeros(probabilities_NC.shape, dtype=np.float16)
    train = images.indices(TRAIN)
    stored_NC[train] = probabilities_NC[train]
    np.save(folder / PSEUDO_LABELS_FILE, stored_NC)


def read_pseudo_labels(folder: Path, images: ImageSet) -> NDArray[np.float16] | None:
    """Return the class probabilities (N, C) in dense's folder, as a memory map; None where it has none.

    Raises ArtifactError where the file is damaged or of other images.
    """
    file = folder / PSEUDO_LABELS_FILE
    if not has_pseudo_labels(folder):
        return None
    advice = "delete the folder and run winnow again"
    try:
        stored_NC: NDArray[np.float16] = np.load(file, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{file} is damaged; {advice}") from error
    expected = (len(images.labels_N), len(images.classes))
    if stored_NC.shape != expected:
        raise ArtifactError(f"{file} holds probabilities of shape {stored_NC.shape}, expected {expected}; {advice}")
    return stored_NC
