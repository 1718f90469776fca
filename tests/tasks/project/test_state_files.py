"""Whatever lies in the state directory, its readers return something of its type or say which file to mend."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks.project import announced_servers, passwords, run_lock
from tasks.project.paths import ProjectPaths
from tasks.project.state_files import read_cache, read_required
from tasks.registry import promotion_state
from tasks.tracking import tracked_runs
from tasks.versioning import integrity
from winnow.cli import plan, run
from winnow.errors import ArtifactError, WinnowError
from winnow.records import read_json, write_json
from winnow.steps.report import count_reading

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
def places(tmp_path: Path) -> ProjectPaths:
    (tmp_path / ".winnow" / "versions").mkdir(parents=True)
    (tmp_path / "params.yaml").write_text("data: 1\n")
    return ProjectPaths(tmp_path)


MEMORIES: dict[str, Callable[[ProjectPaths], Any]] = {
    tracked_runs.CACHE_FILE: tracked_runs.read_runs,
    promotion_state.STATE_FILE: promotion_state.read_reasons,
    "servers.json": announced_servers.read_announcement,
    "verified.json": integrity._verified,
    "plan.json": lambda places: plan.compare_with_plan(places, {"pretrain": {}})[0],
    "versions/pretrain.json": run.version_changes,
    "run.step": run_lock._step_of,
}


@pytest.mark.parametrize("content", DAMAGED)
@pytest.mark.parametrize("name", MEMORIES)
def test_a_memory_that_is_damaged_is_passed_over(places: ProjectPaths, name: str, content: str) -> None:
    (places.state_dir / name).write_bytes(DAMAGED[content])
    assert not MEMORIES[name](places)


@pytest.mark.parametrize("name", MEMORIES)
def test_a_folder_in_its_place_is_passed_over(places: ProjectPaths, name: str) -> None:
    (places.state_dir / name).mkdir()
    assert not MEMORIES[name](places)


def test_what_is_passed_over_is_logged(places: ProjectPaths, caplog: pytest.LogCaptureFixture) -> None:
    path = places.state_dir / "some.json"
    assert read_cache(path, dict[str, int], {"b": 1}) == {"b": 1}
    assert not caplog.records
    path.write_text('{"a": "x"}')
    with caplog.at_level(logging.WARNING):
        assert read_cache(path, dict[str, int], {}) == {}
    assert f"{path} is damaged (at a: " in caplog.text
    write_json(path, {"a": 2})
    assert read_cache(path, dict[str, int], {}) == {"a": 2}


@pytest.mark.parametrize("content", DAMAGED)
def test_what_cannot_be_made_anew_is_named(places: ProjectPaths, content: str) -> None:
    path = places.state_dir / "confirmations.json"
    assert read_required(path, list[int], [], "search anew") == []
    path.write_bytes(DAMAGED[content])
    with pytest.raises(ArtifactError, match=r"confirmations\.json is damaged \(at .*; search anew"):
        read_required(path, list[int], [], "search anew")


@pytest.mark.parametrize("content", ["empty", "zeros", "cut", "nested", "no text"])
def test_other_files_are_named(places: ProjectPaths, content: str) -> None:
    for path in (places.test_readings, places.state_dir / "password", places.root / "card.json"):
        path.write_bytes(DAMAGED[content])
    with pytest.raises(ArtifactError, match=r"test-readings\.json is damaged .*delete it to restart the count"):
        count_reading(places.test_readings, "abc")
    with pytest.raises(ArtifactError, match=r"card\.json is damaged"):
        read_json(places.root / "card.json")
    if content in ("empty", "no text"):
        with pytest.raises(WinnowError, match=r"password .*; delete it, and a new password is generated"):
            passwords.project_password(places)
