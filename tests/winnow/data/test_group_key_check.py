from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest
import yaml

from tests.closure import ROOT
from tests.winnow.data.test_preprocessing import make_config, run_ingest
from tests.winnow.steps.test_ingest import add_image
from winnow.config.data import GROUP_PATTERN
from winnow.errors import ConfigError

PATTERN_WITH_CLASS_FOLDER = r"(.+)_\d+\.png"


@pytest.fixture
def crops(tmp_path: Path) -> Path:
    """Return a folder of twenty photographs of coins, each cut into six images of three classes."""
    for index in range(120):
        add_image(tmp_path / "photos" / ("1c", "2c", "5c")[index % 3] / f"IMG_{index // 6:02d}_{index % 6}.png", index)
    return tmp_path / "photos"


@pytest.mark.thorough
def test_the_shipped_pattern_excludes_the_class_folder(
    crops: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "winnow"):
        record = run_ingest(crops, tmp_path / "data", group_by=GROUP_PATTERN)
    assert record.details.groups == 20
    assert not [row for row in record.warnings if "data.group_by:" in row]
    messages = [line for line in caplog.messages if line.startswith("ingest: group ")]
    assert len(messages) == 3
    assert re.fullmatch(r"ingest: group 'IMG_\d\d': 6 images, such as 1c/IMG_\d\d_0\.png", messages[0])


@pytest.mark.thorough
def test_groups_with_the_class_folder_are_warned_of(crops: Path, tmp_path: Path) -> None:
    record = run_ingest(crops, tmp_path / "data", group_by=PATTERN_WITH_CLASS_FOLDER)
    assert record.details.groups == 60
    messages = [row for row in record.warnings if "the groups contain the class folder" in row]
    assert len(messages) == 1
    assert "'1c/IMG_" in messages[0]
    assert GROUP_PATTERN in messages[0]


@pytest.mark.thorough
def test_groups_of_single_images_are_warned_of(crops: Path, tmp_path: Path) -> None:
    record = run_ingest(crops, tmp_path / "data", group_by=r"([^/]+)\.png")
    assert [row for row in record.warnings if "120 of 120 groups hold a single image" in row]
    folders = run_ingest(crops, tmp_path / "folders", group_by="folder")
    assert not [row for row in folders.warnings if "data.group_by:" in row]  # of a folder the class may be meant


def test_examples_use_the_shipped_pattern(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=re.escape(GROUP_PATTERN)):
        make_config(tmp_path, group_by="no group")
    assert GROUP_PATTERN in (ROOT / "params.yaml").read_text(encoding="utf-8")
    assert yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))["data"]["group_by"] == "none"
    assert re.search(GROUP_PATTERN, "train/cat/IMG_7_12.jpeg")[1] == "IMG_7"  # type: ignore[index]
