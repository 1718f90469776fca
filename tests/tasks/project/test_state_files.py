"""Check that readers of damaged state files return a value of their type or name the file to repair."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks import time_left
from tasks.project import passwords, run_lock, state_files
from tasks.project.paths import ProjectPaths
from tasks.project.state_files import CONFIRMATIONS, AnnouncedServers, StateFile
from tasks.registry import known_versions, promotion_state
from tasks.tracking import tracking_store
from winnow.cli import plan, run
from winnow.errors import ArtifactError, WinnowError
from winnow.records import read_json
from winnow.selection.test_readings import count_reading

DAMAGED = {
    "empty": b"",
    "zeros": bytes(100),
    "cut": b'{"a": {"b": ',
    "list": b'[1, "a"]',
    "null in it": b'{"a": null}',
    "number": b"1e999",
    "nested": b"[" * 100_000,
    "nested below a key": b'{"a": ' * 100_000,
    "no text": b"\xff\xfe\x00",
    "other types": b'{"a": [[1]], "prefect_api": 3, "address": 1, "params": {}, "steps": [], "step": "x"}',
}


@pytest.fixture
def paths(tmp_path: Path) -> ProjectPaths:
    (tmp_path / ".winnow" / "versions").mkdir(parents=True)
    (tmp_path / "params.yaml").write_text("data: 1\n")
    return ProjectPaths(tmp_path)


READERS: dict[str, Callable[[ProjectPaths], Any]] = {
    "tracked.json": tracking_store.read_runs,
    "promoted.json": promotion_state.read_reasons,
    "servers.json": state_files.SERVERS.read,
    "rough-forecast.json": time_left.read_forecast,
    "verified.json": state_files.VERIFIED.read,
    "known-versions.json": lambda paths: known_versions.read_version(paths, "model", "champion"),
    "plan.json": lambda paths: plan.compare_with_plan(paths, {"pretrain": {}})[0],
    "versions/pretrain.json": run.version_changes,
    "run.step": lambda paths: run_lock._read(paths.state_dir / "run.step"),
}


@pytest.mark.parametrize("content", DAMAGED)
@pytest.mark.parametrize("name", READERS)
def test_a_damaged_cache_counts_as_missing(paths: ProjectPaths, name: str, content: str) -> None:
    (paths.state_dir / name).write_bytes(DAMAGED[content])
    assert not READERS[name](paths)


@pytest.mark.parametrize("name", READERS)
def test_a_folder_in_place_of_a_file_counts_as_missing(paths: ProjectPaths, name: str) -> None:
    (paths.state_dir / name).mkdir()
    assert not READERS[name](paths)


def test_a_damaged_cache_is_logged(paths: ProjectPaths, caplog: pytest.LogCaptureFixture) -> None:
    cache: StateFile[dict[str, int]] = StateFile("some.json", dict[str, int], {"b": 1})
    assert cache.read(paths) == {"b": 1}
    assert not caplog.records
    cache.path(paths).write_text('{"a": "x"}')
    with caplog.at_level(logging.WARNING):
        assert cache.read(paths) == {"b": 1}
    assert f"{cache.path(paths)} is damaged (at a: " in caplog.text
    cache.write(paths, {"a": 2})
    assert cache.read(paths) == {"a": 2}


CONTENTS: dict[str, Any] = {
    "servers.json": AnnouncedServers("http://127.0.0.1:5000", "http://127.0.0.1:4200/api", "1 2"),
    "times/{}.json": {"step": 1.5, "process": 2.0, "memory_mb": 3.0, "disk_mb": 4.0},
    "versions/{}.json": {"torch": "2.11"},
    "plan.json": {
        "params": "abc",
        "total_seconds": 1.0,
        "disk_gb": 0.1,
        "steps": {"ingest": {"seconds": 1.0, "memory_mb": 2.0, "disk_mb": 3.0}},
    },
    "rough-forecast.json": {"params": "abc", "seconds": {"ingest": 4.0}},
    "verified.json": {"abc": [1, 2, 3]},
    "promoted.json": {
        "address": "a",
        "model": "b",
        "select": "c",
        "sha256": None,
        "reasons": ["d"],
        "waits_until": "",
    },
    "label-check.json": {"/project/label_check.csv": {"a.jpg": "cat"}},
    "tracked.json": {"sqlite:///x": {"abc": "run"}},
    "deployed.json": {"here": ["name"]},
    "known-versions.json": {
        "store": [[1, 2, 3]],
        "versions": {"model/champion": {"number": "1", "sha256": "a", "candidate": "b", "tags": {"c": "d"}}},
    },
    "prefect-run.json": "6f1b2c9e-0d54-4c8e-9a83-2f6f8f0c5a11",
    "search/{}/mlflow.json": {"run": "abc", "trials": [1, 2]},
    "search/{}/confirmations.json": [3, 4],
}


STATE_FILES = [value for value in vars(state_files).values() if isinstance(value, StateFile)]


def test_a_promotion_of_an_earlier_version_is_read(paths: ProjectPaths) -> None:
    former = {"winner": "pruned-int8", "version": "3", "alias": "champion", "champion": "3", "is_new": True}
    content = {"address": "sqlite:///x", "model": "m", "select": "d", "sha256": "e", "reasons": [], "waits_until": ""}
    state_files.PROMOTED.path(paths).parent.mkdir(parents=True, exist_ok=True)
    state_files.PROMOTED.path(paths).write_text(json.dumps(former | content))
    state = state_files.PROMOTED.read(paths)
    assert state is not None
    assert (state["model"], state["sha256"]) == ("m", "e")


@pytest.mark.parametrize("file", STATE_FILES, ids=lambda file: file.name)
def test_every_state_file_round_trips(paths: ProjectPaths, file: StateFile[Any]) -> None:
    content = CONTENTS[file.name]
    assert file.read(paths, "key") == file.default
    file.write(paths, content, "key")
    assert file.read(paths, "key") == content
    raw = json.loads(file.path(paths, "key").read_text())
    assert raw.keys() == {"format", "content"}
    file.path(paths, "key").write_text(json.dumps(raw["content"]))  # as an earlier version wrote it
    assert file.read(paths, "key") == content
    file.path(paths, "key").write_text(json.dumps(raw | {"format": 99}))
    if file.remedy:
        with pytest.raises(ArtifactError, match="another version of winnow"):
            file.read(paths, "key")
    else:
        assert file.read(paths, "key") == file.default


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_file_that_cannot_be_recomputed_is_named_with_the_remedy(paths: ProjectPaths, content: str) -> None:
    path = CONFIRMATIONS.path(paths, "default")
    assert CONFIRMATIONS.read(paths, "default") == []
    path.parent.mkdir(parents=True)
    path.write_bytes(DAMAGED[content])
    with pytest.raises(ArtifactError, match=r"confirmations\.json is damaged \(at .*; .*start a new search"):
        CONFIRMATIONS.read(paths, "default")


@pytest.mark.parametrize("content", ["empty", "zeros", "cut", "nested", "no text"])
def test_other_damaged_files_are_named_in_the_error(paths: ProjectPaths, content: str) -> None:
    for path in (paths.test_readings, paths.state_dir / "password", paths.root / "card.json"):
        path.write_bytes(DAMAGED[content])
    with pytest.raises(ArtifactError, match=r"test-readings\.json is damaged .*delete it to restart the count"):
        count_reading(paths.test_readings, "abc")
    with pytest.raises(ArtifactError, match=r"card\.json is damaged"):
        read_json(paths.root / "card.json")
    if content in ("empty", "no text"):
        with pytest.raises(WinnowError, match=r"password .*; delete it, and a new password is generated"):
            passwords.project_password(paths)
