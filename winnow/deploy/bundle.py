"""A promoted model as a folder that is taken away: the file, its card for programs and for people, an example.

    model.onnx    uint8 pixels in, logits out          labels.txt    a class a line, in the order of the logits
    card.json     what it is, for programs             README.md     the same for people: a model card
    predict.py    class and probability of image files; needs onnxruntime, numpy and Pillow, and no winnow
    check_host.py, check/    times the model, or all candidates, on the machine that will serve

Model cards: Mitchell et al. 2019 (arXiv 1810.03993).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from winnow.config import Benchmark
from winnow.data.dataset import VALIDATION, ImageSet, spread
from winnow.deploy.onnx_session import INPUT, MODEL, OUTPUT, open_session
from winnow.deploy.runtimes import NEEDED_AGREEMENT
from winnow.errors import DataError
from winnow.evaluation.effective_sample_size import in_groups
from winnow.records import publish, read_json, sha256_of, write_json

CARD, LABELS, README, EXAMPLE = "card.json", "labels.txt", "README.md", "predict.py"
EXAMPLE_SOURCE = "example_predict.py"
CHECK_HOST, CHECK = "check_host.py", "check"
CHECKED_IMAGES = 64


@dataclass(frozen=True)
class HostCheck:
    """What check_host.py is given."""

    settings: Benchmark
    images: ImageSet | None
    """Validation images serve where they fit the model; random pixels without."""
    others: tuple[tuple[str, Path, str], ...] = ()
    """(name, its model.onnx, int8 or f32) of candidates that are timed beside the model."""


def export_model(folder: Path, out: Path, title: str, check: HostCheck) -> None:
    """Leave the model of `folder` (model.onnx, card.json) in `out`, whole or not at all.

    Raises DataError where `out` is there already and holds more than an earlier export.
    """
    _see_ours(out)
    card = read_json(folder / CARD)
    with publish(out) as there:
        shutil.copyfile(folder / MODEL, there / MODEL)
        shutil.copyfile(folder / CARD, there / CARD)
        (there / LABELS).write_text("".join(f"{name}\n" for name in card["classes"]), encoding="utf-8")
        shutil.copyfile(Path(__file__).with_name(EXAMPLE_SOURCE), there / EXAMPLE)
        (there / README).write_text(model_card(card, title), encoding="utf-8")
        own = (card["name"], there / MODEL, card["precision"])
        others = [other for other in check.others if other[0] != card["name"] or not _same(other[1], folder / MODEL)]
        write_check(there, [own, *others], check_pixels(check.images, card["image_size"]), check.settings)


def export_check(out: Path, check: HostCheck, image_size: int) -> None:
    """Leave check_host.py and the candidates alone in `out`, where no model has been promoted yet."""
    _see_ours(out)
    with publish(out) as there:
        pixels_NHWC = check_pixels(check.images, image_size)
        write_check(there, check.others, pixels_NHWC, check.settings)


def _see_ours(out: Path) -> None:
    """Raise DataError where `out` is there and is anything but empty or an earlier export."""
    if not out.exists() or (out.is_dir() and _is_export(out)):
        return
    raise DataError(f"{out} is there and holds something else; name a folder that is empty, or new")


def _is_export(out: Path) -> bool:
    there = {path.name for path in out.iterdir()}
    checked = {path.name for path in (out / CHECK).iterdir()} if (out / CHECK).is_dir() else set()
    if CHECK in there and "manifest.json" not in checked:
        return False
    if not all(name in ("manifest.json", "pixels.npy") or name.endswith(".onnx") for name in checked):
        return False
    whole, alone = {MODEL, CARD}, {CHECK_HOST, CHECK}
    return not there or there == alone or whole <= there <= {*whole, *alone, LABELS, README, EXAMPLE}


def _same(one: Path, other: Path) -> bool:
    return sha256_of(one) == sha256_of(other)


def check_pixels(images: ImageSet | None, side: int) -> NDArray[np.uint8]:
    """Images uint8 (K, S, S, 3) on which every machine must give the same answers."""
    if images is not None and images.image_size == side and len(images.indices(VALIDATION)):
        indices = images.indices(VALIDATION)
        return np.ascontiguousarray(images.images_NHWC[indices[spread(len(indices), CHECKED_IMAGES)]])
    noise = np.random.default_rng(0).integers(0, 256, (CHECKED_IMAGES, 4, 4, 3), dtype=np.uint8)
    return np.stack([np.asarray(Image.fromarray(one).resize((side, side))) for one in noise])


def write_check(
    out: Path, models: Sequence[tuple[str, Path, str]], pixels_NHWC: NDArray[np.uint8], settings: Benchmark
) -> None:
    """Leave check_host.py and check/ in `out`. `models`: (name, its file, int8 or f32); those in `out` stay there.

    `pixels_NHWC` are the images on which a model must answer there as it does here.
    """
    folder = out / CHECK
    folder.mkdir()
    shutil.copyfile(Path(__file__).with_name(CHECK_HOST), out / CHECK_HOST)
    np.save(folder / "pixels.npy", pixels_NHWC)
    described = []
    for name, path, precision in models:
        if path.parent != out:
            path = Path(shutil.copyfile(path, folder / f"{name}.onnx"))
        answers = open_session(path).run([OUTPUT], {INPUT: pixels_NHWC})[0].argmax(1).tolist()
        file = path.relative_to(out).as_posix()
        row = {"name": name, "file": file, "sha256": sha256_of(path), "precision": precision, "answers": answers}
        described.append(row)
    manifest = {
        "image_size": pixels_NHWC.shape[1],
        **{key: getattr(settings, key) for key in ("large_batch", "samples", "rounds", "warm_up_ms")},
        "needed_agreement": dict(NEEDED_AGREEMENT),
        "models": described,
    }
    write_json(folder / "manifest.json", manifest)


def model_card(card: Mapping[str, Any], title: str) -> str:
    """The card in Markdown."""
    metrics, serving, labels = card["metrics"], card["serving"], card["labels"]
    classes = card["classes"]
    shown = ", ".join(classes[:20]) + (f" and {len(classes) - 20} more (labels.txt)" if len(classes) > 20 else "")
    machine = card["machine"]
    return f"""# {title}

An image classifier: one of {len(classes)} classes for each image. {shown}.

| | |
|---|---|
| made by | winnow: {" > ".join(card["lineage"])}, {card["precision"]} |
| size | {metrics["size/mb"]:.2f} MB, {metrics["size/parameters"] / 1e6:.2f} M parameters |
| input | `{card["input"]["name"]}`: uint8 RGB, {json.dumps(card["input"]["shape"])}. {card["resize_policy"]} |
| output | `{card["output"]["name"]}`: float32 {card["output"]["note"]}, {json.dumps(card["output"]["shape"])} |
| serve with | {how_served(serving)} |

{card["input"]["note"]}.

## How good it is

{_test_warnings(card.get("test", {}))}Measured on {card["measured_on"]}, by which it was chosen:
{labels["choosing"]} labelled images{in_groups(labels.get("choosing_groups"))}.
{labels["training"]} labels were trained on.
{_refitted(card)}
{_quality(metrics, card.get("test", {}))}
{_tested(card.get("test", {}))}
Images unlike those that it was trained on are answered all the same, and as surely. `winnow drift` tells
when they come.

## How fast it is

| | |
|---|---|
{_speed(card["speed"], card.get("fastest", {}))}
On {machine["cpu"]}, {machine["threads"]} threads, {machine["system"]}; another machine has other numbers.

## Where it comes from

Data version `{card["data_version"]}`. Why this one: {card["why"]}.

## Using it

    pip install onnxruntime numpy pillow
    python predict.py IMAGE ...
    python check_host.py            how fast it is on this machine, with OpenVINO too where that is installed
"""


def how_served(serving: Mapping[str, Any]) -> str:
    """Runtime, precision and threads of a card, in words."""
    runtime = serving["runtime"]
    if "streams" in serving:
        part = serving["batch"] // serving["streams"]
        runtime = f"openvino (PERFORMANCE_HINT THROUGHPUT, {serving['streams']} streams of {part} images each)"
    threads = "1 thread" if serving["threads"] == 1 else f"{serving['threads']} threads"
    return f"{runtime}, {serving['precision']}, {threads}"


def _quality(metrics: Mapping[str, float], test: Mapping[str, Any]) -> str:
    """A table: what was measured on validation, and accuracy on the test split beside it."""
    rows = []
    tested = (
        f"{test['top1'] * 100:.1f} % ({test['top1_low'] * 100:.1f} to {test['top1_high'] * 100:.1f})" if test else ""
    )
    if "quality/top1" in metrics:
        low, high = metrics["quality/top1_low"] * 100, metrics["quality/top1_high"] * 100
        told = f"{metrics['quality/top1'] * 100:.1f} % (95 % interval {low:.1f} to {high:.1f})"
        rows = [
            f"| top-1 accuracy | {told} | {tested} |",
            f"| macro F1 | {metrics['quality/macro_f1'] * 100:.1f} % | |",
            f"| points of top-1 beside the uncompressed model | {metrics['delta/top1']:+.1f} | |",
        ]
    if "quality/ece_calibrated" in metrics:
        rows.append(
            f"| expected calibration error, in ONNX Runtime | {metrics['quality/ece_calibrated'] * 100:.1f} % | |"
        )
    rows.append(f"| same answer as the uncompressed model | {metrics['quality/agreement'] * 100:.1f} % | |")
    return "\n".join(["| | validation | test |", "|---|---|---|", *rows]) + "\n"


def _tested(test: Mapping[str, Any]) -> str:
    """The figure that nothing was chosen by. Cards of earlier versions hold no baseline."""
    if not test:
        return ""
    low, high = test["top1_low"] * 100, test["top1_high"] * 100
    text = (
        f"On {test['images']:.0f} test images{in_groups(test.get('groups'))}, by which nothing was chosen: "
        f"{test['top1'] * 100:.1f} % top-1 (95 % interval {low:.1f} to {high:.1f})"
    )
    if "baseline" in test:
        text += (
            f", measured in {test['measured_in']}; {test['drop_points']:.1f} points below {test['baseline']} "
            f"({test['drop_low']:.1f} to {test['drop_high']:.1f})"
        )
    return f"{text}.\n"


def _test_warnings(test: Mapping[str, Any]) -> str:
    """What the test split warns of, before any figure."""
    return "".join(f"**Warning:** {warning}.\n\n" for warning in test.get("warnings", []))


def _refitted(card: Mapping[str, Any]) -> str:
    """What a refit means for the figures; empty without one."""
    if "refit" not in card:
        return ""
    refit, labels = card["refit"], card["labels"]
    check, kind = refit["check"], refit["check"]["kind"]
    return (
        f"\nRefitted after it was chosen, on {labels['training']} labels (training and validation): {refit['note']}. "
        f"It gives the same answer as before on {check['agreement'] * 100:.1f} % of {check['images']} {kind}.\n"
    )


def _speed(speed: Mapping[str, float], fastest: Mapping[str, Mapping[str, Any]]) -> str:
    words = {
        "best/latency_ms": ("p50 latency, one image", "{:.3g} ms"),
        "best/throughput_ips": ("throughput", "{:.0f} images/s"),
        "speedup/eager_b1": ("one image, against PyTorch eager float32", "{:.1f} times"),
        "speedup/pytorch_b1": ("one image, against the best float PyTorch", "{:.1f} times"),
        "speedup/float_b1": ("one image, against the uncompressed model at its best", "{:.1f} times"),
    }
    kinds = {"best/latency_ms": "latency", "best/throughput_ips": "throughput"}
    rows = []
    for key, (what, form) in words.items():
        if key in speed:
            how = fastest.get(kinds.get(key, ""))
            where = f" ({how_served(how)}, batch {how['batch']})" if how else ""
            rows.append(f"| {what} | {form.format(speed[key])}{where} |\n")
    return "".join(rows)
