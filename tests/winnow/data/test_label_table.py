from __future__ import annotations

from pathlib import Path

import pytest

from tests.winnow.data.test_sources import create_files, list_items
from winnow.data import sources
from winnow.data.file_tree import Folder
from winnow.data.label_table import read_labels
from winnow.data.sources import Source
from winnow.errors import DataError

TEXT = "path,label,split\na.jpg,cat,\nb/c.png,dog,TEST\nd.jpg,,\n"


def open_labelled(folder: Path, table: Path) -> Source:
    return sources.open_labelled(Folder(folder), "photos", read_labels(table, folder))


def write_table(folder: Path, text: str, name: str = "labels.csv", encoding: str = "utf-8") -> Path:
    (folder / name).write_bytes(text.encode(encoding))
    return folder / name


def test_labels_test_images_and_the_unlabelled_pool(tmp_path: Path) -> None:
    create_files(tmp_path, "a.jpg", "b/c.png", "d.jpg", "e.jpg", "notes.txt")
    source = open_labelled(tmp_path, write_table(tmp_path, TEXT))
    assert source.classes == ("cat", "dog")
    assert list_items(source) == {
        "a.jpg": (0, False),
        "b/c.png": (1, True),
        "d.jpg": (-1, False),
        "e.jpg": (-1, False),
    }
    assert source.warnings == ("1 images are not in labels.csv and are used without a label",)
    assert source.missing == ()


@pytest.mark.parametrize(
    ("text", "name", "encoding"),
    [
        (TEXT.replace(",", ";"), "labels.csv", "utf-8"),
        (TEXT.replace(",", "\t"), "labels.tsv", "utf-8-sig"),
        (TEXT.replace("\n", "\r\n"), "labels.csv", "utf-8"),
        ("id,Filename,CLASS,split\n1,a.jpg, cat ,\n2,b\\c.png,dog,test\n\n3,./d.jpg,,\n", "labels.csv", "utf-8"),
        ('note,path,label,split\n"x, ""y""",a.jpg,cat,\n,b//c.png,dog,test\n,d.jpg,,train\n', "labels.csv", "utf-8"),
    ],
)
def test_separators_encodings_and_column_names(tmp_path: Path, text: str, name: str, encoding: str) -> None:
    labels = read_labels(write_table(tmp_path, text, name, encoding), tmp_path)
    assert labels.rows == {"a.jpg": (0, False, ""), "b/c.png": (1, True, ""), "d.jpg": (-1, False, "")}
    assert not labels.has_groups


def test_absolute_paths_and_windows_names(tmp_path: Path) -> None:
    create_files(tmp_path, "cafe\u0301.jpg", "b c\nd.jpg")
    text = f'path,label\n{tmp_path}/caf\u00e9.jpg,cat\n"b c\nd.jpg",dog\n'
    assert list_items(open_labelled(tmp_path, write_table(tmp_path, text))) == {
        "cafe\u0301.jpg": (0, False),
        "b c\\nd.jpg": (1, False),
    }


def test_parquet_equals_csv(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    columns = {"path": ["a.jpg", "b/c.png", "d.jpg"], "label": ["cat", "dog", None], "split": [None, "test", ""]}
    parquet.write_table(pyarrow.table({"vector": [[1.0], [2.0], [3.0]], **columns}), tmp_path / "labels.parquet")
    from_parquet, from_csv = (
        read_labels(tmp_path / "labels.parquet", tmp_path),
        read_labels(write_table(tmp_path, TEXT), tmp_path),
    )
    assert (from_parquet.rows, from_parquet.classes) == (from_csv.rows, from_csv.classes)
    numbers = {"path": ["a.jpg", "b.jpg"], "label": [7, 12]}
    parquet.write_table(pyarrow.table(numbers), tmp_path / "labels.parquet")
    assert read_labels(tmp_path / "labels.parquet", tmp_path).classes == ("12", "7")


def test_a_group_column(tmp_path: Path) -> None:
    create_files(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    table = write_table(tmp_path, "path,label,group\na.jpg,cat,7\nb.jpg,dog,7\n")
    source = open_labelled(tmp_path, table)
    assert [item.group for item in source.items()] == ["7", "7", ""]


def test_unknown_paths_and_duplicate_rows_are_named(tmp_path: Path) -> None:
    create_files(tmp_path, "a.jpg", "b/c.png", "d.jpg")
    text = TEXT + "gone.jpg,cat,\n./a.jpg,cat,\n"
    source = open_labelled(tmp_path, write_table(tmp_path, text))
    assert source.missing == (("gone.jpg", "listed in labels.csv, but missing"),)
    assert source.warnings == ("1 paths have several rows in labels.csv, the first: a.jpg",)
    assert len(list_items(source)) == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"needs one column path"),
        ("image_id,label\n1,cat\n", r"needs one column path \(or file, filename, file_name, image\); it has image_id"),
        ("path,file,label\na,a,cat\n", r"needs one column path .*; it has path and file, keep one"),
        ("path\na.jpg\n", "needs one column label"),
        ("path,label\na.jpg\n", "line 2 has 1 columns"),
        ("path,label\n,cat\n", "row 1 has no path"),
        ("path,label\na.jpg,cat\n", "labels of 1 classes"),
        ("path,label\na.jpg,cat\nb.jpg,dog\na.jpg,dog\n", r"rows differ for a\.jpg"),
        ("path,label\nx.jpg,cat\ny.jpg,dog\n", r"lists none of the 1 images in .* the first are x\.jpg, y\.jpg"),
        ('path,label\n"a.jpg,cat\n', "cannot be read as CSV"),
    ],
)
def test_invalid_tables_are_refused(tmp_path: Path, text: str, message: str) -> None:
    create_files(tmp_path, "a.jpg")
    with pytest.raises(DataError, match=message) as exc_info:
        open_labelled(tmp_path, write_table(tmp_path, text))
    assert "labels.csv" in str(exc_info.value)


def test_invalid_files_are_refused(tmp_path: Path) -> None:
    create_files(tmp_path, "a.jpg")
    with pytest.raises(DataError, match="is not UTF-8"):
        read_labels(write_table(tmp_path, TEXT.replace("cat", "größe"), encoding="latin-1"), tmp_path)
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        read_labels(write_table(tmp_path, TEXT, "labels.parquet"), tmp_path)
    with pytest.raises(DataError, match="is not a file"):
        read_labels(tmp_path / "none.csv", tmp_path)
