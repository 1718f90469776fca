"""The grid of cells and how they are timed: screened, then compared, and only if the answers are right.

A cell is a candidate on a runtime, at a precision, with a batch and a number of threads (winnow/deploy/runtimes.py).
There are two passes. `measure` screens every cell: those with the same batch and threads take turns for a few rounds,
which tells on which runtime and threads a file is fastest. `compare` then times the cells that count, one or two of
each candidate and the baselines, again: all of one batch in the same rounds, more of them. The fastest of many short
timings is partly luck, so what is published of the cells that count comes from the second pass alone, and its rounds
are the pairs that a speed-up's interval is made of. Every visit begins at rest and warm (winnow/benchmark/timing.py).

p50 and p95 are taken over all timed calls. `round_ms` holds the median of each round; `spread` says how far they were
apart: (largest - smallest) / p50; `inner_spread` leaves out the fastest and the slowest round, since one disturbed
round moves no p50. A p95 of fewer than 200 calls would be the second worst of a handful and is not given.

Before a cell is timed, its answers are compared with the candidate's own (validation_logits.npy): a fast runtime that
answers something else is listed as refused, with the number, and not timed.

It does not say what a machine can do at best (one process, one call at a time, no load), and times of two machines are
never compared. Reddi et al. 2019, MLPerf Inference (arXiv 1911.02549) calls these cells single-stream and offline.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from winnow.benchmark.timing import SecondsByRound, TimedFile, medians_ms, time_in_turns
from winnow.config import ROOT, Benchmark
from winnow.data.dataset import VALIDATION, ImageSet, spread
from winnow.deploy.runtimes import (
    NEEDED_AGREEMENT,
    BenchmarkCase,
    Layout,
    Precision,
    Predict,
    Runtime,
    RuntimeUnavailable,
    on_cpu,
    set_torch_threads,
)
from winnow.errors import ArtifactError
from winnow.eta import duration
from winnow.evaluation.metrics import load_logits
from winnow.hardware import has_fast_bf16
from winnow.timing_lock import compute_lock, timing_lock

log = logging.getLogger(__name__)

Row = dict[str, Any]
SAMPLES_FOR_P95 = 200
CHECKED_IMAGES = 256
CALLS_PER_ROUND_LARGE = 3
SCREENING_ROUNDS = 3
SECONDS_BETWEEN_LINES = 10.0


@dataclass
class BenchmarkResult:
    """What the grid gave: timed rows, cells whose answers were wrong, cells that cannot run here."""

    rows: list[Row] = field(default_factory=list)
    refused: list[Row] = field(default_factory=list)
    absent: list[Row] = field(default_factory=list)


def plan(
    int8: Mapping[str, bool], settings: Benchmark, threads: int, cuda: bool, networks: Collection[str] | None = None
) -> list[BenchmarkCase]:
    """Every cell, group by group. `int8`: candidate -> is its file int8; `threads`: all of this machine.

    `networks`: candidates with weights for PyTorch, all that are not int8 if None; a quantized one that ended in float
    has none.
    """
    networks = {name for name, is_int8 in int8.items() if not is_int8} if networks is None else networks
    cells = []
    for batch in (settings.large_batch, 1):
        for count in sorted({threads, 1}, reverse=True):
            for name, is_int8 in int8.items():
                kinds = _file_kinds(is_int8, batch, count, cuda and count == threads)
                if name in networks and (name == ROOT or settings.grid == "full"):
                    kinds += _torch_kinds(cuda and count == threads, name == ROOT and settings.grid == "full")
                cells += [BenchmarkCase(name, *kind, batch=batch, threads=count) for kind in kinds]
    return cells


def _file_kinds(is_int8: bool, batch: int, threads: int, cuda: bool) -> list[tuple[Runtime, Precision, Layout]]:
    kinds = on_cpu("int8" if is_int8 else "f32", batch, threads)
    if cuda and not is_int8:
        kinds += [("ort-cuda", "f32"), ("ort-tensorrt", "f32")]
    return [(runtime, precision, "file") for runtime, precision in kinds]


def _torch_kinds(cuda: bool, autotune: bool) -> list[tuple[Runtime, Precision, Layout]]:
    """`autotune`: also torch.compile in the mode that takes minutes to compile."""
    precisions: list[Precision] = ["f32", "bf16"] if has_fast_bf16() else ["f32"]
    layouts: tuple[Layout, ...] = ("contiguous", "channels_last")
    kinds: list[tuple[Runtime, Precision, Layout]] = [("eager", how, at) for how in precisions for at in layouts]
    modes: tuple[Runtime, ...] = ("compile", "compile-autotune") if autotune else ("compile",)
    kinds += [(mode, how, "channels_last") for mode in modes for how in precisions]
    if cuda:
        kinds += [("eager-cuda", "f32", "channels_last"), ("eager-cuda", "bf16", "channels_last")]
    return kinds


def checked_images(
    images: ImageSet, folders: Mapping[str, Path]
) -> tuple[NDArray[np.uint8], dict[str, NDArray[np.int64]]]:
    """Pixels spread evenly over the validation split, and the class that each candidate's own file gave them.

    Raises ArtifactError where there is no validation image.
    """
    indices = images.indices(VALIDATION)
    if not len(indices):
        raise ArtifactError("there is no validation image to check the files on; run winnow again with more images")
    at = spread(len(indices), CHECKED_IMAGES)
    answers = {name: load_logits(at_, images)[at].argmax(1).astype(np.int64) for name, at_ in folders.items()}
    return np.ascontiguousarray(images.images_NHWC[indices[at]]), answers


def measure(
    cells: list[BenchmarkCase],
    open_cell: Callable[[BenchmarkCase], Predict],
    pixels_NHWC: NDArray[np.uint8],
    answers: Mapping[str, NDArray[np.int64]],
    settings: Benchmark,
) -> BenchmarkResult:
    """Time all cells, those of one batch and number of threads in the same `settings.rounds` rounds.

    `answers`: candidate -> the class it gives for each of the pixels.
    """
    outcome, started, last = BenchmarkResult(), time.monotonic(), 0.0
    groups: dict[tuple[int, int], list[BenchmarkCase]] = {}
    for cell in cells:
        groups.setdefault((cell.batch, cell.threads), []).append(cell)
    done = 0
    for (batch, threads), group in groups.items():
        before = set_torch_threads(threads)
        try:
            with compute_lock():
                opened = _open_all(group, open_cell, pixels_NHWC, answers, outcome)
            with timing_lock():
                outcome.rows += _time_group(opened, _cut(pixels_NHWC, 0, batch), settings)
        finally:
            set_torch_threads(before)
        done += len(group)
        now = time.monotonic() - started
        if now - last > SECONDS_BETWEEN_LINES or done == len(cells):
            last, left = now, now / done * (len(cells) - done)
            log.info("benchmark: %d of %d cells timed, about %s left", done, len(cells), duration(left))
    return outcome


def _open_all(
    group: list[BenchmarkCase],
    open_cell: Callable[[BenchmarkCase], Predict],
    pixels_NHWC: NDArray[np.uint8],
    answers: Mapping[str, NDArray[np.int64]],
    outcome: BenchmarkResult,
) -> list[tuple[BenchmarkCase, Predict]]:
    """The cells of a group that run here and answer as they should; the others go into `outcome`."""
    opened = []
    for cell in group:
        try:
            predict = open_cell(cell)
        except RuntimeUnavailable as reason:
            row = {"runtime": cell.runtime, "precision": cell.precision, "reason": str(reason)}
            if row not in outcome.absent:
                outcome.absent.append(row)
                log.info("benchmark: %s %s left out: %s", cell.runtime, cell.precision, reason)
            continue
        share, needed = agreement(predict, cell.batch, pixels_NHWC, answers[cell.candidate]), _needed(cell)
        if share >= needed:
            opened.append((cell, predict))
            continue
        outcome.refused.append({**asdict(cell), "agreement": share, "needed": needed, "images": len(pixels_NHWC)})
        log.warning(
            "%s on %s %s (batch %d) is not timed: its answers agree with the file's own on %.1f %% of %d images, "
            "needed %.0f %%",
            *(cell.candidate, cell.runtime, cell.precision, cell.batch, share * 100, len(pixels_NHWC), needed * 100),
        )
    return opened


def _needed(cell: BenchmarkCase) -> float:
    return NEEDED_AGREEMENT[cell.precision]


def agreement(predict: Predict, batch: int, pixels_NHWC: NDArray[np.uint8], answers_N: NDArray[np.int64]) -> float:
    """Share of images for which `predict`, called in full batches, names the class in `answers_N`."""
    logits_NC = answer_all(predict, batch, pixels_NHWC, np.arange(len(pixels_NHWC)))
    return float((logits_NC.argmax(1) == answers_N).mean())


def answer_all(
    predict: Predict, batch: int, images_NHWC: NDArray[np.uint8], indices_N: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Logits (N, C) of the named images, called in full batches: the last one begins again at the front."""
    count = len(indices_N)
    wanted = (indices_N[np.arange(at, at + batch) % count] for at in range(0, count, batch))
    return np.concatenate([predict(np.ascontiguousarray(images_NHWC[chosen_B])) for chosen_B in wanted])[:count]


def _cut(pixels_NHWC: NDArray[np.uint8], at: int, batch: int) -> NDArray[np.uint8]:
    """`batch` images from position `at`, beginning again at the end."""
    return np.ascontiguousarray(pixels_NHWC[(np.arange(at, at + batch)) % len(pixels_NHWC)])


def compare(
    cells: list[BenchmarkCase],
    open_cell: Callable[[BenchmarkCase], Predict],
    pixels_NHWC: NDArray[np.uint8],
    settings: Benchmark,
) -> list[Row]:
    """Time cells that `measure` has found to answer as they should: all of one batch in the same rounds."""
    rows: list[Row] = []
    for batch in sorted({cell.batch for cell in cells}, reverse=True):
        together = [cell for cell in cells if cell.batch == batch]
        log.info("benchmark: %d cells of batch %d compared in turns", len(together), batch)
        before = set_torch_threads(together[0].threads)
        try:
            with compute_lock():
                opened = [(cell, _open_with_its_threads(cell, open_cell)) for cell in together]
            with timing_lock():
                rows += _time_group(opened, _cut(pixels_NHWC, 0, batch), settings)
        finally:
            set_torch_threads(before)
    return rows


def _open_with_its_threads(cell: BenchmarkCase, open_cell: Callable[[BenchmarkCase], Predict]) -> Predict:
    """torch.compile counts the threads as it compiles."""
    set_torch_threads(cell.threads)
    return open_cell(cell)


def screening(settings: Benchmark) -> Benchmark:
    """Return the settings of the first pass: as many calls a visit as in the comparison, in fewer rounds."""
    samples = -(-settings.samples // settings.rounds) * SCREENING_ROUNDS
    return settings.model_copy(update={"rounds": SCREENING_ROUNDS, "samples": samples})


def calls_per_round(batch: int, settings: Benchmark) -> int:
    """Return how many calls are timed at each visit."""
    return -(-settings.samples // settings.rounds) if batch == 1 else CALLS_PER_ROUND_LARGE


def _time_group(
    opened: list[tuple[BenchmarkCase, Predict]], pixels_NHWC: NDArray[np.uint8], settings: Benchmark
) -> list[Row]:
    calls = calls_per_round(len(pixels_NHWC), settings)
    files = [TimedFile(predict, pixels_NHWC, cell.threads) for cell, predict in opened]
    seconds = time_in_turns(files, settings.rounds, calls, settings.warm_up_ms)
    return [summarise(cell, by_round) for (cell, _), by_round in zip(opened, seconds, strict=True)]


def summarise(cell: BenchmarkCase, seconds_by_round: SecondsByRound) -> Row:
    """Return one row of the record: milliseconds per call, images per second, and how steady they were."""
    milliseconds = np.concatenate([np.asarray(part) for part in seconds_by_round]) * 1e3
    round_ms = medians_ms(seconds_by_round)
    medians = sorted(round_ms)
    p50 = float(np.median(milliseconds))
    enough = len(milliseconds) >= SAMPLES_FOR_P95
    return {
        **asdict(cell),
        "p50_ms": p50,
        "p95_ms": float(np.percentile(milliseconds, 95)) if enough else None,
        "images_per_s": cell.batch / p50 * 1e3,
        "samples": len(milliseconds),
        "round_ms": round_ms,
        "spread": (max(medians) - min(medians)) / p50,
        "inner_spread": (medians[-2] - medians[1]) / p50 if len(medians) > 3 else 0.0,
    }
