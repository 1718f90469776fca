from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tasks.project.paths import ProjectPaths
from tasks.registry import known_versions, registered_models
from tasks.registry.promotion import promote
from tasks.registry.registered_models import CHAMPION
from tests.closure import ROOT
from tests.handmade import MODEL, write_run
from winnow.errors import WinnowError

pytestmark = pytest.mark.thorough
pytest_plugins = "tests.stores"
LOOK_UP = """
import sys
from pathlib import Path
from tasks.project.paths import ProjectPaths
from tasks.registry import registered_models
version = registered_models.get(ProjectPaths(Path(sys.argv[1])), sys.argv[2], "champion")
print(version.number, "mlflow" in sys.modules)
"""


def age_store(paths: ProjectPaths, seconds: float) -> None:
    """Let the store have been changed this long ago."""
    for file in (paths.state_dir / "mlflow").glob("mlflow.db*"):
        then = time.time() - seconds
        os.utime(file, (then, then))


def look_up(paths: ProjectPaths) -> str:
    """Return the champion's number and whether MLflow was imported, from a process of its own."""
    command = [sys.executable, "-c", LOOK_UP, str(paths.root), MODEL]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def test_an_unchanged_store_is_not_asked_again(paths: ProjectPaths) -> None:
    promote(paths, write_run(paths.root, "quick"))
    age_store(paths, 0)
    registered_models.get(paths, MODEL, CHAMPION)
    assert known_versions.read_version(paths, MODEL, CHAMPION) is None  # the store has just been written
    age_store(paths, 10)
    assert look_up(paths) == "1 True"
    assert look_up(paths) == "1 False"


def test_a_change_of_the_store_is_seen_at_once(paths: ProjectPaths) -> None:
    promote(paths, write_run(paths.root, "quick"))
    age_store(paths, 10)
    version = registered_models.get(paths, MODEL, CHAMPION)
    known = known_versions.read_version(paths, MODEL, CHAMPION)
    assert known is not None
    assert registered_models.get(paths, MODEL, CHAMPION) == version
    assert known_versions.read_version(paths, MODEL, "2") is None
    registered_models.set_alias(paths, MODEL, CHAMPION, None)
    assert known_versions.read_version(paths, MODEL, CHAMPION) is None
    with pytest.raises(WinnowError, match="nothing has been promoted yet"):
        registered_models.get(paths, MODEL, CHAMPION)


def test_versions_on_a_server_are_always_looked_up(paths: ProjectPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    promote(paths, write_run(paths.root, "quick"))
    age_store(paths, 10)
    registered_models.get(paths, MODEL, CHAMPION)
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "http://127.0.0.1:1")
    assert known_versions.store_fingerprint(paths) == []
    assert known_versions.read_version(paths, MODEL, CHAMPION) is None


def test_a_damaged_cache_is_ignored(paths: ProjectPaths) -> None:
    promote(paths, write_run(paths.root, "quick"))
    age_store(paths, 10)
    version = registered_models.get(paths, MODEL, CHAMPION)
    file: Path = paths.state_dir / "known-versions.json"
    file.write_text("{", encoding="utf-8")
    assert registered_models.get(paths, MODEL, CHAMPION) == version


def test_a_cache_that_cannot_be_written_is_no_error(paths: ProjectPaths) -> None:
    promote(paths, write_run(paths.root, "quick"))
    age_store(paths, 10)
    (paths.state_dir / "known-versions.json").mkdir()
    assert registered_models.get(paths, MODEL, CHAMPION).number == "1"
