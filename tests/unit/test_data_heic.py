"""HEIC, as iPhones write it. Both files were made with pillow-heif from `photo`, the second turned, with EXIF."""

from __future__ import annotations

import base64
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.closure import ROOT
from tests.unit.test_data_preprocessing import ingested
from winnow.data.decoder import HEIC, decoder_digest
from winnow.data.images import decode, open_rgb
from winnow.example_predict import pixels_of

UPRIGHT = base64.b64decode(HEIC)
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
    np.testing.assert_array_equal(pixels_of(str(tmp_path / "a.heic"), {"image_size": 16}), decode(data, 16)[0])


@pytest.mark.usefixtures("reader")
def test_one_that_is_damaged_is_named() -> None:
    with pytest.raises(ValueError, match=r"\S"):
        decode(UPRIGHT[:300], 16)
    with pytest.raises(ValueError, match="damaged, or HEIC of a kind that is not read here"):
        decode(b"\0\0\0\x1cftypheic" + bytes(20), 16)


@pytest.mark.usefixtures("reader")
def test_its_decoder_counts_only_where_it_decodes(image_folder: Path, tmp_path: Path) -> None:
    without = ingested(image_folder, tmp_path / "without").details["decoder"]
    assert without == decoder_digest() != decoder_digest(reads_heic=True)
    (image_folder / "disc" / "iphone.heic").write_bytes(UPRIGHT)
    record = ingested(image_folder, tmp_path / "with")
    assert record.details["decoder"] == decoder_digest(reads_heic=True)
    assert record.details["rejected"] == []


def test_without_the_package_the_reason_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['pi_heif'] = None\n"
        "import base64; from winnow.data.decoder import HEIC, decoder_digest; from winnow.data.images import decode\n"
        "print(decoder_digest())\n"
        "try: decode(base64.b64decode(HEIC), 16)\n"
        "except ValueError as error: print(error)\n"
    )
    told = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    digest, reason = told.stdout.splitlines()
    assert digest == decoder_digest()
    assert reason == "HEIC; to read it: pip install 'winnow-vision[heic]', or convert it to JPEG or PNG"
