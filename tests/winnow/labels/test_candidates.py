from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import CLASSES, hide_labels
from tests.winnow.labels.embedded_project import name_test_set, taught_params, write_project
from winnow.config import Config, check_config
from winnow.data.dataset import TEST, TRAIN, load_images
from winnow.data.splits import draw_label_budget
from winnow.labels.candidates import find_candidates, in_test_range
from winnow.steps.ingest import ingest


def config_of(**data: object) -> Config:
    return check_config(taught_params(**data))


@pytest.fixture
def named_data(tiny_data: Path, tmp_path: Path) -> Path:
    """The folder of `tiny_set` with a test set that the source names."""
    shutil.copytree(tiny_data, tmp_path / "named")
    name_test_set(tmp_path / "named")
    return tmp_path / "named"


def test_candidates_are_training_images_without_a_label(named_data: Path) -> None:
    images = load_images(named_data)
    candidates = find_candidates(config_of(), images, named_data)
    np.testing.assert_array_equal(candidates.free_F, images.indices(TRAIN, labelled=False))
    np.testing.assert_array_equal(candidates.labelled_L, images.indices(TRAIN, labelled=True))
    assert (candidates.hidden, candidates.copies, candidates.future_tests) == (0, 0, 0)


def test_labels_outside_the_budget_are_hidden(named_data: Path, tmp_path: Path) -> None:
    images, config = load_images(named_data), config_of(labels_per_class=5)
    candidates = find_candidates(config, images, named_data)
    np.testing.assert_array_equal(candidates.labelled_L, draw_label_budget(images, 5, config.finetune.seeds[0]))
    assert (len(candidates.labelled_L), len(candidates.free_F), candidates.hidden) == (15, 105, 95)
    without = load_images(hide_labels(named_data, tmp_path / "hidden", 5, config.finetune.seeds[0]))
    others = find_candidates(config, without, named_data)
    np.testing.assert_array_equal(others.free_F, candidates.free_F)
    np.testing.assert_array_equal(others.labelled_L, candidates.labelled_L)


def test_copies_are_left_out(named_data: Path) -> None:
    images = load_images(named_data)
    keys_N16 = np.array(images.keys_N16)
    free = images.indices(TRAIN, labelled=False)
    keys_N16[free[1]] = keys_N16[free[0]]
    keys_N16[free[4]] = keys_N16[images.indices(TRAIN, labelled=True)[3]]
    np.save(named_data / "keys.npy", keys_N16)
    candidates = find_candidates(config_of(), load_images(named_data), named_data)
    assert set(candidates.free_F.tolist()) == set(free.tolist()) - {int(free[1]), int(free[4])}
    assert candidates.copies == 2


def write_table(file: Path, labels: dict[str, str], groups: dict[str, str] | None = None) -> None:
    with file.open("w", encoding="utf-8", newline="") as stream:
        rows = [(path, label, (groups or {}).get(path, "")) for path, label in labels.items()]
        csv.writer(stream).writerows([("path", "label", "group"), *rows])


@pytest.mark.thorough
@pytest.mark.parametrize("group_by", ["none", "folder", r"^(scene\d+)/", "table"])
def test_a_label_moves_exactly_the_images_in_the_test_range(image_folder: Path, tmp_path: Path, group_by: str) -> None:
    """Ingest the photographs with few labels, then with all: the images left out are those that now test."""
    paths = sorted(path.relative_to(image_folder).as_posix() for path in image_folder.rglob("*.*"))
    groups = {path: f"scene {index % 12}" for index, path in enumerate(paths)}
    few = {path: path.partition("/")[0] if path[-6:-4] < "05" else "" for path in paths}
    if group_by != "none":  # photographs in folders of their own, so that a folder is no class
        for path in paths:
            target = image_folder / f"scene{groups[path][6:]}" / path.replace("/", "")
            target.parent.mkdir(exist_ok=True)
            (image_folder / path).rename(target)
            few[target.relative_to(image_folder).as_posix()] = few.pop(path)
            groups[target.relative_to(image_folder).as_posix()] = groups.pop(path)
        for name in CLASSES:
            (image_folder / name).rmdir()
    settings = {"path": str(image_folder), "labels": str(tmp_path / "table.csv"), "group_by": group_by}
    config = write_project(tmp_path, taught_params(**settings, validation_fraction=0.2, test_fraction=0.5))
    write_table(tmp_path / "table.csv", few, groups)
    ingest(config, tmp_path / "few", tmp_path / "scratch")
    images = load_images(tmp_path / "few")
    would_test = in_test_range(config.data, images, tmp_path) & (images.split_N == TRAIN) & (images.labels_N < 0)
    candidates = find_candidates(config, images, tmp_path)
    assert candidates.future_tests == would_test.sum() > 0
    assert not would_test[candidates.free_F].any()

    def class_of(path: str) -> str:
        return next(name for name in CLASSES if name in path)

    write_table(tmp_path / "table.csv", {path: class_of(path) for path in few}, groups)
    ingest(config, tmp_path / "all", tmp_path / "scratch")
    after = load_images(tmp_path / "all")
    assert after.files == images.files
    moved = np.flatnonzero((after.split_N == TEST) & (images.split_N == TRAIN))
    np.testing.assert_array_equal(moved, np.flatnonzero(would_test))
    assert (after.split_N[candidates.free_F] == TRAIN).all()


def test_no_image_moves_where_the_source_names_the_test_set(named_data: Path, tiny_data: Path) -> None:
    config = config_of(test_fraction=0.5)
    assert not in_test_range(config.data, load_images(named_data), named_data).any()
    assert in_test_range(config.data, load_images(tiny_data), tiny_data).any()
