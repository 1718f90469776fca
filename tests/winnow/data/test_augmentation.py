"""Views against torchvision: where a draw can be repeated, equality; elsewhere the moments of the distribution."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torchvision.transforms import ColorJitter, RandomResizedCrop
from torchvision.transforms import functional as reference

from winnow.config import Augmentation
from winnow.data.augmentation import _rotate_hue, augment, flip, grayscale, jitter, normalise, resized_crop, to_float

ALL = Augmentation(crop_scale_min=0.3, flip=True, jitter=0.4, grayscale=0.2)


def photos(count: int = 6, side: int = 20, seed: int = 0) -> torch.Tensor:
    """uint8 (B, 3, S, S): smooth, with colour, and no two alike."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 4, 4, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic").clamp(0, 1)
    return (smooth * 255).round().to(torch.uint8)


def test_floats_and_normalisation_are_torchvisions() -> None:
    images = photos()
    x = to_float(images)
    torch.testing.assert_close(x, torch.stack([reference.convert_image_dtype(image) for image in images]))
    expected = reference.normalize(x, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    torch.testing.assert_close(normalise(x), expected, rtol=0, atol=1e-6)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1).expand(2, 3, 4, 4)
    torch.testing.assert_close(normalise(mean), torch.zeros(2, 3, 4, 4), rtol=0, atol=1e-6)


def test_flip_mirrors_half() -> None:
    x = to_float(photos(2000, 4))
    torch.manual_seed(0)
    y = flip(x)
    mirrored = (y == reference.hflip(x)).flatten(1).all(1)
    assert ((y == x).flatten(1).all(1) ^ mirrored).all()
    assert mirrored.float().mean() == pytest.approx(0.5, abs=0.04)
    assert torch.equal(flip(x, 0.0), x)
    assert torch.equal(flip(flip(x, 1.0), 1.0), x)


def ramps(count: int, side: int) -> torch.Tensor:
    """Channel 0 is a pixel's column, channel 1 its row: they tell which rectangle a crop took."""
    paths = torch.arange(side).float()
    planes = torch.stack([paths.expand(side, side), paths[:, None].expand(side, side), torch.zeros(side, side)])
    return planes.expand(count, -1, -1, -1)


def rectangles(crops: torch.Tensor) -> torch.Tensor:
    """left, top, width and height (B, 4) of the crops of `ramps`, from the slope and the middle."""
    side = crops.shape[-1]
    low, high = side // 4, 3 * side // 4
    along = torch.stack([crops[:, 0, side // 2], crops[:, 1, :, side // 2]], 1)
    sides = (along[:, :, high] - along[:, :, low]) / (high - low) * side
    middle = (along[:, :, side // 2] + along[:, :, side // 2 - 1]) / 2 + 0.5
    return torch.cat([middle - sides / 2, sides], 1)


@pytest.mark.parametrize(("scale_min", "side"), [(0.08, 32), (0.4, 16), (0.9, 32)])
def test_rectangles_are_distributed_as_torchvisions(scale_min: float, side: int) -> None:
    count = 4000
    torch.manual_seed(0)
    ours = rectangles(resized_crop(ramps(count, side), scale_min))
    whole = torch.zeros(3, side, side)
    params = [RandomResizedCrop.get_params(whole, [scale_min, 1.0], [3 / 4, 4 / 3]) for _ in range(count)]
    theirs = torch.tensor([[left, top, width, height] for top, left, height, width in params]).float()
    torch.testing.assert_close(ours, ours.round(), rtol=0, atol=2e-3)  # whole pixels
    assert (ours[:, :2] > -2e-3).all()
    assert (ours[:, :2] + ours[:, 2:] < side + 2e-3).all()
    error = theirs.std(0) / count**0.5
    assert ((ours.mean(0) - theirs.mean(0)).abs() < 5 * error + 1e-3).all()
    torch.testing.assert_close(ours.std(0), theirs.std(0), rtol=0.06, atol=0.02)
    area = [rectangle[:, 2] * rectangle[:, 3] / side**2 for rectangle in (ours, theirs)]
    torch.testing.assert_close(*(part.quantile(torch.tensor([0.1, 0.5, 0.9])) for part in area), rtol=0, atol=0.05)


def test_a_crop_equals_torchvisions_away_from_its_border() -> None:
    side = 24
    x = to_float(photos(40, side))
    torch.manual_seed(3)
    boxes = rectangles(resized_crop(ramps(40, side), 0.3)).round().int().tolist()
    torch.manual_seed(3)
    crops = resized_crop(x, 0.3)
    for image, crop, (left, top, width, height) in zip(x, crops, boxes, strict=True):
        expected = reference.resized_crop(image, top, left, height, width, [side, side], antialias=False)
        torch.testing.assert_close(crop[:, 2:-2, 2:-2], expected[:, 2:-2, 2:-2], rtol=0, atol=1e-4)


def test_a_crop_of_everything_changes_nothing() -> None:
    flat = torch.full((5, 3, 16, 16), 0.3)
    torch.testing.assert_close(resized_crop(flat, 0.2), flat)
    assert resized_crop(to_float(photos(3, 16)), 0.2).shape == (3, 3, 16, 16)


@pytest.mark.parametrize("strength", [0.2, 0.5, 1.0])
def test_brightness_contrast_and_saturation_equal_torchvisions(strength: float) -> None:
    x = to_float(photos(12))
    torch.manual_seed(5)
    low = max(0.0, 1 - strength)
    factors = [torch.empty(12, 1, 1, 1).uniform_(low, 1 + strength).flatten().tolist() for _ in range(3)]
    torch.manual_seed(5)
    found = jitter(x, strength)
    for image, ours, bright, contrast, saturation in zip(x, found, *factors, strict=True):
        expected = reference.adjust_brightness(image, bright)
        expected = reference.adjust_saturation(reference.adjust_contrast(expected, contrast), saturation)
        # The turn of the hue that follows leaves the brightness as it is, where nothing is clipped.
        inside = ((ours > 0.02) & (ours < 0.98)).all(0)
        gray = [reference.rgb_to_grayscale(part)[0][inside] for part in (ours, expected)]
        torch.testing.assert_close(*gray, rtol=0, atol=5e-3)


@pytest.mark.parametrize("turn", [-0.1, 0.02, 0.1, 0.2])
def test_hue_turns_the_way_of_torchvisions_and_as_far(turn: float) -> None:
    x = to_float(photos(12))
    turned = _rotate_hue(x, torch.full((12,), turn)), torch.stack([reference.adjust_hue(image, turn) for image in x])
    ours, theirs = ((y - x) - reference.rgb_to_grayscale(y - x) for y in turned)  # what happened to the colour
    assert (ours * theirs).sum() / ours.norm() / theirs.norm() > 0.85
    assert ours.norm() / theirs.norm() == pytest.approx(1, abs=0.15)


def test_no_jitter_is_none_and_gray_stays_gray() -> None:
    x = to_float(photos())
    torch.testing.assert_close(jitter(x, 0.0), x, rtol=0, atol=2e-3)
    y = jitter(x[:, :1].expand(-1, 3, -1, -1), 0.8)
    torch.testing.assert_close(y, y[:, :1].expand_as(y), rtol=0, atol=5e-3)
    assert ((y >= 0) & (y <= 1)).all()


def moments(views: torch.Tensor) -> torch.Tensor:
    """Over all draws: mean brightness, its spread, contrast, and colourfulness."""
    gray = reference.rgb_to_grayscale(views)
    spread = (views - gray).abs().mean((1, 2, 3))
    means = gray.mean((1, 2, 3))
    return torch.stack([means.mean(), means.std(), gray.std((1, 2, 3)).mean(), spread.mean(), spread.std()])


def test_jitter_keeps_torchvisions_moments() -> None:
    """Orders differ (torchvision draws one, ours is fixed) and so does the hue's plane: near, not equal."""
    x, strength = to_float(photos(1, 12)), 0.6
    torch.manual_seed(0)
    ours = moments(jitter(x.expand(2000, -1, -1, -1), strength))
    transform = ColorJitter(strength, strength, strength, strength / 4)
    theirs = moments(torch.cat([transform(x) for _ in range(200)]))
    assert ((ours / theirs - 1).abs() < torch.tensor([0.06, 0.15, 0.1, 0.15, 0.3])).all()


def test_grayscale_equals_torchvisions_on_its_share() -> None:
    x = to_float(photos(1000, 8))
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
    "all": lambda images: augment(images, ALL, images.shape[-1]),
}


@pytest.mark.parametrize("name", list(VIEWS))
def test_the_seed_decides(name: str) -> None:
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(VIEWS[name](photos(8)))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


@pytest.mark.parametrize("larger", [36, 48])
def test_crops_of_larger_images_are_resized_once(larger: int) -> None:
    """A view of 32 pixels from an image of 36 or 48 is torchvision's crop of that image, resized."""
    torch.manual_seed(0)
    boxes = rectangles(resized_crop(ramps(40, larger), 0.5)).round().int().tolist()
    x = to_float(photos(40, larger))
    torch.manual_seed(0)
    crops = resized_crop(x, 0.5, 32)
    assert crops.shape == (40, 3, 32, 32)
    for crop, image, (left, top, width, height) in zip(crops, x, boxes, strict=True):
        expected = reference.resized_crop(image, top, left, height, width, [32, 32], antialias=False)
        torch.testing.assert_close(crop[:, 2:-2, 2:-2], expected[:, 2:-2, 2:-2], rtol=0, atol=2e-3)


def test_larger_images_without_a_crop_are_averaged_down() -> None:
    nothing = Augmentation(crop_scale_min=1.0, flip=False, jitter=0.0, grayscale=0.0)
    images = photos(8, 64)
    expected = reference.resize(to_float(images), [32, 32], antialias=True)
    torch.testing.assert_close(augment(images, nothing, 32), normalise(expected), rtol=0, atol=1e-4)


def test_augment_is_float32_also_inside_autocast() -> None:
    torch.manual_seed(0)
    expected = augment(photos(), ALL, photos().shape[-1])
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(augment(photos(), ALL, photos().shape[-1]), expected, rtol=0, atol=0)


def test_augment_without_anything_only_normalises() -> None:
    images = photos()
    nothing = Augmentation(crop_scale_min=1.0, flip=False, jitter=0.0, grayscale=0.0)
    assert torch.equal(augment(images, nothing, images.shape[-1]), normalise(to_float(images)))


def test_augment_is_one_view_of_each_ready_for_the_network() -> None:
    torch.manual_seed(0)
    views = augment(photos(64, 16), ALL, 16)
    assert (views.shape, views.dtype) == ((64, 3, 16, 16), torch.float32)
    assert views.is_contiguous(memory_format=torch.channels_last)
    low, high = normalise(torch.zeros(1, 3, 1, 1)), normalise(torch.ones(1, 3, 1, 1))
    assert ((views >= low - 1e-5) & (views <= high + 1e-5)).all()
    assert np.isfinite(views.numpy()).all()


def test_jitter_leaves_a_fifth_alone() -> None:
    images = photos(1, 8).expand(2000, -1, -1, -1)
    torch.manual_seed(0)
    views = augment(images, Augmentation(crop_scale_min=1.0, flip=False, jitter=0.4), images.shape[-1])
    untouched = (views == normalise(to_float(images))).flatten(1).all(1)
    assert untouched.float().mean() == pytest.approx(0.2, abs=0.03)


@pytest.mark.parametrize("view", [normalise, lambda x: grayscale(x, 1.0), lambda x: jitter(x, 0.3)])
def test_images_without_three_channels_are_refused(view: Callable[[torch.Tensor], torch.Tensor]) -> None:
    with pytest.raises(RuntimeError):
        view(torch.rand(2, 4, 8, 8))
