"""A challenger against the champion: both files measured side by side in this process, then judged. Nothing is moved.

Accuracy is paired on the labelled images of the validation split, each file answering in the runtime and precision
that its card names, since those serve. Speed is timed in turns, each file on the runtime that its card names; a card
that was written on another machine, or for another objective, names nothing here, and the file is timed on every
runtime for files and represented by its fastest. Both are then compared in rounds of their own, so that the gain has
an interval. A runtime whose answers differ from the file's own is not timed.

Of a file that was refitted, the one before the refit is measured: the refitted one has learned the validation images.

`judge_challenge` is pure. The challenger must lose no more than the gates on top-1 and macro F1 allow (the difference
within the allowance, the worst end of its interval within twice that), and must be better: in accuracy by an amount
that is shown (the whole interval on its side), or on the objective, where the lower end of the gain's interval counts,
by promotion.min_gain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from winnow.benchmark import grid
from winnow.benchmark.grid import CHECKED_IMAGES, answer_all, plan, screening
from winnow.benchmark.measurement_error import time_difference
from winnow.benchmark.speedups import Row, best, speedup
from winnow.benchmark.target_measurements import TargetMeasurements
from winnow.config import Config, Promotion
from winnow.data.dataset import VALIDATION, ImageSet, load_images, spread
from winnow.data.preprocessing import Preprocessing
from winnow.deploy.batch_inference import predict_file
from winnow.deploy.onnx_session import MODEL
from winnow.deploy.runtimes import (
    OPENVINO,
    BenchmarkCase,
    Predict,
    RuntimeUnavailable,
    cell_of,
    open_cell,
    openvino_modes,
)
from winnow.evaluation.accuracy_drop import DropReport, losses
from winnow.evaluation.intervals import Ratio
from winnow.hardware import cores
from winnow.records import Machine, sha256_of, this_machine
from winnow.refit.deployed_folder import selected_folder
from winnow.selection.decision import UNITS, batch_of_objective, judge_drop, judge_macro_f1

SIDES, AGAIN = ("champion", "challenger"), "champion again"

Card = Mapping[str, Any]
Sides = tuple[tuple[Path, Card], tuple[Path, Card]]
"""Champion and challenger: folder and card."""


@dataclass(frozen=True)
class ContestResult:
    """What was measured of both."""

    losses: DropReport
    """Of the challenger against the champion."""
    champion: float | None
    """On the objective (ms, images/s or MB); None where no runtime here answers as the file should."""
    challenger: float | None
    times_better: Ratio | None
    """How many times the challenger is better on the objective; of sizes without uncertainty."""
    substituted: tuple[str, ...] = ()
    """Whose answers are those of the file in ONNX Runtime, as what serves it cannot run here; in words."""


def incomparable(champion: Card, challenger: Card) -> str:
    """Why the two cannot be compared on one validation split; empty when they can."""
    if list(champion["classes"]) != list(challenger["classes"]):
        return f"its classes are {_few(champion['classes'])}, the challenger's {_few(challenger['classes'])}"
    if champion["image_size"] != challenger["image_size"]:
        return f"it takes images of {champion['image_size']} pixels, the challenger {challenger['image_size']}"
    one, other = Preprocessing.of(champion), Preprocessing.of(challenger)
    if one != other:
        return f"its images become pixels in another way ({one.policy}) than the challenger's ({other.policy})"
    if differs := _split_difference(champion.get("split") or {}, challenger.get("split") or {}):
        return f"{differs}: it may have learned from images that validate now"
    return ""


def _split_difference(champion: Mapping[str, Any], challenger: Mapping[str, Any]) -> str:
    """Return by what the rules differ that drew the two splits; empty where they are the same.

    Cards of earlier versions hold no group key and no decoder. What is missing counts as equal, but without a group key
    on one card the other's must be `none`.
    """
    if (one := _fractions(champion)) and (other := _fractions(challenger)) and one != other:
        return f"its images were split by {_shares(one)}, the challenger's by {_shares(other)}"
    known = [split["group_by"] for split in (champion, challenger) if "group_by" in split]
    if len(known) == 2 and known[0] != known[1]:
        return f"its images were split with data.group_by {known[0]!r}, the challenger's with {known[1]!r}"
    if len(known) == 1 and known[0] != "none":
        who = "the challenger's" if "group_by" in champion else "its"
        return f"{who} card does not say by which group key the images were split, the other one's key is {known[0]!r}"
    if "decoder" in champion and "decoder" in challenger and champion["decoder"] != challenger["decoder"]:
        return (
            "its images were split by the pixels of another decoder, which gives other pixels for the same files "
            f"(digest {champion['decoder']}, the challenger's {challenger['decoder']})"
        )
    return ""


def newly_refitted(champion: tuple[Path, Card], challenger: tuple[Path, Card]) -> str:
    """Return why a challenger that is the refit of the champion's own file takes its place; empty where it is none.

    Both are given as folder and card. The check of the refit has compared the two, and on validation images nobody can
    any more. A champion that was refitted itself has to be one on fewer labels.
    """
    (there, card), (here, told) = champion, challenger
    if sha256_of(selected_folder(there) / MODEL) != sha256_of(selected_folder(here) / MODEL):
        return ""
    before, labels = card["labels"]["training"], told["labels"]["training"]
    if "refit" not in told or labels <= before:
        return ""
    return f"it is the champion's file, refitted on {labels:,} labels, and the champion learned {before:,}"


def _fractions(split: Mapping[str, Any]) -> dict[str, float]:
    return {key: split[key] for key in ("validation_fraction", "test_fraction") if key in split}


def _shares(fractions: Mapping[str, float]) -> str:
    return " and ".join(f"{key} {share:g}" for key, share in fractions.items())


def _few(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def judge_challenge(contest: ContestResult, policy: Promotion) -> tuple[bool, str]:
    """Whether the challenger replaces the champion, and why, with both numbers."""
    passed, reason = _judged(contest, policy)
    return passed, "; ".join([reason, *contest.substituted])


def _judged(contest: ContestResult, policy: Promotion) -> tuple[bool, str]:
    passed, accuracy = _judge_accuracy(contest, policy)
    if not passed:
        return False, accuracy
    gain, compared = _gain(contest, policy.objective)
    if contest.losses.top1.labelled is not None and contest.losses.top1.labelled.high < 0:
        return True, f"{accuracy}, which is shown to be better; {compared}"
    if gain is None:
        return False, f"{accuracy}, but {compared}"
    needed = f"{policy.min_gain * 100:g} %"
    if gain.low >= policy.min_gain and gain.low > 0:
        return True, f"{accuracy}, and {compared}, at least {needed} better"
    if gain.value >= policy.min_gain and gain.value > 0:
        return False, f"{accuracy}, but no better by a shown amount, and {compared}, not shown to be {needed} better"
    return False, f"{accuracy}, but no better by a shown amount, and {compared}, not {needed} better"


def _judge_accuracy(contest: ContestResult, policy: Promotion) -> tuple[bool, str]:
    """The gates on top-1 and macro F1, against the champion."""
    top1, macro_f1, gates = contest.losses.top1, contest.losses.macro_f1, policy.gates
    judged = judge_drop(top1, gates.max_drop_points), judge_macro_f1(macro_f1, gates.max_macro_f1_drop_points)
    for what, gate in zip(("top-1", "macro F1"), judged, strict=True):
        if not gate.passed:
            return False, f"{what} against the champion: {gate.reason}"
    if top1.labelled is None:
        return True, f"{top1.answers.points:.1f} % of the validation images get another answer than the champion's"
    gained, low, high = (
        f"{round(-end, 1) + 0.0:+.1f}" for end in (top1.labelled.points, top1.labelled.high, top1.labelled.low)
    )
    return True, f"top-1 {gained} points ({low} to {high}) against the champion"


def _gain(contest: ContestResult, objective: str) -> tuple[Ratio | None, str]:
    """Share by which the challenger is better on the objective, and both values in words."""
    unit, theirs, own, times = UNITS[objective], contest.champion, contest.challenger, contest.times_better
    if own is None or theirs is None or times is None:
        who = "the challenger" if own is None else "the champion"
        return None, f"{who} has no times: no runtime here, or on the machine of benchmark.target, answered as its file"
    # Images a second grow by the factor; times and bytes shrink by it.
    ends = (times.value, times.low, times.high)
    gain = Ratio(*(end - 1 for end in ends)) if objective == "throughput" else Ratio(*(1 - 1 / end for end in ends))
    told = f"{gain.value * 100:+.1f} %"
    if objective != "size":
        told += f", 95 % interval {gain.low * 100:+.1f} to {gain.high * 100:+.1f} %"
    return gain, f"{objective} {own:.4g} {unit} against {theirs:.4g} ({told})"


def measure(
    config: Config,
    data: Path,
    champion: tuple[Path, Card],
    challenger: tuple[Path, Card],
    host: TargetMeasurements | None = None,
) -> ContestResult:
    """Both files, given as folder and card, on the validation split of `data`; their times from `host`, where it is."""
    images, policy, both = load_images(data), config.promotion, (champion, challenger)
    indices = images.indices(VALIDATION)
    answers = [_serve(folder, card, images, indices) for folder, card in both]
    served, substituted = [logits for logits, _ in answers], _substituted([missing for _, missing in answers])
    labels_V, groups_V = images.labels_N[indices], images.groups_N[indices]
    lost = losses(served[0], served[1], labels_V, groups_N=groups_V, classes=images.classes)
    theirs: float | None
    own: float | None
    if policy.objective == "size":
        theirs, own = ((folder / MODEL).stat().st_size / 1e6 for folder, _ in both)
        times = Ratio(theirs / own, theirs / own, theirs / own)
        return ContestResult(lost, theirs, own, times, substituted)
    rows = _rows_there(host, both, config) if host is not None else _rows_here(both, config, images)
    (theirs, own), ratio = [_value(row, policy.objective) for row in rows[:2]], None
    if rows[0] is not None and rows[1] is not None:
        error = 0.0 if rows[2] is None else time_difference(rows[0]["p50_ms"], rows[2]["p50_ms"])
        ratio = speedup(rows[0], rows[1], error)
    return ContestResult(lost, theirs, own, ratio, substituted)


def _value(row: Row | None, objective: str) -> float | None:
    if row is None:
        return None
    return float(row["images_per_s"] if objective == "throughput" else row["p50_ms"])


def _batch(config: Config) -> int:
    return batch_of_objective(config.promotion.objective, config.benchmark.large_batch)


def _rows_there(host: TargetMeasurements, both: Sides, config: Config) -> tuple[Row | None, Row | None, Row | None]:
    """Each file's best row on the machine that will serve; None where it was not timed there."""
    found = [best(host.rows_of({"it": sha256_of(folder / MODEL)}), "it", _batch(config)) for folder, _ in both]
    return found[0], found[1], None


def _serve(
    folder: Path, card: Card, images: ImageSet, indices_V: NDArray[np.int64]
) -> tuple[NDArray[np.float32], str | None]:
    """Logits (V, C) in the runtime and precision that the card names, and None.

    Where those cannot run here: logits of the file in ONNX Runtime, and what is missing.
    """
    serving = card["serving"]
    runtime, precision, batch = serving["runtime"], serving["precision"], serving["batch"]
    cell = BenchmarkCase(card["name"], runtime, precision, "file", batch, min(serving["threads"], cores()))
    try:
        return answer_all(open_cell(folder, cell), batch, images.images_NHWC, indices_V), None
    except RuntimeUnavailable as error:
        return predict_file(folder / MODEL, images.images_NHWC, indices_V), f"{runtime} {precision} ({error})"


def _substituted(missing: Sequence[str | None]) -> tuple[str, ...]:
    return tuple(
        f"the {side} answered in ONNX Runtime, as {what} cannot run here"
        for side, what in zip(SIDES, missing, strict=True)
        if what is not None
    )


def _rows_here(both: Sides, config: Config, images: ImageSet) -> tuple[Row | None, Row | None, Row | None]:
    """The fastest row of champion and challenger, and the champion's file opened again: all compared in turns."""
    indices = images.indices(VALIDATION)
    at = spread(len(indices), CHECKED_IMAGES)
    pixels_NHWC = np.ascontiguousarray(images.images_NHWC[indices[at]])
    folders = dict(zip(SIDES, (folder for folder, _ in both), strict=True)) | {AGAIN: both[0][0]}
    answers = {
        side: predict_file(folders[side] / MODEL, images.images_NHWC, indices[at]).argmax(1).astype(np.int64)
        for side in SIDES
    }

    def opened(cell: BenchmarkCase) -> Predict:
        return open_cell(folders[cell.candidate], cell)

    cells = [
        replace(cell, candidate=side)
        for side, (_, card) in zip(SIDES, both, strict=True)
        for cell in cells_of(card, config, this_machine())
    ]
    screened = grid.measure(cells, opened, pixels_NHWC, answers, screening(config.benchmark)).rows
    fastest = [best(screened, side, _batch(config)) for side in SIDES]
    if fastest[0] is None or fastest[1] is None:
        return fastest[0], fastest[1], None
    chosen = [cell_of(fastest[0]), cell_of(fastest[1]), replace(cell_of(fastest[0]), candidate=AGAIN)]
    rows = grid.compare(chosen, opened, pixels_NHWC, config.benchmark)
    return rows[0], rows[1], rows[2]


def cells_of(card: Card, config: Config, here: Machine) -> list[BenchmarkCase]:
    """Where a file is timed: as its card says that it serves, or everywhere if the card speaks of something else.

    Of OpenVINO in both of its modes: nobody wins by a mode that the other was not timed in.
    """
    objective, serving = config.promotion.objective, card["serving"]
    batch = _batch(config)
    there = Machine.model_validate(card["machine"])
    if (serving["objective"], serving["batch"], there.identity) == (objective, batch, here.identity):
        runtime, threads = serving["runtime"], serving["threads"]
        modes = openvino_modes(batch, threads) if runtime in OPENVINO else [runtime]
        return [BenchmarkCase(card["name"], mode, serving["precision"], "file", batch, threads) for mode in modes]
    cells = plan({card["name"]: card["precision"] == "int8"}, config.benchmark, cores(), cuda=False)
    return [cell for cell in cells if cell.layout == "file" and cell.batch == batch]
