from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.closure import ROOT
from tests.conftest import CLASSES, SIZE, draw, tiny_params
from winnow.config import Config, check_config
from winnow.data.dataset import TEST, TRAIN, TRAINING_FILE, VALIDATION, decode, load_images
from winnow.data.decoder_digest import decoder_digest
from winnow.data.splits import draw_label_budget
from winnow.errors import DataError
from winnow.hardware import cores
from winnow.records import IngestRecord, read_record
from winnow.records.ingest import RejectedFile
from winnow.steps.ingest import FILES, ingest


def make_config(path: Path | str, **data: Any) -> Config:
    settings = {"source": "folder", "path": str(path), "image_size": SIZE, "labels_per_class": "auto", **data}
    return check_config({**tiny_params(), "data": settings})


def run_ingest(path: Path, out: Path, **data: Any) -> IngestRecord:
    return ingest(make_config(path, **data), out, out.parent / "scratch")


def read_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def add_image(path: Path, seed: int, mode: str = "RGB", **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(draw(seed % 3, (20, 26), np.random.default_rng(seed))).convert(mode).save(path, **options)
    return path


def test_ingested_files_and_record(image_folder: Path, tmp_path: Path) -> None:
    record = run_ingest(image_folder, tmp_path / "data")
    images = load_images(tmp_path / "data")
    assert sorted(read_files(tmp_path / "data")) == sorted([*FILES, TRAINING_FILE, "record.json"])
    assert record == read_record(tmp_path / "data")
    assert images.images_NHWC.shape == (36, SIZE, SIZE, 3)
    assert images.classes == CLASSES
    for index, name in enumerate(images.files):
        assert CLASSES[images.labels_N[index]] == name.partition("/")[0]
        pixels_HWC, key = decode((image_folder / name).read_bytes(), SIZE)
        np.testing.assert_array_equal(images.images_NHWC[index], pixels_HWC)
        assert images.keys_N16[index].tobytes() == key
    counts = {name: sum(row.of(name) for row in record.details.per_class.values()) for name in ("train", "test")}
    assert counts["train"] == record.metrics["data/train"] == len(images.indices(TRAIN))
    assert (
        record.metrics["data/images"] == 36 == sum(record.metrics[f"data/{s}"] for s in ("train", "validation", "test"))
    )
    assert record.details.test_set == "by hash"


@pytest.mark.thorough
def test_larger_squares_are_stored_if_images_are_large_enough(image_folder: Path, tmp_path: Path) -> None:
    """The folder's images have short sides of 30 to 48 pixels."""
    sizes = {"auto": 18, 24: 24, "none": None}
    for training_size, side in sizes.items():
        out = tmp_path / f"data-{training_size}"
        record = run_ingest(image_folder, out, training_size=training_size)
        images = load_images(out)
        assert record.details.training_size == side
        assert images.image_size == SIZE
        assert images.training_NHWC.shape == (36, side or SIZE, side or SIZE, 3)
        assert (TRAINING_FILE in {file.name for file in record.artifacts}) == (side is not None)
        for pixels_HWC, name in zip(images.training_NHWC, images.files, strict=True):
            np.testing.assert_array_equal(pixels_HWC, decode((image_folder / name).read_bytes(), side or SIZE)[0])


def test_small_images_have_no_larger_squares(image_folder: Path, tmp_path: Path) -> None:
    record = run_ingest(image_folder, tmp_path / "auto", image_size=44)
    assert record.details.training_size is None
    assert TRAINING_FILE not in read_files(tmp_path / "auto")
    images = load_images(tmp_path / "auto")
    assert images.training_NHWC is images.images_NHWC
    record = run_ingest(image_folder, tmp_path / "asked", image_size=44, training_size=50)
    assert record.details.training_size == 50
    assert any("36 of 36 images are smaller than data.training_size" in warning for warning in record.warnings)


def test_the_bytes_do_not_depend_on_the_folder(image_folder: Path, tmp_path: Path) -> None:
    run_ingest(image_folder, tmp_path / "one")
    copied = tmp_path / "elsewhere" / image_folder.name
    shutil.copytree(image_folder, copied)
    run_ingest(copied, tmp_path / "two")
    assert read_files(tmp_path / "one") == read_files(tmp_path / "two")
    assert IngestRecord.read(tmp_path / "one").details.decoder == decoder_digest()
    assert str(tmp_path).encode() not in b"".join(read_files(tmp_path / "one").values())


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity") or cores() < 2, reason="needs two cores")
def test_one_process_and_many_give_the_same_bytes(tmp_path: Path) -> None:
    for index in range(150):
        add_image(tmp_path / "photos" / CLASSES[index % 3] / f"{index}.png", index)
    (tmp_path / "photos" / "disc" / "77.png").write_bytes(b"broken")
    run_ingest(tmp_path / "photos", tmp_path / "many")
    previous = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(previous)})
    try:
        run_ingest(tmp_path / "photos", tmp_path / "one")
    finally:
        os.sched_setaffinity(0, previous)
    assert read_files(tmp_path / "many") == read_files(tmp_path / "one")


def test_any_kind_of_image_and_name(image_folder: Path, tmp_path: Path) -> None:
    added = [
        add_image(image_folder / "disc" / "mit Leerzeichen, Ü und 猫.png", 1, "RGBA"),
        add_image(image_folder / "disc" / "gray.jpg", 2, "L"),
        add_image(image_folder / "disc" / "palette.gif", 3, "P"),
        add_image(image_folder / "stripes" / "print.jpg", 4, "CMYK"),
        add_image(image_folder / "stripes" / "UPPER.JPEG", 5),
        add_image(image_folder / "wedge" / "deep" / "er" / "no suffix", 6, format="PNG"),
    ]
    Image.fromarray(np.full((9, 9), 0xAB12, np.uint16)).save(image_folder / "wedge" / "sixteen.png")
    exif = Image.Exif()
    exif[0x0112] = 3
    pixels = draw(0, (SIZE, SIZE), np.random.default_rng(9))
    Image.fromarray(pixels).save(image_folder / "wedge" / "turned.png", exif=exif)
    shutil.copytree(image_folder / "stripes", image_folder / "copied class")
    record = run_ingest(image_folder, tmp_path / "data")
    images = load_images(tmp_path / "data")
    assert images.classes == ("copied class", "disc", "stripes", "wedge")
    indices = {name: index for index, name in enumerate(images.files)}
    for path in added:
        expected = decode(path.read_bytes(), SIZE)[0]
        np.testing.assert_array_equal(images.images_NHWC[indices[path.relative_to(image_folder).as_posix()]], expected)
    assert (images.images_NHWC[indices["wedge/sixteen.png"]] == 0xAB).all()
    np.testing.assert_array_equal(images.images_NHWC[indices["wedge/turned.png"]], pixels[::-1, ::-1])
    # The copied class has the same pixels as `stripes`, under two labels.
    assert any("14 images occur under more than one class" in warning for warning in record.warnings)


def test_named_test_set_and_unlabelled_images(tmp_path: Path) -> None:
    for index in range(60):
        add_image(tmp_path / "photos" / "train" / CLASSES[index % 3] / f"{index}.png", index)
        add_image(tmp_path / "photos" / "unlabelled" / f"{index}.png", 1000 + index)
    for index in range(0, 12):  # in both splits: training images that equal test images are left out
        add_image(tmp_path / "photos" / "test" / CLASSES[index % 3] / f"{index}.png", index)
    record = run_ingest(tmp_path / "photos", tmp_path / "data")
    images = load_images(tmp_path / "data")
    assert [name for name in images.files if name.startswith("test/")] == [
        images.files[position] for position in images.indices(TEST)
    ]
    assert record.metrics["data/left_out"] == 12
    assert record.metrics["data/unlabelled"] == 60 == (images.labels_N == -1).sum()
    assert record.details.test_set == "named by the source"
    assert len(images.indices(VALIDATION, labelled=False)) > 0
    test_keys = {images.keys_N16[position].tobytes() for position in images.indices(TEST)}
    assert not test_keys & {
        images.keys_N16[position].tobytes() for split in (TRAIN, VALIDATION) for position in images.indices(split)
    }


def test_a_group_shares_a_split(tmp_path: Path) -> None:
    for index in range(120):
        add_image(tmp_path / "photos" / CLASSES[index % 3] / f"burst{index // 6:02d}_{index}.png", index)
    record = run_ingest(tmp_path / "photos", tmp_path / "data", group_by=r"burst(\d+)_")
    images = load_images(tmp_path / "data")
    splits: dict[str, set[int]] = {}
    for name, split in zip(images.files, images.split_N, strict=True):
        splits.setdefault(name.split("burst")[1][:2], set()).add(int(split))
    assert len(splits) == record.details.groups == 20
    counts = record.details.groups_by_split
    assert counts is not None
    assert counts.train + counts.validation + counts.test == 20
    assert counts.validation == images.group_count(images.indices(VALIDATION)) < len(images.indices(VALIDATION))
    warning = next(warning for warning in record.warnings if "labelled validation images" in warning)
    assert f"in {counts.validation} groups" in warning
    assert all(len(group_splits) == 1 for group_splits in splits.values())
    single_images = run_ingest(tmp_path / "photos", tmp_path / "alone", group_by=r"_(\d+)\.png")
    assert any("no two images share one" in warning for warning in single_images.warnings)


def test_the_validation_share_is_relative_to_hashed_images(tmp_path: Path) -> None:
    for index in range(120):
        add_image(tmp_path / "photos" / "train" / CLASSES[index % 3] / f"burst{index // 6:02d}_{index}.png", index)
    for index in range(240):
        add_image(
            tmp_path / "photos" / "test" / CLASSES[index % 3] / f"burst{50 + index // 6}_{index}.png", 1000 + index
        )
    record = run_ingest(tmp_path / "photos", tmp_path / "data", group_by=r"burst(\d+)_")
    images = load_images(tmp_path / "data")
    share = len(images.indices(VALIDATION)) / 120
    assert 0.1 < share < 0.4  # of all 360 images, it is less than half of the requested fifth
    assert not [warning for warning in record.warnings if "are validation images" in warning]
    assert images.group_count(images.indices(TEST)) == 40


def test_a_table_labels_a_flat_folder(tmp_path: Path) -> None:
    rows = ["path,label"]
    for index in range(60):
        add_image(tmp_path / "photos" / f"{index}.png", index)
        rows.append(f"{index}.png,{CLASSES[index % 3] if index < 45 else ''}")
    (tmp_path / "labels.csv").write_text("\n".join([*rows, "gone.png,disc"]))
    record = run_ingest(tmp_path / "photos", tmp_path / "data", labels=str(tmp_path / "labels.csv"))
    images = load_images(tmp_path / "data")
    by_name = dict(zip(images.files, images.labels_N.tolist(), strict=True))
    classes = [CLASSES[label] if label >= 0 else "" for label in (by_name[f"{index}.png"] for index in range(60))]
    assert classes == [CLASSES[index % 3] if index < 45 else "" for index in range(60)]
    assert record.details.rejected == [RejectedFile(file="gone.png", reason="listed in labels.csv, but missing")]
    assert record.parameters["labels"] == "labels.csv"


def test_damaged_files_are_rejected_with_a_reason(image_folder: Path, tmp_path: Path) -> None:
    truncated = image_folder / "disc" / "01.jpg"
    truncated.write_bytes(truncated.read_bytes()[:-300])
    (image_folder / "wedge" / "manual.pdf").write_bytes(b"%PDF")
    (image_folder / "wedge" / "gone.png").symlink_to("nowhere")
    (image_folder / "wedge" / "notes.txt").write_text("no image, and not expected to be one")
    record = run_ingest(image_folder, tmp_path / "data", max_rejected=3)
    rejected = {row.file: row.reason for row in record.details.rejected}
    assert list(rejected) == ["disc/01.jpg", "wedge/gone.png", "wedge/manual.pdf"]
    assert rejected["disc/01.jpg"].startswith("damaged (image file is truncated")
    assert rejected["wedge/manual.pdf"] == "not a supported image format"
    assert (record.metrics["data/rejected"], record.metrics["data/images"]) == (3, 35)
    assert record.details.ignored_files == 1
    assert any(
        warning.startswith("3 files cannot be used and were set aside, the first: disc/01.jpg")
        for warning in record.warnings
    )
    assert not set(rejected) & set(load_images(tmp_path / "data").files)


def add_broken_files(root: Path, count: int) -> None:
    for index in range(count):
        (root / "disc" / f"x{index:02d}.jpg").write_bytes(b"broken")


def keep_classes(root: Path, *kept_names: str) -> None:
    for folder in root.iterdir():
        if folder.name not in kept_names:
            shutil.rmtree(folder)


def empty_all(root: Path) -> None:
    for path in root.glob("*/*"):
        path.write_bytes(b"") if path.name < "02" else path.unlink()


def copies_of_the_test_set(root: Path) -> None:
    for name in CLASSES:
        shutil.move(root / name, root / "train" / name)
    shutil.copytree(root / "train" / "wedge", root / "test" / "wedge")


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda root: add_broken_files(root, 15),
            r"1\d or more files cannot be used.* allows 2.*first:(\n  disc/x0\d\.jpg: not a supported.*){10}$",
        ),
        (lambda root: add_broken_files(root, 3), r"3 or more files cannot be used, data\.max_rejected allows 2"),
        (empty_all, r"photos: no file can be used; repair or replace them\. The first:\n  disc/00\.png: "),
        (lambda root: keep_classes(root), "no images in class folders"),
        (lambda root: keep_classes(root, "disc"), r"only one class \(disc\)"),
        (copies_of_the_test_set, "no training image is left for class 'wedge'"),
    ],
    ids=["many", "some", "all", "none", "one class", "copies"],
)
def test_an_unusable_source_changes_nothing(
    image_folder: Path, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    out = tmp_path / "artifacts" / "data"
    run_ingest(image_folder, out)
    content_before = read_files(out)
    damage(image_folder)
    with pytest.raises(DataError, match=message):
        run_ingest(image_folder, out, max_rejected=2)
    assert read_files(out) == content_before
    assert list(out.parent.iterdir()) == [out]


def test_budget_and_few_labels_are_warned_of(image_folder: Path, tmp_path: Path) -> None:
    record = run_ingest(image_folder, tmp_path / "data", labels_per_class=9)
    images = load_images(tmp_path / "data")
    assert record.metrics["data/label_budget"] == len(draw_label_budget(images, 9, 0))
    assert record.metrics["data/labelled_train"] == len(images.indices(TRAIN, labelled=True))  # ingest hides no labels
    warnings = "\n".join(record.warnings)
    assert f"only {record.metrics['data/validation']:.0f} labelled validation images, fewer than 500" in warnings
    assert "all labels are used, fewer than the budget of 9 per class" in warnings


@pytest.mark.thorough
def test_enough_validation_labels_are_not_warned_of(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    with tarfile.open(tmp_path / "many.tar", "w") as file:
        for index in range(1100):
            path = tmp_path / "image.bmp"
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
            file.add(path, f"train/{CLASSES[index % 2]}/{index}.bmp")
    settings = {"source": "sample", "image_size": 8, "validation_fraction": 0.5, "test_fraction": 0.01}
    record = run_ingest(tmp_path / "many.tar", tmp_path / "data", **settings)
    assert record.metrics["data/labelled_validation"] >= 500
    assert record.metrics["data/label_budget"] == 50  # auto: 25 per class for an archive
    assert not any("fewer than 500" in warning for warning in record.warnings)
    assert set(record.inputs) == {"archive"}


INGEST_SCRIPT = """
import json, os, sys
from pathlib import Path
from winnow.config import check_config
from winnow.benchmark.memory_footprint import peak_mb
from winnow.steps.ingest import ingest
if __name__ == "__main__":
    params, out, cores = sys.argv[1:]
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(cores)])
    record = ingest(check_config(json.loads(params)), Path(out), Path(out))
    print(record.metrics["data/images"], peak_mb())
"""


@pytest.mark.thorough
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path) -> None:
    (tmp_path / "many").mkdir()
    for index in range(400):
        add_image(tmp_path / "few" / CLASSES[index % 3] / f"{index}.bmp", index)
    for copy in range(8):
        for name in CLASSES:
            shutil.copytree(tmp_path / "few" / name, tmp_path / "many" / f"{name}{copy}", copy_function=os.link)
    (tmp_path / "child.py").write_text(INGEST_SCRIPT)

    def peak_of(name: str, count: int, cores: int) -> float:
        params = {
            **tiny_params(),
            "data": {"source": "folder", "path": str(tmp_path / name), "image_size": 96, "labels_per_class": "auto"},
        }
        arguments = [sys.executable, tmp_path / "child.py", json.dumps(params), tmp_path / "data", str(cores)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        output = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=True).stdout.split()
        assert float(output[0]) == count
        return float(output[1])

    few_mb, many_mb, one_core_mb = peak_of("few", 400, 2), peak_of("many", 3200, 2), peak_of("many", 3200, 1)
    added_mb = 2800 * 96 * 96 * 3 / 1e6
    assert max(many_mb, one_core_mb) - few_mb < 0.2 * added_mb


@pytest.mark.thorough
def test_near_duplicates_are_recorded_and_groups_advised_if_missing(tmp_path: Path) -> None:
    for index in range(60):
        path = add_image(tmp_path / "photos" / CLASSES[index % 3] / f"{index:02d}_a.png", index)
        with Image.open(path) as image:
            image.save(path.with_name(f"{index:02d}_b.jpg"), quality=60)
    ungrouped = run_ingest(tmp_path / "photos", tmp_path / "data", image_size=32)
    duplicates, images = ungrouped.details.near_duplicates, load_images(tmp_path / "data")
    assert duplicates.found > 0
    for (held_out, training), (held_out_name, training_name) in zip(
        duplicates.positions, duplicates.pairs, strict=True
    ):
        assert (images.files[held_out], images.files[training]) == (held_out_name, training_name)
        assert images.split_N[held_out] != TRAIN
        assert images.split_N[training] == TRAIN
    warning = next(warning for warning in ungrouped.warnings if "almost equal" in warning)
    assert "set data.group_by" in warning
    wrongly_grouped = run_ingest(tmp_path / "photos", tmp_path / "wrong", image_size=32, group_by=r"(\w+)\.(?:png|jpg)")
    warning = next(warning for warning in wrongly_grouped.warnings if "almost equal" in warning)
    assert "different groups of data.group_by" in warning
    assert "set data.group_by" not in warning
    grouped = run_ingest(tmp_path / "photos", tmp_path / "grouped", image_size=32, group_by=r"([^/]+)_\w\.\w+$")
    assert grouped.details.near_duplicates.found < duplicates.found
