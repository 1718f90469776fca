"""Count the images of a source by class, and look at the size of some, without decoding any."""

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
"""Images whose size is read."""


@dataclass(frozen=True)
class Survey:
    """What a source holds."""

    labelled: dict[str, int]
    """Class -> number of labelled images that are not in a test set of the source."""
    unlabelled: int
    test: int
    """Images in the test set that the source defines."""
    shorter_side: int
    """Median length in pixels of the shorter side, of the images that were looked at; 0 where none can be opened."""

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
    sides = []
    for index, item in enumerate(source.items()):
        if item.is_test:
            test += 1
        elif item.label < 0:
            unlabelled += 1
        else:
            labelled[source.classes[item.label]] += 1
        if index in looked_at and (side := _shorter_side(item.content)):
            sides.append(side)
    return Survey(labelled, unlabelled, test, int(statistics.median(sides)) if sides else 0)


def _shorter_side(content: Content) -> int | None:
    """Return the shorter side in pixels, from the header; None for a file that Pillow cannot open."""
    if isinstance(content, ValueError):
        return None
    try:
        with Image.open(io.BytesIO(content) if isinstance(content, bytes) else content) as image:
            return min(image.size)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
