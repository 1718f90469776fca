"""Export a model as a self-contained folder: the file, its cards, an example program and a benchmark.

model.onnx    uint8 pixels in, logits out          labels.txt    one class per line, in the order of the logits
card.json     a description for programs           README.md     the same for people (winnow/deploy/model_card.py)
predict.py    class and probability of image files; needs onnxruntime, numpy and Pillow, but not winnow
check_host.py, check/    times the model, or all candidates, on the target machine
openvino/, torch/        other formats, where they were asked for (winnow/deploy/export_formats.py)
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from winnow.config import Benchmark
from winnow.config.export_formats import FORMAT_FILES
from winnow.data.dataset import VALIDATION, ImageSet, spread_indices
from winnow.deploy.model_card import render_model_card
from winnow.deploy.onnx_session import INPUT, MODEL, OUTPUT, open_session
from winnow.deploy.runtime_properties import NEEDED_AGREEMENT
from winnow.errors import DataError
from winnow.records import CARD, DeploymentCard, publish, sha256_of, write_json

LABELS, README, EXAMPLE = "labels.txt", "README.md", "predict.py"
EXAMPLE_SOURCE = "example_predict.py"
CHECK_HOST, CHECK_FOLDER = "check_host.py", "check"
CHECK_IMAGES = 64


@dataclass(frozen=True)
class HostCheck:
    """The inputs of check_host.py."""

    settings: Benchmark
    images: ImageSet | None
    """The data set whose validation images check the outputs; random pixels do without it or at another size."""
    others: tuple[tuple[str, Path, str], ...] = ()
    """(name, path of its model.onnx, int8 or f32) of candidates to time beside the model."""


@dataclass(frozen=True)
class OtherFormats:
    """The formats beside ONNX in which a model is exported."""

    names: tuple[str, ...] = ()
    """Keys of FORMAT_FILES."""
    weights: Path | None = None
    """The folder of the network that the file was made from; None where it is not at hand."""


ONNX_ALONE = OtherFormats()


def export_model(folder: Path, out: Path, title: str, check: HostCheck, formats: OtherFormats = ONNX_ALONE) -> None:
    """Export the model of `folder` (model.onnx, card.json) to `out`, completely or not at all.

    Raises DataError where `out` exists and holds anything but an earlier export; for `formats` as `write_format`.
    """
    _check_destination(out)
    card = DeploymentCard.read(folder)
    with publish(out) as bundle:
        shutil.copyfile(folder / MODEL, bundle / MODEL)
        shutil.copyfile(folder / CARD, bundle / CARD)
        (bundle / LABELS).write_text("".join(f"{name}\n" for name in card.classes), encoding="utf-8")
        shutil.copyfile(Path(__file__).with_name(EXAMPLE_SOURCE), bundle / EXAMPLE)
        (bundle / README).write_text(render_model_card(card, title, formats.names), encoding="utf-8")
        own = (card.name, bundle / MODEL, card.precision)
        others = [
            (name, path, precision)
            for name, path, precision in check.others
            if name != card.name or sha256_of(path) != sha256_of(folder / MODEL)
        ]
        pixels_NHWC = select_check_pixels(check.images, card.image_size)
        write_host_check(bundle, [own, *others], pixels_NHWC, check.settings)
        if formats.names:
            from winnow.deploy.export_formats import write_format  # imports torch

            for name in formats.names:
                write_format(name, bundle, card.precision, pixels_NHWC, formats.weights)


def export_host_check(out: Path, check: HostCheck, image_size: int) -> None:
    """Export check_host.py and the candidates only, for use before a model is promoted."""
    _check_destination(out)
    with publish(out) as bundle:
        pixels_NHWC = select_check_pixels(check.images, image_size)
        write_host_check(bundle, check.others, pixels_NHWC, check.settings)


def _check_destination(out: Path) -> None:
    """Raise DataError where `out` cannot be made, or exists and is neither an empty folder nor an earlier export."""
    try:
        if out.exists() and not (out.is_dir() and _is_export(out)):
            raise DataError(f"{out} exists and holds something else; name a new or empty folder")
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent):
            pass
    except (FileNotFoundError, FileExistsError, NotADirectoryError) as error:
        raise DataError(f"{out} cannot be made ({error.strerror}: {error.filename}); name another folder") from error


def _is_export(out: Path) -> bool:
    """Return whether a folder is empty or holds the files of an export only."""
    names = {path.name for path in out.iterdir()}
    check_names = {path.name for path in (out / CHECK_FOLDER).iterdir()} if (out / CHECK_FOLDER).is_dir() else set()
    if CHECK_FOLDER in names and "manifest.json" not in check_names:
        return False
    if not all(name in ("manifest.json", "pixels.npy") or name.endswith(".onnx") for name in check_names):
        return False
    for name in names & FORMAT_FILES.keys():
        if not (out / name).is_dir() or not {path.name for path in (out / name).iterdir()} <= set(FORMAT_FILES[name]):
            return False
    model_files, check_files = {MODEL, CARD}, {CHECK_HOST, CHECK_FOLDER}
    all_files = {*model_files, *check_files, *FORMAT_FILES, LABELS, README, EXAMPLE}
    return not names or names == check_files or model_files <= names <= all_files


def select_check_pixels(images: ImageSet | None, side: int) -> NDArray[np.uint8]:
    """Return images uint8 (K, S, S, 3) for which every machine must predict the same classes."""
    if images is not None and images.image_size == side and len(images.indices(VALIDATION)):
        indices = images.indices(VALIDATION)
        return np.ascontiguousarray(images.images_NHWC[indices[spread_indices(len(indices), CHECK_IMAGES)]])
    noise = np.random.default_rng(0).integers(0, 256, (CHECK_IMAGES, 4, 4, 3), dtype=np.uint8)
    return np.stack([np.asarray(Image.fromarray(pixels_HWC).resize((side, side))) for pixels_HWC in noise])


def write_host_check(
    out: Path, models: Sequence[tuple[str, Path, str]], pixels_NHWC: NDArray[np.uint8], settings: Benchmark
) -> None:
    """Write check_host.py and check/ to `out`.

    `models` are (name, file, int8 or f32); files that are in `out` already are not copied. `pixels_NHWC` are the images
    for which a model must predict the same classes on the target machine.
    """
    folder = out / CHECK_FOLDER
    folder.mkdir()
    shutil.copyfile(Path(__file__).with_name(CHECK_HOST), out / CHECK_HOST)
    np.save(folder / "pixels.npy", pixels_NHWC)
    rows = []
    for name, path, precision in models:
        if path.parent != out:
            path = Path(shutil.copyfile(path, folder / f"{name}.onnx"))
        predictions = open_session(path).run([OUTPUT], {INPUT: pixels_NHWC})[0].argmax(1).tolist()
        file = path.relative_to(out).as_posix()
        row = {"name": name, "file": file, "sha256": sha256_of(path), "precision": precision, "answers": predictions}
        rows.append(row)
    manifest = {
        "image_size": pixels_NHWC.shape[1],
        **{key: getattr(settings, key) for key in ("large_batch", "samples", "rounds", "warm_up_ms", "timed_ms")},
        "needed_agreement": dict(NEEDED_AGREEMENT),
        "models": rows,
    }
    write_json(folder / "manifest.json", manifest)
