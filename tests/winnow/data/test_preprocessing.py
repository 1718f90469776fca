"""Check squares of pixels (crop, pad, stretch) and gray of 8 to 16 bits in 16-bit files."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.conftest import tiny_params
from tests.records import candidate_card
from winnow.config import Config, check_config
from winnow.data.chunk_decoding import DecodeSettings, decode_chunk
from winnow.data.dataset import decode, load_images, open_rgb
from winnow.data.preprocessing import ALL_BITS, POLICIES, Preprocessing, resize, to_8_bits
from winnow.errors import ConfigError
from winnow.records import IngestRecord
from winnow.steps.ingest import ingest

RNG = np.random.default_rng(5)


def make_config(path: Path, **data: Any) -> Config:
    settings = {"source": "folder", "path": str(path), "image_size": 16, "labels_per_class": "all", **data}
    return check_config({**tiny_params(), "data": settings})


def run_ingest(path: Path, out: Path, **data: Any) -> IngestRecord:
    return ingest(make_config(path, **data), out, out.parent / "scratch")


@pytest.mark.parametrize("size", [(80, 20), (20, 80), (16, 16), (1, 300), (33, 47)])
def test_every_policy_gives_a_square(size: tuple[int, int]) -> None:
    noise = Image.fromarray(RNG.integers(1, 256, (size[1], size[0], 3), dtype=np.uint8))
    width, height = size
    squares = {policy: resize(noise, 16, policy) for policy in POLICIES}
    assert {square.shape for square in squares.values()} == {(16, 16, 3)}
    np.testing.assert_array_equal(squares["stretch"], np.asarray(noise.resize((16, 16), Image.Resampling.BILINEAR)))
    is_filled = (squares["pad"] > 0).all(2)
    rows, columns = is_filled.any(1).sum(), is_filled.any(0).sum()
    assert (columns, rows) == (max(1, round(width * 16 / max(size))), max(1, round(height * 16 / max(size))))
    assert abs(int(is_filled.any(1).argmax()) - (16 - rows) / 2) <= 0.5  # in the middle
    if width == height:
        np.testing.assert_array_equal(squares["crop"], squares["pad"])


def test_pad_and_stretch_keep_what_crop_removes() -> None:
    strip = np.zeros((20, 80, 3), np.uint8)
    strip[:, :8] = strip[:, -8:] = (255, 0, 0)
    red = {policy: int((resize(Image.fromarray(strip), 16, policy)[..., 0] > 100).sum()) for policy in POLICIES}
    assert red["crop"] == 0
    assert min(red["pad"], red["stretch"]) > 0


def write_strips(root: Path, width: int) -> Path:
    for name in ("blue", "red"):
        (root / name).mkdir(parents=True)
        for number in range(12):
            pixels = np.random.default_rng([number, len(name)]).integers(0, 256, (20, width, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


@pytest.mark.thorough
@pytest.mark.parametrize(("width", "is_warned"), [(80, True), (31, True), (30, False), (20, False)])
def test_a_crop_that_removes_much_is_warned_of(tmp_path: Path, width: int, is_warned: bool) -> None:
    root = write_strips(tmp_path / "strips", width)
    warnings = [row for row in run_ingest(root, tmp_path / "data").warnings if "centre crop" in row]
    assert bool(warnings) == is_warned
    if is_warned:
        assert "of 24 of 24 images" in warnings[0]
        assert "set data.resize to pad or stretch" in warnings[0]
        for policy in ("pad", "stretch"):
            record = run_ingest(root, tmp_path / policy, resize=policy)
            assert not [row for row in record.warnings if "centre crop" in row]
            images = load_images(tmp_path / policy)
            assert (record.details.resize, images.preprocessing) == (policy, Preprocessing(policy))
            for pixels_HWC, name in zip(images.images_NHWC, images.files, strict=True):
                expected = decode((root / name).read_bytes(), 16, Preprocessing(policy))[0]
                np.testing.assert_array_equal(pixels_HWC, expected)


def encode_gray(values: np.ndarray, image_format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values.astype(np.uint16)).save(buffer, image_format, **options)
    return buffer.getvalue()


def test_white_is_the_largest_value() -> None:
    values = np.array([0, 15, 255, 256, 4095, 4096, 65535], np.int32)
    assert to_8_bits(values, 8).tolist() == [0, 15, 255, 255, 255, 255, 255]
    assert to_8_bits(values, 12).tolist() == [0, 0, 15, 16, 255, 255, 255]
    assert to_8_bits(values, 16).tolist() == [0, 0, 0, 1, 15, 16, 255]


@pytest.mark.parametrize("image_format", ["PNG", "TIFF", "PPM"])
@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_the_range_is_applied_and_does_not_change_the_digest(image_format: str, bits: int) -> None:
    values = RNG.integers(0, 4096, (16, 16))
    image = open_rgb(encode_gray(values, image_format), bits)
    np.testing.assert_array_equal(np.asarray(image.rgb)[..., 0], to_8_bits(values.astype(np.int32), bits))
    assert image.is_clipped == (values.max() >= 2**bits)
    assert image.key == open_rgb(encode_gray(values, image_format)).key
    values_16_bits = RNG.integers(0, 65536, (16, 16))
    assert (
        open_rgb(encode_gray(values_16_bits, image_format), bits).key
        == open_rgb(encode_gray(values_16_bits, image_format)).key
        == decode(encode_gray(values_16_bits, image_format), 8)[1]
    )


def test_dark_images_that_differ_have_different_digests() -> None:
    first, second = (np.full((8, 8), value) for value in (100, 101))
    assert open_rgb(encode_gray(first)).key != open_rgb(encode_gray(second)).key


def test_the_bit_depth_of_a_tiff_is_used() -> None:
    from tests.winnow.data.test_foreign_files import USED

    data, expected = USED["12-bit gray TIFF"]
    for bits in (8, 12, 16):
        np.testing.assert_array_equal(np.asarray(open_rgb(data, bits).rgb)[..., 0], np.asarray(expected))


def write_microscope_images(root: Path, highest: int = 4095) -> Path:
    for kind, name in enumerate(("dark", "light")):
        (root / name).mkdir(parents=True)
        for number in range(20):
            rng = np.random.default_rng([kind, number])
            values = rng.integers(0, highest // 3, (24, 24)) + (highest - highest // 3) * kind
            values.flat[0] = highest * kind
            (root / name / f"{number}.png").write_bytes(encode_gray(values))
    return root


@pytest.mark.thorough
def test_the_range_is_estimated_from_the_images(tmp_path: Path) -> None:
    root = write_microscope_images(tmp_path / "12-bit")
    record = run_ingest(root, tmp_path / "data")
    images = load_images(tmp_path / "data")
    assert (record.details.bits, images.preprocessing) == (12, Preprocessing("crop", 12))
    assert "4095 is white" in record.details.resize_policy
    assert images.images_NHWC.max() > 240
    assert not [row for row in record.warnings if "become white" in row]
    for pixels_HWC, name in zip(images.images_NHWC, images.files, strict=True):
        np.testing.assert_array_equal(pixels_HWC, decode((root / name).read_bytes(), 16, images.preprocessing)[0])
    clipped = run_ingest(root, tmp_path / "told", bits=10)
    assert [row for row in clipped.warnings if "gray images hold values above 1023, which become white" in row]
    full_range = run_ingest(root, tmp_path / "whole", bits=16)
    assert load_images(tmp_path / "whole").images_NHWC.max() < 16
    for other_record in (clipped, full_range):  # the split does not depend on the range
        assert [other_record.metrics[f"data/{split}"] for split in ("train", "validation", "test")] == [
            record.metrics[f"data/{split}"] for split in ("train", "validation", "test")
        ]


@pytest.mark.thorough
def test_images_of_8_bits_have_no_range(image_folder: Path, tmp_path: Path) -> None:
    record = run_ingest(image_folder, tmp_path / "data", image_size=16)
    assert record.details.bits == ALL_BITS


def test_workers_apply_the_preprocessing(tmp_path: Path) -> None:
    data = encode_gray(RNG.integers(0, 4096, (16, 32)))
    preprocessing = Preprocessing("pad", 12)
    result = decode_chunk([data, b"no image"], DecodeSettings(8, 12, preprocessing))
    np.testing.assert_array_equal(result.pixels_KHWC[0], decode(data, 8, preprocessing)[0])
    np.testing.assert_array_equal(result.training_KHWC[0], decode(data, 12, preprocessing)[0])
    assert (result.sides_K2.tolist(), result.clipped) == ([[16, 32]], 0)
    assert decode_chunk([data], DecodeSettings(8, 12, Preprocessing("pad", 9))).clipped == 1


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [("resize", "zoom", "crop"), ("bits", 7, "8"), ("bits", 17, "16"), ("bits", "all", "auto")],
)
def test_invalid_settings_are_refused(tmp_path: Path, key: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"data\.{key}.*{message}"):
        make_config(tmp_path, **{key: value})


def test_cards_of_earlier_versions_mean_crop() -> None:
    assert Preprocessing.of(candidate_card()) == Preprocessing("crop", 16)
    assert Preprocessing.of(candidate_card(resize="pad", bits=12)).policy.endswith(
        "black bars to S x S; gray of 16 bits: 4095 is white"
    )
