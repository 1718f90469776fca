from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tasks.project.disk_errors import describe_path_error
from tests.conftest import CLASSES, SIZE
from tests.winnow.data.test_foreign_files import USED, encode_image
from winnow.config import Benchmark
from winnow.data.dataset import decode
from winnow.data.header_limits import MAX_PIXELS
from winnow.data.preprocessing import POLICIES, Preprocessing
from winnow.deploy import example_predict
from winnow.deploy.batch_inference import predict_file
from winnow.deploy.bundle import HostCheck, export_host_check, export_model
from winnow.deploy.example_predict import load_pixels
from winnow.deploy.model_card import render_model_card
from winnow.errors import DataError
from winnow.evaluation.metrics import softmax
from winnow.printable import BIDI_CONTROLS
from winnow.records import DeploymentCard

CHECK = HostCheck(Benchmark(), None)


def test_content_of_the_bundle(promoted: Path, tmp_path: Path) -> None:
    export_model(promoted, tmp_path / "out", "photos, version 1 (dense-int8)", CHECK)
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == [
        *("README.md", "card.json", "check", "check_host.py", "labels.txt", "model.onnx", "predict.py"),
    ]
    assert (out / "model.onnx").read_bytes() == (promoted / "model.onnx").read_bytes()
    assert (out / "labels.txt").read_text().splitlines() == list(CLASSES)
    title = "photos, version 1 (dense-int8)"
    assert (out / "README.md").read_text() == render_model_card(DeploymentCard.read(promoted), title)


def test_the_example_predicts_as_winnow_without_importing_it(promoted: Path, tmp_path: Path) -> None:
    export_model(promoted, tmp_path / "out", "photos", CHECK)
    rng = np.random.default_rng(2)
    paths = []
    for index, (mode, image_format, size) in enumerate(
        [("RGB", "JPEG", (61, 40)), ("P", "PNG", (33, 90)), ("CMYK", "JPEG", (50, 50)), ("RGBA", "WEBP", (SIZE, SIZE))]
    ):
        image = Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).convert(mode)
        exif = Image.Exif()
        exif[0x0112] = 6
        paths.append(tmp_path / f"{index}.{image_format.lower()}")
        image.save(paths[-1], image_format, exif=exif)
    command = [sys.executable, "-I", tmp_path / "out" / "predict.py", *paths]
    lines = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.splitlines()
    pixels = np.stack([decode(path.read_bytes(), SIZE)[0] for path in paths])
    scale = json.loads((promoted / "card.json").read_text())["temperature"]
    assert scale != 1.0
    expected = softmax(predict_file(promoted / "model.onnx", pixels, np.arange(len(paths))), scale)
    for line, path, probabilities in zip(lines, paths, expected, strict=True):
        assert line == f"{path}\t{CLASSES[probabilities.argmax()]}\t{probabilities.max():.4f}"


RNG = np.random.default_rng(3)


def write_image_files(folder: Path) -> list[Path]:
    """Write colour images of many sizes, 16-bit gray as PNG, TIFF and PGM, and TIFFs of 12 bits and with 0 as white."""
    images: list[tuple[str, bytes]] = []
    for width, height in RNG.integers(1, 200, (20, 2)).tolist():
        images.append(
            ("png", encode_image(Image.fromarray(RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)), "PNG"))
        )
    gray_16_bits = Image.fromarray(RNG.integers(0, 9000, (40, 31)).astype(np.uint16))
    images += [
        ("png", encode_image(gray_16_bits, "PNG")),
        ("tif", encode_image(gray_16_bits, "TIFF")),
        ("pgm", encode_image(gray_16_bits, "PPM")),
    ]
    images += [("tif", USED[kind][0]) for kind in ("16-bit gray TIFF where 0 is white", "12-bit gray TIFF")]
    images += [("png", USED["EXIF-rotated"][0]), ("png", USED["palette, transparent"][0])]
    paths = []
    for number, (suffix, data) in enumerate(images):
        paths.append(folder / f"{number}.{suffix}")
        paths[-1].write_bytes(data)
    return paths


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.filterwarnings("ignore")
def test_pixels_of_the_example_equal_those_of_winnow(tmp_path: Path, policy: str, bits: int) -> None:
    for path in write_image_files(tmp_path):
        pixels = load_pixels(str(path), {"image_size": 48, "resize": policy, "bits": bits})
        np.testing.assert_array_equal(pixels, decode(path.read_bytes(), 48, Preprocessing(policy, bits))[0])


def test_the_example_in_a_c_locale_and_with_unusable_files(promoted: Path, tmp_path: Path) -> None:
    card = json.loads((promoted / "card.json").read_text(encoding="utf-8"))
    names = [f"Äpfel {number}" for number in range(len(CLASSES))]
    (promoted / "card.json").write_text(json.dumps(card | {"classes": names}, ensure_ascii=False), encoding="utf-8")
    export_model(promoted, tmp_path / "out", "photos", CHECK)
    usable = [tmp_path / "größe.png", Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png"))]
    for path in usable:
        Image.fromarray(RNG.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(path)
    (tmp_path / "broken.png").write_bytes(b"no image")
    unusable = [tmp_path / "gone.png", tmp_path / "broken.png", tmp_path]
    command = [sys.executable, tmp_path / "out" / "predict.py", unusable[0], usable[0], *unusable[1:], usable[1]]
    base_environment = {
        key: value for key, value in os.environ.items() if not key.startswith(("LC_", "PYTHON", "LANG"))
    }
    for locale_variables in ({"LC_ALL": "C", "PYTHONUTF8": "0"}, {"LC_ALL": "C.UTF-8"}):
        result = subprocess.run(command, env={**base_environment, **locale_variables}, capture_output=True, check=False)
        assert result.returncode == 2, result.stderr
        lines = result.stdout.splitlines()
        assert [line.split(b"\t")[0] for line in lines] == [os.fsencode(path) for path in usable]
        assert all(line.split(b"\t")[1].decode() in names for line in lines)
        errors = result.stderr.splitlines()
        assert [line.partition(b": cannot be used (")[0] for line in errors] == [os.fsencode(path) for path in unusable]


def test_other_folders_are_not_overwritten(promoted: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    export_model(promoted, out, "photos", CHECK)
    export_model(promoted, out, "photos again", CHECK)
    assert "photos again" in (out / "README.md").read_text()
    other_folder = tmp_path / "other"
    other_folder.mkdir()
    (other_folder / "thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match="other exists and holds something else"):
        export_model(promoted, other_folder, "photos", CHECK)
    assert (other_folder / "thesis.txt").read_text() == "years of work"
    user_folder = tmp_path / "mine"
    (user_folder / "check").mkdir(parents=True)
    (user_folder / "README.md").write_text("mine")
    (user_folder / "check" / "thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match="mine exists and holds something else"):
        export_model(promoted, user_folder, "photos", CHECK)
    assert (user_folder / "check" / "thesis.txt").exists()
    (out / "notes.txt").write_text("beside an export")
    for protected in (out, promoted):  # the folder of a candidate has a card, too
        names_before = sorted(path.name for path in protected.iterdir())
        with pytest.raises(DataError, match="holds something else"):
            export_model(promoted, protected, "photos", CHECK)
        assert sorted(path.name for path in protected.iterdir()) == names_before


@pytest.mark.thorough
def test_candidates_are_exported_without_a_promoted_model(
    promoted: Path, tiny_candidate: Callable[[str], Path], tmp_path: Path
) -> None:
    candidates = tuple((name, tiny_candidate(name) / "model.onnx", "f32") for name in ("dense", "pruned"))
    for _ in range(2):  # the second time over the first
        export_host_check(tmp_path / "out", HostCheck(Benchmark(), None, candidates), SIZE)
    out = tmp_path / "out"
    assert sorted(path.name for path in out.rglob("*")) == sorted(
        ["check", "check_host.py", "manifest.json", "pixels.npy", "dense.onnx", "pruned.onnx"]
    )
    manifest = json.loads((out / "check" / "manifest.json").read_text())
    assert [model["name"] for model in manifest["models"]] == ["dense", "pruned"]


@pytest.mark.parametrize("where", ["photo.png/model", "x" * 300, "/proc/model"])
def test_a_folder_that_cannot_be_made_is_named(promoted: Path, tmp_path: Path, where: str) -> None:
    (tmp_path / "photo.png").write_bytes(b"photo")
    with pytest.raises((DataError, OSError)) as exc_info:
        export_model(promoted, tmp_path / where, "photos", CHECK)
    error = exc_info.value
    message = str(error) if isinstance(error, DataError) else describe_path_error(error)
    assert message is not None
    assert re.search(r"name another folder|choose another path", message)
    assert (tmp_path / "photo.png").read_bytes() == b"photo"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photo.png", "promoted"]


def test_the_example_has_the_limits_of_winnow() -> None:
    assert example_predict.MAX_PIXELS == MAX_PIXELS
    assert set(example_predict.BIDI) == BIDI_CONTROLS


def test_the_example_escapes_names_and_refuses_pipes_and_huge_images(promoted: Path, tmp_path: Path) -> None:
    export_model(promoted, tmp_path / "out", "photos", CHECK)
    odd = tmp_path / "red\x1b[31m\nline.png"
    Image.fromarray(RNG.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(odd)
    os.mkfifo(tmp_path / "pipe.png")
    Image.new("1", (20_000, 5_001)).save(tmp_path / "huge.png")
    command = [sys.executable, tmp_path / "out" / "predict.py", odd, tmp_path / "pipe.png", tmp_path / "huge.png"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 2
    assert result.stdout.count("\n") == 1
    assert "red\\x1b[31m\\nline.png\t" in result.stdout
    assert "pipe.png: cannot be used (not a file)" in result.stderr
    assert "huge.png: cannot be used (20000x5001 pixels are more than 100,000,000)" in result.stderr
    assert "\x1b" not in result.stdout + result.stderr
