"""HEIC, as iPhones write it. Both files were made with pillow-heif from `photo`, the second turned, with EXIF."""

from __future__ import annotations

import base64
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.closure import ROOT
from tests.winnow.data.test_preprocessing import ingested
from winnow.data.dataset import decode, open_rgb
from winnow.data.decoder_digest import HEIC_FILE, decoder_digest
from winnow.deploy.example_predict import load_pixels

UPRIGHT = base64.b64decode(HEIC_FILE)
TURNED = base64.b64decode(
    "AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAb5tZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAAADRp"
    "bG9jAAAAAERAAAIAAQAAAAAB4gABAAAAAAAAAJYAAgAAAAACeAABAAAAAAAAACQAAAA4aWluZgAAAAAAAgAAABVpbmZlAgAAAAABAABo"
    "dmMxAAAAABVpbmZlAgAAAQACAABFeGlmAAAAAA5waXRtAAAAAAABAAAA/WlwcnAAAADdaXBjbwAAAHZodmNDAQNwAAAAkAAAAAAAHvAA"
    "/P34+AAADwNgAAEAGEABDAH//wNwAAADAJAAAAMAAAMAHroCQGEAAQAqQgEBA3AAAAMAkAAAAwAAAwAeoCCBBZbq5Ka5uAhoMCAAAAMD"
    "IAAAAwAhYgABAAZEAcFzwIkAAAATY29scm5jbHgAAQANAAaAAAAAFGlzcGUAAAAAAAAAQAAAAEAAAAAoY2xhcAAAADAAAAABAAAAQAAA"
    "AAH////wAAAAAgAAAAAAAAACAAAAEHBpeGkAAAAAAwgICAAAABhpcG1hAAAAAAAAAAEAAQWBAgMFhAAAABppcmVmAAAAAAAAAA5jZHNj"
    "AAIAAQABAAAAwm1kYXQAAACSKAGvCeA+CWdnPZigee7J2C+ryo3j4Y2WPfeouC/vqKc9y27HF9q1qNTGNfS2NZNVmPngezQbxJJjLfJM"
    "vTct9u+1mxOibFysqVEUNp0r5p7UBXT0WNJMx8Z+lFaAvH2L3Y63YoaboExhqUvjTx+nuxjA4thWePWHK1QPGIpvxBZZENq4ngZSRFo4"
    "25Mu22LBlBMAAAAGRXhpZgAATU0AKgAAAAgAAQESAAMAAAABAAYAAAAAAAA="
)
LOSSY = 4.0


def photo() -> np.ndarray:
    y, x = np.mgrid[:48, :64]
    return np.stack([x * 4, y * 5, 255 - x * 3], 2).clip(0, 255).astype(np.uint8)


def with_irot(data: bytes, turns: int) -> bytes:
    """The image with a box that turns it by so many quarters against the clock, as an upright iPhone adds."""
    box = (9).to_bytes(4, "big") + b"irot" + bytes([turns])
    grown = bytearray(data)

    def start(name: bytes) -> int:
        return grown.index(name) - 4

    def grow(name: bytes, by: int) -> None:
        at = start(name)
        grown[at : at + 4] = (int.from_bytes(grown[at : at + 4], "big") + by).to_bytes(4, "big")

    payload = start(b"mdat") + 8
    properties, at = 0, start(b"ipco") + 8
    end = start(b"ipco") + int.from_bytes(grown[start(b"ipco") : start(b"ipco") + 4], "big")
    while at < end:
        properties, at = properties + 1, at + int.from_bytes(grown[at : at + 4], "big")
    count = start(b"ipma") + 18  # after the size, name, version, number of items and the item's number
    grown.insert(count + 1 + grown[count], 0x80 | (properties + 1))  # 0x80: whoever does not know it must not show it
    grown[count] += 1
    grown[end:end] = box
    grow(b"ipma", 1)
    grow(b"ipco", len(box))
    grow(b"iprp", len(box) + 1)
    grow(b"meta", len(box) + 1)
    where = grown.index(payload.to_bytes(4, "big"), start(b"iloc"))
    grown[where : where + 4] = (payload + len(box) + 1).to_bytes(4, "big")
    return bytes(grown)


@pytest.fixture
def reader() -> None:
    pytest.importorskip("pi_heif")


@pytest.mark.usefixtures("reader")
@pytest.mark.parametrize("turns", [0, 1])
def test_it_is_read_and_exif_does_not_turn_it(turns: int, tmp_path: Path) -> None:
    """HEIC says itself how it lies (irot), which the reader obeys; EXIF counts for nothing in it."""
    data = (UPRIGHT, TURNED)[turns]
    opened = open_rgb(data)
    assert opened.is_heic
    assert np.abs(np.asarray(opened.rgb).astype(int) - np.rot90(photo(), turns)).mean() < LOSSY
    (tmp_path / "a.heic").write_bytes(data)
    import pi_heif

    pi_heif.register_heif_opener()  # as the exported example does
    np.testing.assert_array_equal(load_pixels(str(tmp_path / "a.heic"), {"image_size": 16}), decode(data, 16)[0])


@pytest.mark.usefixtures("reader")
@pytest.mark.parametrize("turns", [1, 2, 3])
def test_the_box_that_turns_it_is_obeyed_once(turns: int) -> None:
    opened = open_rgb(with_irot(UPRIGHT, turns))
    assert np.abs(np.asarray(opened.rgb).astype(int) - np.rot90(photo(), turns)).mean() < LOSSY


@pytest.mark.usefixtures("reader")
def test_one_that_is_damaged_is_named() -> None:
    with pytest.raises(ValueError, match=r"\S"):
        decode(UPRIGHT[:300], 16)
    with pytest.raises(ValueError, match="damaged, or an unsupported kind of HEIC"):
        decode(b"\0\0\0\x1cftypheic" + bytes(20), 16)


@pytest.mark.thorough
@pytest.mark.usefixtures("reader")
def test_its_decoder_counts_only_where_it_decodes(image_folder: Path, tmp_path: Path) -> None:
    without = ingested(image_folder, tmp_path / "without").details.decoder
    assert without == decoder_digest() != decoder_digest(reads_heic=True)
    (image_folder / "disc" / "iphone.heic").write_bytes(UPRIGHT)
    record = ingested(image_folder, tmp_path / "with")
    assert record.details.decoder == decoder_digest(reads_heic=True)
    assert record.details.rejected == []


def test_without_the_package_the_reason_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['pi_heif'] = None\n"
        "import base64; from winnow.data.dataset import decode\n"
        "from winnow.data.decoder_digest import HEIC_FILE, decoder_digest\n"
        "print(decoder_digest())\n"
        "try: decode(base64.b64decode(HEIC_FILE), 16)\n"
        "except ValueError as error: print(error)\n"
    )
    told = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    digest, reason = told.stdout.splitlines()
    assert digest == decoder_digest()
    assert reason == "HEIC; to read it: pip install 'winnow-vision[heic]', or convert it to JPEG or PNG"
