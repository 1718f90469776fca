from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image, ImageDraw

from winnow.data.decoder_digest import SAMPLE_FILES, decoder_digest


def opened(name: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(SAMPLE_FILES[name])))


def test_each_format_is_there_and_chroma_is_subsampled() -> None:
    assert [opened(name).format for name in SAMPLE_FILES] == ["JPEG", "PNG", "WEBP"]
    assert [layer[1:3] for layer in opened("JPEG").layer] == [(2, 2), (1, 1), (1, 1)]  # type: ignore[attr-defined]
    assert all(np.asarray(opened(name).convert("RGB")).std() > 30 for name in SAMPLE_FILES)


def test_equal_decoders_agree_and_others_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    here = decoder_digest()
    assert here == decoder_digest()
    assert len(here) == 16
    changed = opened("JPEG").convert("RGB")
    ImageDraw.Draw(changed).point((3, 3), (1, 2, 3))
    buffer = io.BytesIO()
    changed.save(buffer, "PNG")  # what a decoder that differs in one pixel would see
    for content in (buffer.getvalue(), b"no image"):
        monkeypatch.setitem(SAMPLE_FILES, "JPEG", base64.b64encode(content).decode())
        assert decoder_digest() != here
