"""An untrained candidate, pixels, and the logits that every runtime must give for them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.transforms import functional as reference

from tests.winnow.deploy.untrained_candidate import make_candidate
from winnow.data.dataset import VALIDATION, ImageSet
from winnow.models.backbones import load_model

BATCH = 12


@pytest.fixture(scope="module")
def candidate_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_candidate(tmp_path_factory.mktemp("served") / "dense")


@pytest.fixture(scope="module")
def pixels(tiny_set: ImageSet) -> np.ndarray:
    return np.ascontiguousarray(tiny_set.images_NHWC[tiny_set.indices(VALIDATION)[:BATCH]])


@pytest.fixture(scope="module")
def expected_logits(candidate_folder: Path, pixels: np.ndarray) -> np.ndarray:
    """Return the network's logits with torchvision's preprocessing, in double precision."""
    model = load_model(candidate_folder)[0].double()
    images = torch.stack([reference.to_tensor(image) for image in pixels]).double()
    with torch.inference_mode():
        logits: np.ndarray = model(reference.normalize(images, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])).numpy()
    return logits
