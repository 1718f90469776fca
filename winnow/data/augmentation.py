"""Augment a whole batch at once: tensors in, tensors out, no Python loop over images.

All functions take and return float images (B, C, H, W) in [0, 1] and draw from the global generator, which `fit`
seeds for every step. The distributions are torchvision's (RandomResizedCrop, ColorJitter, RandomGrayscale,
RandomHorizontalFlip); the arithmetic is batched. `normalise` uses the ImageNet statistics, so that torchvision's
pretrained backbones see the range they were trained on; exported models hold the same numbers.

Images may be larger than their views (data.training_size), so that a crop is resized once, from full detail.
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
    """Convert uint8 to float32 in [0, 1]; keep the memory format."""
    return images_BCHW.float() / 255


def normalise(x_BCHW: torch.Tensor) -> torch.Tensor:
    """Subtract the mean and divide by the standard deviation of each channel."""
    mean = torch.tensor(MEAN, device=x_BCHW.device).view(1, 3, 1, 1)
    std = torch.tensor(STD, device=x_BCHW.device).view(1, 3, 1, 1)
    return (x_BCHW - mean) / std


def flip(x_BCHW: torch.Tensor, probability: float = 0.5) -> torch.Tensor:
    """Mirror each image left to right with this probability."""
    return torch.where(_random_mask(x_BCHW, probability), x_BCHW.flip(3), x_BCHW)


def resized_crop(x_BCHW: torch.Tensor, scale_min: float, side: int | None = None) -> torch.Tensor:
    """Crop a random rectangle of `scale_min` to 1 of the area, aspect 3/4 to 4/3; resize to (side, side), bilinear.

    `side` is in pixels; None keeps the images' height and width. The batch shares one affine grid. As in torchvision,
    sides and corners are whole pixels, and a rectangle that does not fit is drawn again, at most ten times; then the
    whole image is taken. Clipping it instead would leave visibly less variation.
    """
    count, _, height, width = x_BCHW.shape
    size_2 = torch.tensor([width, height], device=x_BCHW.device)
    sides_B2 = _fitting_sides(count, size_2, scale_min)
    corners_B2 = (torch.rand(count, 2, device=x_BCHW.device) * (size_2 - sides_B2 + 1)).floor()
    theta = torch.zeros(count, 2, 3, device=x_BCHW.device)
    theta[:, :, :2] = torch.diag_embed(sides_B2 / size_2)
    theta[:, :, 2] = (2 * corners_B2 + sides_B2) / size_2 - 1
    out_size = (height, width) if side is None else (side, side)
    grid = F.affine_grid(theta, [count, x_BCHW.shape[1], *out_size], align_corners=False)
    return F.grid_sample(x_BCHW, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def _fitting_sides(count: int, size_2: torch.Tensor, scale_min: float) -> torch.Tensor:
    """Return width and height (B, 2) in pixels of the first of ten draws that fits, else of the image."""
    area_TB = torch.empty(CROP_TRIALS, count, device=size_2.device).uniform_(scale_min, 1.0) * size_2.prod()
    aspect_TB = torch.empty(CROP_TRIALS, count, device=size_2.device).uniform_(*map(math.log, ASPECT_RATIO)).exp()
    sides_TB2 = torch.stack([area_TB * aspect_TB, area_TB / aspect_TB], dim=2).sqrt().round()
    fits_TB = ((sides_TB2 >= 1) & (sides_TB2 <= size_2)).all(2)
    trials_T1 = torch.arange(CROP_TRIALS, device=size_2.device).unsqueeze(1)
    first_B = torch.where(fits_TB, trials_T1, CROP_TRIALS).amin(0)
    sides_UB2 = torch.cat([sides_TB2, size_2.expand(1, count, 2)])
    return sides_UB2[first_B, torch.arange(count, device=size_2.device)]


def jitter(x_BCHW: torch.Tensor, strength: float) -> torch.Tensor:
    """Scale brightness, contrast and saturation by 1 +- strength each; rotate the hue by +- strength/4 of a turn."""
    count, device = len(x_BCHW), x_BCHW.device

    def draw_factor() -> torch.Tensor:
        return torch.empty(count, 1, 1, 1, device=device).uniform_(max(0.0, 1 - strength), 1 + strength)

    x_BCHW = (x_BCHW * draw_factor()).clamp(0, 1)
    mean = _luma(x_BCHW).mean((2, 3), keepdim=True)
    x_BCHW = torch.lerp(mean, x_BCHW, draw_factor()).clamp(0, 1)
    x_BCHW = torch.lerp(_luma(x_BCHW), x_BCHW, draw_factor()).clamp(0, 1)
    return _rotate_hue(x_BCHW, torch.empty(count, device=device).uniform_(-strength / 4, strength / 4))


def grayscale(x_BCHW: torch.Tensor, probability: float) -> torch.Tensor:
    """Remove the colour of each image with this probability."""
    return torch.where(_random_mask(x_BCHW, probability), _luma(x_BCHW).expand_as(x_BCHW), x_BCHW)


def augment(images_BCHW: torch.Tensor, augmentation: Augmentation, side: int) -> torch.Tensor:
    """Return one random, normalised view (B, C, side, side) of each uint8 image.

    Computes in float32 under autocast, too: in bf16 the corners of crops are off by pixels.
    """
    with torch.autocast(images_BCHW.device.type, enabled=False):
        return _random_view(images_BCHW, augmentation, side)


def _random_view(images_BCHW: torch.Tensor, augmentation: Augmentation, side: int) -> torch.Tensor:
    x_BCHW = to_float(images_BCHW)
    if augmentation.crop_scale_min < 1:
        x_BCHW = resized_crop(x_BCHW, augmentation.crop_scale_min, side)
    elif x_BCHW.shape[2:] != (side, side):
        x_BCHW = F.interpolate(x_BCHW, (side, side), mode="bilinear", antialias=True)
    if augmentation.flip:
        x_BCHW = flip(x_BCHW)
    if augmentation.jitter:
        x_BCHW = torch.where(_random_mask(x_BCHW, 0.8), jitter(x_BCHW, augmentation.jitter), x_BCHW)
    if augmentation.grayscale:
        x_BCHW = grayscale(x_BCHW, augmentation.grayscale)
    return normalise(x_BCHW).contiguous(memory_format=torch.channels_last)


def _random_mask(x_BCHW: torch.Tensor, probability: float) -> torch.Tensor:
    """Return booleans (B, 1, 1, 1), each true with this probability."""
    return torch.rand(len(x_BCHW), 1, 1, 1, device=x_BCHW.device) < probability


def _luma(x_BCHW: torch.Tensor) -> torch.Tensor:
    """Return the gray values (B, 1, H, W)."""
    weights = torch.tensor(GRAY_WEIGHTS, device=x_BCHW.device).view(1, 3, 1, 1)
    return (x_BCHW * weights).sum(1, keepdim=True)


def _rotate_hue(x_BCHW: torch.Tensor, turns_B: torch.Tensor) -> torch.Tensor:
    """Rotate the colour plane of YIQ, a single matrix product that is close to a rotation of HSV's hue."""
    angle = -turns_B * 2 * math.pi  # red, green and blue run clockwise in that plane
    to_yiq = torch.tensor(
        [[0.299, 0.587, 0.114], [0.596, -0.274, -0.321], [0.211, -0.523, 0.311]], device=x_BCHW.device
    )
    rotation_B33 = torch.zeros(len(x_BCHW), 3, 3, device=x_BCHW.device)
    rotation_B33[:, 0, 0] = 1
    rotation_B33[:, 1, 1], rotation_B33[:, 1, 2] = angle.cos(), -angle.sin()
    rotation_B33[:, 2, 1], rotation_B33[:, 2, 2] = angle.sin(), angle.cos()
    matrix_B33 = torch.linalg.inv(to_yiq) @ rotation_B33 @ to_yiq
    return torch.einsum("bij,bjhw->bihw", matrix_B33, x_BCHW).clamp(0, 1)
