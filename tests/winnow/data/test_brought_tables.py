"""Tables of labels as people bring them: Excel's, pandas', Hugging Face's, with spaces and spellings."""

from __future__ import annotations

import io
import json
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.winnow.data.test_sources import touch
from winnow.config import Data
from winnow.data.dataset import decode
from winnow.data.decoding import DecodeSettings, decode_chunk
from winnow.data.label_table import LabelTable, read_labels
from winnow.data.sources import Source, open_source
from winnow.errors import DataError

CAFE = {form: unicodedata.normalize(form, "café") for form in ("NFC", "NFD")}


def table(path: Path, text: str) -> LabelTable:
    path.write_text(text, encoding="utf-8")
    return read_labels(path, path.parent)


@pytest.mark.parametrize("first", ["sep=;", '"sep=;"', "SEP=;"])
def test_excels_first_line(tmp_path: Path, first: str) -> None:
    labels = table(tmp_path / "t.csv", f"{first}\npath;label\na, b.jpg;cat\nc.jpg;dog\n")
    assert labels.classes == ("cat", "dog")
    assert labels.rows == {"a, b.jpg": (0, False, ""), "c.jpg": (1, False, "")}
    with pytest.raises(DataError, match="line 4 has 1 columns"):
        table(tmp_path / "t.csv", f"{first}\npath;label\na.jpg;cat\nb.jpg\n")


@pytest.mark.parametrize("separator", [", ", "; ", ",  "])
def test_a_space_after_the_separator(tmp_path: Path, separator: str) -> None:
    rows = [("label", "path"), ("cat", "a.jpg"), ("dog", '"b, c.jpg"')]
    labels = table(tmp_path / "t.csv", "".join(f"{separator.join(row)}\n" for row in rows))
    assert set(labels.rows) == {"a.jpg", "b, c.jpg"}
    plain = table(tmp_path / "t.csv", "label,path\ncat, a.jpg\ndog,b.jpg\n")
    assert " a.jpg" in plain.rows  # a name may begin with a space where the header has none


@pytest.mark.parametrize(
    ("written", "classes"),
    [
        (("0.0", "1.0", ""), ("0", "1")),
        (("0.0", "1", "1.0"), ("0", "1")),
        (("-1.0", "2."), ("-1", "2")),
        (("0.5", "1.0"), ("0.5", "1.0")),
        (("v1.0", "1.0"), ("1.0", "v1.0")),
        (("01", "1"), ("01", "1")),
    ],
)
def test_whole_numbers_that_pandas_writes_as_floats(
    tmp_path: Path, written: tuple[str, ...], classes: tuple[str, ...]
) -> None:
    text = "path,label\n" + "".join(f"{number}.jpg,{label}\n" for number, label in enumerate(written))
    labels = table(tmp_path / "t.csv", text)
    assert labels.classes == classes
    wanted = {label: label if label in classes else label.partition(".")[0] for label in written}
    found = [labels.rows[f"{number}.jpg"][0] for number in range(len(written))]
    assert [classes[at] if at >= 0 else "" for at in found] == [wanted[label] for label in written]


def test_floats_in_parquet_and_what_is_no_number(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = {"path": ["a.jpg", "b.jpg", "c.jpg"], "label": [0.0, 1.0, float("nan")]}
    parquet.write_table(pa.table(rows), tmp_path / "t.parquet")
    labels = read_labels(tmp_path / "t.parquet", tmp_path)
    assert labels.classes == ("0", "1")
    assert [row[0] for row in labels.rows.values()] == [0, 1, -1]


def test_a_label_in_two_unicode_forms_is_one_class(tmp_path: Path) -> None:
    text = f"path,label,split\na.jpg,{CAFE['NFC']},\nb.jpg,{CAFE['NFD']},test\nc.jpg,thé,\n"
    labels = table(tmp_path / "t.csv", text)
    assert labels.classes == (CAFE["NFC"], "thé")
    assert [labels.rows[name][:2] for name in ("a.jpg", "b.jpg")] == [(0, False), (0, True)]


@pytest.mark.parametrize("word", ["test", "Testing", "TEST", "test_set"])
def test_the_test_split_by_its_names(tmp_path: Path, word: str) -> None:
    labels = table(tmp_path / "t.csv", f"path,label,split\na.jpg,cat,Training\nb.jpg,dog,{word}\nc.jpg,dog,valid\n")
    assert [is_test for _, is_test, _ in labels.rows.values()] == [False, True, False]


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def opened(tmp_path: Path, columns: dict[str, Any], names: list[str] | None = None, **data: Any) -> Source:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    made = pa.table(columns)
    if names:
        features = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
        made = made.replace_schema_metadata({"huggingface": json.dumps(features)})
    parquet.write_table(made, tmp_path / "t.parquet")
    settings = {"source": "folder", "path": str(tmp_path), "labels": str(tmp_path / "t.parquet"), **data}
    return open_source(Data(labels_per_class="all", **settings), tmp_path)


FILES = [png(seed) for seed in range(4)]


@pytest.mark.parametrize("names", [None, ["cat", "dog"]])
def test_images_in_a_table_of_hugging_face(tmp_path: Path, names: list[str] | None) -> None:
    images = [{"bytes": data, "path": f"{number}.png"} for number, data in enumerate(FILES)]
    images[3] = {"bytes": None, "path": "gone.png"}
    split = ["train", "test", "train", "train"]
    source = opened(tmp_path, {"image": images, "label": [0, 1, 1, -1], "split": split}, names)
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
    source = opened(tmp_path, columns, group_by="table")
    assert [(item.name, item.group) for item in source.items()] == [
        *(("row 1", "x"), ("row 2", "x"), ("row 3", "y"), ("row 4", "")),
    ]


def test_a_struct_of_paths_and_other_columns_are_one_clear_line(tmp_path: Path) -> None:
    touch(tmp_path, "0.png", "1.png")
    for images in ([{"height": 3}] * 2, [[1, 2]] * 2):
        with pytest.raises(DataError) as caught:
            opened(tmp_path, {"image": images, "label": [0, 1]})
        assert "its column image holds " in str(caught.value)
        assert len(str(caught.value)) < 300
