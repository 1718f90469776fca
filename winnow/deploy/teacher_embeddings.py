"""Embeddings of all images by a frozen network: written to disk once, in blocks, and read as a memory map.

Rows of the test split stay NaN: nothing but the report reads that split. An interrupted computation resumes after its
last complete block.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from winnow.data.dataset import TEST, TRAIN, ImageSet
from winnow.deploy.batch_inference import make_network_input
from winnow.errors import ArtifactError
from winnow.eta import format_duration
from winnow.hardware import has_fast_bf16
from winnow.models.classifier_head import remove_head
from winnow.records import read_json, write_json
from winnow.timing_lock import compute_lock

log = logging.getLogger(__name__)

EMBEDDINGS_FILE = "embeddings.npy"
PROGRESS_FILE = "embedded.json"
BATCH = 64
BATCHES_PER_BLOCK = 16
ROWS_AT_ONCE = 8192
"""Embeddings that are read at once for their mean."""
SECONDS_BETWEEN_LINES = 4.0


def embed_images(model: nn.Module, images: ImageSet, folder: Path) -> NDArray[np.float16]:
    """Write the features before the head of `model`, float16 (N, D), to EMBEDDINGS_FILE in `folder`; return the map.

    The head of `model` is removed, in place. Images are those that the deployed network sees, without augmentation.
    """
    backbone = remove_head(model).eval().to(memory_format=torch.channels_last)
    indices = np.flatnonzero(images.split_N != TEST)
    device = next(backbone.parameters()).device
    autocast = has_fast_bf16() or device.type == "cuda"
    rows_ND, done = _open(backbone, images, folder, device)
    started, first, last_line = time.monotonic(), done, time.monotonic()
    while done < len(indices):
        for _ in range(BATCHES_PER_BLOCK):
            batch_B = indices[done : done + BATCH]
            if not len(batch_B):
                break
            with compute_lock(), torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=autocast):
                features = backbone(make_network_input(images.images_NHWC, batch_B, device))
            rows_ND[batch_B] = features.flatten(1).half().cpu().numpy()
            done += len(batch_B)
        cast(np.memmap, rows_ND).flush()
        write_json(folder / PROGRESS_FILE, {"done": done})
        if time.monotonic() - last_line > SECONDS_BETWEEN_LINES:
            last_line = time.monotonic()
            left = (last_line - started) / (done - first) * (len(indices) - done)
            log.info("embed: %d of %d images  %s left", done, len(indices), format_duration(left))
    return rows_ND


def _open(backbone: nn.Module, images: ImageSet, folder: Path, device: torch.device) -> tuple[NDArray[np.float16], int]:
    """Return the array on disk, new or of an interrupted computation, and how many images are done."""
    folder.mkdir(parents=True, exist_ok=True)
    file, progress = folder / EMBEDDINGS_FILE, folder / PROGRESS_FILE
    if file.is_file() and progress.is_file():
        done = int(read_json(progress)["done"])
        log.info("embed: resuming after %d images", done)
        return np.lib.format.open_memmap(file, "r+"), done
    with torch.inference_mode():
        example = make_network_input(images.images_NHWC, np.zeros(1, np.int64), device)
        dimension = backbone(example).flatten(1).shape[1]
    rows_ND = np.lib.format.open_memmap(file, "w+", np.float16, (len(images.labels_N), dimension))
    rows_ND[:] = np.nan
    return rows_ND, 0


def has_embeddings(folder: Path | None) -> TypeGuard[Path]:
    """Return whether the folder of embed holds embeddings: not without a teacher."""
    return folder is not None and (folder / EMBEDDINGS_FILE).is_file()


@dataclass(frozen=True)
class TeacherTargets:
    """Centred embeddings, which a smaller network learns to predict.

    Features after a ReLU are never negative: without centring their cosines are all near 1, and a network that
    predicts the mean is almost right (docs/decisions/0037-centred-targets.md).
    """

    rows_ND: NDArray[np.float16]
    """NaN for images of the test split."""
    mean_D: NDArray[np.float32]
    """Mean over training images."""

    @property
    def width(self) -> int:
        """Return the dimension of an embedding."""
        return int(self.rows_ND.shape[1])

    def select(self, indices_B: torch.Tensor) -> torch.Tensor:
        """Return the targets of these images, float32 (B, D), on the device of the indices."""
        rows_BD = np.asarray(self.rows_ND[indices_B.cpu().numpy()], dtype=np.float32) - self.mean_D
        return torch.from_numpy(rows_BD).to(indices_B.device)


def load_targets(folder: Path, images: ImageSet) -> TeacherTargets:
    """Return the embeddings in the folder of embed as targets. Raises ArtifactError without them."""
    rows_ND, train = load_embeddings(folder), images.indices(TRAIN)
    sum_D = np.zeros(rows_ND.shape[1])
    for start in range(0, len(train), ROWS_AT_ONCE):
        sum_D += rows_ND[train[start : start + ROWS_AT_ONCE]].sum(0, dtype=np.float64)
    return TeacherTargets(rows_ND, (sum_D / max(1, len(train))).astype(np.float32))


def load_embeddings(folder: Path) -> NDArray[np.float16]:
    """Return the embeddings (N, D) in the folder of embed, as a memory map. Raises ArtifactError without them."""
    try:
        rows_ND: NDArray[np.float16] = np.load(folder / EMBEDDINGS_FILE, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"{folder / EMBEDDINGS_FILE} is missing or damaged; delete the folder and run winnow again"
        ) from error
    return rows_ND
