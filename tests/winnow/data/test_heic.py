"""Check HEIC as iPhones write it. pillow-heif made both files from `expected_pixels`, the second rotated, with EXIF."""

from __future__ import annotations

import base64
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.closure import ROOT
from tests.winnow.data.test_preprocessing import run_ingest
from winnow.data.dataset import decode, open_rgb
from winnow.data.decoder_digest import HEIC_FILE, decoder_digest
from winnow.deploy.example_predict import load_pixels

UPRIGHT = base64.b64decode(HEIC_FILE)
ROTATED = base64.b64decode(
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


def expected_pixels() -> np.ndarray:
    y, x = np.mgrid[:48, :64]
    return np.stack([x * 4, y * 5, 255 - x * 3], 2).clip(0, 255).astype(np.uint8)


def with_irot(data: bytes, turns: int) -> bytes:
    """Return the image with a box that rotates it by `turns` quarters counter-clockwise, as an upright iPhone adds."""
    box = (9).to_bytes(4, "big") + b"irot" + bytes([turns])
    extended = bytearray(data)

    def box_start(name: bytes) -> int:
        return extended.index(name) - 4

    def extend_box(name: bytes, bytes_added: int) -> None:
        position = box_start(name)
        extended[position : position + 4] = (
            int.from_bytes(extended[position : position + 4], "big") + bytes_added
        ).to_bytes(4, "big")

    payload = box_start(b"mdat") + 8
    properties, position = 0, box_start(b"ipco") + 8
    end = box_start(b"ipco") + int.from_bytes(extended[box_start(b"ipco") : box_start(b"ipco") + 4], "big")
    while position < end:
        properties, position = properties + 1, position + int.from_bytes(extended[position : position + 4], "big")
    count = box_start(b"ipma") + 18  # after the size, name, version, number of items and the item's number
    extended.insert(count + 1 + extended[count], 0x80 | (properties + 1))  # 0x80: readers must support this property
    extended[count] += 1
    extended[end:end] = box
    extend_box(b"ipma", 1)
    extend_box(b"ipco", len(box))
    extend_box(b"iprp", len(box) + 1)
    extend_box(b"meta", len(box) + 1)
    offset_position = extended.index(payload.to_bytes(4, "big"), box_start(b"iloc"))
    extended[offset_position : offset_position + 4] = (payload + len(box) + 1).to_bytes(4, "big")
    return bytes(extended)


@pytest.fixture
def heif_reader() -> None:
    pytest.importorskip("pi_heif")


@pytest.mark.usefixtures("heif_reader")
@pytest.mark.parametrize("turns", [0, 1])
def test_heic_is_decoded_without_exif_rotation(turns: int, tmp_path: Path) -> None:
    """The irot box of HEIC gives the rotation, which the decoder applies; EXIF is ignored."""
    data = (UPRIGHT, ROTATED)[turns]
    opened = open_rgb(data)
    assert opened.is_heic
    assert np.abs(np.asarray(opened.rgb).astype(int) - np.rot90(expected_pixels(), turns)).mean() < LOSSY
    (tmp_path / "a.heic").write_bytes(data)
    import pi_heif

    pi_heif.register_heif_opener()  # as the exported example does
    np.testing.assert_array_equal(load_pixels(str(tmp_path / "a.heic"), {"image_size": 16}), decode(data, 16)[0])


@pytest.mark.usefixtures("heif_reader")
@pytest.mark.parametrize("turns", [1, 2, 3])
def test_the_rotation_box_is_applied_once(turns: int) -> None:
    opened = open_rgb(with_irot(UPRIGHT, turns))
    assert np.abs(np.asarray(opened.rgb).astype(int) - np.rot90(expected_pixels(), turns)).mean() < LOSSY


@pytest.mark.usefixtures("heif_reader")
def test_a_damaged_file_is_rejected() -> None:
    with pytest.raises(ValueError, match=r"\S"):
        decode(UPRIGHT[:300], 16)
    with pytest.raises(ValueError, match="damaged, or an unsupported kind of HEIC"):
        decode(b"\0\0\0\x1cftypheic" + bytes(20), 16)


@pytest.mark.thorough
@pytest.mark.usefixtures("heif_reader")
def test_the_heic_decoder_is_in_the_digest_only_if_used(image_folder: Path, tmp_path: Path) -> None:
    digest_without = run_ingest(image_folder, tmp_path / "without").details.decoder
    assert digest_without == decoder_digest() != decoder_digest(reads_heic=True)
    (image_folder / "disc" / "iphone.heic").write_bytes(UPRIGHT)
    record = run_ingest(image_folder, tmp_path / "with")
    assert record.details.decoder == decoder_digest(reads_heic=True)
    assert record.details.rejected == []


def test_without_the_package_the_reason_names_it() -> None:
    code = (
        "import sys; sys.modules['pi_heif'] = None\n"
        "import base64; from winnow.data.dataset import decode\n"
        "from winnow.data.decoder_digest import HEIC_FILE, decoder_digest\n"
        "print(decoder_digest())\n"
        "try: decode(base64.b64decode(HEIC_FILE), 16)\n"
        "except ValueError as error: print(error)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    digest, reason = result.stdout.splitlines()
    assert digest == decoder_digest()
    assert reason == "HEIC; to read it: pip install 'winnow-vision[heic]', or convert it to JPEG or PNG"
