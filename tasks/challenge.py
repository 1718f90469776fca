"""A challenger against the champion: both files measured side by side in this process, then judged. Nothing is moved.

Accuracy is paired on the labelled images of the validation split, each file answering in the runtime and precision
that its card names, since those serve. Speed is timed in turns, each file on the runtime that its card names; a card
that was written on another machine, or for another objective, names nothing here, and the file is timed on every
runtime for files and represented by its fastest. A runtime whose answers differ from the file's own is not timed.

`judge_challenge` is pure. The challenger must lose no more than the gates on top-1 and macro F1 allow (the difference
within the allowance, the worst end of its interval within twice that), and must be better: in accuracy by an amount
that is shown (the whole interval on its side), or on the objective by promotion.min_gain.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from winnow.benchmarking import (
    CHECKED_IMAGES,
    NEEDED_AGREEMENT,
    agreement,
    answer_all,
    plan,
    visiting_order,
)
from winnow.config import Config, Promotion
from winnow.data.images import VALIDATION, ImageSet, load_images, spread
from winnow.evidence import Losses, losses
from winnow.hosts import Host
from winnow.inference import predict_file
from winnow.machine import cores
from winnow.model_file import MODEL
from winnow.quiet import quiet_machine
from winnow.records import Machine, sha256_of, this_machine
from winnow.runtimes import OPENVINO, Cell, NotHere, Predict, open_cell, openvino_modes
from winnow.selection import UNITS, judge_drop, judge_macro_f1
from winnow.speedups import best
from winnow.timing import time_calls

WARM_UP, CALLS_LARGE = 5, 3
"""Calls per round: untimed ones, and timed ones of a large batch."""

Card = Mapping[str, Any]


@dataclass(frozen=True)
class Contest:
    """What was measured of both."""

    losses: Losses
    """Of the challenger against the champion."""
    champion: float | None
    """On the objective (ms, images/s or MB); None where no runtime here answers as the file should."""
    challenger: float | None


def incomparable(champion: Card, challenger: Card) -> str:
    """Why the two cannot be compared on one validation split; empty when they can."""
    if list(champion["classes"]) != list(challenger["classes"]):
        return f"its classes are {_few(champion['classes'])}, the challenger's {_few(challenger['classes'])}"
    if champion["image_size"] != challenger["image_size"]:
        return f"it takes images of {champion['image_size']} pixels, the challenger {challenger['image_size']}"
    if champion.get("split") and challenger.get("split") and champion["split"] != challenger["split"]:
        return (
            f"its images were split by {_shares(champion['split'])}, the challenger's by "
            f"{_shares(challenger['split'])}: it may have learned from images that validate now"
        )
    return ""


def _shares(split: Mapping[str, float]) -> str:
    return " and ".join(f"{key} {share:g}" for key, share in split.items())


def _few(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def judge_challenge(contest: Contest, policy: Promotion) -> tuple[bool, str]:
    """Whether the challenger replaces the champion, and why, with both numbers."""
    passed, accuracy = _judge_accuracy(contest, policy)
    if not passed:
        return False, accuracy
    gain, compared = _gain(contest, policy.objective)
    if contest.losses.top1.labelled is not None and contest.losses.top1.labelled.high < 0:
        return True, f"{accuracy}, which is shown to be better; {compared}"
    if gain is None:
        return False, f"{accuracy}, but {compared}"
    needed = f"{policy.min_gain * 100:g} %"
    if gain >= policy.min_gain and gain > 0:
        return True, f"{accuracy}, and {compared}, at least {needed} better"
    return False, f"{accuracy}, but no better by a shown amount, and {compared}, not {needed} better"


def _judge_accuracy(contest: Contest, policy: Promotion) -> tuple[bool, str]:
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


def _gain(contest: Contest, objective: str) -> tuple[float | None, str]:
    """Share by which the challenger is better on the objective, and both values in words."""
    unit, theirs, own = UNITS[objective], contest.champion, contest.challenger
    if own is None or theirs is None:
        who = "the challenger" if own is None else "the champion"
        return None, f"{who} has no times: no runtime here, or on the machine of benchmark.target, answered as its file"
    gain = own / theirs - 1 if objective == "throughput" else 1 - own / theirs
    return gain, f"{objective} {own:.4g} {unit} against {theirs:.4g} ({gain * 100:+.1f} %)"


def measure(
    config: Config, data: Path, champion: tuple[Path, Card], challenger: tuple[Path, Card], host: Host | None = None
) -> Contest:
    """Both files, given as folder and card, on the validation split of `data`; their times from `host`, where it is."""
    images, policy, both = load_images(data), config.promotion, (champion, challenger)
    indices = images.indices(VALIDATION)
    served = [_serve(folder, card, images, indices) for folder, card in both]
    if policy.objective == "size":
        values: list[float | None] = [(folder / MODEL).stat().st_size / 1e6 for folder, _ in both]
    elif host is not None:
        values = [_there(host, folder, config) for folder, _ in both]
    else:
        at = spread(len(indices), CHECKED_IMAGES)
        files = [predict_file(folder / MODEL, images.images_NHWC, indices[at]) for folder, _ in both]
        pixels_NHWC = np.ascontiguousarray(images.images_NHWC[indices[at]])
        values = _time(list(both), config, pixels_NHWC, [file_NC.argmax(1).astype(np.int64) for file_NC in files])
    return Contest(
        losses=losses(served[0], served[1], images.labels_N[indices]),
        champion=values[0],
        challenger=values[1],
    )


def _there(host: Host, folder: Path, config: Config) -> float | None:
    """The file's best on the machine that will serve; None where it was not timed there."""
    objective, large = config.promotion.objective, config.benchmark.large_batch
    row = best(host.rows_of({"it": sha256_of(folder / MODEL)}), "it", large if objective == "throughput" else 1)
    if row is None:
        return None
    return float(row["images_per_s"] if objective == "throughput" else row["p50_ms"])


def _serve(folder: Path, card: Card, images: ImageSet, indices_V: NDArray[np.int64]) -> NDArray[np.float32]:
    """Logits (V, C) in the runtime and precision that the card names, or of the file itself where those cannot run."""
    serving = card["serving"]
    runtime, precision, batch = serving["runtime"], serving["precision"], serving["batch"]
    cell = Cell(card["name"], runtime, precision, "file", batch, min(serving["threads"], cores()))
    try:
        return answer_all(open_cell(folder, cell), batch, images.images_NHWC, indices_V)
    except NotHere:
        return predict_file(folder / MODEL, images.images_NHWC, indices_V)


def _time(
    sides: list[tuple[Path, Card]], config: Config, pixels_NHWC: NDArray[np.uint8], answers: list[NDArray[np.int64]]
) -> list[float | None]:
    """Each side's best p50 at batch 1 (ms) or images/s at the large batch; all cells take turns in every round."""
    settings, objective = config.benchmark, config.promotion.objective
    batch = settings.large_batch if objective == "throughput" else 1
    cells: list[tuple[int, Predict]] = []
    for side, (folder, card) in enumerate(sides):
        for cell in cells_of(card, config, this_machine()):
            try:
                predict = open_cell(folder, cell)
            except NotHere:
                continue
            if agreement(predict, batch, pixels_NHWC, answers[side]) >= NEEDED_AGREEMENT[cell.precision]:
                cells.append((side, predict))
    pixels = np.resize(pixels_NHWC, (batch, *pixels_NHWC.shape[1:]))
    calls = CALLS_LARGE if batch > 1 else -(-settings.samples // settings.rounds)
    seconds: list[list[float]] = [[] for _ in cells]
    with quiet_machine():
        for round_ in range(settings.rounds):
            for at in visiting_order(len(cells), round_):
                seconds[at] += time_calls(cells[at][1], pixels, WARM_UP if batch == 1 else 1, calls)
    fastest_of: list[float | None] = []
    for side in range(len(sides)):
        medians = [float(np.median(taken)) for (of, _), taken in zip(cells, seconds, strict=True) if of == side]
        fastest = min(medians, default=None)
        fastest_of.append(None if fastest is None else batch / fastest if objective == "throughput" else fastest * 1e3)
    return fastest_of


def cells_of(card: Card, config: Config, here: Machine) -> list[Cell]:
    """Where a file is timed: as its card says that it serves, or everywhere if the card speaks of something else.

    Of OpenVINO in both of its modes: nobody wins by a mode that the other was not timed in.
    """
    objective, serving = config.promotion.objective, card["serving"]
    batch = config.benchmark.large_batch if objective == "throughput" else 1
    there = Machine.model_validate(card["machine"])
    if (serving["objective"], serving["batch"], there.identity) == (objective, batch, here.identity):
        runtime, threads = serving["runtime"], serving["threads"]
        modes = openvino_modes(batch, threads) if runtime in OPENVINO else [runtime]
        return [Cell(card["name"], mode, serving["precision"], "file", batch, threads) for mode in modes]
    grid = plan({card["name"]: card["precision"] == "int8"}, config.benchmark, cores(), cuda=False)
    return [cell for cell in grid if cell.layout == "file" and cell.batch == batch]
