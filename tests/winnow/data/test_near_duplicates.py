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


def random_photo(seed: int) -> Image.Image:
    """Return smooth shapes with some noise."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize((80, 80), Image.Resampling.BICUBIC)
    noisy = np.asarray(coarse).astype(int) + rng.integers(-8, 9, (80, 80, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def decoded_pixels(image: Image.Image, image_format: str = "PNG", **options: object) -> np.ndarray:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return decode(buffer.getvalue(), SIDE)[0]


def find_duplicates(images: np.ndarray, held_out: np.ndarray, training: np.ndarray) -> NearDuplicates:
    return near_duplicates.find_near_duplicates(io.BytesIO(compute_signatures(images).tobytes()), held_out, training)


DUPLICATE_CHANGES = {
    "re-encoded": lambda image: decoded_pixels(image, "JPEG", quality=30),
    "brightened": lambda image: decoded_pixels(ImageEnhance.Brightness(image).enhance(1.08)),
    "another size": lambda image: decoded_pixels(image.resize((61, 61))),
    "moved by a pixel": lambda image: decoded_pixels(image.crop((1, 0, 80, 79))),
    "noise": lambda image: decoded_pixels(
        Image.fromarray((np.asarray(image) + RNG.integers(-4, 5, (80, 80, 3))).clip(0, 255).astype(np.uint8))
    ),
}


@pytest.mark.parametrize("change", DUPLICATE_CHANGES)
def test_near_duplicates_of_training_images_are_found(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_duplicates, "CHUNK", 7)
    originals = [decoded_pixels(random_photo(seed)) for seed in range(40)]
    copies = [DUPLICATE_CHANGES[change](random_photo(seed)) for seed in range(20, 40)]
    unrelated = [decoded_pixels(random_photo(seed)) for seed in range(100, 120)]
    images = np.stack([*originals, *copies, *unrelated])
    duplicates = find_duplicates(images, np.arange(40, 80), np.arange(40))
    assert duplicates.checked == 40
    expected = {(40 + index, 20 + index) for index in range(20)}
    assert len(expected & set(duplicates.pairs)) >= 18
    assert set(duplicates.pairs) <= expected


def test_unrelated_images_are_not_near_duplicates() -> None:
    images = np.stack([decoded_pixels(random_photo(seed)) for seed in range(400)])
    assert find_duplicates(images, np.arange(200), np.arange(200, 400)).pairs == ()


def test_the_number_of_checked_images_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_duplicates, "MAX_HELD_OUT", 10)
    images = np.stack([decoded_pixels(random_photo(seed)) for seed in range(60)] * 2)
    duplicates = find_duplicates(images, np.arange(60), np.arange(60, 120))
    assert duplicates.checked == 10
    assert [training_index - held_out_index for held_out_index, training_index in duplicates.pairs] == [60] * 10


@pytest.mark.parametrize("side", [8, 9, 17, 32, 224])
def test_signatures_of_any_image_size(side: int) -> None:
    rows = compute_signatures(RNG.integers(0, 256, (3, side, side, 3), dtype=np.uint8))
    assert (rows.shape, rows.dtype) == ((3, SIGNATURE_BYTES), np.uint8)
    assert find_duplicates(np.zeros((2, side, side, 3), np.uint8), np.array([], np.int64), np.array([0])).pairs == ()


def coin_image(seed: int) -> np.ndarray:
    """Return a disc with its own texture on a rough background, as photographs of coins."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:80, :80] - 39.5 - rng.integers(-3, 4, (2, 1, 1))
    coarse = Image.fromarray(rng.integers(0, 140, (8, 8), dtype=np.uint8))
    texture = np.asarray(coarse.resize((80, 80), Image.Resampling.BICUBIC)).astype(int)
    brightness = np.where(
        rows**2 + columns**2 < rng.integers(28, 33) ** 2, 60 + texture, 190 + rng.integers(-12, 13, (80, 80))
    )
    return decoded_pixels(Image.fromarray(np.repeat(brightness.clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)))


def test_objects_of_one_shape_and_background_are_not_near_duplicates(monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.stack([coin_image(seed) for seed in range(300)])
    assert find_duplicates(images, np.arange(150), np.arange(150, 300)).pairs == ()
    monkeypatch.setattr(near_duplicates, "MAX_BITS", 28)
    monkeypatch.setattr(near_duplicates, "MAX_LEVELS", 15.0)
    assert len(find_duplicates(images, np.arange(150), np.arange(150, 300)).pairs) > 10  # what was reported before


def test_the_most_similar_pairs_come_first() -> None:
    originals = [decoded_pixels(random_photo(seed)) for seed in range(20)]
    shifted = [decoded_pixels(random_photo(seed).crop((2, 0, 80, 78))) for seed in range(10)]
    images = np.stack([*originals, *shifted, *originals[10:]])
    duplicates = find_duplicates(images, np.arange(20, 40), np.arange(20))
    assert [held_out_index for held_out_index, _ in duplicates.pairs[:10]] == list(range(30, 40))
