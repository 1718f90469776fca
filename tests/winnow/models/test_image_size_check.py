from __future__ import annotations

import pytest

from winnow.errors import ConfigError
from winnow.models.backbones import Architecture
from winnow.models.image_size_check import check_image_size


@pytest.mark.parametrize(("name", "size"), [("alexnet", 64), ("inception_v3", 80), ("vit_b_32", 96), ("resnet8", 8)])
def test_images_that_a_network_can_take_pass(name: str, size: int) -> None:
    check_image_size(Architecture(backbone=name, num_classes=3, image_size=size), "pretrain.backbone")


@pytest.mark.parametrize("name", ["alexnet", "inception_v3", "timm:nothing"])
def test_the_setting_is_named(name: str) -> None:
    with pytest.raises(ConfigError, match=r"^candidates\.small\.student: "):
        check_image_size(Architecture(backbone=name, num_classes=3, image_size=32), "candidates.small.student")
