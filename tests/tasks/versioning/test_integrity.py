"""Check the detection of bytes changed in place in a DVC cache whose files are hard links of artifacts/."""

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
    dvc_config = (ROOT / ".dvc" / "config").read_text().replace("[core]\n", "[core]\n    no_scm = true\n")
    (tmp_path / ".dvc" / "config").write_text(dvc_config)
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


def damage(path: Path, keep_mtime: bool = False) -> bytes:
    """Change a byte in place, keep the file's mode and return the previous content."""
    stat, content = path.stat(), path.read_bytes()
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.write(bytes([content[0] ^ 1]))
    path.chmod(stat.st_mode)
    if keep_mtime:
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    return content


def test_intact_files_are_hashed_once(project: Path) -> None:
    paths = ProjectPaths(project)
    assert integrity.find_damaged(paths) == []
    verified = VERIFIED.read(paths)
    assert len(verified) == 4  # two listings, deep/more, and one object for images.npy and its copy
    integrity.check(paths)


def test_dvc_alone_restores_the_damaged_file(project: Path) -> None:
    """If this fails, DVC checks content itself and tasks/versioning/integrity.py is no longer needed."""
    content = damage(project / IMAGES)
    assert run(project, "ingest") in ("restored", "unchanged")
    assert (project / IMAGES).read_bytes() != content


@pytest.mark.parametrize("checked_before", [True, False])
def test_damage_is_seen_said_and_repaired(project: Path, checked_before: bool) -> None:
    paths, config = ProjectPaths(project), load_config(project / "params.yaml")
    if checked_before:
        assert stale_stages(project, config) == {}
    content = damage(project / IMAGES)
    names = {str(entry.path.relative_to(project)) for entry in integrity.find_damaged(paths)}
    assert names == {str(IMAGES), "artifacts/pretrain/copied"}
    assert any("artifacts/data/images.npy is damaged" in reason for reason in stale_stages(project, config)["ingest"])
    with pytest.raises(ArtifactError, match=r"images\.npy, .*copied are damaged: .*`winnow run` creates it"):
        integrity.check(paths)
    integrity.remove_damaged(paths, integrity.find_damaged(paths))
    assert not (project / IMAGES).exists()
    assert [run(project, stage) for stage in ("ingest", "pretrain")] == ["ran", "unchanged"]
    assert (project / IMAGES).read_bytes() == (project / "artifacts/pretrain/copied").read_bytes() == content
    assert integrity.find_damaged(paths, full=True) == []
    assert stale_stages(project, config) == {}


def test_a_disk_that_changes_bytes_and_no_times_is_found_by_the_full_look(project: Path) -> None:
    paths = ProjectPaths(project)
    assert integrity.find_damaged(paths) == []
    damage(project / IMAGES, keep_mtime=True)
    assert integrity.find_damaged(paths) == []
    assert {entry.path.name for entry in integrity.find_damaged(paths, full=True)} == {"images.npy", "copied"}
    assert {entry.path.name for entry in integrity.find_damaged(paths)} == {
        "images.npy",
        "copied",
    }  # still reported


def test_an_intact_copy_is_kept_when_its_cache_object_is_damaged(project: Path) -> None:
    """A copied artifact does not share bytes with the cache."""
    paths, image_file = ProjectPaths(project), project / IMAGES
    content = image_file.read_bytes()
    image_file.unlink()
    image_file.write_bytes(content)
    damage(
        next(
            entry.content
            for entry in integrity.find_damaged(paths, full=True) or integrity._entries(paths)
            if entry.path == image_file
        )
    )
    integrity.remove_damaged(paths, integrity.find_damaged(paths))
    assert image_file.read_bytes() == content


def test_a_damaged_restored_result_is_detected(project: Path) -> None:
    """DVC keeps results of earlier settings and restores them when these settings return."""
    paths, params = ProjectPaths(project), project / "params.yaml"
    integrity.find_damaged(paths)
    text, objects = params.read_text(), {entry.path: entry.content for entry in integrity._entries(paths)}
    (project / "dvc.yaml").write_text(PIPELINE.replace("echo pixels", "echo others"))
    assert run(project, "ingest") == "ran"
    damage(objects[project / IMAGES])
    (project / "dvc.yaml").write_text(PIPELINE)
    assert run(project, "ingest") == "restored"
    assert params.read_text() == text
    assert str(IMAGES) in integrity.describe_damaged(paths, integrity.find_damaged(paths))


@pytest.mark.parametrize("content", ["", "stages: [", "stages:\n  a:\n    outs: 3\n", "[]", "stages:\n  a: 1\n"])
def test_a_lock_that_cannot_be_read_is_dvcs_to_tell_of(tmp_path: Path, content: str) -> None:
    (tmp_path / "dvc.lock").write_text(content)
    assert integrity.find_damaged(ProjectPaths(tmp_path)) == []


@pytest.mark.parametrize("content", ["", "[]", "{", '{"a": 1}'])
def test_a_damaged_list_of_verified_files_only_repeats_the_check(project: Path, content: str) -> None:
    paths = ProjectPaths(project)
    integrity.find_damaged(paths)
    (paths.state_dir / "verified.json").write_text(content)
    assert integrity.find_damaged(paths) == []
