"""List the valid names of backbones. The list is written out because this package does not import torch.

`WINNOW_BACKBONES` are winnow's backbones, the others torchvision's classifiers. A test checks that the list equals
those of the installed torchvision, except `HEADLESS`. timm has more than a thousand networks: `timm:NAME` is valid
where NAME begins with one of `TIMM_FAMILIES`, each of which is tested; that the network exists is checked when it is
built.
"""

from __future__ import annotations

import difflib
from typing import Annotated

from pydantic import AfterValidator

WINNOW_BACKBONES = ("resnet8", "resnet20", "resnet56")
BACKBONES = (
    *WINNOW_BACKBONES,
    "alexnet",
    "convnext_base",
    "convnext_large",
    "convnext_small",
    "convnext_tiny",
    "densenet121",
    "densenet161",
    "densenet169",
    "densenet201",
    "efficientnet_b0",
    "efficientnet_b1",
    "efficientnet_b2",
    "efficientnet_b3",
    "efficientnet_b4",
    "efficientnet_b5",
    "efficientnet_b6",
    "efficientnet_b7",
    "efficientnet_v2_l",
    "efficientnet_v2_m",
    "efficientnet_v2_s",
    "googlenet",
    "inception_v3",
    "maxvit_t",
    "mnasnet0_5",
    "mnasnet0_75",
    "mnasnet1_0",
    "mnasnet1_3",
    "mobilenet_v2",
    "mobilenet_v3_large",
    "mobilenet_v3_small",
    "regnet_x_16gf",
    "regnet_x_1_6gf",
    "regnet_x_32gf",
    "regnet_x_3_2gf",
    "regnet_x_400mf",
    "regnet_x_800mf",
    "regnet_x_8gf",
    "regnet_y_128gf",
    "regnet_y_16gf",
    "regnet_y_1_6gf",
    "regnet_y_32gf",
    "regnet_y_3_2gf",
    "regnet_y_400mf",
    "regnet_y_800mf",
    "regnet_y_8gf",
    "resnet101",
    "resnet152",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnext101_32x8d",
    "resnext101_64x4d",
    "resnext50_32x4d",
    "shufflenet_v2_x0_5",
    "shufflenet_v2_x1_0",
    "shufflenet_v2_x1_5",
    "shufflenet_v2_x2_0",
    "swin_b",
    "swin_s",
    "swin_t",
    "swin_v2_b",
    "swin_v2_s",
    "swin_v2_t",
    "vgg11",
    "vgg11_bn",
    "vgg13",
    "vgg13_bn",
    "vgg16",
    "vgg16_bn",
    "vgg19",
    "vgg19_bn",
    "vit_b_16",
    "vit_b_32",
    "vit_h_14",
    "vit_l_16",
    "vit_l_32",
    "wide_resnet101_2",
    "wide_resnet50_2",
)


TIMM = "timm:"
"""Prefix of the backbones that the package timm builds."""
TIMM_FAMILIES = (
    "convnext",
    "deit",
    "efficientnet",
    "mobilenetv2",
    "mobilenetv3",
    "mobilenetv4",
    "regnet",
    "resnet",
    "resnext",
    "tf_efficientnet",
    "tf_mobilenetv3",
    "vit",
)
"""Beginnings of the names of timm's networks that winnow supports."""
HEADLESS = ("squeezenet1_0", "squeezenet1_1")
"""torchvision's classifiers without a final linear layer that a new head could replace."""
UNPRUNABLE_PREFIXES = ("maxvit_t", "shufflenet_", "swin_", "timm:vit", "timm:deit")
"""Name prefixes of networks that torch-pruning cannot trace: windowed attention, shuffled channels, attention of timm.
"""
ATTENTION_PREFIXES = ("vit_", "swin_", "timm:vit", "timm:deit")
"""Name prefixes of networks whose inner layers output tokens, not feature maps."""


SCALABLE_BACKBONES = (*WINNOW_BACKBONES, "mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small")
"""Backbones whose channels a width factor scales; to make another one narrower, prune it."""


def has_feature_maps(name: str) -> bool:
    """Return whether the inner layers output feature maps (B, C, H, W), as convolutional networks do."""
    return not name.startswith(ATTENTION_PREFIXES)


def is_prunable(name: str) -> bool:
    """Return whether `prune` works on the backbone."""
    return not name.startswith(UNPRUNABLE_PREFIXES)


def unknown_backbone_message(name: str) -> str:
    """Return the error message for a name that is not in `BACKBONES`, with the closest valid names."""
    closest = difflib.get_close_matches(name, BACKBONES, n=4) or ("resnet8", "resnet18")
    return (
        f"{name!r} is not a backbone; valid are {', '.join(WINNOW_BACKBONES)}, timm:NAME and torchvision's "
        f"classifiers, e.g. {', '.join(closest)}"
    )


def check_timm_name(name: str) -> None:
    """Raise ValueError for a network of timm that winnow does not support; `name` is without prefix and tag."""
    if not name.startswith(TIMM_FAMILIES):
        raise ValueError(
            f"timm's {name!r} is not supported; its name must begin with one of {', '.join(TIMM_FAMILIES)}"
        )
    if "_distilled" in name:
        plain = name.replace("_distilled", "")
        raise ValueError(f"timm's {name!r} has two heads, and winnow replaces one; choose a network such as {plain}")


def _check_backbone(name: str) -> str:
    if name.startswith(TIMM):
        check_timm_name(name.removeprefix(TIMM))
        return name
    if name in HEADLESS:
        raise ValueError(f"{name!r} has no linear head that could be replaced; choose another backbone")
    if name not in BACKBONES:
        raise ValueError(unknown_backbone_message(name))
    return name


def _check_student(name: str) -> str:
    if name == "same":
        return name
    try:
        return _check_backbone(name)
    except ValueError as error:
        raise ValueError(f"{error}; or same: the parent itself") from None


Backbone = Annotated[str, AfterValidator(_check_backbone)]
Student = Annotated[str, AfterValidator(_check_student)]
