from __future__ import annotations

import hashlib
import io
import json
import struct
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from winnow.data.dataset import TEST, TRAIN, VALIDATION, ImageSet, decode, load_images, resize
from winnow.errors import ArtifactError

Array = np.ndarray
RNG = np.random.default_rng(0)
PHOTO = (np.mgrid[0:37, 0:50].sum(0)[..., None] * [2, 1, 2] + RNG.integers(0, 60, (37, 50, 3))).clip(0, 255)
PHOTO = PHOTO.astype(np.uint8)
TURNS: dict[int, Callable[[Array], Array]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}
"""EXIF orientation -> what brings the stored rows and columns upright."""


def saved(image: Image.Image, kind: str = "PNG", orientation: int = 1, **options: object) -> bytes:
    exif = image.getexif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    image.save(file, kind, **({"exif": exif} if orientation > 1 else {}), **options)
    return file.getvalue()


def sixteen_bits() -> Image.Image:
    return Image.fromarray((PHOTO[..., 0].astype(np.uint16) << 8) + 77)


FORMS = {
    "jpeg": saved(Image.fromarray(PHOTO), "JPEG", quality=80),
    "turned jpeg": saved(Image.fromarray(PHOTO), "JPEG", 6),
    "gray": saved(Image.fromarray(PHOTO).convert("L")),
    "two tones": saved(Image.fromarray(PHOTO).convert("1")),
    "palette": saved(Image.fromarray(PHOTO).quantize(16)),
    "palette, transparent": saved(Image.fromarray(PHOTO).quantize(16), transparency=0),
    "gif": saved(Image.fromarray(PHOTO).quantize(16), "GIF"),
    "rgba": saved(Image.fromarray(np.dstack([PHOTO, PHOTO[..., 0]]))),
    "gray with alpha": saved(Image.fromarray(PHOTO).convert("LA")),
    "cmyk": saved(Image.fromarray(PHOTO).convert("CMYK"), "JPEG"),
    "tiff": saved(Image.fromarray(PHOTO), "TIFF"),
    "webp": saved(Image.fromarray(PHOTO), "WEBP", lossless=True),
    "bmp": saved(Image.fromarray(PHOTO), "BMP"),
}


@pytest.mark.parametrize("form", list(FORMS))
@pytest.mark.parametrize("side", [16, 37, 64])
def test_equals_pillow(form: str, side: int) -> None:
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(FORMS[form]))).convert("RGB")
    pixels, key = decode(FORMS[form], side)
    fitted = ImageOps.fit(expected, (side, side), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(pixels, np.asarray(fitted))
    assert (pixels.dtype, pixels.shape) == (np.uint8, (side, side, 3))
    size = f"{expected.width}x{expected.height}".encode()
    assert key == hashlib.blake2b(expected.tobytes(), digest_size=16, key=size).digest()


@pytest.mark.parametrize("orientation", list(TURNS))
def test_orientation_is_honoured(orientation: int) -> None:
    turned = decode(saved(Image.fromarray(PHOTO), orientation=orientation), 16)
    upright = decode(saved(Image.fromarray(np.ascontiguousarray(TURNS[orientation](PHOTO)))), 16)
    np.testing.assert_array_equal(turned[0], upright[0])
    assert turned[1] == upright[1]


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "turned"])
def test_sixteen_bits_keep_their_high_byte(kind: str) -> None:
    data = saved(sixteen_bits(), "PNG", 8) if kind == "turned" else saved(sixteen_bits(), kind)
    gray = np.rot90(PHOTO[..., 0]) if kind == "turned" else PHOTO[..., 0]
    expected = resize(Image.fromarray(np.ascontiguousarray(gray)).convert("RGB"), 24)
    np.testing.assert_array_equal(decode(data, 24)[0], expected)


def test_the_key_is_of_the_pixels_not_of_the_file() -> None:
    png, bmp = FORMS["webp"], FORMS["bmp"]
    assert decode(png, 16)[1] == decode(bmp, 16)[1] == decode(bmp, 48)[1]
    other = PHOTO.copy()
    other[36, 49, 2] ^= 1
    assert decode(saved(Image.fromarray(other)), 16)[1] != decode(bmp, 16)[1]
    flat = [saved(Image.fromarray(np.zeros((*shape, 3), np.uint8))) for shape in ((10, 20), (20, 10))]
    assert decode(flat[0], 16)[1] != decode(flat[1], 16)[1]


def test_decoding_is_deterministic() -> None:
    first, second = decode(FORMS["jpeg"], 20), decode(FORMS["jpeg"], 20)
    assert (first[0].tobytes(), first[1]) == (second[0].tobytes(), second[1])


def test_resize_keeps_what_the_policy_promises() -> None:
    exact = Image.fromarray(PHOTO[:32, :32])
    np.testing.assert_array_equal(resize(exact, 32), PHOTO[:32, :32])
    flat = resize(Image.new("RGB", (301, 77), (10, 20, 30)), 32)
    assert (flat == [10, 20, 30]).all()
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = 255  # the centre square alone survives, but for the filter's reach at its edge
    assert (resize(Image.fromarray(wide), 10)[:, 1:-1] == 255).all()
    assert (resize(Image.fromarray(wide.transpose(1, 0, 2).copy()), 10)[1:-1] == 255).all()
    noise = RNG.integers(0, 256, (128, 128, 3), dtype=np.uint8)
    assert resize(Image.fromarray(noise), 16).std() < noise.std() / 4  # antialiased: 64 pixels averaged into one


def header_of_png(width: int, height: int) -> bytes:
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    header = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    return header + struct.pack(">I", 10) + b"IDAT"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"\0\0\0\x1cftypheic" + bytes(20), "HEIC"),
        (b"just text", "not a supported image"),
        (FORMS["jpeg"][:-400], "damaged"),
        (FORMS["jpeg"][:50], "not a supported image|damaged"),
        (FORMS["rgba"][:-60], "damaged"),
        (FORMS["gif"][:60], "damaged|not a supported image"),
        (header_of_png(20_000, 6_000), "20000x6000 pixels are more than 100,000,000"),
        (header_of_png(200_000, 200_000), "decompression bomb"),
        (saved(Image.fromarray(PHOTO[..., 0].astype(np.int32) * 1000), "TIFF"), "32-bit or signed pixels"),
        (saved(Image.fromarray(PHOTO[..., 0].astype(np.float32)), "TIFF"), "32-bit or signed pixels"),
    ],
    ids=range(11),
)
@pytest.mark.filterwarnings("ignore")
def test_what_is_no_image_gives_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        decode(data, 16)


@pytest.mark.filterwarnings("ignore")
def test_damage_never_is_another_error() -> None:
    rng = np.random.default_rng(1)
    for data in FORMS.values():
        for _ in range(40):
            broken = bytearray(data[: rng.integers(1, len(data) + 1)])
            for at in rng.integers(0, min(len(broken), 300), rng.integers(0, 8)):
                broken[at] = rng.integers(0, 256)
            with suppress(ValueError):
                assert decode(bytes(broken), 8)[0].shape == (8, 8, 3)


def test_a_stored_set(tiny_set: ImageSet) -> None:
    assert isinstance(tiny_set.images_NHWC, np.memmap)
    assert (tiny_set.image_size, tiny_set.classes, len(tiny_set.files)) == (16, ("disc", "stripes", "wedge"), 210)
    every = np.concatenate([tiny_set.indices(split) for split in (TRAIN, VALIDATION, TEST)])
    assert sorted(every.tolist()) == list(range(210))
    with_label, without = tiny_set.indices(TRAIN, labelled=True), tiny_set.indices(TRAIN, labelled=False)
    assert (len(with_label), len(without)) == (110, 10)
    assert sorted([*with_label, *without]) == tiny_set.indices(TRAIN).tolist()
    assert (tiny_set.labels_N[without] == -1).all()


@pytest.fixture
def copied(tiny_set: ImageSet, tmp_path: Path) -> Path:
    for path in tiny_set.folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("images.npy", cut, "images.npy is missing or damaged"),
        ("keys.npy", Path.unlink, "keys.npy is missing or damaged"),
        ("labels.npy", lambda path: path.write_bytes(b""), "labels.npy is missing or damaged"),
        ("labels.npy", lambda path: np.save(path, np.array([{}] * 210)), "labels.npy is missing or damaged"),
        ("split.npy", lambda path: np.save(path, np.zeros(209, np.uint8)), "its arrays differ in length"),
        ("classes.json", Path.unlink, "classes.json is missing"),
        ("classes.json", lambda path: path.write_text("["), "classes.json is damaged"),
    ],
)
def test_a_damaged_set_says_what_to_do(copied: Path, name: str, damage: Callable[[Path], object], message: str) -> None:
    damage(copied / name)
    with pytest.raises(ArtifactError, match=message):
        load_images(copied)


def test_names_with_line_breaks_of_any_kind(copied: Path) -> None:
    names = ["a\nb.png", "c\u2028d.png", "e\x85f.png", "Ü \U0001f408.png"]
    (copied / "files.txt").write_text("".join(json.dumps(name) + "\n" for name in names), encoding="utf-8")
    assert load_images(copied).files == names
