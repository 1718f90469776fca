from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest

from winnow.data.dataset import TEST, load_images
from winnow.errors import ArtifactError
from winnow.selection.test_readings import count_reading, count_test_reading, digest_test_split


@pytest.fixture
def data(tiny_data: Path, tmp_path: Path) -> Path:
    """A copy of the tiny data set, which a test may change."""
    folder = tmp_path / "data"
    folder.mkdir()
    for file in tiny_data.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def set_test_images(data: Path, is_test: bool) -> None:
    split = np.load(data / "split.npy")
    split[:] = np.where(split == TEST, 0, split)
    if is_test:
        split[:5] = TEST
    np.save(data / "split.npy", split)


def test_readings_are_counted_and_logged(data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    counts = tmp_path / "hidden" / "test-readings.json"
    set_test_images(data, is_test=True)
    images = load_images(data)
    with caplog.at_level(logging.INFO, logger="winnow.selection.test_readings"):
        count_test_reading(counts, images)
        count_test_reading(counts, images)
    assert "test split read 1 time (" in caplog.text
    assert "test split read 2 times (" in caplog.text
    assert json.loads(counts.read_text()) == {digest_test_split(images): 2}


def test_without_test_images_nothing_is_counted(data: Path, tmp_path: Path) -> None:
    set_test_images(data, is_test=False)
    count_test_reading(tmp_path / "hidden" / "test-readings.json", load_images(data))
    assert not (tmp_path / "hidden").exists()


def test_another_test_split_is_another_version(data: Path, tmp_path: Path) -> None:
    set_test_images(data, is_test=True)
    images = load_images(data)
    version = digest_test_split(images)
    keys, split = np.array(images.keys_N16), np.array(images.split_N)
    keys[split != TEST] += 1
    np.save(data / "keys.npy", keys)
    assert digest_test_split(load_images(data)) == version
    keys[np.flatnonzero(split == TEST)[0], 0] += 1
    np.save(data / "keys.npy", keys)
    changed_version = digest_test_split(load_images(data))
    assert changed_version != version
    counts = tmp_path / "counts.json"
    versions = (version, changed_version, version)
    assert [count_reading(counts, counted_version) for counted_version in versions] == [1, 1, 2]
    assert list(tmp_path.glob("counts*")) == [counts]


@pytest.mark.parametrize("content", ["{", "[]", '{"a": null}', '{"a": "many"}'])
def test_a_damaged_count_is_an_error(tmp_path: Path, content: str) -> None:
    path = tmp_path / "counts.json"
    path.write_text(content)
    with pytest.raises(ArtifactError, match=r"counts\.json is damaged.*delete it"):
        count_reading(path, "a")
    assert path.read_text() == content
