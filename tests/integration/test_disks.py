"""Test full and read-only disks: on a tmpfs where one can be mounted, else with a limit on the size of files.

Each command ends with one message and status 2, and leaves no partial file.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from safetensors import SafetensorError

from tasks.project.disk_errors import describe_disk_error, describe_path_error
from tasks.project.paths import ProjectPaths
from tasks.registry import registered_models
from tasks.tracking import tracked_runs
from tasks.tracking.mlflow_client import StoreError
from tests.closure import ROOT
from tests.conftest import tiny_params, write_folder, write_set
from tests.records import embed_details, make_record
from winnow.config import Config
from winnow.records import atomic_path, write_json, write_record

pytest_plugins = "tests.stores"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a disk of 24 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def write_project(root: Path) -> Path:
    """Write a project with photographs, ready for its first step."""
    write_folder(root / "photos")
    params = tiny_params()
    params["data"] |= {"source": "folder", "path": "photos"}
    (root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    shutil.copyfile(ROOT / "dvc.yaml", root / "dvc.yaml")
    (root / "winnow").symlink_to(ROOT / "winnow")
    return root


def run_module(
    root: Path, *arguments: str, max_bytes: int = resource.RLIM_INFINITY
) -> subprocess.CompletedProcess[str]:
    """Run a module in the project; no file may exceed `max_bytes`."""

    def limit_file_size() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (max_bytes, max_bytes))

    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        preexec_fn=limit_file_size,
        capture_output=True,
        text=True,
        check=False,
    )


def assert_error(result: subprocess.CompletedProcess[str], message: str) -> None:
    assert result.returncode == 2, result.stderr[-2000:]
    assert message in result.stderr
    assert "Traceback" not in result.stderr + result.stdout


def temporary_files(root: Path) -> list[str]:
    return [str(path) for path in root.rglob("*.tmp")]


def fill(disk: Path, free_bytes: int) -> Path:
    """Fill the disk except for `free_bytes`."""
    filler = disk / "filler"
    with filler.open("wb") as file:
        file.write(bytes(max(0, shutil.disk_usage(disk).free - free_bytes)))
    return filler


@pytest.mark.thorough
def test_a_limit_on_the_size_of_files_is_told(tmp_path: Path) -> None:
    result = run_module(write_project(tmp_path), "tasks", "ingest", max_bytes=20_000)
    assert_error(result, "the disk is full, or a quota is used up")
    assert temporary_files(tmp_path) == []
    assert not (tmp_path / "artifacts" / "data").exists()


@pytest.mark.thorough
def test_a_disk_that_fills_up_during_training_is_told_and_work_goes_on(small_disk: Path) -> None:
    root = write_project(small_disk)
    write_set(root / "artifacts" / "data")
    (root / "artifacts" / "embed").mkdir()
    write_record(root / "artifacts" / "embed", make_record("embed", embed_details()))
    filler = fill(root, 200_000)
    result = run_module(root, "tasks", "pretrain")
    assert_error(result, "the disk is full, or a quota is used up")
    assert "free space, and run the same command again" in result.stderr
    assert temporary_files(root) == []
    filler.unlink()
    assert run_module(root, "tasks", "pretrain").returncode == 0


@pytest.mark.thorough
def test_a_full_disk_is_an_error_of_the_command_line(small_disk: Path) -> None:
    root = write_project(small_disk)
    fill(root, 0)
    assert_error(
        run_module(root, "winnow.cli.main", "run", "-S", "data.image_size=32"),
        "the disk is full, or a quota is used up",
    )
    assert yaml.safe_load((root / "params.yaml").read_text())["data"]["image_size"] == 16
    assert temporary_files(root) == []


@pytest.mark.thorough
def test_a_run_that_has_no_room_does_not_begin(small_disk: Path) -> None:
    root = write_project(small_disk)
    (root / "data").mkdir()
    (root / "data" / "none").touch()
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    (root / ".dvc").mkdir()
    shutil.copyfile(ROOT / ".dvc" / "config", root / ".dvc" / "config")
    assert_error(
        run_module(root, "winnow.cli.main", "run"), "MB left, and a run needs 64 MB before its first step; free space"
    )


@pytest.mark.thorough
@pytest.mark.parametrize("command", [("winnow.cli.main", "status"), ("winnow.cli.main", "run"), ("tasks", "ingest")])
def test_a_read_only_project_is_told(small_disk: Path, command: tuple[str, ...]) -> None:
    root = write_project(small_disk)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert_error(run_module(root, *command), "the disk is mounted read-only; winnow writes to")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/p/a"), "the disk is full, .*/p/a cannot be written"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "the disk is full, .*/project cannot be written"),
        (OSError("1000 requested and 12 written"), "the disk is full"),
        (SafetensorError("I/O error: No space left on device (os error 28)"), "the disk is full"),
        (sqlite3.OperationalError("database or disk is full"), "the disk is full"),
        (
            OSError(errno.EROFS, "Read-only file system", "/p/a"),
            "/p/a cannot be written: the disk is mounted read-only",
        ),
        (sqlite3.OperationalError("attempt to write a readonly database"), "mounted read-only"),
        (PermissionError(errno.EACCES, "Permission denied", "/p/a"), "/p/a: permission denied"),
    ],
)
def test_disk_errors_of_libraries_are_described(error: Exception, message: str) -> None:
    for exception in (error, wrap_error(error)):
        text = describe_disk_error(exception, Path("/project"))
        assert text is not None
        with pytest.raises(RuntimeError, match=message):
            raise RuntimeError(text)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENAMETOOLONG, "File name too long", "/p/xxx"),
        NotADirectoryError(errno.ENOTDIR, "Not a directory", "/p/xxx"),
        IsADirectoryError(errno.EISDIR, "Is a directory", "/p/xxx"),
    ],
)
def test_paths_that_cannot_be_are_described_to_users_alone(error: Exception) -> None:
    for exception in (error, wrap_error(error)):
        message = describe_path_error(exception)
        assert message is not None
        assert message.startswith("/p/xxx cannot be read or written")
        assert describe_disk_error(exception, Path("/project")) is None  # in a step it is a fault of ours
    assert describe_path_error(FileNotFoundError(errno.ENOENT, "No such file", "/p")) is None


def wrap_error(error: Exception) -> Exception:
    """Return an error whose cause is the given one."""
    wrapper = RuntimeError("outer")
    wrapper.__cause__ = error
    return wrapper


@pytest.mark.parametrize("error", [ValueError("x"), OSError(errno.ENOENT, "No such file"), PermissionError("x")])
def test_other_errors_are_not_described(error: Exception) -> None:
    assert describe_disk_error(error, Path("/project")) is None


def test_a_partial_file_is_removed(tmp_path: Path) -> None:
    def write_half(path: Path) -> None:
        with atomic_path(path) as partial:
            partial.write_text("half")
            raise OSError(errno.ENOSPC, "No space left on device")

    writes: list[Callable[[], object]] = [
        lambda: write_half(tmp_path / "part"),
        lambda: write_json(tmp_path / "a.json", float("nan")),
    ]
    for write in writes:
        with pytest.raises((OSError, ValueError)):
            write()
    assert list(tmp_path.iterdir()) == []


def truncate(database: Path) -> None:
    database.write_bytes(database.read_bytes()[: database.stat().st_size // 2])


def clear_first_page(database: Path) -> None:
    database.write_bytes(bytes(4096) + database.read_bytes()[4096:])


def set_unknown_version(database: Path) -> None:
    with contextlib.closing(sqlite3.connect(database)) as connection:
        connection.execute("update alembic_version set version_num = 'ffffffffffff'")
        connection.commit()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, "The file is damaged. Move it away and keep it"),
        (clear_first_page, "The file is damaged. Move it away and keep it"),
        (set_unknown_version, "Another version of MLflow created that file"),
    ],
)
def test_a_damaged_store_of_mlflow_is_told(
    paths: ProjectPaths, config: Config, damage: Callable[[Path], None], message: str
) -> None:
    damage(paths.state_dir / "mlflow" / "mlflow.db")
    with pytest.raises(StoreError, match=message):
        tracked_runs.track(paths, config)
    with pytest.raises(StoreError, match=message):
        registered_models.find(paths, "model", "champion")
