from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image, ImageDraw

from winnow.data.decoder_digest import SAMPLE_FILES, decoder_digest


def open_sample(name: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(SAMPLE_FILES[name])))


def test_every_format_has_a_sample_and_chroma_is_subsampled() -> None:
    assert [open_sample(name).format for name in SAMPLE_FILES] == ["JPEG", "PNG", "WEBP"]
    assert [layer[1:3] for layer in open_sample("JPEG").layer] == [(2, 2), (1, 1), (1, 1)]  # type: ignore[attr-defined]
    assert all(np.asarray(open_sample(name).convert("RGB")).std() > 30 for name in SAMPLE_FILES)


def test_the_digest_depends_on_the_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    digest = decoder_digest()
    assert digest == decoder_digest()
    assert len(digest) == 16
    changed = open_sample("JPEG").convert("RGB")
    ImageDraw.Draw(changed).point((3, 3), (1, 2, 3))
    buffer = io.BytesIO()
    changed.save(buffer, "PNG")  # as a decoder that differs in one pixel
    for content in (buffer.getvalue(), b"no image"):
        monkeypatch.setitem(SAMPLE_FILES, "JPEG", base64.b64encode(content).decode())
        assert decoder_digest() != digest
