"""Compare views with torchvision: equality where draws can be repeated, moments of the distribution elsewhere."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torchvision.transforms import ColorJitter, RandomResizedCrop
from torchvision.transforms import functional as reference

from winnow.config import Augmentation
from winnow.data.augmentation import _rotate_hue, augment, flip, grayscale, jitter, normalise, resized_crop, to_float

ALL_AUGMENTATIONS = Augmentation(crop_scale_min=0.3, flip=True, jitter=0.4, grayscale=0.2)


def smooth_images(count: int = 6, side: int = 20, seed: int = 0) -> torch.Tensor:
    """Return uint8 (B, 3, S, S): smooth, with colour, all different."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 4, 4, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic").clamp(0, 1)
    return (smooth * 255).round().to(torch.uint8)


def test_floats_and_normalisation_equal_torchvision() -> None:
    images = smooth_images()
    x = to_float(images)
    torch.testing.assert_close(x, torch.stack([reference.convert_image_dtype(image) for image in images]))
    expected = reference.normalize(x, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    torch.testing.assert_close(normalise(x), expected, rtol=0, atol=1e-6)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1).expand(2, 3, 4, 4)
    torch.testing.assert_close(normalise(mean), torch.zeros(2, 3, 4, 4), rtol=0, atol=1e-6)


def test_flip_mirrors_half_of_the_images() -> None:
    x = to_float(smooth_images(2000, 4))
    torch.manual_seed(0)
    y = flip(x)
    mirrored = (y == reference.hflip(x)).flatten(1).all(1)
    assert ((y == x).flatten(1).all(1) ^ mirrored).all()
    assert mirrored.float().mean() == pytest.approx(0.5, abs=0.04)
    assert torch.equal(flip(x, 0.0), x)
    assert torch.equal(flip(flip(x, 1.0), 1.0), x)


def coordinate_images(count: int, side: int) -> torch.Tensor:
    """Return images with the column in channel 0 and the row in channel 1, which identify the rectangle of a crop."""
    coordinates = torch.arange(side).float()
    planes = torch.stack(
        [coordinates.expand(side, side), coordinates[:, None].expand(side, side), torch.zeros(side, side)]
    )
    return planes.expand(count, -1, -1, -1)


def crop_rectangles(crops: torch.Tensor) -> torch.Tensor:
    """Return left, top, width and height (B, 4) of crops of `coordinate_images`, from slope and middle."""
    side = crops.shape[-1]
    low, high = side // 4, 3 * side // 4
    profile = torch.stack([crops[:, 0, side // 2], crops[:, 1, :, side // 2]], 1)
    size = (profile[:, :, high] - profile[:, :, low]) / (high - low) * side
    middle = (profile[:, :, side // 2] + profile[:, :, side // 2 - 1]) / 2 + 0.5
    return torch.cat([middle - size / 2, size], 1)


@pytest.mark.parametrize(("scale_min", "side"), [(0.08, 32), (0.4, 16), (0.9, 32)])
def test_crop_rectangles_are_distributed_as_in_torchvision(scale_min: float, side: int) -> None:
    count = 4000
    torch.manual_seed(0)
    actual = crop_rectangles(resized_crop(coordinate_images(count, side), scale_min))
    image = torch.zeros(3, side, side)
    params = [RandomResizedCrop.get_params(image, [scale_min, 1.0], [3 / 4, 4 / 3]) for _ in range(count)]
    expected = torch.tensor([[left, top, width, height] for top, left, height, width in params]).float()
    torch.testing.assert_close(actual, actual.round(), rtol=0, atol=2e-3)  # whole pixels
    assert (actual[:, :2] > -2e-3).all()
    assert (actual[:, :2] + actual[:, 2:] < side + 2e-3).all()
    error = expected.std(0) / count**0.5
    assert ((actual.mean(0) - expected.mean(0)).abs() < 5 * error + 1e-3).all()
    torch.testing.assert_close(actual.std(0), expected.std(0), rtol=0.06, atol=0.02)
    areas_by_library = [rectangle[:, 2] * rectangle[:, 3] / side**2 for rectangle in (actual, expected)]
    torch.testing.assert_close(
        *(areas.quantile(torch.tensor([0.1, 0.5, 0.9])) for areas in areas_by_library), rtol=0, atol=0.05
    )


def test_a_crop_equals_torchvision_inside_its_border() -> None:
    side = 24
    x = to_float(smooth_images(40, side))
    torch.manual_seed(3)
    boxes = crop_rectangles(resized_crop(coordinate_images(40, side), 0.3)).round().int().tolist()
    torch.manual_seed(3)
    crops = resized_crop(x, 0.3)
    for image, crop, (left, top, width, height) in zip(x, crops, boxes, strict=True):
        expected = reference.resized_crop(image, top, left, height, width, [side, side], antialias=False)
        torch.testing.assert_close(crop[:, 2:-2, 2:-2], expected[:, 2:-2, 2:-2], rtol=0, atol=1e-4)


def test_a_crop_of_a_uniform_image_does_not_change_it() -> None:
    uniform = torch.full((5, 3, 16, 16), 0.3)
    torch.testing.assert_close(resized_crop(uniform, 0.2), uniform)
    assert resized_crop(to_float(smooth_images(3, 16)), 0.2).shape == (3, 3, 16, 16)


@pytest.mark.parametrize("strength", [0.2, 0.5, 1.0])
def test_brightness_contrast_and_saturation_equal_torchvision(strength: float) -> None:
    x = to_float(smooth_images(12))
    torch.manual_seed(5)
    low = max(0.0, 1 - strength)
    factors = [torch.empty(12, 1, 1, 1).uniform_(low, 1 + strength).flatten().tolist() for _ in range(3)]
    torch.manual_seed(5)
    jittered = jitter(x, strength)
    for image, actual, brightness, contrast, saturation in zip(x, jittered, *factors, strict=True):
        expected = reference.adjust_brightness(image, brightness)
        expected = reference.adjust_saturation(reference.adjust_contrast(expected, contrast), saturation)
        # The hue rotation that follows keeps the brightness where nothing is clipped.
        is_unclipped = ((actual > 0.02) & (actual < 0.98)).all(0)
        gray = [reference.rgb_to_grayscale(view)[0][is_unclipped] for view in (actual, expected)]
        torch.testing.assert_close(*gray, rtol=0, atol=5e-3)


@pytest.mark.parametrize("hue_shift", [-0.1, 0.02, 0.1, 0.2])
def test_hue_rotation_is_close_to_torchvision(hue_shift: float) -> None:
    x = to_float(smooth_images(12))
    rotated = (
        _rotate_hue(x, torch.full((12,), hue_shift)),
        torch.stack([reference.adjust_hue(image, hue_shift) for image in x]),
    )
    actual, expected = ((y - x) - reference.rgb_to_grayscale(y - x) for y in rotated)  # the change of colour
    assert (actual * expected).sum() / actual.norm() / expected.norm() > 0.85
    assert actual.norm() / expected.norm() == pytest.approx(1, abs=0.15)


def test_zero_jitter_changes_nothing_and_gray_stays_gray() -> None:
    x = to_float(smooth_images())
    torch.testing.assert_close(jitter(x, 0.0), x, rtol=0, atol=2e-3)
    y = jitter(x[:, :1].expand(-1, 3, -1, -1), 0.8)
    torch.testing.assert_close(y, y[:, :1].expand_as(y), rtol=0, atol=5e-3)
    assert ((y >= 0) & (y <= 1)).all()


def moments(views: torch.Tensor) -> torch.Tensor:
    """Return, over all draws: mean brightness, its standard deviation, contrast, and colourfulness."""
    gray = reference.rgb_to_grayscale(views)
    spread = (views - gray).abs().mean((1, 2, 3))
    means = gray.mean((1, 2, 3))
    return torch.stack([means.mean(), means.std(), gray.std((1, 2, 3)).mean(), spread.mean(), spread.std()])


def test_jitter_has_the_moments_of_torchvision() -> None:
    """The order of operations (random in torchvision) and the plane of hue differ: moments are close, not equal."""
    x, strength = to_float(smooth_images(1, 12)), 0.6
    torch.manual_seed(0)
    actual = moments(jitter(x.expand(2000, -1, -1, -1), strength))
    transform = ColorJitter(strength, strength, strength, strength / 4)
    expected = moments(torch.cat([transform(x) for _ in range(200)]))
    assert ((actual / expected - 1).abs() < torch.tensor([0.06, 0.15, 0.1, 0.15, 0.3])).all()


def test_grayscale_equals_torchvision_with_its_probability() -> None:
    x = to_float(smooth_images(1000, 8))
    torch.manual_seed(0)
    y = grayscale(x, 0.2)
    gray = reference.rgb_to_grayscale(x, 3)
    chosen = (y == y[:, :1]).flatten(1).all(1)
    torch.testing.assert_close(y[chosen], gray[chosen], rtol=0, atol=1e-6)
    assert torch.equal(y[~chosen], x[~chosen])
    assert chosen.float().mean() == pytest.approx(0.2, abs=0.04)
    assert torch.equal(grayscale(x, 0.0), x)


VIEWS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "crop": lambda images: resized_crop(to_float(images), 0.3),
    "flip": lambda images: flip(to_float(images)),
    "jitter": lambda images: jitter(to_float(images), 0.4),
    "grayscale": lambda images: grayscale(to_float(images), 0.5),
    "all": lambda images: augment(images, ALL_AUGMENTATIONS, images.shape[-1]),
}


@pytest.mark.parametrize("name", list(VIEWS))
def test_views_depend_on_the_seed(name: str) -> None:
    views = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        views.append(VIEWS[name](smooth_images(8)))
    assert torch.equal(views[0], views[1])
    assert not torch.equal(views[0], views[2])


@pytest.mark.parametrize("size", [36, 48])
def test_crops_of_larger_images_are_resized_once(size: int) -> None:
    """A view of 32 pixels from an image of 36 or 48 is torchvision's crop of that image, resized."""
    torch.manual_seed(0)
    boxes = crop_rectangles(resized_crop(coordinate_images(40, size), 0.5)).round().int().tolist()
    x = to_float(smooth_images(40, size))
    torch.manual_seed(0)
    crops = resized_crop(x, 0.5, 32)
    assert crops.shape == (40, 3, 32, 32)
    for crop, image, (left, top, width, height) in zip(crops, x, boxes, strict=True):
        expected = reference.resized_crop(image, top, left, height, width, [32, 32], antialias=False)
        torch.testing.assert_close(crop[:, 2:-2, 2:-2], expected[:, 2:-2, 2:-2], rtol=0, atol=2e-3)


def test_larger_images_without_a_crop_are_resized() -> None:
    no_augmentation = Augmentation(crop_scale_min=1.0, flip=False, jitter=0.0, grayscale=0.0)
    images = smooth_images(8, 64)
    expected = reference.resize(to_float(images), [32, 32], antialias=True)
    torch.testing.assert_close(augment(images, no_augmentation, 32), normalise(expected), rtol=0, atol=1e-4)


def test_augment_is_float32_also_inside_autocast() -> None:
    torch.manual_seed(0)
    expected = augment(smooth_images(), ALL_AUGMENTATIONS, smooth_images().shape[-1])
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(
            augment(smooth_images(), ALL_AUGMENTATIONS, smooth_images().shape[-1]), expected, rtol=0, atol=0
        )


def test_augment_without_augmentation_only_normalises() -> None:
    images = smooth_images()
    no_augmentation = Augmentation(crop_scale_min=1.0, flip=False, jitter=0.0, grayscale=0.0)
    assert torch.equal(augment(images, no_augmentation, images.shape[-1]), normalise(to_float(images)))


def test_augment_returns_one_view_of_each_image_for_the_network() -> None:
    torch.manual_seed(0)
    views = augment(smooth_images(64, 16), ALL_AUGMENTATIONS, 16)
    assert (views.shape, views.dtype) == ((64, 3, 16, 16), torch.float32)
    assert views.is_contiguous(memory_format=torch.channels_last)
    low, high = normalise(torch.zeros(1, 3, 1, 1)), normalise(torch.ones(1, 3, 1, 1))
    assert ((views >= low - 1e-5) & (views <= high + 1e-5)).all()
    assert np.isfinite(views.numpy()).all()


def test_a_fifth_of_the_images_is_not_jittered() -> None:
    images = smooth_images(1, 8).expand(2000, -1, -1, -1)
    torch.manual_seed(0)
    views = augment(images, Augmentation(crop_scale_min=1.0, flip=False, jitter=0.4), images.shape[-1])
    is_unchanged = (views == normalise(to_float(images))).flatten(1).all(1)
    assert is_unchanged.float().mean() == pytest.approx(0.2, abs=0.03)


@pytest.mark.parametrize("view", [normalise, lambda x: grayscale(x, 1.0), lambda x: jitter(x, 0.3)])
def test_images_without_three_channels_are_refused(view: Callable[[torch.Tensor], torch.Tensor]) -> None:
    with pytest.raises(RuntimeError):
        view(torch.rand(2, 4, 8, 8))
