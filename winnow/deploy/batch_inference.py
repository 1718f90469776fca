"""Answers of a network or of a file for images of a stored data set: one clean pass, in order, no augmentation.

Speed does not matter here (winnow/deploy/runtimes.py is for that); float32 and the same pixels everywhere do.
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
from winnow.models.classifier_head import head_path
from winnow.timing_lock import compute_lock


def network_input(images_NHWC: NDArray[np.uint8], chosen_B: NDArray[np.int64], where: torch.device) -> torch.Tensor:
    """The named images as a network takes them, (B, 3, S, S), normalised, not augmented."""
    pixels_BHWC = torch.from_numpy(np.ascontiguousarray(images_NHWC[chosen_B]))
    return normalise(to_float(pixels_BHWC.permute(0, 3, 1, 2).to(where)))


@compute_lock()
def predict_torch(
    model: nn.Module, images_NHWC: NDArray[np.uint8], indices: NDArray[np.int64], batch_size: int = 256
) -> NDArray[np.float32]:
    """Logits float32 (N, C) of a network; it is left in eval mode."""
    model.eval()
    where = next(model.parameters()).device
    parts = []
    with torch.inference_mode():
        for start in range(0, len(indices), batch_size):
            x_BCHW = network_input(images_NHWC, indices[start : start + batch_size], where)
            parts.append(model(x_BCHW).float().cpu().numpy())
    return np.concatenate(parts)


def embed(
    model: nn.Module, images_NHWC: NDArray[np.uint8], indices: NDArray[np.int64], batch_size: int = 512
) -> torch.Tensor:
    """Features before the head, float32 (N, D), in evaluation mode; the model is left as it was."""
    bare = copy.deepcopy(model).eval()
    # A head inside a container (`classifier.3`, a projector): the whole container goes.
    setattr(bare, head_path(bare).partition(".")[0], nn.Identity())
    return torch.from_numpy(predict_torch(bare, images_NHWC, indices, batch_size)).flatten(1)


@compute_lock()
def predict_file(
    path: Path, images_NHWC: NDArray[np.uint8], indices: NDArray[np.int64], batch_size: int = 256
) -> NDArray[np.float32]:
    """Logits float32 (N, C) of a deployed file in ONNX Runtime, float or int8.

    Raises ArtifactError when the file is missing or damaged, or answers what is no number.
    """
    session = open_session(path)
    name = session.get_inputs()[0].name
    parts = [
        session.run(None, {name: np.ascontiguousarray(images_NHWC[indices[start : start + batch_size]])})[0]
        for start in range(0, len(indices), batch_size)
    ]
    logits_NC: NDArray[np.float32] = np.concatenate(parts)
    if not np.isfinite(logits_NC).all():
        raise ArtifactError(f"{path}: its answers are not finite numbers; delete its folder and run winnow again")
    return logits_NC
