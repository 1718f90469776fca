from __future__ import annotations

import csv
from pathlib import Path

import pytest

from winnow.data.label_table import read_labels
from winnow.errors import DataError
from winnow.labels.label_csv import check_replaceable, path_cell, write_csv

HEADER = ("path", "label")
PATHS = [
    "cat/1.jpg",
    "=1+1.jpg",
    "-2/a.jpg",
    "@b.jpg",
    "+c.jpg",
    "a,b;c.jpg",
    'the "best".jpg',
    "größe.jpg",
    "a\\b.jpg",
]


def test_paths_are_read_back_by_the_table_of_labels(tmp_path: Path) -> None:
    write_csv(tmp_path / "out.csv", HEADER, [(path, "") for path in PATHS])
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.reader(stream))
    assert rows[0] == list(HEADER)
    assert not any(cell.startswith(("=", "+", "-", "@")) for row in rows for cell in row)
    filled = [(path, "cat" if index % 2 else "dog") for index, (path, _) in enumerate(rows[1:])]
    with (tmp_path / "filled.csv").open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([HEADER, *filled])
    table = read_labels(tmp_path / "filled.csv", tmp_path)
    assert list(table.rows) == PATHS
    assert table.classes == ("cat", "dog")


def test_other_cells_are_no_formulas(tmp_path: Path) -> None:
    write_csv(tmp_path / "out.csv", (*HEADER, "suggested"), [("a.jpg", "=cmd", "-1")])
    assert (tmp_path / "out.csv").read_text().splitlines()[1] == "a.jpg,'=cmd,'-1"
    assert path_cell("2024/a.jpg") == "2024/a.jpg"


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"--out .*nowhere/out.csv: cannot be written \(No such file"):
        write_csv(tmp_path / "nowhere" / "out.csv", HEADER, [])


@pytest.mark.parametrize("content", ["path,label\na.jpg,\nb.jpg,\n", "\ufeffpath;label\r\na.jpg;\r\n", "path,label\n"])
def test_a_table_without_typed_labels_may_be_replaced(tmp_path: Path, content: str) -> None:
    (tmp_path / "out.csv").write_text(content, encoding="utf-8")
    check_replaceable(tmp_path / "out.csv", HEADER, {})
    check_replaceable(tmp_path / "new.csv", HEADER, {})


@pytest.mark.parametrize(
    "content",
    [
        "path,label\na.jpg,\nb.jpg,cat\n",
        "\ufeffpath;label\r\na.jpg;cat\r\n",
        "sep=;\npath;label\na.jpg;cat\n",
        '"path"\t"label"\na.jpg\tcat\n',
    ],
)
def test_a_table_with_typed_labels_is_kept(tmp_path: Path, content: str) -> None:
    (tmp_path / "out.csv").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=r"1 of its labels were typed .* merge them .* then delete it; or rename"):
        check_replaceable(tmp_path / "out.csv", HEADER, {})


def test_labels_that_winnow_wrote_itself_are_not_typed(tmp_path: Path) -> None:
    header, written = (*HEADER, "score"), {"a.jpg": "cat", "=b.jpg": "-1"}
    write_csv(tmp_path / "out.csv", header, [(path, label, "0.5") for path, label in written.items()])
    check_replaceable(tmp_path / "out.csv", header, written)
    with pytest.raises(DataError, match="1 of its labels"):
        check_replaceable(tmp_path / "out.csv", header, {**written, "a.jpg": "dog"})


@pytest.mark.parametrize("content", [b"file,notes\na,b\n", b"", b"\x89PNG\r\n\x1a\n\xff\xfe"])
def test_another_file_is_kept(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "out.csv").write_bytes(content)
    with pytest.raises(DataError, match=r"--out .*out.csv: exists, and .*; rename or move it"):
        check_replaceable(tmp_path / "out.csv", HEADER, {})


def test_the_name_must_end_in_csv(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"photo.png: its name must end in .csv"):
        check_replaceable(tmp_path / "photo.png", HEADER, {})
