from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from winnow.data import near_duplicates
from winnow.data.dataset import decode
from winnow.data.near_duplicates import SIGNATURE_BYTES, NearDuplicates, compute_signatures

SIDE = 32
RNG = np.random.default_rng(5)


def photo(seed: int) -> Image.Image:
    """Smooth shapes with some noise."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize((80, 80), Image.Resampling.BICUBIC)
    noisy = np.asarray(coarse).astype(int) + rng.integers(-8, 9, (80, 80, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def pixels(image: Image.Image, form: str = "PNG", **options: object) -> np.ndarray:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return decode(buffer.getvalue(), SIDE)[0]


def find(images: np.ndarray, held_out: np.ndarray, training: np.ndarray) -> NearDuplicates:
    return near_duplicates.find_near_duplicates(io.BytesIO(compute_signatures(images).tobytes()), held_out, training)


ALIKE = {
    "re-encoded": lambda image: pixels(image, "JPEG", quality=30),
    "brightened": lambda image: pixels(ImageEnhance.Brightness(image).enhance(1.08)),
    "another size": lambda image: pixels(image.resize((61, 61))),
    "moved by a pixel": lambda image: pixels(image.crop((1, 0, 80, 79))),
    "noise": lambda image: pixels(
        Image.fromarray((np.asarray(image) + RNG.integers(-4, 5, (80, 80, 3))).clip(0, 255).astype(np.uint8))
    ),
}


@pytest.mark.parametrize("change", ALIKE)
def test_what_almost_equals_a_training_image_is_found(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_duplicates, "CHUNK", 7)
    originals = [pixels(photo(seed)) for seed in range(40)]
    copies = [ALIKE[change](photo(seed)) for seed in range(20, 40)]
    strangers = [pixels(photo(seed)) for seed in range(100, 120)]
    images = np.stack([*originals, *copies, *strangers])
    found = find(images, np.arange(40, 80), np.arange(40))
    assert found.checked == 40
    expected = {(40 + at, 20 + at) for at in range(20)}
    assert len(expected & set(found.pairs)) >= 18
    assert set(found.pairs) <= expected


def test_strangers_are_not_alike() -> None:
    images = np.stack([pixels(photo(seed)) for seed in range(400)])
    assert find(images, np.arange(200), np.arange(200, 400)).pairs == ()


def test_more_held_out_images_than_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_duplicates, "MAX_HELD_OUT", 10)
    images = np.stack([pixels(photo(seed)) for seed in range(60)] * 2)
    found = find(images, np.arange(60), np.arange(60, 120))
    assert found.checked == 10
    assert [other - held for held, other in found.pairs] == [60] * 10


@pytest.mark.parametrize("side", [8, 9, 17, 32, 224])
def test_a_signature_fits_any_size(side: int) -> None:
    rows = compute_signatures(RNG.integers(0, 256, (3, side, side, 3), dtype=np.uint8))
    assert (rows.shape, rows.dtype) == ((3, SIGNATURE_BYTES), np.uint8)
    assert find(np.zeros((2, side, side, 3), np.uint8), np.array([], np.int64), np.array([0])).pairs == ()


def disc(seed: int) -> np.ndarray:
    """A round thing before a rough background, turned and marked in its own way: coins look like that."""
    rng = np.random.default_rng(seed)
    down, across = np.mgrid[:80, :80] - 39.5 - rng.integers(-3, 4, (2, 1, 1))
    coarse = Image.fromarray(rng.integers(0, 140, (8, 8), dtype=np.uint8))
    marks = np.asarray(coarse.resize((80, 80), Image.Resampling.BICUBIC)).astype(int)
    level = np.where(down**2 + across**2 < rng.integers(28, 33) ** 2, 60 + marks, 190 + rng.integers(-12, 13, (80, 80)))
    return pixels(Image.fromarray(np.repeat(level.clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)))


def test_things_of_one_shape_before_one_background_are_not_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.stack([disc(seed) for seed in range(300)])
    assert find(images, np.arange(150), np.arange(150, 300)).pairs == ()
    monkeypatch.setattr(near_duplicates, "MAX_BITS", 28)
    monkeypatch.setattr(near_duplicates, "MAX_LEVELS", 15.0)
    assert len(find(images, np.arange(150), np.arange(150, 300)).pairs) > 10  # what was reported before


def test_the_most_alike_come_first() -> None:
    originals = [pixels(photo(seed)) for seed in range(20)]
    noisy = [pixels(photo(seed).crop((2, 0, 80, 78))) for seed in range(10)]
    images = np.stack([*originals, *noisy, *originals[10:]])
    found = find(images, np.arange(20, 40), np.arange(20))
    assert [held for held, _ in found.pairs[:10]] == list(range(30, 40))
