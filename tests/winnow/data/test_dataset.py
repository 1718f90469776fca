from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from tests.winnow.data.image_files import png_header
from winnow.data.dataset import TEST, TRAIN, VALIDATION, ImageSet, decode, load_images, resize
from winnow.errors import ArtifactError

Array = np.ndarray
RNG = np.random.default_rng(0)
PHOTO = (np.mgrid[0:37, 0:50].sum(0)[..., None] * [2, 1, 2] + RNG.integers(0, 60, (37, 50, 3))).clip(0, 255)
PHOTO = PHOTO.astype(np.uint8)
UPRIGHT_TRANSFORMS: dict[int, Callable[[Array], Array]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}
"""EXIF orientation -> transform from the stored array to the upright one."""


def encode_image(image: Image.Image, image_format: str = "PNG", orientation: int = 1, **options: object) -> bytes:
    exif = image.getexif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    image.save(file, image_format, **({"exif": exif} if orientation > 1 else {}), **options)
    return file.getvalue()


def sixteen_bits() -> Image.Image:
    return Image.fromarray((PHOTO[..., 0].astype(np.uint16) << 8) + 77)


IMAGE_FILES = {
    "jpeg": encode_image(Image.fromarray(PHOTO), "JPEG", quality=80),
    "turned jpeg": encode_image(Image.fromarray(PHOTO), "JPEG", 6),
    "gray": encode_image(Image.fromarray(PHOTO).convert("L")),
    "two tones": encode_image(Image.fromarray(PHOTO).convert("1")),
    "palette": encode_image(Image.fromarray(PHOTO).quantize(16)),
    "palette, transparent": encode_image(Image.fromarray(PHOTO).quantize(16), transparency=0),
    "gif": encode_image(Image.fromarray(PHOTO).quantize(16), "GIF"),
    "rgba": encode_image(Image.fromarray(np.dstack([PHOTO, PHOTO[..., 0]]))),
    "gray with alpha": encode_image(Image.fromarray(PHOTO).convert("LA")),
    "cmyk": encode_image(Image.fromarray(PHOTO).convert("CMYK"), "JPEG"),
    "tiff": encode_image(Image.fromarray(PHOTO), "TIFF"),
    "webp": encode_image(Image.fromarray(PHOTO), "WEBP", lossless=True),
    "bmp": encode_image(Image.fromarray(PHOTO), "BMP"),
}


@pytest.mark.parametrize("image_format", list(IMAGE_FILES))
@pytest.mark.parametrize("side", [16, 37, 64])
def test_decoding_equals_pillow(image_format: str, side: int) -> None:
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(IMAGE_FILES[image_format]))).convert("RGB")
    pixels, key = decode(IMAGE_FILES[image_format], side)
    fitted = ImageOps.fit(expected, (side, side), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(pixels, np.asarray(fitted))
    assert (pixels.dtype, pixels.shape) == (np.uint8, (side, side, 3))
    size = f"{expected.width}x{expected.height}".encode()
    assert key == hashlib.blake2b(expected.tobytes(), digest_size=16, key=size).digest()


@pytest.mark.parametrize("orientation", list(UPRIGHT_TRANSFORMS))
def test_exif_orientation_is_applied(orientation: int) -> None:
    rotated = decode(encode_image(Image.fromarray(PHOTO), orientation=orientation), 16)
    upright = decode(encode_image(Image.fromarray(np.ascontiguousarray(UPRIGHT_TRANSFORMS[orientation](PHOTO)))), 16)
    np.testing.assert_array_equal(rotated[0], upright[0])
    assert rotated[1] == upright[1]


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "turned"])
def test_sixteen_bits_keep_their_high_byte(kind: str) -> None:
    data = encode_image(sixteen_bits(), "PNG", 8) if kind == "turned" else encode_image(sixteen_bits(), kind)
    gray = np.rot90(PHOTO[..., 0]) if kind == "turned" else PHOTO[..., 0]
    expected = resize(Image.fromarray(np.ascontiguousarray(gray)).convert("RGB"), 24)
    np.testing.assert_array_equal(decode(data, 24)[0], expected)


def test_the_key_depends_on_the_pixels_not_on_the_file() -> None:
    webp, bmp = IMAGE_FILES["webp"], IMAGE_FILES["bmp"]
    assert decode(webp, 16)[1] == decode(bmp, 16)[1] == decode(bmp, 48)[1]
    changed = PHOTO.copy()
    changed[36, 49, 2] ^= 1
    assert decode(encode_image(Image.fromarray(changed)), 16)[1] != decode(bmp, 16)[1]
    uniform = [encode_image(Image.fromarray(np.zeros((*shape, 3), np.uint8))) for shape in ((10, 20), (20, 10))]
    assert decode(uniform[0], 16)[1] != decode(uniform[1], 16)[1]


def test_decoding_is_deterministic() -> None:
    first, second = decode(IMAGE_FILES["jpeg"], 20), decode(IMAGE_FILES["jpeg"], 20)
    assert (first[0].tobytes(), first[1]) == (second[0].tobytes(), second[1])


def test_resize_follows_the_policy() -> None:
    square = Image.fromarray(PHOTO[:32, :32])
    np.testing.assert_array_equal(resize(square, 32), PHOTO[:32, :32])
    uniform = resize(Image.new("RGB", (301, 77), (10, 20, 30)), 32)
    assert (uniform == [10, 20, 30]).all()
    bar = np.zeros((20, 60, 3), np.uint8)
    bar[:, 20:40] = 255  # only the centre square remains, apart from the filter's support at its edge
    assert (resize(Image.fromarray(bar), 10)[:, 1:-1] == 255).all()
    assert (resize(Image.fromarray(bar.transpose(1, 0, 2).copy()), 10)[1:-1] == 255).all()
    noise = RNG.integers(0, 256, (128, 128, 3), dtype=np.uint8)
    assert resize(Image.fromarray(noise), 16).std() < noise.std() / 4  # antialiased: 64 pixels averaged into one


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"\0\0\0\x1cftypheic" + bytes(20), "HEIC"),
        (b"just text", "not a supported image"),
        (IMAGE_FILES["jpeg"][:-400], "damaged"),
        (IMAGE_FILES["jpeg"][:50], "not a supported image|damaged"),
        (IMAGE_FILES["rgba"][:-60], "damaged"),
        (IMAGE_FILES["gif"][:60], "damaged|not a supported image"),
        (png_header(20_000, 6_000), "20000x6000 pixels are more than 100,000,000"),
        (png_header(200_000, 200_000), "decompression bomb"),
        (encode_image(Image.fromarray(PHOTO[..., 0].astype(np.int32) * 1000), "TIFF"), "32-bit or signed pixels"),
        (encode_image(Image.fromarray(PHOTO[..., 0].astype(np.float32)), "TIFF"), "32-bit or signed pixels"),
    ],
    ids=range(11),
)
@pytest.mark.filterwarnings("ignore")
def test_invalid_files_give_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        decode(data, 16)


@pytest.mark.filterwarnings("ignore")
def test_damaged_files_raise_only_value_errors() -> None:
    rng = np.random.default_rng(1)
    for data in IMAGE_FILES.values():
        for _ in range(40):
            damaged = bytearray(data[: rng.integers(1, len(data) + 1)])
            for position in rng.integers(0, min(len(damaged), 300), rng.integers(0, 8)):
                damaged[position] = rng.integers(0, 256)
            with suppress(ValueError):
                assert decode(bytes(damaged), 8)[0].shape == (8, 8, 3)


def test_a_stored_set_is_loaded(tiny_set: ImageSet) -> None:
    assert isinstance(tiny_set.images_NHWC, np.memmap)
    assert (tiny_set.image_size, tiny_set.classes, len(tiny_set.files)) == (16, ("disc", "stripes", "wedge"), 210)
    indices = np.concatenate([tiny_set.indices(split) for split in (TRAIN, VALIDATION, TEST)])
    assert sorted(indices.tolist()) == list(range(210))
    with_label, without_label = tiny_set.indices(TRAIN, labelled=True), tiny_set.indices(TRAIN, labelled=False)
    assert (len(with_label), len(without_label)) == (110, 10)
    assert sorted([*with_label, *without_label]) == tiny_set.indices(TRAIN).tolist()
    assert (tiny_set.labels_N[without_label] == -1).all()


@pytest.fixture
def copied_set(tiny_set: ImageSet, tmp_path: Path) -> Path:
    for path in tiny_set.folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("images.npy", truncate, "images.npy is missing or damaged"),
        ("keys.npy", Path.unlink, "keys.npy is missing or damaged"),
        ("labels.npy", lambda path: path.write_bytes(b""), "labels.npy is missing or damaged"),
        ("labels.npy", lambda path: np.save(path, np.array([{}] * 210)), "labels.npy is missing or damaged"),
        ("split.npy", lambda path: np.save(path, np.zeros(209, np.uint8)), "its arrays differ in length"),
        ("classes.json", Path.unlink, "classes.json is missing"),
        ("classes.json", lambda path: path.write_text("["), "classes.json is damaged"),
    ],
)
def test_a_damaged_set_is_an_error_with_a_remedy(
    copied_set: Path, name: str, damage: Callable[[Path], object], message: str
) -> None:
    damage(copied_set / name)
    with pytest.raises(ArtifactError, match=message):
        load_images(copied_set)


def test_file_names_with_line_breaks(copied_set: Path) -> None:
    names = ["a\nb.png", "c\u2028d.png", "e\x85f.png", "Ü \U0001f408.png"]
    (copied_set / "files.txt").write_text("".join(json.dumps(name) + "\n" for name in names), encoding="utf-8")
    assert load_images(copied_set).files == names
