"""Check the image kinds of user folders besides plain RGB JPEGs: each is decoded correctly, or rejected with a reason.

docs/foreign-files.md lists the same kinds."""

from __future__ import annotations

import io
import os
import re
import struct
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.closure import ROOT
from tests.winnow.data.image_files import png_header
from winnow.data.chunk_decoding import DecodeSettings, decode_chunk
from winnow.data.dataset import decode
from winnow.data.file_tree import Folder
from winnow.data.header_limits import MAX_SCANS
from winnow.data.sources import open_tree
from winnow.printable import printable

RNG = np.random.default_rng(7)
PHOTO = np.kron(RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8), np.ones((8, 8, 1), np.uint8))
"""48 x 64 pixels in squares that JPEG preserves."""
RGB = Image.fromarray(PHOTO)
GRAY = RGB.convert("L")
SIDE = 16
LOSSY = 12.0
"""Largest mean difference of 8-bit levels for a lossy format."""
REAL_IMAGES = 40


def encode_image(image: Image.Image, image_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def rotated_png() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encode_image(RGB.transpose(Image.Transpose.ROTATE_90), "PNG", exif=exif)


def palette_png(**options: object) -> bytes:
    return encode_image(RGB.convert("P", palette=Image.Palette.ADAPTIVE, colors=256), "PNG", **options)


def jpeg_of_scans(count: int) -> bytes:
    """Return a progressive JPEG that repeats its last scan `count` times."""
    data = encode_image(RGB, "JPEG", progressive=True, quality=95)
    last_scan = data.rindex(b"\xff\xda")
    return data[:last_scan] + data[last_scan:-2] * count + data[-2:]


def jpeg_with_scan_bytes() -> bytes:
    """Return a JPEG with bytes like scan markers in its metadata and after its end."""
    exif = b"Exif\0\0" + b"\xff\xda" * 500
    return encode_image(RGB, "JPEG", exif=exif, quality=95) + b"\xff\xda" * 500


def icon(picture: bytes, side: int = 64) -> bytes:
    """Return an icon whose header gives `side` as the size of its only picture."""
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, side, side, 0, 0, 1, 32, len(picture), 22) + picture


def tiff(bits: list[int], photometric: int, pixels: bytes, extra_tags: dict[int, list[int]] | None = None) -> bytes:
    """Return an uncompressed little-endian TIFF of PHOTO's size in one strip, with all values as longs."""
    height, width = PHOTO.shape[:2]
    tags = {256: [width], 257: [height], 258: bits, 259: [1], 262: [photometric], 277: [len(bits)], 278: [height]}
    tags |= {273: [8], 279: [len(pixels)], **(extra_tags or {})}
    directory = 8 + len(pixels)
    values_at = directory + 2 + 12 * len(tags) + 4
    entries = values = b""
    for tag in sorted(tags):
        packed_values = b"".join(struct.pack("<I", value) for value in tags[tag])
        value_field = packed_values if len(tags[tag]) == 1 else struct.pack("<I", values_at + len(values))
        values += packed_values if len(tags[tag]) > 1 else b""
        entries += struct.pack("<HHI", tag, 4, len(tags[tag])) + value_field
    header = b"II*\0" + struct.pack("<I", directory)
    return header + pixels + struct.pack("<H", len(tags)) + entries + bytes(4) + values


def pack_12_bits(gray: np.ndarray) -> bytes:
    """Return rows of 12 bits a pixel with the given 8 highest bits."""
    bits = np.unpackbits((gray.astype(np.uint16) << 4).astype(">u2").view(np.uint8).reshape(*gray.shape, 2), axis=2)[
        ..., 4:
    ]
    return np.packbits(bits.reshape(len(gray), -1), axis=1).tobytes()


def jpeg_with_invalid_exif(image: Image.Image) -> bytes:
    """Return a JPEG with orientation 6 and a camera make of type float, which Pillow cannot write again."""
    entries = struct.pack("<HHII", 0x010F, 11, 1, 0x3F800000) + struct.pack("<HHII", 0x0112, 3, 1, 6)
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + entries + bytes(4)
    return encode_image(image.transpose(Image.Transpose.ROTATE_90), "JPEG", exif=exif, quality=95)


def deep_jpeg2000() -> bytes:
    data = bytearray(encode_image(RGB, "JPEG2000"))
    data[data.index(b"\xff\x4f\xff\x51") + 42] = 11
    return bytes(data)


ONE_BIT = RGB.convert("1")
SIXTEEN = Image.fromarray(PHOTO[..., 0].astype(np.uint16) << 8 | 77)
HALF_CLEAR = Image.merge("RGBA", [*RGB.split(), Image.fromarray(RNG.integers(0, 256, (48, 64), dtype=np.uint8))])
SECOND = Image.fromarray(255 - PHOTO)

USED: dict[str, tuple[bytes, Image.Image]] = {
    "palette": (palette_png(), RGB),
    "palette, transparent": (palette_png(transparency=3), RGB),
    "1-bit": (encode_image(ONE_BIT, "PNG"), ONE_BIT),
    "gray": (encode_image(GRAY, "JPEG"), GRAY),
    "gray with alpha": (encode_image(GRAY.convert("LA"), "PNG"), GRAY),
    "RGB with alpha": (encode_image(HALF_CLEAR, "PNG"), RGB),
    "16-bit gray PNG": (encode_image(SIXTEEN, "PNG"), Image.fromarray(PHOTO[..., 0])),
    "16-bit gray TIFF": (encode_image(SIXTEEN, "TIFF"), Image.fromarray(PHOTO[..., 0])),
    "16-bit gray TIFF where 0 is white": (
        tiff([16], 0, ((255 - PHOTO[..., 0]).astype(np.uint16) << 8).astype("<u2").tobytes()),
        Image.fromarray(PHOTO[..., 0]),
    ),
    "12-bit gray TIFF": (tiff([12], 1, pack_12_bits(PHOTO[..., 0])), Image.fromarray(PHOTO[..., 0])),
    "16-bit PGM": (
        b"P5 64 48 65535 " + (PHOTO[..., 0].astype(np.uint16) << 8).astype(">u2").tobytes(),
        Image.fromarray(PHOTO[..., 0]),
    ),
    "CMYK JPEG": (encode_image(RGB.convert("CMYK"), "JPEG", quality=95), RGB),
    "animated GIF": (encode_image(RGB, "GIF", save_all=True, append_images=[SECOND]), RGB),
    "animated WebP": (encode_image(RGB, "WEBP", save_all=True, append_images=[SECOND], lossless=True), RGB),
    "multi-page TIFF": (encode_image(RGB, "TIFF", save_all=True, append_images=[SECOND]), RGB),
    "EXIF-rotated": (rotated_png(), RGB),
    "EXIF that is junk, in part or whole": (jpeg_with_invalid_exif(RGB), RGB),
    "animated PNG": (encode_image(RGB, "PNG", save_all=True, append_images=[SECOND]), RGB),
    "several pictures in a JPEG (MPO)": (
        encode_image(RGB, "MPO", save_all=True, append_images=[SECOND], quality=95),
        RGB,
    ),
    "QOI": (encode_image(RGB, "QOI"), RGB),
    "PPM": (encode_image(RGB, "PPM"), RGB),
    "ICO": (encode_image(RGB.resize((64, 64)), "ICO", sizes=[(64, 64)]), RGB.resize((64, 64))),
    "one pixel": (encode_image(RGB.crop((0, 0, 1, 1)), "PNG"), RGB.crop((0, 0, 1, 1))),
    "one row": (encode_image(RGB.crop((0, 0, 64, 1)), "PNG"), RGB.crop((31, 0, 33, 1))),
    "TIFF": (encode_image(RGB, "TIFF", compression="tiff_lzw"), RGB),
    "WebP": (encode_image(RGB, "WEBP", quality=95), RGB),
    "AVIF": (encode_image(RGB, "AVIF", quality=95), RGB),
    "JPEG 2000": (encode_image(RGB, "JPEG2000"), RGB),
    "BMP": (encode_image(RGB, "BMP"), RGB),
    "GIF": (encode_image(RGB, "GIF"), RGB),
    "progressive JPEG": (encode_image(RGB, "JPEG", progressive=True, quality=95), RGB),
    "JPEG with bytes after its end": (encode_image(RGB, "JPEG", quality=95) + bytes(100), RGB),
    "JPEG with bytes in its metadata that look like scans": (jpeg_with_scan_bytes(), RGB),
}
REJECTED: dict[str, tuple[bytes, str]] = {
    "32-bit integers": (
        encode_image(Image.fromarray(PHOTO[..., 0].astype(np.int32)), "TIFF"),
        "32-bit or signed pixels",
    ),
    "32-bit float": (
        encode_image(Image.fromarray(PHOTO[..., 0].astype(np.float32)), "TIFF"),
        "32-bit or signed pixels",
    ),
    "JPEG 2000 with more than 8 bits a channel": (deep_jpeg2000(), "12 bits a channel; save it with 8 bits"),
    "a camera's raw file (DNG, NEF, ARW)": (tiff([8, 8, 8], 2, PHOTO.tobytes(), {254: [1]}), "camera's raw file"),
    "TIFF in planes of 16 bits": (
        tiff([16] * 3, 2, bytes(48 * 64 * 6), {284: [2], 273: [8] * 3, 279: [48 * 64 * 2] * 3}),
        "planes of more than 8 bits",
    ),
    "PNG or JPEG of a rare kind": (png_header(8, 8)[:24] + bytes(30), "damaged, or an unsupported kind of PNG"),
    "JPEG XL, PSD, video": (b"8BPS\0\1" + bytes(40), "not a supported image format"),
    "more than 100 million pixels": (png_header(20_000, 6_000), "20000x6000 pixels are more than 100,000,000"),
    "a side of more than a million pixels": (png_header(99_000_000, 1), "99000000x1 pixels: a side is longer than"),
    "an icon whose picture is larger than it says": (icon(png_header(20_000, 6_000)), "20000x6000 pixels are more"),
    "JPEG of more than 64 scans": (jpeg_of_scans(100), "more than 64 scans; save it again"),
    "TIFF with tiles far larger than the picture": (
        tiff([8, 8, 8], 2, PHOTO.tobytes(), {322: [20_000], 323: [20_000]}),
        "tiles of 20000x20000 pixels",
    ),
    "decompression bomb": (png_header(200_000, 200_000), "decompression bomb"),
    "truncated": (encode_image(RGB, "JPEG")[:-200], "damaged"),
    "empty": (b"", "empty"),
    "HEIC that is damaged": (b"\0\0\0\x1cftypheic" + bytes(20), "."),
    "text": (b"no image at all", "not a supported image format"),
    "SVG": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "not a supported image format"),
    "PostScript": (encode_image(RGB, "EPS"), "not a supported image format"),
}


@pytest.mark.parametrize("kind", USED)
@pytest.mark.filterwarnings("ignore")
def test_a_supported_kind_gives_its_pixels(kind: str) -> None:
    data, expected = USED[kind]
    pixels = decode(data, SIDE)[0]
    expected_pixels = decode(encode_image(expected.convert("RGB"), "PNG"), SIDE)[0]
    assert np.abs(pixels.astype(int) - expected_pixels).mean() <= LOSSY


@pytest.mark.parametrize("kind", REJECTED)
@pytest.mark.filterwarnings("ignore")
def test_a_rejected_kind_has_a_reason(kind: str) -> None:
    data, reason = REJECTED[kind]
    assert re.search(reason, decode_chunk([data], DecodeSettings(SIDE)).reasons[0])


SMALL_LIMIT = 1_000


@pytest.mark.parametrize("kind", sorted({kind for kind, (_, expected) in USED.items() if expected.size == RGB.size}))
@pytest.mark.filterwarnings("ignore")
def test_a_lower_limit_on_pixels_holds_for_every_kind(kind: str) -> None:
    reasons = decode_chunk([USED[kind][0]], DecodeSettings(SIDE, max_pixels=SMALL_LIMIT)).reasons
    assert re.fullmatch(r"\d+x\d+ pixels are more than 1,000", reasons[0])


@pytest.mark.filterwarnings("ignore")
def test_the_size_of_an_icon_is_checked_before_decoding() -> None:
    data = icon(encode_image(RGB.resize((256, 256)), "PNG"))
    assert decode_chunk([data], DecodeSettings(SIDE)).usable == [0]
    assert decode_chunk([data], DecodeSettings(SIDE, max_pixels=SMALL_LIMIT)).reasons[0].startswith("256x256 pixels")
    bitmap = encode_image(RGB.resize((64, 64)), "ICO", sizes=[(64, 64)], bitmap_format="bmp")
    assert decode_chunk([bitmap], DecodeSettings(SIDE)).usable == [0]
    assert decode_chunk([bitmap], DecodeSettings(SIDE, max_pixels=SMALL_LIMIT)).reasons[0].startswith("64x64 pixels")


def test_counting_scans_is_fast() -> None:
    start = time.process_time()
    for filling in (b"\xff\xda", b"\xff", b"\xff\xd0", b"\xff\xe0\0\2"):
        decode_chunk([b"\xff\xd8\xff\xe0\0\2" + b"\xff\xda" * 100 + filling * 1_000_000], DecodeSettings(SIDE))
    assert time.process_time() - start < 5


def test_as_many_scans_as_allowed_are_decoded() -> None:
    data = jpeg_of_scans(MAX_SCANS - encode_image(RGB, "JPEG", progressive=True, quality=95).count(b"\xff\xda") + 1)
    assert data.count(b"\xff\xda") == MAX_SCANS
    assert decode_chunk([data], DecodeSettings(SIDE)).usable == [0]


def test_names_extensions_links_and_permissions(tmp_path: Path) -> None:
    cat, dog = tmp_path / "cat", tmp_path / "dog"
    content = encode_image(RGB, "PNG")
    for folder in (cat, dog):
        folder.mkdir()
        (folder / "plain.png").write_bytes(content)
    names = ["no extension", "a photo.jpg", "größe 猫.png", "two\nlines.png", "wrong.gif", "UPPER.PNG", "-rf.png"]
    for name in names:
        (cat / name).write_bytes(content)
    (cat / "loop.png").symlink_to("loop.png")
    (cat / "gone.png").symlink_to("nowhere.png")
    (cat / "around").symlink_to(tmp_path)
    os.mkfifo(cat / "pipe.png")
    (cat / "secret.png").write_bytes(content)
    (cat / "secret.png").chmod(0)
    source = open_tree(Folder(tmp_path), "photos")
    items = list(source.items())
    reasons = decode_chunk([item.content for item in items], DecodeSettings(SIDE)).reasons
    reasons_by_name = {items[index].name: reason for index, reason in reasons.items()}
    if os.geteuid() != 0:  # root reads everything
        assert reasons_by_name.pop("cat/secret.png") == "cannot be read (Permission denied)"
    assert reasons_by_name == {
        "cat/loop.png": "cannot be read (Too many levels of symbolic links)",
        "cat/gone.png": "cannot be read (No such file or directory)",
        "cat/pipe.png": "not a regular file",
    }
    assert {f"cat/{printable(name)}" for name in names} <= {item.name for item in items}
    assert not [item.name for item in items if "around" in item.name]


def test_the_page_lists_these_kinds() -> None:
    page = (ROOT / "docs" / "foreign-files.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1:3] for line in page.splitlines() if line.startswith("| ")]
    listed = {kind.strip(): "set aside" in treatment for kind, treatment in rows}
    assert {kind: False for kind in USED} | {kind: True for kind in REJECTED} == {
        kind: listed.get(kind) for kind in (*USED, *REJECTED)
    }


def real_images() -> list[bytes]:
    """Return photographs of the embedded sample, also in other formats."""
    with tarfile.open(ROOT / "data" / "cifar10-jpeg-sample.tar.xz") as archive:
        files = [archive.extractfile(member) for member, _ in zip(archive, range(REAL_IMAGES), strict=False)]
        photos = [file.read() for file in files if file]
    images = [Image.open(io.BytesIO(photo)) for photo in photos]
    image_formats = ("PNG", "WEBP", "TIFF", "GIF", "BMP", "AVIF", "JPEG2000")
    return photos + [
        encode_image(image, image_format)
        for image, image_format in zip(images, image_formats * REAL_IMAGES, strict=False)
    ]


REAL_FILES = real_images()


@st.composite
def mutated(draw: Callable) -> bytes:
    """Draw a real image that is truncated, or has bytes changed, inserted or moved."""
    data = bytearray(draw(st.sampled_from(REAL_FILES)))
    for _ in range(draw(st.integers(1, 8))):
        position = draw(st.integers(0, max(0, len(data) - 1)))
        match draw(st.sampled_from(("set", "head", "cut", "insert", "move"))):
            case "set" if data:
                data[position] = draw(st.integers(0, 255))
            case "head" if data:
                data[min(position, 40) % len(data)] = draw(st.sampled_from((0, 1, 127, 128, 255)))
            case "cut":
                del data[position:]
            case "insert":
                data[position:position] = draw(st.binary(min_size=1, max_size=8))
            case _:
                data = data[position:] + data[:position]
    return bytes(data)


@pytest.mark.thorough
@given(mutated())
@settings(max_examples=5000, deadline=None, database=None, derandomize=True)
@pytest.mark.filterwarnings("ignore")
def test_a_mutated_image_is_pixels_or_a_reason(data: bytes) -> None:
    result = decode_chunk([data], DecodeSettings(SIDE))
    kept, pixels_KHWC, keys_K16, reasons = result.usable, result.pixels_KHWC, result.keys_K16, result.reasons
    assert (len(kept), len(reasons)) in ((1, 0), (0, 1))
    assert pixels_KHWC.shape == (len(kept), SIDE, SIDE, 3)
    assert keys_K16.shape == (len(kept), 16)
    assert all(reason.strip() for reason in reasons.values())
