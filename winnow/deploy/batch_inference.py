"""Compute the outputs of a network or a file for images of a stored data set, in order, without augmentation.

It aims at equal float32 results for equal pixels, not at speed (see winnow/deploy/inference_runtimes.py).
"""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from winnow.data.augmentation import normalise, to_float
from winnow.deploy.onnx_session import open_session
from winnow.errors import ArtifactError
from winnow.models.classifier_head import remove_head
from winnow.timing_lock import compute_lock


def make_network_input(
    images_NHWC: NDArray[np.uint8], indices_B: NDArray[np.int64], device: torch.device
) -> torch.Tensor:
    """Return the images at `indices_B` as a network's input, (B, 3, S, S), normalised, not augmented."""
    pixels_BHWC = torch.from_numpy(np.ascontiguousarray(images_NHWC[indices_B]))
    return normalise(to_float(pixels_BHWC.permute(0, 3, 1, 2).to(device)))


@compute_lock()
def predict_torch(
    model: nn.Module, images_NHWC: NDArray[np.uint8], indices: NDArray[np.int64], batch_size: int = 256
) -> NDArray[np.float32]:
    """Return the logits float32 (N, C) of a network, which is left in eval mode."""
    model.eval()
    device = next(model.parameters()).device
    batches = []
    with torch.inference_mode():
        for start in range(0, len(indices), batch_size):
            x_BCHW = make_network_input(images_NHWC, indices[start : start + batch_size], device)
            batches.append(model(x_BCHW).float().cpu().numpy())
    return np.concatenate(batches)


def embed(
    model: nn.Module, images_NHWC: NDArray[np.uint8], indices: NDArray[np.int64], batch_size: int = 512
) -> torch.Tensor:
    """Return the features before the head, float32 (N, D), in eval mode; the model itself is unchanged."""
    backbone = remove_head(copy.deepcopy(model).eval())
    return torch.from_numpy(predict_torch(backbone, images_NHWC, indices, batch_size)).flatten(1)


@compute_lock()
def predict_file(
    path: Path, images_NHWC: NDArray[np.uint8], indices: NDArray[np.int64], batch_size: int = 256
) -> NDArray[np.float32]:
    """Return the logits float32 (N, C) of a deployed file in ONNX Runtime, float or int8.

    Raises ArtifactError where the file is missing or damaged, or its logits are not finite.
    """
    session = open_session(path)
    name = session.get_inputs()[0].name
    batches = [
        session.run(None, {name: np.ascontiguousarray(images_NHWC[indices[start : start + batch_size]])})[0]
        for start in range(0, len(indices), batch_size)
    ]
    logits_NC: NDArray[np.float32] = np.concatenate(batches)
    if not np.isfinite(logits_NC).all():
        raise ArtifactError(f"{path}: its logits are not finite numbers; delete its folder and run winnow again")
    return logits_NC
