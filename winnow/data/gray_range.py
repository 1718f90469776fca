"""Estimate from a sample how many bits the 16-bit gray images of a source use.

Microscopes, X-ray and depth cameras store 10, 12 or 14 bits this way. The range is a power of two, so a sample
suffices; an image with larger values is clipped to white, and ingest counts those.
"""

from __future__ import annotations

import io
import itertools
import warnings

from PIL import Image

from winnow.config import Data
from winnow.data.header_limits import check_header, check_size
from winnow.data.image_formats import FORMATS, PILLOW_ERRORS, gray_16_bits
from winnow.data.image_items import read_file
from winnow.data.preprocessing import ALL_BITS, Preprocessing
from winnow.data.sources import Source

SAMPLE_SIZE = 256
MIN_BITS = 8


def resolve_preprocessing(data: Data, source: Source) -> Preprocessing:
    """Return the preprocessing that params.yaml sets; with data.bits: auto a sample of the images gives the range."""
    bits = estimate_bits(data, source) if data.bits == "auto" else data.bits
    return Preprocessing(data.resize, bits)


def estimate_bits(data: Data, source: Source) -> int:
    """Return the bits that the sampled 16-bit gray images use, at least 8; 16 where there are none.

    The sample is spread evenly over a folder; from an archive or table it takes the first images, since a spread would
    read the whole file.
    """
    is_folder = data.source == "folder" and not data.labels.endswith(".parquet")
    stride = max(1, source.count // SAMPLE_SIZE) if is_folder else 1
    highest = -1
    for item in itertools.islice(source.items(), 0, stride * SAMPLE_SIZE, stride):
        content = item.content
        if not isinstance(content, ValueError):
            highest = max(highest, _highest_value(content))
    return ALL_BITS if highest < 0 else max(MIN_BITS, highest.bit_length())


def _highest_value(content: str | bytes) -> int:
    """Return the largest value of a 16-bit gray image; -1 for any other file, which is not decoded."""
    try:
        data = read_file(content) if isinstance(content, str) else content
        check_header(data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of unusual metadata
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                if image.mode[0] != "I":
                    return -1
                check_size(image.width, image.height)
                image.load()
                gray_HW = gray_16_bits(image)
    except (*PILLOW_ERRORS, ValueError, Image.DecompressionBombError):
        return -1
    return -1 if gray_HW is None else int(gray_HW.max())
