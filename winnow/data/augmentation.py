"""Random views of a whole batch at once: tensors in, tensors out, no per-image Python.

All functions take and return float images (B, C, H, W) in [0, 1] and draw from the global generator, which `fit`
seeds for every step. The distributions are torchvision's (RandomResizedCrop, ColorJitter, RandomGrayscale,
RandomHorizontalFlip); the arithmetic is batched. `normalise` uses the ImageNet statistics, so that foreign torchvision
backbones see what they were trained on; exported models carry the same numbers inside.

Images may be larger than the views made of them (data.training_size): a crop is then resized once, from pixels that no
smaller image has lost.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from winnow.config import Augmentation

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
ASPECT_RATIO = (3 / 4, 4 / 3)
CROP_TRIALS = 10
GRAY_WEIGHTS = (0.2989, 0.587, 0.114)


def to_float(images_BCHW: torch.Tensor) -> torch.Tensor:
    """uint8 -> float32 in [0, 1]; keeps the memory format."""
    return images_BCHW.float() / 255


def normalise(x_BCHW: torch.Tensor) -> torch.Tensor:
    """Subtract the mean and divide by the deviation of each channel."""
    mean = torch.tensor(MEAN, device=x_BCHW.device).view(1, 3, 1, 1)
    std = torch.tensor(STD, device=x_BCHW.device).view(1, 3, 1, 1)
    return (x_BCHW - mean) / std


def flip(x_BCHW: torch.Tensor, probability: float = 0.5) -> torch.Tensor:
    """Mirror some images left to right."""
    chosen = torch.rand(len(x_BCHW), device=x_BCHW.device) < probability
    return torch.where(chosen.view(-1, 1, 1, 1), x_BCHW.flip(3), x_BCHW)


def resized_crop(x_BCHW: torch.Tensor, scale_min: float, side: int | None = None) -> torch.Tensor:
    """A random rectangle of `scale_min` to 1 of the area, aspect 3/4 to 4/3, resized to (side, side), bilinear.

    `side`: in pixels; None: the images' own height and width. One affine grid for the batch. As in torchvision, sides
    and corners of the rectangle are whole pixels, and one that does not fit is drawn again, ten times at most
    (clipping it instead leaves visibly less variation); then the whole image is taken.
    """
    count, _, height, width = x_BCHW.shape
    size_2 = torch.tensor([width, height], device=x_BCHW.device)
    sides_B2 = _fitting_sides(count, size_2, scale_min)
    corners_B2 = (torch.rand(count, 2, device=x_BCHW.device) * (size_2 - sides_B2 + 1)).floor()
    theta = torch.zeros(count, 2, 3, device=x_BCHW.device)
    theta[:, :, :2] = torch.diag_embed(sides_B2 / size_2)
    theta[:, :, 2] = (2 * corners_B2 + sides_B2) / size_2 - 1
    to = (height, width) if side is None else (side, side)
    grid = F.affine_grid(theta, [count, x_BCHW.shape[1], *to], align_corners=False)
    return F.grid_sample(x_BCHW, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def _fitting_sides(count: int, size_2: torch.Tensor, scale_min: float) -> torch.Tensor:
    """Width and height (B, 2) in pixels of the first of ten draws that fits, else of the image."""
    area_TB = torch.empty(CROP_TRIALS, count, device=size_2.device).uniform_(scale_min, 1.0) * size_2.prod()
    aspect_TB = torch.empty(CROP_TRIALS, count, device=size_2.device).uniform_(*map(math.log, ASPECT_RATIO)).exp()
    sides_TB2 = torch.stack([area_TB * aspect_TB, area_TB / aspect_TB], dim=2).sqrt().round()
    fits_TB = ((sides_TB2 >= 1) & (sides_TB2 <= size_2)).all(2)
    trials_T1 = torch.arange(CROP_TRIALS, device=size_2.device).unsqueeze(1)
    first_B = torch.where(fits_TB, trials_T1, CROP_TRIALS).amin(0)
    tried_UB2 = torch.cat([sides_TB2, size_2.expand(1, count, 2)])
    return tried_UB2[first_B, torch.arange(count, device=size_2.device)]


def jitter(x_BCHW: torch.Tensor, strength: float) -> torch.Tensor:
    """Brightness, contrast and saturation by a factor of 1 +- strength each, hue by +- strength/4 of the circle."""
    count, device = len(x_BCHW), x_BCHW.device

    def factor() -> torch.Tensor:
        return torch.empty(count, 1, 1, 1, device=device).uniform_(max(0.0, 1 - strength), 1 + strength)

    x_BCHW = (x_BCHW * factor()).clamp(0, 1)
    mean = _gray(x_BCHW).mean((2, 3), keepdim=True)
    x_BCHW = torch.lerp(mean, x_BCHW, factor()).clamp(0, 1)
    x_BCHW = torch.lerp(_gray(x_BCHW), x_BCHW, factor()).clamp(0, 1)
    return _turn_hue(x_BCHW, torch.empty(count, device=device).uniform_(-strength / 4, strength / 4))


def grayscale(x_BCHW: torch.Tensor, probability: float) -> torch.Tensor:
    """Take the colour out of some images."""
    chosen = torch.rand(len(x_BCHW), device=x_BCHW.device) < probability
    return torch.where(chosen.view(-1, 1, 1, 1), _gray(x_BCHW).expand_as(x_BCHW), x_BCHW)


def augment(images_BCHW: torch.Tensor, how: Augmentation, side: int) -> torch.Tensor:
    """uint8 images -> one random, normalised view (B, C, side, side) of each.

    float32 inside autocast too: bf16 corners miss by pixels.
    """
    with torch.autocast(images_BCHW.device.type, enabled=False):
        return _view(images_BCHW, how, side)


def _view(images_BCHW: torch.Tensor, how: Augmentation, side: int) -> torch.Tensor:
    x_BCHW = to_float(images_BCHW)
    if how.crop_scale_min < 1:
        x_BCHW = resized_crop(x_BCHW, how.crop_scale_min, side)
    elif x_BCHW.shape[2:] != (side, side):
        x_BCHW = F.interpolate(x_BCHW, (side, side), mode="bilinear", antialias=True)
    if how.flip:
        x_BCHW = flip(x_BCHW)
    if how.jitter:
        x_BCHW = torch.where(_coin(x_BCHW, 0.8), jitter(x_BCHW, how.jitter), x_BCHW)
    if how.grayscale:
        x_BCHW = grayscale(x_BCHW, how.grayscale)
    return normalise(x_BCHW).contiguous(memory_format=torch.channels_last)


def _coin(x_BCHW: torch.Tensor, probability: float) -> torch.Tensor:
    return torch.rand(len(x_BCHW), 1, 1, 1, device=x_BCHW.device) < probability


def _gray(x_BCHW: torch.Tensor) -> torch.Tensor:
    weights = torch.tensor(GRAY_WEIGHTS, device=x_BCHW.device).view(1, 3, 1, 1)
    return (x_BCHW * weights).sum(1, keepdim=True)


def _turn_hue(x_BCHW: torch.Tensor, turns_B: torch.Tensor) -> torch.Tensor:
    """Rotate the colour plane of YIQ; close to a turn of HSV's hue and a single matrix product."""
    angle = -turns_B * 2 * math.pi  # red, green, blue follow each other clockwise in that plane
    to_yiq = torch.tensor(
        [[0.299, 0.587, 0.114], [0.596, -0.274, -0.321], [0.211, -0.523, 0.311]], device=x_BCHW.device
    )
    turn = torch.zeros(len(x_BCHW), 3, 3, device=x_BCHW.device)
    turn[:, 0, 0] = 1
    turn[:, 1, 1], turn[:, 1, 2] = angle.cos(), -angle.sin()
    turn[:, 2, 1], turn[:, 2, 2] = angle.sin(), angle.cos()
    matrix_B33 = torch.linalg.inv(to_yiq) @ turn @ to_yiq
    return torch.einsum("bij,bjhw->bihw", matrix_B33, x_BCHW).clamp(0, 1)
