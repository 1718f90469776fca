"""Step 5: how fast the files are, on this machine. The one step whose record holds times, and the machine with them.

Every cell is screened; each candidate's fastest, the baselines and what lies between are compared in rounds of their
own, of which speed-ups, their intervals and the measurement error come (winnow/benchmark/grid.py,
winnow/benchmark/speedups.py).

Beside the times it leaves what each file answers to all validation images where it is fastest, one .npy per candidate,
runtime and precision: a bf16 that is fast and less accurate is judged by its own answers.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from winnow.benchmark.grid import (
    BenchmarkResult,
    answer_all,
    checked_images,
    compare,
    measure,
    plan,
    screening,
)
from winnow.benchmark.int8_coverage import executed
from winnow.benchmark.measurement_error import identical_graphs, largest_errors, measurement_errors
from winnow.benchmark.memory_footprint import footprint
from winnow.benchmark.peak_throughput import best_of, peaks, shares_of_peak
from winnow.benchmark.speedups import Row, attribution, baselines, best, figures, replaced, shortlist
from winnow.benchmark.timing import settle
from winnow.config import ROOT, Config, in_order
from winnow.data.dataset import VALIDATION, ImageSet, load_images
from winnow.deploy.onnx_export import graph_digest
from winnow.deploy.onnx_session import MODEL
from winnow.deploy.runtimes import INT8, NEEDED_AGREEMENT, PYTORCH, BenchmarkCase, Predict, cell_of, open_cell
from winnow.evaluation.metrics import served_file
from winnow.hardware import cores, has_fast_bf16
from winnow.models.backbones import WEIGHTS
from winnow.records import StepRecord, describe, publish, read_record, record_digest, this_machine, write_record
from winnow.timing_lock import compute_lock, timing_lock

log = logging.getLogger(__name__)
UNSTEADY = 0.2
"""Inner spread of a file's fastest rows beyond which its times are told to be rough."""


def benchmark(config: Config, data: Path, candidates: Path, out: Path) -> StepRecord:
    """Time every candidate's file, measure its footprint, and leave the figures in `out`."""
    settings, large = config.benchmark, config.benchmark.large_batch
    records = {name: read_record(candidates / name) for name in (ROOT, *in_order(dict(config.candidates)))}
    int8 = {name: record.details["precision"] == "int8" for name, record in records.items()}
    ancestors = {name: _float_ancestor(record.details["lineage"], int8) for name, record in records.items()}
    gpu, threads = _gpu(), cores()
    images = load_images(data)
    pixels_NHWC, answers = checked_images(images, {name: candidates / name for name in records})
    networks = {name for name in records if (candidates / name / WEIGHTS).is_file()}
    cells = plan(int8, settings, threads, bool(gpu), networks)
    with timing_lock():
        before = peaks()

    def opened(cell: BenchmarkCase) -> Predict:
        return open_cell(candidates / cell.candidate, cell)

    outcome = measure(cells, opened, pixels_NHWC, answers, screening(settings))
    outcome.absent += _absent(bool(gpu))
    pairs = identical_graphs({name: graph_digest(candidates / name / MODEL) for name in records})
    wanted = [cell for batch in (large, 1) for cell in shortlist(outcome.rows, ancestors, pairs, batch)]
    outcome.rows = replaced(outcome.rows, compare(wanted, opened, pixels_NHWC, settings))
    with timing_lock():
        processes = _footprints(int8, networks, config, candidates, pixels_NHWC.shape[1], threads)
        peak = best_of(before, peaks())
    proofs = _executed(outcome, candidates)
    rows = outcome.rows
    bests = {name: {"latency": best(rows, name, 1), "throughput": best(rows, name, large)} for name in records}
    causes = {
        name: {
            "latency": attribution(rows, name, ancestors[name], 1),
            "throughput": attribution(rows, name, ancestors[name], large),
        }
        for name in records
    }
    errors = measurement_errors(rows, pairs)
    largest = largest_errors(errors)
    record = StepRecord(
        step="benchmark",
        name="benchmark",
        parameters=settings.model_dump(mode="json", exclude={"target"}),
        inputs={"data": record_digest(data), **{name: record_digest(candidates / name) for name in records}},
        metrics={
            "cells/timed": len(rows),
            "cells/refused": len(outcome.refused),
            **{f"error/b{batch}": error for batch, error in largest.items()},
        },
        details={
            "rows": rows,
            "processes": processes,
            "executed": proofs,
            "peaks": peak,
            "peak_share": {
                name: shares_of_peak(bests[name], record.metrics["compute/macs"], peak)
                for name, record in records.items()
            },
            "refused": outcome.refused,
            "absent": outcome.absent,
            "candidates": {name: figures(rows, processes, name, large, largest) for name in records},
            "identical_graphs": [list(pair) for pair in pairs],
            "measurement_error": errors,
            "best": bests,
            "baselines": {f"b{batch}": baselines(rows, batch) for batch in (1, large)},
            "attribution": causes,
            "conditions": {
                "images_checked": len(pixels_NHWC),
                "needed_agreement": dict(NEEDED_AGREEMENT),
                "threads": threads,
                "image_size": pixels_NHWC.shape[1],
            },
        },
        warnings=warnings_of(outcome, bests),
        machine=this_machine(gpu),
    )
    with publish(out) as folder:
        answers_of = _answer_where_fastest(bests, images, candidates, folder)
        write_record(folder, record.model_copy(update={"artifacts": describe(folder, *answers_of)}))
    return record


@compute_lock()
def _answer_where_fastest(
    bests: dict[str, dict[str, Row | None]], images: ImageSet, candidates: Path, folder: Path
) -> list[str]:
    """Leave the logits (V, C) of every candidate in the cells where it is fastest -> names of the files."""
    indices = images.indices(VALIDATION)
    written: list[str] = []
    for name, rows in bests.items():
        for row in rows.values():
            if row is None or (file := served_file(row)) in written:
                continue
            cell = cell_of(row)
            predict = open_cell(candidates / name, cell)
            np.save(folder / file, answer_all(predict, cell.batch, images.images_NHWC, indices))
            written.append(file)
    return written


@compute_lock()
def _executed(outcome: BenchmarkResult, candidates: Path) -> list[Row]:
    """What of each int8 file a runtime computes in int8, as its own graph tells."""
    rows = [row for row in outcome.rows if row["precision"] in INT8]
    cells = {(row["candidate"], row["runtime"], row["precision"]): cell_of(row) for row in rows}
    return [executed(candidates / cell.candidate, cell) for cell in cells.values()]


def _float_ancestor(lineage: list[str], int8: dict[str, bool]) -> str:
    """The last network of the line that is not int8; a candidate outside the present tree counts as float."""
    return next(name for name in reversed(lineage) if not int8.get(name, False))


def _footprints(
    int8: dict[str, bool], networks: set[str], config: Config, candidates: Path, side: int, threads: int
) -> list[dict[str, Any]]:
    """A fresh process per file and runtime. quick: the files' own runtimes, and eager for dense."""
    full, cells = config.benchmark.grid == "full", []
    for name, is_int8 in int8.items():
        own = "int8" if is_int8 else "f32"
        kinds = [("ort", own, "file"), ("openvino", own, "file")]
        if not is_int8 and full and has_fast_bf16():
            kinds.append(("openvino", "bf16", "file"))
        if name in networks and (full or name == ROOT):
            kinds.append(("eager", "f32", "contiguous"))
        cells += [BenchmarkCase(name, *kind, batch=1, threads=threads) for kind in kinds]  # type: ignore[arg-type]
    settle()
    log.info("benchmark: memory and start-up of %d files, each in a process of its own", len(cells))
    return [footprint(candidates / cell.candidate, cell, side) for cell in cells]


def _gpu() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else ""


def _absent(cuda: bool) -> list[dict[str, Any]]:
    """What was not even planned on this machine."""
    found = []
    if not has_fast_bf16():
        reason = "the processor has neither avx512_bf16 nor amx_bf16: bf16 would be emulated"
        found.append({"runtime": "all", "precision": "bf16", "reason": reason})
    if not cuda:
        found.append({"runtime": "eager-cuda", "precision": "all", "reason": "no CUDA device"})
    return found


def warnings_of(outcome: BenchmarkResult, bests: Mapping[str, Mapping[str, Row | None]]) -> tuple[str, ...]:
    """Return warnings of files that could not be timed somewhere, PyTorch that did not compile, and rough times."""
    refused = sorted({(row["candidate"], row["runtime"], row["precision"]) for row in outcome.refused})
    found = [
        f"{name} on {runtime} {precision} was not timed: its answers differ from the file's own (see details.refused)"
        for name, runtime, precision in refused
    ]
    compiled = [row for row in outcome.absent if row["runtime"] in PYTORCH]
    if compiled:
        reasons = "; ".join(dict.fromkeys(row["reason"] for row in compiled))
        where = ", ".join(dict.fromkeys(f"{row['runtime']} {row['precision']}" for row in compiled))
        found.append(
            f"compiled PyTorch did not run here ({where}: {reasons}), so the best float PyTorch is of what is left, "
            "and speed-ups over it may be too high; once it can run: dvc repro --force --single-item benchmark, then "
            "winnow run"
        )
    spreads = {
        name: max(row["inner_spread"] for row in rows.values() if row)
        for name, rows in bests.items()
        if any(rows.values())
    }
    if noisy := [name for name, spread in spreads.items() if spread > UNSTEADY]:
        found.append(
            f"times of {', '.join(noisy)} varied by up to {max(spreads.values()):.0%} from round to round, the fastest "
            "and the slowest left out: something else may have worked on this machine. What is compared with them is "
            "rough; to time anew: dvc repro --force --single-item benchmark, then winnow run"
        )
    return tuple(found)
