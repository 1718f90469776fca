"""Check user label tables: those of Excel, pandas and Hugging Face, with spaces and Unicode forms."""

from __future__ import annotations

import io
import json
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.winnow.data.test_sources import create_files
from winnow.config import Data
from winnow.data.chunk_decoding import DecodeSettings, decode_chunk
from winnow.data.dataset import decode
from winnow.data.label_table import LabelTable, read_labels
from winnow.data.sources import Source, open_source
from winnow.errors import DataError

UNICODE_FORMS = {form: unicodedata.normalize(form, "café") for form in ("NFC", "NFD")}


def read_table(path: Path, text: str) -> LabelTable:
    path.write_text(text, encoding="utf-8")
    return read_labels(path, path.parent)


@pytest.mark.parametrize("first_line", ["sep=;", '"sep=;"', "SEP=;"])
def test_the_separator_line_of_excel_is_read(tmp_path: Path, first_line: str) -> None:
    labels = read_table(tmp_path / "t.csv", f"{first_line}\npath;label\na, b.jpg;cat\nc.jpg;dog\n")
    assert labels.classes == ("cat", "dog")
    assert labels.rows == {"a, b.jpg": (0, False, ""), "c.jpg": (1, False, "")}
    with pytest.raises(DataError, match="line 4 has 1 columns"):
        read_table(tmp_path / "t.csv", f"{first_line}\npath;label\na.jpg;cat\nb.jpg\n")


@pytest.mark.parametrize("separator", [", ", "; ", ",  "])
def test_a_space_after_the_separator_is_ignored(tmp_path: Path, separator: str) -> None:
    rows = [("label", "path"), ("cat", "a.jpg"), ("dog", '"b, c.jpg"')]
    labels = read_table(tmp_path / "t.csv", "".join(f"{separator.join(row)}\n" for row in rows))
    assert set(labels.rows) == {"a.jpg", "b, c.jpg"}
    without_space = read_table(tmp_path / "t.csv", "label,path\ncat, a.jpg\ndog,b.jpg\n")
    assert " a.jpg" in without_space.rows  # a name may start with a space if the header has none


@pytest.mark.parametrize(
    ("values", "classes"),
    [
        (("0.0", "1.0", ""), ("0", "1")),
        (("0.0", "1", "1.0"), ("0", "1")),
        (("-1.0", "2."), ("-1", "2")),
        (("0.5", "1.0"), ("0.5", "1.0")),
        (("v1.0", "1.0"), ("1.0", "v1.0")),
        (("01", "1"), ("01", "1")),
    ],
)
def test_whole_numbers_written_as_floats_are_read_as_integers(
    tmp_path: Path, values: tuple[str, ...], classes: tuple[str, ...]
) -> None:
    text = "path,label\n" + "".join(f"{number}.jpg,{label}\n" for number, label in enumerate(values))
    labels = read_table(tmp_path / "t.csv", text)
    assert labels.classes == classes
    expected = {label: label if label in classes else label.partition(".")[0] for label in values}
    labels_found = [labels.rows[f"{number}.jpg"][0] for number in range(len(values))]
    assert [classes[index] if index >= 0 else "" for index in labels_found] == [expected[label] for label in values]


def test_floats_and_nan_in_parquet(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = {"path": ["a.jpg", "b.jpg", "c.jpg"], "label": [0.0, 1.0, float("nan")]}
    parquet.write_table(pa.table(rows), tmp_path / "t.parquet")
    labels = read_labels(tmp_path / "t.parquet", tmp_path)
    assert labels.classes == ("0", "1")
    assert [row[0] for row in labels.rows.values()] == [0, 1, -1]


def test_a_label_in_two_unicode_forms_is_one_class(tmp_path: Path) -> None:
    text = f"path,label,split\na.jpg,{UNICODE_FORMS['NFC']},\nb.jpg,{UNICODE_FORMS['NFD']},test\nc.jpg,thé,\n"
    labels = read_table(tmp_path / "t.csv", text)
    assert labels.classes == (UNICODE_FORMS["NFC"], "thé")
    assert [labels.rows[name][:2] for name in ("a.jpg", "b.jpg")] == [(0, False), (0, True)]


@pytest.mark.parametrize("split_name", ["test", "Testing", "TEST", "test_set"])
def test_names_of_the_test_split(tmp_path: Path, split_name: str) -> None:
    labels = read_table(
        tmp_path / "t.csv", f"path,label,split\na.jpg,cat,Training\nb.jpg,dog,{split_name}\nc.jpg,dog,valid\n"
    )
    assert [is_test for _, is_test, _ in labels.rows.values()] == [False, True, False]


def random_png(seed: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def open_parquet(tmp_path: Path, columns: dict[str, Any], class_names: list[str] | None = None, **data: Any) -> Source:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    arrow_table = pa.table(columns)
    if class_names:
        features = {"info": {"features": {"label": {"names": class_names, "_type": "ClassLabel"}}}}
        arrow_table = arrow_table.replace_schema_metadata({"huggingface": json.dumps(features)})
    parquet.write_table(arrow_table, tmp_path / "t.parquet")
    settings = {"source": "folder", "path": str(tmp_path), "labels": str(tmp_path / "t.parquet"), **data}
    return open_source(Data(labels_per_class="all", **settings), tmp_path)


FILES = [random_png(seed) for seed in range(4)]


@pytest.mark.parametrize("kind", ["csv", "parquet of paths", "parquet of images"])
def test_an_unknown_split_is_an_error_and_not_training(tmp_path: Path, kind: str) -> None:
    paths = [f"{number}.png" for number in range(len(FILES))]

    def tests_of(splits: list[str | None]) -> list[bool]:
        if kind == "csv":
            rows = "".join(f"{path},{path[0]},{split or ''}\n" for path, split in zip(paths, splits, strict=True))
            return [
                is_test for _, is_test, _ in read_table(tmp_path / "t.csv", f"path,label,split\n{rows}").rows.values()
            ]
        for path, content in zip(paths, FILES, strict=True):
            (tmp_path / path).write_bytes(content)
        column = {"path": paths} if kind == "parquet of paths" else {"image": FILES}
        source = open_parquet(tmp_path, {**column, "label": [0, 1, 0, 1], "split": splits})
        return [item.is_test for item in source.items()]

    assert tests_of(["train", "val", "TEST", None]) == [False, False, True, False]
    for unknown in ("eval", "holdout", "test2017", "0"):
        with pytest.raises(DataError) as exc_info:
            tests_of(["train", "train", unknown, "test"])
        assert f"row 3 has the split '{unknown}'" in str(exc_info.value)


@pytest.mark.parametrize("names", [None, ["cat", "dog"]])
def test_images_in_a_hugging_face_table(tmp_path: Path, names: list[str] | None) -> None:
    images = [{"bytes": data, "path": f"{number}.png"} for number, data in enumerate(FILES)]
    images[3] = {"bytes": None, "path": "gone.png"}
    split = ["train", "test", "train", "train"]
    source = open_parquet(tmp_path, {"image": images, "label": [0, 1, 1, -1], "split": split}, names)
    assert source.classes == tuple(names or ("0", "1"))
    items = list(source.items())
    assert ([item.name for item in source.items()], source.count) == ([item.name for item in items], 4)  # again
    assert [(item.name, item.label, item.is_test) for item in items] == [
        *(("0.png", 0, False), ("1.png", 1, True), ("2.png", 1, False), ("gone.png", -1, False)),
    ]
    result = decode_chunk([item.content for item in items], DecodeSettings(8))
    assert result.reasons == {3: "row 4 of t.parquet holds no image bytes"}
    np.testing.assert_array_equal(result.pixels_KHWC[1], decode(FILES[1], 8)[0])
    assert "the images in t.parquet are used" in source.warnings[0]


def test_images_as_bytes_alone_and_groups(tmp_path: Path) -> None:
    columns = {"image": FILES, "label": ["a", "b", "a", "b"], "group": ["x", "x", "y", None]}
    source = open_parquet(tmp_path, columns, group_by="table")
    assert [(item.name, item.group) for item in source.items()] == [
        *(("row 1", "x"), ("row 2", "x"), ("row 3", "y"), ("row 4", "")),
    ]


def test_an_unsupported_image_column_is_one_short_message(tmp_path: Path) -> None:
    create_files(tmp_path, "0.png", "1.png")
    for images in ([{"height": 3}] * 2, [[1, 2]] * 2):
        with pytest.raises(DataError) as exc_info:
            open_parquet(tmp_path, {"image": images, "label": [0, 1]})
        assert "its column image holds " in str(exc_info.value)
        assert len(str(exc_info.value)) < 300


def labels_by_kind(kind: str, tmp_path: Path, labels: list[Any]) -> list[str | None]:
    """Return the class of each image, None for no label, as a table of this kind is read."""
    paths = [f"{number}.png" for number in range(len(labels))]
    content = [FILES[number % len(FILES)] for number in range(len(labels))]
    for path, data in zip(paths, content, strict=True):
        (tmp_path / path).write_bytes(data)
    if kind == "csv":
        text = "path,label\n" + "".join(f"{path},{label}\n" for path, label in zip(paths, labels, strict=True))
        (tmp_path / "t.csv").write_text(text, encoding="utf-8")
        source = open_source(
            Data(source="folder", labels_per_class="all", path=str(tmp_path), labels=str(tmp_path / "t.csv")), tmp_path
        )
    else:
        source = open_parquet(
            tmp_path, {"image" if "images" in kind else "path": content if "images" in kind else paths, "label": labels}
        )
    return [source.classes[item.label] if item.label >= 0 else None for item in source.items()]


KINDS = ["csv", "parquet of paths", "parquet of images"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        ([0, 1, -1, 1], ["0", "1", None, "1"]),
        ([2.0, 10.0, -1.0, 10.0], ["2", "10", None, "10"]),
        ([-1, 1, -1, 1], ["-1", "1", "-1", "1"]),
        ([-2, -1, 1, 1], ["-2", "-1", "1", "1"]),
        (["-1", "cat", "dog", "cat"], ["-1", "cat", "dog", "cat"]),
    ],
)
def test_minus_one_among_numbers_stands_for_no_label(
    tmp_path: Path, kind: str, labels: list[Any], classes: list[str | None]
) -> None:
    """Of -1 and 1 alone both are classes, as in many tables of two classes."""
    assert labels_by_kind(kind, tmp_path, labels) == classes


@pytest.mark.parametrize("kind", KINDS[1:])
def test_labels_as_bytes_are_text(tmp_path: Path, kind: str) -> None:
    assert labels_by_kind(kind, tmp_path, ["café".encode(), b"dog", b"", b"dog"]) == ["café", "dog", None, "dog"]
    for labels, message in (
        ([b"\xff", b"a"], "bytes that are no UTF-8 text"),
        ([["cat"], ["dog"]], "one label per image"),
    ):
        with pytest.raises(DataError, match=message):
            labels_by_kind(kind, tmp_path, labels)
