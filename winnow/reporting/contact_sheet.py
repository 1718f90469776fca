"""Draw numbered thumbnails with captions in one picture, to look through many images at once."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from winnow.errors import DataError, MissingExtra
from winnow.printable import printable
from winnow.records import atomic_path
from winnow.reporting.thumbnails import SIDE, thumbnail

MAX_SHOWN = 500
"""Images of one sheet at most."""
COLUMNS, GAP = 8, 16
FONT_SIZE, LINE = 11, 14
"""Height of the letters and of a line, in pixels."""
SOFTWARE = "winnow"
"""What a sheet names as its software, so that no other picture is overwritten."""


def draw_sheet(
    images_NHWC: NDArray[np.uint8], indices: Sequence[int], captions: Sequence[Sequence[str]]
) -> Image.Image:
    """Return thumbnails of the images at `indices`, the first MAX_SHOWN, row by row.

    `captions`: the lines below each image, the first of them after its number (1. 2. 3.); what is too long for a line
    is cut in its middle.
    """
    shown = list(zip(indices, captions, strict=True))[:MAX_SHOWN]
    columns = min(COLUMNS, max(1, len(shown)))
    lines = max((len(caption) for _, caption in shown), default=0)
    cell_height = SIDE + lines * LINE + GAP
    size = (GAP + columns * (SIDE + GAP), GAP + -(-len(shown) // columns) * cell_height)
    sheet = Image.new("RGB", size, "white")
    drawing, font = ImageDraw.Draw(sheet), _font()
    for number, (index, caption) in enumerate(shown):
        left, top = GAP + number % columns * (SIDE + GAP), GAP + number // columns * cell_height
        sheet.paste(thumbnail(np.asarray(images_NHWC[index])), (left, top))
        for line, text in enumerate(caption):
            words = f"{number + 1}. {text}" if line == 0 else text
            drawing.text((left, top + SIDE + 1 + line * LINE), _fitted(printable(words), font), "black", font)
    return sheet


def _fitted(text: str, font: ImageFont.FreeTypeFont) -> str:
    """Return the text, with dots in place of its middle where it is wider than a thumbnail."""
    shortened, length = text, len(text)
    while length > 2 and font.getlength(shortened) > SIDE + GAP // 2:
        length -= 1
        shortened = f"{text[: length // 2]}…{text[len(text) - (length - length // 2) :]}"
    return shortened


def _font() -> ImageFont.FreeTypeFont:
    """Return matplotlib's own font, which has the letters of most European languages."""
    try:
        import matplotlib
    except ModuleNotFoundError as error:
        raise MissingExtra("matplotlib", "report") from error
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", FONT_SIZE)


def write_sheet(file: Path, sheet: Image.Image) -> None:
    """Write a sheet as PNG. Raises DataError where it cannot be written."""
    content, info = io.BytesIO(), PngInfo()
    info.add_text("Software", SOFTWARE)
    sheet.save(content, "PNG", pnginfo=info)
    try:
        with atomic_path(file) as temporary:
            temporary.write_bytes(content.getvalue())
    except OSError as error:
        raise DataError(f"{file}: cannot be written ({error.strerror or error})") from error


def check_sheet_replaceable(file: Path) -> None:
    """Raise DataError where `file` exists and is no sheet of winnow."""
    if not file.exists():
        return
    try:
        with Image.open(file) as image:
            is_ours = image.info.get("Software") == SOFTWARE
    except OSError:
        is_ours = False
    if not is_ours:
        raise DataError(
            f"{file}: exists, and is no contact sheet of winnow; rename or move it, or name another file with --out"
        )
