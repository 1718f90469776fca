"""An untrained candidate, pixels and the logits that every runtime must give for them; a promoted model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.transforms import functional as reference

from tests.winnow.deploy.untrained_candidate import make_candidate
from winnow.data.dataset import VALIDATION, ImageSet
from winnow.models.backbones import load_model
from winnow.records import this_machine

BATCH = 12
DEPLOYMENT_FIELDS: dict[str, Any] = {
    "serving": {
        **{"runtime": "ort", "precision": "int8", "threads": 2, "batch": 1, "p50_ms": 0.1},
        "objective": "latency",
    },
    "fastest": {
        "latency": {"runtime": "ort", "precision": "int8", "threads": 2, "batch": 1},
        "throughput": {"runtime": "openvino-throughput", "precision": "int8", "threads": 2, "batch": 64, "streams": 2},
    },
    "test": {"images": 2000.0, "top1": 0.438, "top1_low": 0.416, "top1_high": 0.46},
    "speed": {"best/latency_ms": 0.112, "best/throughput_ips": 18545.6, "speedup/eager_b1": 5.4},
    "machine": this_machine().model_dump(mode="json"),
    "data_version": "abc.dir",
    "why": "it is the smallest",
}


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


@pytest.fixture
def promoted(tiny_candidate: Callable[[str], Path], tmp_path: Path) -> Path:
    folder = tmp_path / "promoted"
    shutil.copytree(tiny_candidate("dense-int8"), folder)
    card = json.loads((folder / "card.json").read_text()) | DEPLOYMENT_FIELDS
    (folder / "card.json").write_text(json.dumps(card))
    return folder
