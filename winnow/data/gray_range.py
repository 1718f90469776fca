"""How many bits the gray images of a source use, where they are stored with 16: read off a sample of them.

Microscopes, X-ray and depth cameras store 10, 12 or 14 bits so. The range is a power of two, so a sample finds it; an
image with larger values is clipped to white, and ingest counts those.
"""

from __future__ import annotations

import io
import itertools
import warnings

from PIL import Image

from winnow.config import Data
from winnow.data.decoding import read_file
from winnow.data.header_limits import check_header, check_size
from winnow.data.image_formats import DAMAGED, FORMATS, gray_16_bits
from winnow.data.preprocessing import ALL_BITS, Preprocessing
from winnow.data.sources import Source

SAMPLED = 256
LEAST_BITS = 8


def preprocessing_of(data: Data, source: Source) -> Preprocessing:
    """Return what params.yaml asks for; with data.bits: auto the range is that of a sample of the images."""
    bits = sampled_bits(data, source) if data.bits == "auto" else data.bits
    return Preprocessing(data.resize, bits)


def sampled_bits(data: Data, source: Source) -> int:
    """Return the bits that the sampled 16-bit gray images use, 8 at least; 16 where there are none.

    Of a folder every so-manieth image is looked at; of an archive or table the first ones, since all would be read.
    """
    is_folder = data.source == "folder" and not data.labels.endswith(".parquet")
    stride = max(1, source.count // SAMPLED) if is_folder else 1
    highest = -1
    for item in itertools.islice(source.items(), 0, stride * SAMPLED, stride):
        content = item.content
        if not isinstance(content, ValueError):
            highest = max(highest, _highest(content))
    return ALL_BITS if highest < 0 else max(LEAST_BITS, highest.bit_length())


def _highest(content: str | bytes) -> int:
    """Return the largest value of a 16-bit gray image; -1 for any other file. Only those are decoded."""
    try:
        data = read_file(content) if isinstance(content, str) else content
        check_header(data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's remarks on odd metadata
            with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
                if opened.mode[0] != "I":
                    return -1
                check_size(opened.width, opened.height)
                opened.load()
                found = gray_16_bits(opened)
    except (*DAMAGED, ValueError, Image.DecompressionBombError):
        return -1
    return -1 if found is None else int(found.max())
