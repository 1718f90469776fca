"""Follow docs/tutorial.md word for word, in an empty folder, with only the wheel of winnow."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from tests.closure import ROOT
from tests.integration.conftest import run_params, write_photos
from tests.wheel import build_wheel

pytestmark = pytest.mark.slow
SERVERS = {"winnow ui": "http://127.0.0.1:5000/health", "winnow serve": "http://127.0.0.1:8000/health"}
"""Commands that run until Ctrl-C, and the address that responds once they are ready."""


def tutorial_commands(photos: Path) -> list[str]:
    """Return the commands of the tutorial in their order, without the set-up, with another folder of photographs."""
    text = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8").partition("## 3. Create a project")[2]
    commands = re.findall(r"^    ((?:winnow|cd|git|curl|python) .*)$", text, re.MULTILINE)
    return [command.replace("/photos", str(photos)) for command in commands]


@pytest.fixture
def shell(tmp_path: Path) -> dict[str, str]:
    """Return the environment of a shell whose only winnow is that of the wheel."""
    installed, wheel = tmp_path / "installed", build_wheel(tmp_path / "build")
    command = [sys.executable, "-m", "uv", "pip", "install", "--no-deps", "--target", installed, wheel]
    subprocess.run(command, capture_output=True, check=True)
    (tmp_path / "home").mkdir()
    path = os.pathsep.join([str(installed / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
    inherited = {
        key: value for key, value in os.environ.items() if not key.startswith(("WINNOW_", "MLFLOW_", "PREFECT_"))
    }
    git = {f"GIT_{who}_{what}": "tests" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    return {**inherited, **git, "PATH": path, "PYTHONPATH": str(installed), "HOME": str(tmp_path / "home")}


def make_quick(params: Path) -> None:
    """Replace trainings, candidates and limits by those of the tests, which take seconds."""
    document = yaml.safe_load(params.read_text(encoding="utf-8"))
    params.write_text(
        yaml.safe_dump({**document, **{key: value for key, value in run_params().items() if key != "data"}})
    )


@contextlib.contextmanager
def server(command: str, folder: Path, shell: dict[str, str]) -> Iterator[None]:
    process = subprocess.Popen(command.split(), cwd=folder, env=shell, start_new_session=True)
    try:
        deadline = time.monotonic() + 180
        while True:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(SERVERS[command], timeout=5).status_code < 500:
                    break
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.5)
        yield
    finally:
        os.killpg(process.pid, signal.SIGINT)
        process.wait(timeout=60)


def test_every_command_of_the_tutorial_works_with_the_wheel_alone(tmp_path: Path, shell: dict[str, str]) -> None:
    photos, folder = tmp_path / "photos", tmp_path
    write_photos(photos / "fruit", (40, 48), "jpg")
    shutil.copytree(photos / "fruit" / "disc", photos / "new")
    commands = tutorial_commands(photos)
    assert len(commands) > 12
    with contextlib.ExitStack() as servers:
        for command in commands:
            if command in SERVERS:
                servers.enter_context(server(command, folder, shell))
                continue
            if command.startswith("cd "):
                folder = folder / command.removeprefix("cd ")
                make_quick(folder / "params.yaml")
                for index in (1, 2):
                    shutil.copy(photos / "new" / "01.jpg", folder / f"new{index}.jpg")
                continue
            result = subprocess.run(
                command, shell=True, cwd=folder, env=shell, capture_output=True, text=True, check=False
            )
            assert "Traceback" not in result.stderr, (command, result.stderr)
            # With one champion there is nothing to roll back to.
            assert result.returncode == (2 if command.startswith("winnow rollback") else 0), (command, result.stderr)
            if command.startswith("curl"):
                assert '"class"' in result.stdout
    assert "winnow" not in {path.name for path in folder.iterdir()}
    locked = yaml.safe_load((folder / "dvc.lock").read_text(encoding="utf-8"))["stages"]
    assert "code_digests/prune.yaml" in {dep["path"] for dep in locked["candidate@pruned"]["deps"]}
