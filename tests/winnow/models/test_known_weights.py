"""Licences of known weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from winnow.errors import ConfigError
from winnow.models.known_weights import KnownWeights

SWAG = "https://github.com/facebookresearch/SWAG/blob/main/LICENSE"
RESEARCH_GROUP = "https://github.com/google-research/vision_transformer/blob/main/LICENSE"


@pytest.mark.parametrize(
    "licence", ["cc-by-nc-4.0", "CC BY-NC-SA", "research only", "Non-commercial", "CC BY Non Commercial", SWAG]
)
def test_a_licence_without_commercial_use_is_refused(licence: str, tmp_path: Path) -> None:
    weights = known(licence, tmp_path)
    with pytest.raises(ConfigError, match=r"excludes commercial use.*pretrain\.non_commercial: true"):
        weights.check_licence("pretrain.non_commercial")


@pytest.mark.parametrize(
    "licence", ["apache-2.0", "Apache-2.0", "mit", "BSD-3-Clause", "dinov3-license", RESEARCH_GROUP]
)
def test_other_licences_are_accepted(licence: str, tmp_path: Path) -> None:
    known(licence, tmp_path).check_licence("pretrain.non_commercial")


def known(licence: str, folder: Path) -> KnownWeights:
    spec = (0.5, 0.5, 0.5)
    return KnownWeights("timm:x", "timm:resnet18", folder / "f", "", licence, 224, spec, spec, "bicubic", print)
