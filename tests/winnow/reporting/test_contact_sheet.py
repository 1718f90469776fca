from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from winnow.errors import DataError
from winnow.reporting import contact_sheet
from winnow.reporting.contact_sheet import COLUMNS, GAP, LINE, check_sheet_replaceable, draw_sheet, write_sheet
from winnow.reporting.thumbnails import SIDE

IMAGES = np.stack([np.full((8, 8, 3), level, dtype=np.uint8) for level in range(0, 240, 20)])


def test_thumbnails_stand_in_order_row_by_row() -> None:
    indices = [11, 0, 3, 5, 7, 9, 2, 4, 6, 8]
    sheet = draw_sheet(IMAGES, indices, [["name", "cat"]] * 10)
    assert sheet.size == (GAP + COLUMNS * (SIDE + GAP), GAP + 2 * (SIDE + 2 * LINE + GAP))
    pixels = np.asarray(sheet)
    for number, index in enumerate(indices):
        left, top = GAP + number % COLUMNS * (SIDE + GAP), GAP + number // COLUMNS * (SIDE + 2 * LINE + GAP)
        assert (pixels[top : top + SIDE, left : left + SIDE] == 20 * index).all()
        assert pixels[top + SIDE : top + SIDE + 2 * LINE, left : left + SIDE].min() < 100  # the caption


def test_captions_do_not_run_into_each_other_and_control_characters_are_escaped() -> None:
    pixels = np.asarray(draw_sheet(IMAGES, [0, 1], [["a very long file name " * 5 + ".jpg"], ["\x1b[2J\n写真"]]))
    between = pixels[GAP + SIDE :, GAP + SIDE + GAP // 2 + 1 : GAP + SIDE + GAP]
    assert (between == 255).all()


def test_a_sheet_has_a_limit_and_may_be_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contact_sheet, "MAX_SHOWN", 3)
    assert draw_sheet(IMAGES, range(10), [["x"]] * 10).size[0] == GAP + 3 * (SIDE + GAP)
    assert draw_sheet(IMAGES, [], []).size == (GAP + SIDE + GAP, GAP)
    with pytest.raises(ValueError, match="zip"):
        draw_sheet(IMAGES, [1, 2], [["x"]])


def test_the_same_images_give_the_same_bytes_and_only_sheets_are_replaced(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        write_sheet(tmp_path / name, draw_sheet(IMAGES, [1, 2], [["x"], ["y"]]))
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    check_sheet_replaceable(tmp_path / "a.png")
    check_sheet_replaceable(tmp_path / "new.png")
    Image.fromarray(IMAGES[3]).save(tmp_path / "photo.png")
    (tmp_path / "text.png").write_text("no picture")
    for name in ("photo.png", "text.png"):
        with pytest.raises(DataError, match=f"{name}: exists, and is no contact sheet of winnow; rename or move it"):
            check_sheet_replaceable(tmp_path / name)
    with pytest.raises(DataError, match=r"nowhere/a.png: cannot be written"):
        write_sheet(tmp_path / "nowhere" / "a.png", draw_sheet(IMAGES, [], []))
