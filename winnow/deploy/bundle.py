"""Export a model as a self-contained folder: the file, its cards, an example program and a benchmark.

    model.onnx    uint8 pixels in, logits out          labels.txt    one class per line, in the order of the logits
    card.json     a description for programs           README.md     the same for people: a model card
    predict.py    class and probability of image files; needs onnxruntime, numpy and Pillow, but not winnow
    check_host.py, check/    times the model, or all candidates, on the target machine

Model cards: Mitchell et al. 2019 (arXiv 1810.03993).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from winnow.config import Benchmark
from winnow.data.dataset import VALIDATION, ImageSet, spread_indices
from winnow.deploy.onnx_session import INPUT, MODEL, OUTPUT, open_session
from winnow.deploy.runtime_properties import NEEDED_AGREEMENT
from winnow.errors import DataError
from winnow.evaluation.effective_sample_size import in_groups
from winnow.records import CARD, DeploymentCard, publish, sha256_of, write_json
from winnow.records.card import CardTest, FastestSettings, RuntimeSettings

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


def export_model(folder: Path, out: Path, title: str, check: HostCheck) -> None:
    """Export the model of `folder` (model.onnx, card.json) to `out`, completely or not at all.

    Raises DataError where `out` exists and holds anything but an earlier export.
    """
    _check_destination(out)
    card = DeploymentCard.read(folder)
    with publish(out) as bundle:
        shutil.copyfile(folder / MODEL, bundle / MODEL)
        shutil.copyfile(folder / CARD, bundle / CARD)
        (bundle / LABELS).write_text("".join(f"{name}\n" for name in card.classes), encoding="utf-8")
        shutil.copyfile(Path(__file__).with_name(EXAMPLE_SOURCE), bundle / EXAMPLE)
        (bundle / README).write_text(render_model_card(card, title), encoding="utf-8")
        own = (card.name, bundle / MODEL, card.precision)
        others = [
            (name, path, precision)
            for name, path, precision in check.others
            if name != card.name or sha256_of(path) != sha256_of(folder / MODEL)
        ]
        write_host_check(bundle, [own, *others], select_check_pixels(check.images, card.image_size), check.settings)


def export_host_check(out: Path, check: HostCheck, image_size: int) -> None:
    """Export check_host.py and the candidates only, for use before a model is promoted."""
    _check_destination(out)
    with publish(out) as bundle:
        pixels_NHWC = select_check_pixels(check.images, image_size)
        write_host_check(bundle, check.others, pixels_NHWC, check.settings)


def _check_destination(out: Path) -> None:
    """Raise DataError where `out` exists and is neither an empty folder nor an earlier export."""
    if not out.exists() or (out.is_dir() and _is_export(out)):
        return
    raise DataError(f"{out} exists and holds something else; name a new or empty folder")


def _is_export(out: Path) -> bool:
    """Return whether a folder is empty or holds the files of an export only."""
    names = {path.name for path in out.iterdir()}
    check_names = {path.name for path in (out / CHECK_FOLDER).iterdir()} if (out / CHECK_FOLDER).is_dir() else set()
    if CHECK_FOLDER in names and "manifest.json" not in check_names:
        return False
    if not all(name in ("manifest.json", "pixels.npy") or name.endswith(".onnx") for name in check_names):
        return False
    model_files, check_files = {MODEL, CARD}, {CHECK_HOST, CHECK_FOLDER}
    all_files = {*model_files, *check_files, LABELS, README, EXAMPLE}
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
        **{key: getattr(settings, key) for key in ("large_batch", "samples", "rounds", "warm_up_ms")},
        "needed_agreement": dict(NEEDED_AGREEMENT),
        "models": rows,
    }
    write_json(folder / "manifest.json", manifest)


def render_model_card(card: DeploymentCard, title: str) -> str:
    """Return the model card in Markdown."""
    metrics, labels, classes = card.metrics, card.labels, card.classes
    listing = ", ".join(classes[:20]) + (f" and {len(classes) - 20} more (labels.txt)" if len(classes) > 20 else "")
    return f"""# {title}

An image classifier: one of {len(classes)} classes for each image. {listing}.

| | |
|---|---|
| made by | winnow: {" > ".join(card.lineage)}, {card.precision} |
| size | {metrics["size/mb"]:.2f} MB, {metrics["size/parameters"] / 1e6:.2f} M parameters |
| input | `{card.input.name}`: uint8 RGB, {json.dumps(card.input.shape)}. {card.resize_policy} |
| output | `{card.output.name}`: float32 {card.output.note}, {json.dumps(card.output.shape)} |
| serve with | {describe_serving(card.serving)} |

{card.input.note}.

## Quality

{_test_warnings(card.test)}Measured on {card.measured_on}, which was also used to select it:
{labels.choosing} labelled images{in_groups(labels.choosing_groups)}.
Trained on {labels.training} labels.
{_refit_section(card)}
{_quality_table(metrics, card.test)}
{_test_result(card.test)}
The model also classifies images unlike its training images, with the same confidence. `winnow drift` detects them.

## Speed

| | |
|---|---|
{_speed_rows(card.speed, card.fastest)}
On {card.machine.cpu}, {card.machine.threads} threads, {card.machine.system}; other machines give other numbers.

## Origin

Data version `{card.data_version}`. Reason for the selection: {card.why}.

## Usage

    pip install onnxruntime numpy pillow
    python predict.py IMAGE ...
    python check_host.py            measure the speed on this machine, also with OpenVINO if it is installed
"""


def describe_serving(serving: RuntimeSettings) -> str:
    """Return a description of the runtime, precision and threads of a card."""
    runtime: str = serving.runtime
    if serving.streams is not None:
        stream_batch = serving.batch // serving.streams
        runtime = f"openvino (PERFORMANCE_HINT THROUGHPUT, {serving.streams} streams of {stream_batch} images each)"
    threads = "1 thread" if serving.threads == 1 else f"{serving.threads} threads"
    return f"{runtime}, {serving.precision}, {threads}"


def _quality_table(metrics: Mapping[str, float], test: CardTest | None) -> str:
    """Return a table of the metrics on validation, with top-1 on the test split beside them."""
    rows = []
    test_top1 = f"{test.top1 * 100:.1f} % ({test.top1_low * 100:.1f} to {test.top1_high * 100:.1f})" if test else ""
    if "quality/top1" in metrics:
        low, high = metrics["quality/top1_low"] * 100, metrics["quality/top1_high"] * 100
        top1 = f"{metrics['quality/top1'] * 100:.1f} % (95 % interval {low:.1f} to {high:.1f})"
        rows = [
            f"| top-1 accuracy | {top1} | {test_top1} |",
            f"| macro F1 | {metrics['quality/macro_f1'] * 100:.1f} % | |",
            f"| difference of top-1 to the uncompressed model, in points | {metrics['delta/top1']:+.1f} | |",
        ]
    if "quality/ece_calibrated" in metrics:
        rows.append(
            f"| expected calibration error, in ONNX Runtime | {metrics['quality/ece_calibrated'] * 100:.1f} % | |"
        )
    rows.append(f"| same prediction as the uncompressed model | {metrics['quality/agreement'] * 100:.1f} % | |")
    return "\n".join(["| | validation | test |", "|---|---|---|", *rows]) + "\n"


def _test_result(test: CardTest | None) -> str:
    """Return the result on the test split, or ""."""
    if test is None:
        return ""
    low, high = test.top1_low * 100, test.top1_high * 100
    text = (
        f"On {test.images:.0f} test images{in_groups(test.groups)}, not used for any selection: "
        f"{test.top1 * 100:.1f} % top-1 (95 % interval {low:.1f} to {high:.1f})"
    )
    if test.baseline:
        text += (
            f", measured in {test.measured_in}; {test.drop_points:.1f} points below {test.baseline} "
            f"({test.drop_low:.1f} to {test.drop_high:.1f})"
        )
    return f"{text}.\n"


def _test_warnings(test: CardTest | None) -> str:
    """Return the warnings of the test split in Markdown."""
    return "".join(f"**Warning:** {warning}.\n\n" for warning in (test.warnings if test else ()))


def _refit_section(card: DeploymentCard) -> str:
    """Return a paragraph on the refit, or ""."""
    if card.refit is None:
        return ""
    check = card.refit.check
    return (
        f"\nRefitted after its selection, on {card.labels.training} labels (training and validation): "
        f"{card.refit.note}. It gives the same prediction as before on {check.agreement * 100:.1f} % of "
        f"{check.images} {check.kind}.\n"
    )


def _speed_rows(speed: Mapping[str, float], fastest: FastestSettings) -> str:
    rows_by_metric = {
        "best/latency_ms": ("p50 latency, one image", "{:.3g} ms"),
        "best/throughput_ips": ("throughput", "{:.0f} images/s"),
        "speedup/eager_b1": ("speedup for one image over PyTorch eager float32", "{:.1f} times"),
        "speedup/pytorch_b1": ("speedup for one image over the fastest float PyTorch", "{:.1f} times"),
        "speedup/float_b1": ("speedup for one image over the uncompressed model at its fastest", "{:.1f} times"),
    }
    settings = {"best/latency_ms": fastest.latency, "best/throughput_ips": fastest.throughput}
    rows = []
    for key, (title, template) in rows_by_metric.items():
        if key in speed:
            timed = settings.get(key)
            conditions = f" ({describe_serving(timed)}, batch {timed.batch})" if timed else ""
            rows.append(f"| {title} | {template.format(speed[key])}{conditions} |\n")
    return "".join(rows)
