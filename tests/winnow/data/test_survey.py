from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from tests.conftest import CLASSES
from winnow.config import Data
from winnow.data.survey import survey_images


def settings(path: Path) -> Data:
    return Data.model_validate({"source": "folder", "path": str(path), "labels_per_class": "auto"})


def write(path: Path, size: tuple[int, int], mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], 3)
    Image.fromarray(np.zeros(shape, np.uint8)).save(path)


def test_images_are_counted_by_class_and_split(image_folder: Path) -> None:
    write(image_folder / "unlabelled" / "a.png", (40, 40))
    survey = survey_images(settings(image_folder), image_folder)
    assert survey.labelled == dict.fromkeys(CLASSES, 12)
    assert (survey.unlabelled, survey.test, survey.images) == (1, 0, 37)
    assert 40 <= survey.shorter_side <= 44


def test_images_of_a_test_set_are_apart(tmp_path: Path) -> None:
    for split, count in (("train", 3), ("test", 2)):
        for name in ("cat", "dog"):
            for index in range(count):
                write(tmp_path / split / name / f"{index}.png", (64, 80), "L")
    survey = survey_images(settings(tmp_path), tmp_path)
    assert survey.labelled == {"cat": 3, "dog": 3}
    assert (survey.test, survey.shorter_side) == (4, 64)


def test_damaged_images_do_not_count_for_the_size(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        write(tmp_path / name / "a.png", (100, 50))
        (tmp_path / name / "b.png").write_bytes(b"no image")
    assert survey_images(settings(tmp_path), tmp_path).shorter_side == 50
