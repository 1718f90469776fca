"""Count the images of a source by class, and look at the size and mode of some, without decoding any."""

from __future__ import annotations

import io
import statistics
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from winnow.config import Data
from winnow.data.dataset import spread_indices
from winnow.data.image_formats import reads_heic
from winnow.data.image_items import Content
from winnow.data.sources import open_source

LOOKED_AT = 200
"""Images whose size and mode are read."""
GRAY_MODES = ("1", "L", "LA", "I", "I;16", "F")


@dataclass(frozen=True)
class Survey:
    """What a source holds."""

    title: str
    labelled: dict[str, int]
    """Class -> number of labelled images that are not in a test set of the source."""
    unlabelled: int
    test: int
    """Images in the test set that the source defines."""
    shorter_side: int
    """Median length in pixels of the shorter side, of the images that were looked at; 0 where none can be opened."""
    is_gray: bool
    """Whether all images that were looked at are gray."""

    @property
    def images(self) -> int:
        """The number of all images."""
        return sum(self.labelled.values()) + self.unlabelled + self.test


def survey_images(data: Data, scratch: Path) -> Survey:
    """Survey the source that these settings name. Raises DataError where it has no images or fewer than two classes."""
    reads_heic()  # registers HEIC with Pillow, where the package is installed
    source = open_source(data, scratch)
    looked_at = set(spread_indices(source.count, LOOKED_AT).tolist())
    labelled, unlabelled, test = dict.fromkeys(source.classes, 0), 0, 0
    sides, modes = [], []
    for index, item in enumerate(source.items()):
        if item.is_test:
            test += 1
        elif item.label < 0:
            unlabelled += 1
        else:
            labelled[source.classes[item.label]] += 1
        if index in looked_at and (found := _size_and_mode(item.content)):
            sides.append(min(found[0]))
            modes.append(found[1])
    side = int(statistics.median(sides)) if sides else 0
    return Survey(source.title, labelled, unlabelled, test, side, bool(modes) and set(modes) <= set(GRAY_MODES))


def _size_and_mode(content: Content) -> tuple[tuple[int, int], str] | None:
    """Return (width, height) and Pillow's mode from the header; None for a file that Pillow cannot open."""
    if isinstance(content, ValueError):
        return None
    try:
        with Image.open(io.BytesIO(content) if isinstance(content, bytes) else content) as image:
            return image.size, image.mode
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
