"""Check user folders: names of splits, system files, links, pipes, Unicode forms."""

from __future__ import annotations

import os
import socket
import unicodedata
import zipfile
from pathlib import Path

import pytest

from tests.winnow.data.test_sources import create_files, list_items, open_folder
from winnow.data.file_tree import Archive, Folder
from winnow.data.sources import open_tree
from winnow.data.special_files import check_special_files
from winnow.data.split_names import looks_like_split, parse_split
from winnow.errors import DataError

SPLITS = {
    "train": (
        "train",
        "Training",
        "TRAIN",
        "trainset",
        "train_set",
        "TrainSet",
        "training-data",
        "Train Images",
        "trn",
    ),
    "test": ("test", "Testing", "TEST", "test_set", "TestData", "testset", "tst", "test split"),
    "validation": ("val", "Valid", "VALIDATION", "val-images", "validation_set", "dev"),
}


@pytest.mark.parametrize("split", SPLITS)
def test_names_of_splits(split: str) -> None:
    assert {name: parse_split(name) for name in SPLITS[split]} == dict.fromkeys(SPLITS[split], split)


def test_names_that_look_like_splits() -> None:
    for name in ("train2017", "fold_1", "Fold2", "eval", "holdout", "test_2", "01_train"):
        assert (parse_split(name), looks_like_split(name)) == (None, True)
    for name in ("cat", "trainers", "valley", "contest", "attraction", "datasets", "猫", "developer", "set"):
        assert (parse_split(name), looks_like_split(name)) == (None, False)


def as_zip(root: Path) -> Path:
    path = root.parent / f"{root.name}.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(root.rglob("*")):
            if file.is_file():
                archive.write(file, file.relative_to(root))
    return path


@pytest.mark.parametrize("train", SPLITS["train"])
@pytest.mark.parametrize(("test", "validation"), [("Testing", "Valid"), ("test_set", "Validation"), ("TEST", "val")])
def test_splits_are_recognised_by_name(tmp_path: Path, train: str, test: str, validation: str) -> None:
    splits = (train, validation, test)
    names = [f"{split}/{name}/{number}.jpg" for split in splits for number, name in enumerate(("cat", "dog"))]
    root = create_files(tmp_path / "photos", *names)
    for source in (open_folder(root), open_tree(Archive(as_zip(root)), "photos")):
        assert source.classes == ("cat", "dog")
        assert list_items(source) == {name: (int("dog" in name), name.startswith(test)) for name in names}
        assert (
            f"{validation}/ is used like train/: an image's pixels decide whether it is for validation"
            in source.warnings
        )


def test_two_folders_of_one_split_are_merged(tmp_path: Path) -> None:
    names = ("train/a/1.jpg", "Training/b/2.jpg", "test/a/3.jpg", "TestSet/b/4.jpg")
    items = list_items(open_folder(create_files(tmp_path, *names)))
    assert [is_test for _, is_test in items.values()] == [name.lower().startswith("test") for name in items]


@pytest.mark.parametrize(
    "names",
    [
        ("fold_1/cat/1.jpg", "fold_1/dog/2.jpg", "fold_2/cat/3.jpg", "fold_2/dog/4.jpg"),
        ("train2017/cat/1.jpg", "train2017/dog/2.jpg", "val2017/cat/3.jpg"),
        ("train/cat/1.jpg", "train/dog/2.jpg", "holdout/cat/3.jpg"),
        ("Eval/cat/1.jpg", "Eval/dog/2.jpg", "other/cat/3.jpg"),
    ],
)
def test_a_folder_that_only_looks_like_a_split_is_an_error(tmp_path: Path, names: tuple[str, ...]) -> None:
    root = create_files(tmp_path / "photos", *names)
    for tree in (Folder(root), Archive(as_zip(root))):
        with pytest.raises(
            DataError, match=r"looks like a split.*name the folders that hold class folders train/, test/"
        ):
            open_tree(tree, "photos")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("Training/1.jpg", "Testing/2.jpg"), r"Testing, Training hold images and no class folders"),
        (("Testing/cat/1.jpg", "Testing/dog/2.jpg"), r"Testing/ holds class folders, but no train/ beside it does"),
        (("Valid/cat/1.jpg", "Valid/dog/2.jpg"), r"Valid/ holds class folders, but no train/ beside it does"),
        (("Train/a/1.jpg", "Train/b/2.jpg", "bird/3.jpg"), r"beside train/ there may be .* but there is also bird"),
        (("Train/a/1.jpg", "Train/b/2.jpg", "Tests/c/3.jpg"), r"beside train/|looks like a split"),
    ],
)
def test_splits_are_never_classes(tmp_path: Path, names: tuple[str, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_folder(create_files(tmp_path / "photos", *names))


def test_classes_may_be_named_like_splits_and_hold_folders_of_years(tmp_path: Path) -> None:
    source = open_folder(create_files(tmp_path / "1", "test_tube/1.jpg", "beaker/2.jpg"))
    assert source.classes == ("beaker", "test_tube")
    names = [f"{name}/{year}/1.jpg" for name in ("trainers", "boots") for year in (2023, 2024)]
    assert open_folder(create_files(tmp_path / "2", *names)).classes == ("boots", "trainers")


def test_splits_inside_classes_are_warned_of(tmp_path: Path) -> None:
    names = [f"{name}/{split}/1.jpg" for name in ("cat", "dog") for split in ("train", "test")]
    source = open_folder(create_files(tmp_path, *names))
    assert source.classes == ("cat", "dog")
    assert "the class folders hold test, train, which are not read as splits" in source.warnings[0]


SYSTEM_FILES = (
    *("cat/@eaDir/1.jpg/SYNOPHOTO_THUMB_XL.jpg", "cat/@eaDir/1.jpg/SYNOPHOTO_THUMB_S.jpg", "cat/.thumbnails/1.jpg"),
    *("$RECYCLE.BIN/S-1/9.jpg", "System Volume Information/guid", "#recycle/8.jpg", "found.000/FILE0001.JPG"),
    *("dog/@__thumb/2.jpg", "__MACOSX/cat/._1.jpg"),
)
COMPANIONS = ("cat/Thumbs.db", "cat/.DS_Store", "dog/._2.jpg", "dog/2.xmp", "dog/2.AAE", "dog/desktop.ini")


def test_system_files_are_skipped_and_counted(tmp_path: Path) -> None:
    root = create_files(tmp_path / "photos", "cat/1.jpg", "dog/2.jpg", *SYSTEM_FILES, *COMPANIONS)
    (root / "lost+found").mkdir()
    for tree in (Folder(root), Archive(as_zip(root))):
        source = open_tree(tree, "photos")
        assert set(list_items(source)) == {"cat/1.jpg", "dog/2.jpg"}
        assert source.ignored == len(COMPANIONS)
        assert len(source.warnings) == 1
        assert source.warnings[0].startswith(
            f"{len(SYSTEM_FILES)} files in hidden and system folders are skipped: @eaDir (2)"
        )


@pytest.mark.parametrize("unicode_form", ["NFC", "NFD"])
def test_a_class_in_two_unicode_forms_is_one(tmp_path: Path, unicode_form: str) -> None:
    other_form = {"NFC": "NFD", "NFD": "NFC"}[unicode_form]
    first, second = unicodedata.normalize(unicode_form, "café"), unicodedata.normalize(other_form, "café")
    names = (f"train/{first}/1.jpg", f"train/{second}/2.jpg", "train/thé/3.jpg", f"test/{second}/4.jpg")
    source = open_folder(create_files(tmp_path / "parts", *names))
    assert source.classes == (unicodedata.normalize("NFC", "café"), "thé")
    assert [label for label, _ in list_items(source).values()].count(0) == 3
    without_validation = open_folder(
        create_files(tmp_path / "tests", f"train/{first}/1.jpg", "train/thé/3.jpg", f"test/{second}/4.jpg")
    )
    assert list_items(without_validation)[f"test/{second}/4.jpg"] == (0, True)
    flat = create_files(tmp_path / "bare", "a/1.jpg", "b/2.jpg", f"{first}/3.jpg")
    assert list_items(open_tree(Folder(flat), "bare", unlabelled=second))[f"{first}/3.jpg"] == (-1, False)


def test_a_linked_class_folder_is_an_error(tmp_path: Path) -> None:
    create_files(tmp_path / "elsewhere", "1.jpg")
    root = create_files(tmp_path / "photos", "cat/1.jpg", "dog/2.jpg")
    (root / "bird").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"bird is a link to a folder: .* would go unnoticed\. Put the folder itself"):
        open_folder(root)
    with pytest.raises(DataError, match="bird is a link to a folder"):
        check_special_files(root, has_class_folders=True)
    (root / "bird").unlink()
    (root / "cat" / "around").symlink_to(root)
    check_special_files(root, has_class_folders=True)  # inside a class it is skipped
    assert set(list_items(open_folder(root))) == {"cat/1.jpg", "dog/2.jpg"}
    (root / "bird").symlink_to(tmp_path / "elsewhere")
    check_special_files(root, has_class_folders=False)  # a table names classes; links are not followed then
    (tmp_path / "linked").symlink_to(create_files(tmp_path / "plain", "cat/1.jpg", "dog/2.jpg"))
    check_special_files(tmp_path / "linked", has_class_folders=True)  # DVC follows data.path itself
    assert open_folder(tmp_path / "linked").classes == ("cat", "dog")
    split_root = create_files(tmp_path / "deep", "train/cat/1.jpg", "train/dog/2.jpg")
    (split_root / "train" / "bird").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="bird is a link to a folder"):
        check_special_files(split_root, has_class_folders=True)


@pytest.fixture
def bound_socket(tmp_path: Path) -> socket.socket:
    """Return a socket bound to tmp_path/photos/cat/socket.jpg."""
    create_files(tmp_path / "photos", "cat/1.jpg", "dog/2.jpg")
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(tmp_path / "photos" / "cat" / "socket.jpg"))
    return server


def test_special_files_are_refused_by_name(tmp_path: Path, bound_socket: socket.socket) -> None:
    root = tmp_path / "photos"
    os.mkfifo(root / "cat" / "pipe.jpg")
    (root / "cat" / "linked pipe.jpg").symlink_to("pipe.jpg")
    (root / "cat" / "null.jpg").symlink_to("/dev/null")
    (root / "cat" / "gone.jpg").symlink_to("nowhere.jpg")
    (root / "cat" / "loop.jpg").symlink_to("loop.jpg")
    (root / "cat" / "good.jpg").symlink_to("1.jpg")
    (root / "dog" / "around").symlink_to(root / "cat")
    with bound_socket, pytest.raises(DataError) as exc_info:
        check_special_files(root, has_class_folders=False)
    lines = str(exc_info.value).splitlines()
    assert len(lines) == 7
    for line, name, kind in zip(
        lines[1:],
        ("gone", "linked pipe", "loop", "null", "pipe", "socket"),
        ("a broken link", "a named pipe", "a broken link", "a device", "a named pipe", "a socket"),
        strict=True,
    ):
        assert f"cat/{name}.jpg: {kind}" in line
    os.mkfifo(tmp_path / "photos.zip")
    with pytest.raises(DataError, match=r"photos\.zip: a named pipe, not a file"):
        check_special_files(tmp_path / "photos.zip", has_class_folders=True)
    check_special_files(tmp_path / "not fetched yet", has_class_folders=True)


def test_at_most_ten_files_are_named(tmp_path: Path) -> None:
    root = create_files(tmp_path / "photos", "cat/1.jpg")
    for number in range(30):
        (root / "cat" / f"{number:02}.jpg").symlink_to("nowhere.jpg")
    with pytest.raises(DataError) as exc_info:
        check_special_files(root, has_class_folders=True)
    assert len(str(exc_info.value).splitlines()) == 12
