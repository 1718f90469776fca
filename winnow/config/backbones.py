"""The names of backbones, checked at load. A list and not a question to torchvision: this package imports no torch.

`OWN` are winnow's, the others are torchvision's classifiers; a test holds the list equal to those installed, less
`HEADLESS`.
"""

from __future__ import annotations

import difflib
from typing import Annotated

from pydantic import AfterValidator

OWN = ("resnet8", "resnet20", "resnet56")
BACKBONES = (
    *OWN,
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


HEADLESS = ("squeezenet1_0", "squeezenet1_1")
"""torchvision's classifiers that end without a linear layer, which a new head would take the place of."""
UNPRUNABLE = ("maxvit_t", "shufflenet_", "swin_")
"""How the names begin of those whose channels torch-pruning cannot follow: windowed attention, shuffled channels."""


IN_WIDTHS = (*OWN, "mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small")
"""Those whose channels a factor scales; to make another narrower, prune it."""


def has_maps(name: str) -> bool:
    """Whether its inner layers give (B, C, H, W): convolutional networks."""
    return not name.startswith(("vit_", "swin_"))


def is_prunable(name: str) -> bool:
    """Whether `prune` works on the backbone."""
    return not name.startswith(UNPRUNABLE)


def unknown_backbone(name: str) -> str:
    """What to say of a name that is not among `BACKBONES`: the nearest that are."""
    near = difflib.get_close_matches(name, BACKBONES, n=4) or ("resnet8", "resnet18")
    return f"{name!r} is no backbone; valid are {', '.join(OWN)} and torchvision's classifiers, e.g. {', '.join(near)}"


def _known(name: str) -> str:
    if name in HEADLESS:
        raise ValueError(f"{name!r} has no linear head that could be replaced; choose another backbone")
    if name not in BACKBONES:
        raise ValueError(unknown_backbone(name))
    return name


def _known_or_same(name: str) -> str:
    if name not in ("same", *BACKBONES):
        raise ValueError(f"{unknown_backbone(name)}; or same: the parent itself")
    return name


Backbone = Annotated[str, AfterValidator(_known)]
Student = Annotated[str, AfterValidator(_known_or_same)]
