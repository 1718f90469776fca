from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from tasks.project.paths import check_files
from tasks.versioning import installed_code
from tests.conftest import CLASSES, write_folder
from winnow.cli.init import FILES, create_project
from winnow.cli.main import cli
from winnow.config import load_config
from winnow.errors import ConfigError, DataError, WinnowError


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "photos")


def read_params(root: Path) -> dict:
    return yaml.safe_load((root / "params.yaml").read_text(encoding="utf-8"))


def test_a_project_is_valid_and_says_what_was_chosen(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "new" / "shop"
    assert create_project(root, str(photos)) == 0
    config = load_config(root / "params.yaml")
    check_files(config, root)
    assert (config.data.source, config.data.path) == ("folder", str(photos))
    assert all((root / name).is_file() for name in FILES)
    assert (root / ".git").is_dir()
    assert (root / ".dvc" / "config").read_text(encoding="utf-8").count("analytics = false") == 1
    printed = capsys.readouterr().out
    assert "36 images: disc 12, stripes 12, wedge 12; 0 without a label" in printed
    gate = config.promotion.gates.max_drop_points
    assert f"promotion.gates.max_drop_points: {gate}   # about 6 validation images" in printed
    text = (root / "params.yaml").read_text(encoding="utf-8")
    assert "source: folder              # sample | folder | archive | cifar10" in text
    assert f"max_drop_points: {gate}  # about 6 validation images cannot show a smaller loss" in text


def test_dvc_reads_the_project(photos: Path, tmp_path: Path) -> None:
    create_project(tmp_path / "shop", str(photos))
    status = subprocess.run(
        ["dvc", "status", "--json"], cwd=tmp_path / "shop", capture_output=True, text=True, check=False
    )
    assert status.returncode == 0, status.stderr
    assert {"ingest", "candidate@pruned", "report"} <= set(yaml.safe_load(status.stdout))
    missing = [path for path in installed_code.installed_digests() if path not in digest_files(tmp_path / "shop")]
    assert missing == []


def digest_files(root: Path) -> set[str]:
    return {path.stem for path in (root / installed_code.FOLDER).glob("*.yaml")}


def test_images_inside_the_project_have_a_relative_path(photos: Path, tmp_path: Path) -> None:
    root = tmp_path / "shop"
    (root / "data").mkdir(parents=True)
    shutil.move(photos, root / "data" / "photos")
    create_project(root, str(root / "data" / "photos"))
    assert read_params(root)["data"]["path"] == "data/photos"


@pytest.mark.parametrize("where", [".", "..", "labels.csv", "../labels.csv"])
def test_a_project_among_its_images_is_refused(photos: Path, where: str) -> None:
    """`winnow run` would refuse it: the results of the project would be among the images."""
    root = photos if where in (".", "labels.csv") else photos / "shop"
    for folder in (photos, photos / "shop"):
        folder.mkdir(exist_ok=True)
    (photos / "labels.csv").write_text("path,label\ndisc/000.png,a\nstripes/000.png,b\n", encoding="utf-8")
    before = sorted(path for path in photos.rglob("*"))
    with pytest.raises(ConfigError, match=r"holds the project itself .*create the project elsewhere"):
        create_project(root, str(root / where))
    assert sorted(path for path in photos.rglob("*")) == before


@pytest.mark.parametrize("name", ["on", "1:30", "2024", "null"])
def test_a_folder_whose_name_yaml_would_change_stays_text(photos: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "shop").mkdir()
    shutil.move(photos, tmp_path / "shop" / name)
    create_project(tmp_path / "shop", str(tmp_path / "shop" / name))
    assert read_params(tmp_path / "shop")["data"]["path"] == name


def test_a_table_of_labels_names_the_folder_beside_it(photos: Path, tmp_path: Path) -> None:
    table = photos / "labels.csv"
    rows = [f"{path.relative_to(photos).as_posix()},{path.parent.name}" for path in sorted(photos.glob("*/*"))]
    table.write_text("path,label\n" + "\n".join(rows), encoding="utf-8")
    create_project(tmp_path / "shop", str(table))
    data = read_params(tmp_path / "shop")["data"]
    assert (data["path"], data["labels"]) == (str(photos), str(table))


def test_an_archive_and_s3_are_sources_too(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive = shutil.make_archive(str(tmp_path / "photos"), "zip", photos)
    create_project(tmp_path / "zipped", archive)
    assert read_params(tmp_path / "zipped")["data"]["source"] == "archive"
    create_project(tmp_path / "cloud", "s3://bucket/photos")
    data = read_params(tmp_path / "cloud")["data"]
    assert (data["source"], data["path"], data["fetch"]) == ("folder", "photos", "s3://bucket/photos")
    assert "winnow fetch" in capsys.readouterr().out


def test_without_images_the_next_step_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    create_project(tmp_path / "empty", None)
    assert "put images into photos/CLASS/" in capsys.readouterr().out


@pytest.mark.parametrize("images", ["missing", "notes.txt", "one-class"])
def test_unusable_images_leave_nothing_behind(tmp_path: Path, images: str) -> None:
    (tmp_path / "notes.txt").write_text("no images")
    write_folder(tmp_path / "one-class")
    for name in CLASSES[1:]:
        shutil.rmtree(tmp_path / "one-class" / name)
    with pytest.raises((ConfigError, DataError)):
        create_project(tmp_path / "shop", str(tmp_path / images))
    assert not (tmp_path / "shop").exists()


def test_an_existing_project_is_not_touched(photos: Path, tmp_path: Path) -> None:
    root = tmp_path / "shop"
    create_project(root, str(photos))
    before = {path: path.read_bytes() for path in root.glob("*") if path.is_file()}
    with pytest.raises(ConfigError, match=r"params\.yaml, dvc\.yaml"):
        create_project(root, str(photos))
    assert {path: path.read_bytes() for path in root.glob("*") if path.is_file()} == before


def test_a_read_only_place_is_named(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(WinnowError, match="cannot be written"):
        create_project(tmp_path / "file" / "shop", str(photos))


def test_a_failure_of_git_leaves_nothing_behind(photos: Path, tmp_path: Path) -> None:
    root = tmp_path / "shop"
    root.mkdir()
    (root / ".git").write_text("no repository", encoding="utf-8")
    with pytest.raises(WinnowError, match="git init"):
        create_project(root, str(photos))
    assert [path.name for path in root.iterdir() if path.is_file()] == [".git"]
    (root / ".git").unlink()
    assert create_project(root, str(photos)) == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")
def test_a_folder_of_another_user_is_named(photos: Path, tmp_path: Path) -> None:
    root = tmp_path / "shop"
    root.mkdir()
    subprocess.run(["git", "init", "-q", root], check=True)
    for path in (root, root / ".git"):
        os.chown(path, 12345, 12345)
    with pytest.raises(WinnowError, match="belongs to another user"):
        create_project(root, str(photos))
    assert [path.name for path in root.iterdir()] == [".git"]


def test_within_a_git_repository_none_is_created(photos: Path, tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", tmp_path / "all"], check=True)
    create_project(tmp_path / "all" / "shop", str(photos))
    assert not (tmp_path / "all" / "shop" / ".git").exists()
    assert (tmp_path / "all" / "shop" / ".dvc" / "config").is_file()


def test_an_upgrade_is_named_and_renewed(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "shop"
    create_project(root, str(photos))
    digests = root / installed_code.FOLDER / "prune.yaml"
    installed = digests.read_text(encoding="utf-8")
    digests.write_text("winnow/compression/prune.py: '0'\n", encoding="utf-8")
    changed = installed_code.changed_code(root, load_config(root / "params.yaml"))
    assert changed == {"candidate@pruned": ["winnow/compression/prune.py"]}
    monkeypatch.chdir(root)
    result = CliRunner().invoke(cli, ["init", "--update"])
    assert "candidate@pruned: 1 code files have changed, winnow/compression/prune.py is the first" in result.output
    assert digests.read_text(encoding="utf-8") == installed
    result = CliRunner().invoke(cli, ["init", "--update"])
    assert "no step has other code than before" in result.output


def test_the_command_needs_a_folder() -> None:
    result = CliRunner().invoke(cli, ["init"])
    assert result.exit_code == 2
    assert "winnow init ." in result.output
