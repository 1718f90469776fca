from __future__ import annotations

import csv
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tasks.project.paths import ProjectPaths
from tests.closure import ROOT
from tests.conftest import CLASSES, hide_labels, tiny_params
from tests.winnow.labels.embedded_project import name_test_set, taught_params, write_embeddings, write_project
from winnow.cli.label import check_labelled, suggest_labels
from winnow.cli.label_commands import METHODS as COMMAND_METHODS
from winnow.config import Config
from winnow.data.dataset import TEST, TRAIN, VALIDATION, load_images
from winnow.data.label_table import read_labels
from winnow.data.splits import draw_label_budget
from winnow.errors import ArtifactError, DataError
from winnow.labels.suggestion import METHODS
from winnow.steps.ingest import ingest


@pytest.fixture
def project(tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with the images of `tiny_set` and embeddings, which is the working directory."""
    root = tmp_path / "project"
    shutil.copytree(tiny_data, root / "artifacts" / "data")
    name_test_set(root / "artifacts" / "data")
    write_embeddings(root / "artifacts", write_project(root, taught_params()))
    monkeypatch.chdir(root)
    return root


def configure(root: Path, **data: Any) -> Config:
    return write_project(root, taught_params(**data))


def read_rows(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def suggest(
    root: Path, count: int = 6, method: str = "typiclust", out: str = "suggested.csv", **data: Any
) -> list[str]:
    assert suggest_labels(ProjectPaths(root), configure(root, **data), (count, method, 0), Path(out)) == 0
    rows = read_rows(root / out)
    assert all(row["label"] == "" for row in rows)
    return [row["path"] for row in rows]


def check(root: Path, out: str = "label_check.csv", **data: Any) -> list[dict[str, str]]:
    assert check_labelled(ProjectPaths(root), configure(root, **data), Path(out)) == 0
    return read_rows(root / out)


def set_labels(root: Path, labels: dict[int, int]) -> None:
    labels_N = np.array(load_images(root / "artifacts" / "data").labels_N)
    for index, label in labels.items():
        labels_N[index] = label
    np.save(root / "artifacts" / "data" / "labels.npy", labels_N)


@pytest.mark.parametrize("method", ["typiclust", "k-center", "margin", "random"])
def test_training_images_without_a_label_are_suggested(
    project: Path, method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    images = load_images(project / "artifacts" / "data")
    unlabelled = [images.files[index] for index in images.indices(TRAIN, labelled=False)]
    paths = suggest(project, method=method)
    assert len(set(paths)) == 6
    assert set(paths) <= set(unlabelled)
    out = capsys.readouterr().out
    assert f"6 of 10 training images without a label, by {method}; 110 have one" in out
    assert "Features of the teacher package:efficientnet-lite0" in out
    with Image.open(project / "suggested.png") as sheet:
        assert sheet.info["Software"] == "winnow"
    assert suggest(project, method=method) == paths


def test_labels_outside_the_budget_change_nothing(project: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    paths = suggest(project, 20, labels_per_class=5)
    assert "95 of them have labels that data.labels_per_class hides" in capsys.readouterr().out
    findings = check(project, labels_per_class=5)
    data = project / "artifacts" / "data"
    hide_labels(data, tmp_path / "hidden", 5, 0)
    shutil.copyfile(tmp_path / "hidden" / "labels.npy", data / "labels.npy")
    assert suggest(project, 20, labels_per_class=5) == paths
    assert check(project, labels_per_class=5) == findings


@pytest.mark.parametrize("method", ["typiclust", "k-center"])
def test_no_training_label_is_needed(project: Path, method: str) -> None:
    set_labels(project, dict.fromkeys(range(120), -1))
    assert len(suggest(project, 9, method)) == 9
    with pytest.raises(DataError, match="margin needs training labels of two classes or more, but there are 0"):
        suggest(project, 9, "margin", "other.csv")
    assert not (project / "other.csv").exists()


def test_the_option_offers_the_methods_of_the_library() -> None:
    assert tuple(METHODS) == COMMAND_METHODS


def test_too_many_and_none_to_suggest(project: Path) -> None:
    with pytest.raises(DataError, match="11 images were asked for, but only 10 training images can be suggested"):
        suggest(project, 11)
    set_labels(project, dict.fromkeys(range(110, 120), 1))
    with pytest.raises(DataError, match=r"no training image without a label can be suggested \(all have one\)"):
        suggest(project, 1)


def test_typed_labels_and_other_pictures_are_kept(project: Path) -> None:
    suggest(project)
    (project / "suggested.csv").write_text("path,label\n111.png,disc\n")
    with pytest.raises(DataError, match=r"suggested.csv: exists, and 1 of its labels were typed"):
        suggest(project)
    assert read_rows(project / "suggested.csv") == [{"path": "111.png", "label": "disc"}]
    Image.new("RGB", (8, 8)).save(project / "photo.png")
    with pytest.raises(DataError, match=r"photo.png: exists, and is no contact sheet"):
        suggest(project, out="photo.csv")
    assert not (project / "photo.csv").exists()


def test_missing_artifacts_name_the_command(project: Path) -> None:
    config = write_project(project, tiny_params())
    with pytest.raises(ArtifactError, match="run `dvc repro pretrain`, or `winnow run`"):
        suggest_labels(ProjectPaths(project), config, (3, "typiclust", 0), Path("suggested.csv"))
    with pytest.raises(ArtifactError, match="run `dvc repro pretrain`, or `winnow run`"):
        check_labelled(ProjectPaths(project), config, Path("label_check.csv"))
    shutil.rmtree(project / "artifacts" / "data")
    with pytest.raises(ArtifactError, match="data does not exist or is incomplete; run `dvc repro ingest`"):
        suggest(project)


def test_planted_errors_of_training_and_validation_are_found(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = load_images(project / "artifacts" / "data")
    planted = [int(images.indices(TRAIN, labelled=True)[5]), int(images.indices(VALIDATION)[7])]
    truth = {index: int(images.labels_N[index]) for index in planted}
    set_labels(project, {index: (label + 1) % 3 for index, label in truth.items()})
    rows = {row["path"]: row for row in check(project)}
    for index, label in truth.items():
        row = rows[images.files[index]]
        assert row["label"] == CLASSES[(label + 1) % 3]
        assert row["suggested"] == CLASSES[label]
        assert "label error" in row["reason"]
        assert 0 < float(row["score"]) <= 1
    out = capsys.readouterr().out
    assert f"{len(rows)} of 170 labels of training and validation are suspicious" in out
    assert "A linear probe predicts 9" in out
    with Image.open(project / "label_check.png") as sheet:
        assert sheet.info["Software"] == "winnow"


def test_a_copy_with_another_label_is_found(project: Path) -> None:
    data = project / "artifacts" / "data"
    images = load_images(data)
    pixels_NHWC, embeddings_ND = np.array(images.images_NHWC), np.load(project / "artifacts" / "embed/embeddings.npy")
    pixels_NHWC[1], embeddings_ND[1] = pixels_NHWC[0], embeddings_ND[0]
    np.save(data / "images.npy", pixels_NHWC)
    np.save(project / "artifacts" / "embed" / "embeddings.npy", embeddings_ND)
    first, second = check(project)[:2]
    assert (first["path"], second["path"]) == ("0.png", "1.png")
    assert first["reason"].startswith("near-duplicate of 1.png")
    assert second["reason"].startswith("near-duplicate of 0.png")
    assert (first["score"], second["score"]) == ("1.000", "1.000")
    assert (first["suggested"], second["suggested"]) == ("", "disc")  # the probe sees a disc


def test_the_test_split_is_not_read(project: Path) -> None:
    data = project / "artifacts" / "data"
    images = load_images(data)
    rows = check(project)
    tests = images.indices(TEST).tolist()
    assert not {images.files[index] for index in tests} & {row["path"] for row in rows}
    set_labels(project, {index: int(images.labels_N[index] + 1) % 3 for index in tests})
    pixels_NHWC = np.array(images.images_NHWC)
    pixels_NHWC[tests] = 0
    np.save(data / "images.npy", pixels_NHWC)
    assert check(project) == rows


def test_a_check_may_be_repeated_but_corrections_are_kept(project: Path) -> None:
    set_labels(project, {0: 1})
    rows = check(project)
    assert check(project) == rows
    text = (project / "label_check.csv").read_text()
    (project / "label_check.csv").write_text(text.replace("0.png,stripes,", "0.png,disc,", 1))
    with pytest.raises(DataError, match=r"label_check.csv: exists, and 1 of its labels were typed or changed"):
        check(project)


@pytest.mark.parametrize("label", [0, -1], ids=["corrected", "removed"])
def test_a_check_is_repeated_after_corrections_in_the_own_labels(project: Path, label: int) -> None:
    """A spreadsheet has saved the CSV in its own format meanwhile."""
    set_labels(project, {0: 1})
    assert "0.png" in {row["path"] for row in check(project)}
    set_labels(project, {0: label})
    csv_file = project / "label_check.csv"
    csv_file.write_text("\ufeff" + csv_file.read_text().replace(",", ";"), encoding="utf-8")
    rows = check(project)
    assert "0.png" not in {row["path"] for row in rows}
    assert check(project, "other.csv") == rows


def test_a_label_typed_into_the_check_is_kept_until_the_own_labels_hold_it(project: Path) -> None:
    set_labels(project, {0: 1})
    check(project)
    csv_file = project / "label_check.csv"
    csv_file.write_text(csv_file.read_text().replace("0.png,stripes,", "0.png,disc,", 1))
    for label in (1, 2, -1):
        set_labels(project, {0: label})
        with pytest.raises(DataError, match="1 of its labels were typed"):
            check(project)
    set_labels(project, {0: 0})
    assert "0.png" not in {row["path"] for row in check(project)}


def test_without_findings_there_is_no_sheet(project: Path) -> None:
    rng, count = np.random.default_rng(0), len(load_images(project / "artifacts" / "data").labels_N)
    features_ND = np.eye(24)[np.arange(count) % 3] * 5 + rng.normal(0, 1, (count, 24))
    write_embeddings(project / "artifacts", configure(project), features_ND)
    set_labels(project, {0: 1})
    assert len(check(project)) == 1
    assert (project / "label_check.png").is_file()
    set_labels(project, {0: 0})
    assert check(project) == []
    assert not (project / "label_check.png").exists()


def test_features_that_tell_nothing_are_said_to(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    count = len(load_images(project / "artifacts" / "data").labels_N)
    write_embeddings(project / "artifacts", configure(project), rng.normal(0, 1, (count, 12)))
    check(project)
    assert "so many suspected errors mean that the features do not separate the classes" in capsys.readouterr().out


def test_nothing_to_check(project: Path) -> None:
    set_labels(project, dict.fromkeys(range(180), -1))
    with pytest.raises(DataError, match="no image of training or validation has a label to check"):
        check(project)


def run_script(number: int) -> None:
    """Run a script of docs/labels.md in the working directory: 0 merges tables, 1 moves files into class folders."""
    page = ROOT / "docs" / "labels.md"
    scripts = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    assert len(scripts) == 2
    exec(compile(scripts[number], str(page), "exec"), {})


@pytest.mark.thorough
def test_filled_suggestions_become_the_next_training_labels(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ingest a table with few labels, fill a suggestion, merge it as the page says, and ingest again."""
    root = tmp_path / "project"
    root.mkdir()
    monkeypatch.chdir(root)
    table = root / "labels.csv"
    paths = [f"{name}/{index:02d}.{'png' if index % 4 == 0 else 'jpg'}" for name in CLASSES for index in range(12)]
    lines = [f"{path},{path.split('/')[0] if path[-6:-4] < '05' else ''},train" for path in paths]
    table.write_text("\n".join(["path,label,split", *lines]) + "\n")
    data = {"path": str(image_folder), "labels": str(table), "test_fraction": 0.3}
    config = configure(root, **data)
    artifacts = root / "artifacts"
    ingest(config, artifacts / "data", root / "scratch")
    write_embeddings(artifacts, config)
    before = draw_label_budget(load_images(artifacts / "data"), None, 0)
    chosen = suggest(root, 5, **data)
    filled = "".join(f"{path},{path.split('/')[0]}\n" for path in chosen)
    (root / "suggested.csv").write_text(f"path,label\n{filled}")
    assert len(read_labels(root / "suggested.csv", image_folder).rows) == 5
    run_script(0)
    assert len(read_rows(table)) == 36
    assert {row["split"] for row in read_rows(table)} == {"train"}
    ingest(config, artifacts / "data", root / "scratch")
    images = load_images(artifacts / "data")
    after = {images.files[index] for index in draw_label_budget(images, None, 0).tolist()}
    assert set(chosen) <= after
    assert len(after) == len(before) + 5


def test_the_script_for_class_folders_moves_labelled_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    files = ["photos/cat/1.jpg", "photos/unlabelled/1.jpg", "photos/unlabelled/-2.jpg", "photos/unlabelled/3.jpg"]
    for file in files:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).write_text(file)
    Path("suggested.csv").write_text("path,label\nunlabelled/-2.jpg,dog\nunlabelled/3.jpg,\nunlabelled/1.jpg,cat\n")
    with pytest.raises(SystemExit, match=r"photos/cat/1.jpg exists: rename photos/unlabelled/1.jpg first"):
        run_script(1)
    assert Path("photos/cat/1.jpg").read_text() == "photos/cat/1.jpg"
    assert Path("photos/dog/-2.jpg").read_text() == "photos/unlabelled/-2.jpg"
    assert Path("photos/unlabelled/3.jpg").is_file()
    Path("photos/unlabelled/1.jpg").rename("photos/unlabelled/4.jpg")
    Path("suggested.csv").write_text("path,label\nunlabelled/-2.jpg,dog\nunlabelled/4.jpg,cat\n")
    run_script(1)
    assert Path("photos/cat/4.jpg").is_file()
