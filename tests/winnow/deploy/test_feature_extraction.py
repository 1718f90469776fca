from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from winnow.deploy.batch_inference import embed
from winnow.deploy.feature_extraction import MANY_IMAGES, open_features
from winnow.models.backbones import Architecture, build_model
from winnow.models.input_adapter import InputSpec

ARCHITECTURE = Architecture(
    backbone="timm:mobilenetv3_small_050",
    num_classes=3,
    image_size=16,
    input=InputSpec(size=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
)


@pytest.mark.parametrize("count", [10, MANY_IMAGES], ids=["pytorch", "openvino"])
def test_features_are_the_input_of_the_head(count: int, tmp_path: Path) -> None:
    images_NHWC = np.random.default_rng(0).integers(0, 256, (70, 16, 16, 3), dtype=np.uint8)
    model = build_model(ARCHITECTURE, seed=0).eval()
    expected_ND = embed(model, images_NHWC, np.arange(70)).numpy()
    features = open_features(build_model(ARCHITECTURE, seed=0), ARCHITECTURE, tmp_path / "scratch", count)
    rows_ND = np.concatenate([features(images_NHWC[:64]), features(images_NHWC[64:])])
    cosines_N = torch.cosine_similarity(torch.from_numpy(rows_ND), torch.from_numpy(expected_ND), dim=1)
    assert rows_ND.shape == expected_ND.shape
    assert float(cosines_N.min()) > 0.999
    assert not list((tmp_path / "scratch").glob("*"))
