"""Bytes that are changed in place, behind DVC's back, in a cache that shares its files with artifacts/."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tasks.project.paths import ProjectPaths
from tasks.project.state_files import VERIFIED
from tasks.versioning import integrity
from tasks.versioning.dvc_stages import command, environment, parse_outcome, stale_stages, start_stage
from tests.closure import ROOT
from winnow.config import load_config
from winnow.errors import ArtifactError

pytestmark = pytest.mark.thorough

PIPELINE = """
stages:
  ingest:
    cmd: mkdir -p artifacts/data/deep && echo pixels > artifacts/data/images.npy && echo more > artifacts/data/deep/more
    params: [data.image_size]
    outs: [artifacts/data]
  pretrain:
    cmd: mkdir -p artifacts/pretrain && cp artifacts/data/images.npy artifacts/pretrain/copied
    deps: [artifacts/data]
    outs: [artifacts/pretrain]
"""
IMAGES = Path("artifacts/data/images.npy")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    shutil.copyfile(ROOT / "params.yaml", tmp_path / "params.yaml")
    subprocess.run(command("init", "--no-scm", "-q"), cwd=tmp_path, env=environment(), check=True)
    shipped = (ROOT / ".dvc" / "config").read_text().replace("[core]\n", "[core]\n    no_scm = true\n")
    (tmp_path / ".dvc" / "config").write_text(shipped)
    (tmp_path / "dvc.yaml").write_text(PIPELINE)
    for stage in ("ingest", "pretrain"):
        assert run(tmp_path, stage) == "ran"
    return tmp_path


def run(project: Path, stage: str) -> str:
    with start_stage(project, stage) as child:
        assert child.stdout is not None
        lines = child.stdout.read().splitlines()
    assert child.returncode == 0, lines
    return parse_outcome(lines)


def damage(path: Path, keep_time: bool = False) -> bytes:
    """Change a byte in place, with the file's mode as it is, as an account that may do everything can -> before."""
    about, content = path.stat(), path.read_bytes()
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.write(bytes([content[0] ^ 1]))
    path.chmod(about.st_mode)
    if keep_time:
        os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    return content


def test_what_is_right_is_looked_at_once(project: Path) -> None:
    paths = ProjectPaths(project)
    assert integrity.find_damaged(paths) == []
    seen = VERIFIED.read(paths)
    assert len(seen) == 4  # two listings, deep/more, and one object for images.npy and its copy
    integrity.check(paths)


def test_dvc_alone_puts_the_damaged_file_back(project: Path) -> None:
    """If this fails DVC looks itself, and tasks/versioning/integrity.py may go."""
    good = damage(project / IMAGES)
    assert run(project, "ingest") in ("restored", "unchanged")
    assert (project / IMAGES).read_bytes() != good


@pytest.mark.parametrize("looked_before", [True, False])
def test_damage_is_seen_said_and_repaired(project: Path, looked_before: bool) -> None:
    paths, config = ProjectPaths(project), load_config(project / "params.yaml")
    if looked_before:
        assert stale_stages(project, config) == {}
    good = damage(project / IMAGES)
    names = {str(entry.path.relative_to(project)) for entry in integrity.find_damaged(paths)}
    assert names == {str(IMAGES), "artifacts/pretrain/copied"}
    assert any("artifacts/data/images.npy is damaged" in reason for reason in stale_stages(project, config)["ingest"])
    with pytest.raises(ArtifactError, match=r"images\.npy, .*copied are damaged: .*`winnow run` creates it"):
        integrity.check(paths)
    integrity.remove_damaged(paths, integrity.find_damaged(paths))
    assert not (project / IMAGES).exists()
    assert [run(project, stage) for stage in ("ingest", "pretrain")] == ["ran", "unchanged"]
    assert (project / IMAGES).read_bytes() == (project / "artifacts/pretrain/copied").read_bytes() == good
    assert integrity.find_damaged(paths, full=True) == []
    assert stale_stages(project, config) == {}


def test_a_disk_that_changes_bytes_and_no_times_is_found_by_the_full_look(project: Path) -> None:
    paths = ProjectPaths(project)
    assert integrity.find_damaged(paths) == []
    damage(project / IMAGES, keep_time=True)
    assert integrity.find_damaged(paths) == []
    assert {entry.path.name for entry in integrity.find_damaged(paths, full=True)} == {"images.npy", "copied"}
    assert {entry.path.name for entry in integrity.find_damaged(paths)} == {
        "images.npy",
        "copied",
    }  # it stays in doubt


def test_a_good_file_of_its_own_stays_and_the_object_is_made_from_it(project: Path) -> None:
    """Where artifacts are copies, damage to the cache is none to them."""
    paths, mine = ProjectPaths(project), project / IMAGES
    content = mine.read_bytes()
    mine.unlink()
    mine.write_bytes(content)
    damage(
        next(
            entry.content
            for entry in integrity.find_damaged(paths, full=True) or integrity._entries(paths)
            if entry.path == mine
        )
    )
    integrity.remove_damaged(paths, integrity.find_damaged(paths))
    assert mine.read_bytes() == content


def test_an_older_result_that_comes_back_damaged_is_seen(project: Path) -> None:
    """DVC keeps results of other settings, and restores them when these come back."""
    paths, params = ProjectPaths(project), project / "params.yaml"
    integrity.find_damaged(paths)
    text, kept = params.read_text(), {entry.path: entry.content for entry in integrity._entries(paths)}
    (project / "dvc.yaml").write_text(PIPELINE.replace("echo pixels", "echo others"))
    assert run(project, "ingest") == "ran"
    damage(kept[project / IMAGES])
    (project / "dvc.yaml").write_text(PIPELINE)
    assert run(project, "ingest") == "restored"
    assert params.read_text() == text
    assert str(IMAGES) in integrity.describe_damaged(paths, integrity.find_damaged(paths))


@pytest.mark.parametrize("content", ["", "stages: [", "stages:\n  a:\n    outs: 3\n", "[]", "stages:\n  a: 1\n"])
def test_a_lock_that_cannot_be_read_is_dvcs_to_tell_of(tmp_path: Path, content: str) -> None:
    (tmp_path / "dvc.lock").write_text(content)
    assert integrity.find_damaged(ProjectPaths(tmp_path)) == []


@pytest.mark.parametrize("content", ["", "[]", "{", '{"a": 1}'])
def test_a_damaged_list_of_looks_costs_another_look(project: Path, content: str) -> None:
    paths = ProjectPaths(project)
    integrity.find_damaged(paths)
    (paths.state_dir / "verified.json").write_text(content)
    assert integrity.find_damaged(paths) == []
