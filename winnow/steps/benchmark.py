"""Step 5: measure how fast the files are on this machine. Only this step's record holds times, and the machine with
them.

Every case is screened; each candidate's fastest, the baselines and close cases are compared in rounds of their own,
which give the speed-ups, their intervals and the measurement error (winnow/benchmark/grid.py,
winnow/benchmark/speedups.py).

Beside the times it writes each file's logits for all validation images where it is fastest, one .npy per candidate,
runtime and precision: a bf16 that is fast and less accurate is judged by its own answers.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from winnow.benchmark.cases import plan_cases
from winnow.benchmark.grid import BenchmarkResult, compare_cases, screening_settings, time_cases
from winnow.benchmark.int8_coverage import measure_int8_coverage
from winnow.benchmark.measurement_error import (
    REPEATED_DENSE,
    REPEATED_PAIR,
    identical_graphs,
    largest_errors,
    measurement_errors,
)
from winnow.benchmark.memory_footprint import measure_footprint
from winnow.benchmark.peak_throughput import highest_rates, measure_peaks, shares_of_peak
from winnow.benchmark.prediction_check import predict_all, sample_check_images
from winnow.benchmark.speedups import (
    attribute_speedup,
    baseline_rows,
    best_row,
    candidate_metrics,
    merge_compared,
    shortlist_cases,
)
from winnow.benchmark.timing import wait_until_idle
from winnow.config import ROOT, Benchmark, Config, topological_order
from winnow.data.dataset import VALIDATION, ImageSet, load_images
from winnow.deploy.inference_runtimes import open_case
from winnow.deploy.onnx_export import graph_digest
from winnow.deploy.onnx_session import MODEL
from winnow.deploy.runtime_properties import (
    COMPILED_RUNTIMES,
    INT8_PRECISIONS,
    NEEDED_AGREEMENT,
    PYTORCH_RUNTIMES,
    Predict,
)
from winnow.evaluation.metrics import benchmark_logits_file
from winnow.hardware import cores, has_fast_bf16
from winnow.models.backbones import WEIGHTS_FILE
from winnow.records import (
    BenchmarkDetails,
    BenchmarkRecord,
    CandidateRecord,
    describe_files,
    publish,
    record_digest,
    this_machine,
    write_record,
)
from winnow.records.benchmark import (
    AbsentCase,
    Attributions,
    BenchmarkCase,
    BenchmarkConditions,
    BestRows,
    Int8Coverage,
    Layout,
    Precision,
    ProcessFootprint,
    Runtime,
)
from winnow.timing_lock import compute_lock, timing_lock

log = logging.getLogger(__name__)
MAX_STEADY_SPREAD = 0.2
"""Inner spread of a file's fastest rows beyond which a warning calls its times imprecise."""


def benchmark(config: Config, data: Path, candidates: Path, out: Path) -> BenchmarkRecord:
    """Time every candidate's file, measure its footprint, and write the figures to `out`."""
    settings, large = config.benchmark, config.benchmark.large_batch
    records = {
        name: CandidateRecord.read(candidates / name) for name in (ROOT, *topological_order(dict(config.candidates)))
    }
    int8 = {name: record.details.precision == "int8" for name, record in records.items()}
    ancestors = {name: _float_ancestor(record.details.lineage, int8) for name, record in records.items()}
    gpu, threads = _gpu_name(), cores()
    images = load_images(data)
    pixels_NHWC, answers = sample_check_images(images, {name: candidates / name for name in records})
    networks = {name for name in records if (candidates / name / WEIGHTS_FILE).is_file()}
    cases = plan_cases(int8, settings, threads, bool(gpu), networks)
    with timing_lock():
        before = measure_peaks()

    compiled: dict[BenchmarkCase, Predict] = {}

    def open_candidate(case: BenchmarkCase) -> Predict:
        """Open a case. Compiled dense is kept: to compile it takes seconds, and both passes time it."""
        if case in compiled:
            return compiled[case]
        predict = open_case(candidates / (ROOT if case.candidate == REPEATED_DENSE else case.candidate), case)
        if case.candidate == ROOT and case.runtime in COMPILED_RUNTIMES:
            compiled[case] = predict
        return predict

    outcome = time_cases(cases, open_candidate, pixels_NHWC, answers, screening_settings(settings))
    outcome.absent += _unavailable_cases(bool(gpu))
    identical = identical_graphs({name: graph_digest(candidates / name / MODEL) for name in records})
    finalists = [case for batch in (large, 1) for case in shortlist_cases(outcome.rows, ancestors, identical, batch)]
    repeated = [
        replace(row.case, candidate=REPEATED_DENSE)
        for batch in (large, 1)
        if (row := best_row(outcome.rows, ROOT, batch)) is not None
    ]
    compared = compare_cases([*finalists, *repeated], open_candidate, pixels_NHWC, settings)
    outcome.rows = merge_compared(outcome.rows, compared)
    rows = outcome.rows
    best_rows = {
        name: BestRows(latency=best_row(rows, name, 1), throughput=best_row(rows, name, large)) for name in records
    }
    with timing_lock():
        cases = _footprint_cases(int8, networks, settings, best_rows)
        processes = _footprints(cases, candidates, pixels_NHWC.shape[1])
        peak = highest_rates(before, measure_peaks()) if settings.grid == "full" else before
    coverage = _int8_coverage(outcome, candidates)
    attributions = {
        name: Attributions(
            latency=attribute_speedup(rows, name, ancestors[name], 1),
            throughput=attribute_speedup(rows, name, ancestors[name], large),
        )
        for name in records
    }
    errors = measurement_errors(compared, [REPEATED_PAIR, *identical])
    largest = largest_errors(errors)
    record = BenchmarkRecord(
        step="benchmark",
        name="benchmark",
        parameters=settings.model_dump(mode="json", exclude={"target"}),
        inputs={"data": record_digest(data), **{name: record_digest(candidates / name) for name in records}},
        metrics={
            "cases/timed": len(rows),
            "cases/refused": len(outcome.refused),
            **{f"error/b{batch}": error for batch, error in largest.items()},
        },
        details=BenchmarkDetails(
            rows=rows,
            processes=processes,
            executed=coverage,
            peaks=peak,
            peak_share={
                name: shares_of_peak(best_rows[name], record.metrics["compute/macs"], peak)
                for name, record in records.items()
            },
            refused=outcome.refused,
            absent=outcome.absent,
            candidates={name: candidate_metrics(rows, processes, name, large, largest) for name in records},
            identical_graphs=identical,
            measurement_error=errors,
            best=best_rows,
            baselines={f"b{batch}": baseline_rows(rows, batch) for batch in (1, large)},
            attribution=attributions,
            conditions=BenchmarkConditions(
                images_checked=len(pixels_NHWC),
                needed_agreement=NEEDED_AGREEMENT,
                threads=threads,
                image_size=pixels_NHWC.shape[1],
            ),
        ),
        warnings=benchmark_warnings(outcome, best_rows),
        machine=this_machine(gpu),
    )
    with publish(out) as folder:
        answer_files = _write_answers(best_rows, images, candidates, folder)
        write_record(folder, record.model_copy(update={"artifacts": describe_files(folder, *answer_files)}))
    return record


@compute_lock()
def _write_answers(best_rows: Mapping[str, BestRows], images: ImageSet, candidates: Path, folder: Path) -> list[str]:
    """Write every candidate's logits (V, C) in the cases where it is fastest, and return the names of the files."""
    indices = images.indices(VALIDATION)
    written: list[str] = []
    for name, rows in best_rows.items():
        for row in (rows.latency, rows.throughput):
            if row is None or (file := benchmark_logits_file(row)) in written:
                continue
            predict = open_case(candidates / name, row.case)
            np.save(folder / file, predict_all(predict, row.batch, images.images_NHWC, indices))
            written.append(file)
    return written


@compute_lock()
def _int8_coverage(outcome: BenchmarkResult, candidates: Path) -> list[Int8Coverage]:
    """Return the share of each int8 file that a runtime computes in int8, from the runtime's own graph."""
    rows = [row for row in outcome.rows if row.precision in INT8_PRECISIONS]
    cases = {(row.candidate, row.runtime, row.precision): row.case for row in rows}
    return [measure_int8_coverage(candidates / case.candidate, case) for case in cases.values()]


def _float_ancestor(lineage: list[str], int8: dict[str, bool]) -> str:
    """Return the last network of the lineage that is not int8; candidates missing from params.yaml count as float."""
    return next(name for name in reversed(lineage) if not int8.get(name, False))


def _footprint_cases(
    int8: Mapping[str, bool], networks: Collection[str], settings: Benchmark, best_rows: Mapping[str, BestRows]
) -> list[BenchmarkCase]:
    """Return the cases whose memory and start-up are measured: of dense also PyTorch eager.

    Grid `quick`: each file in the runtime in which it is fastest for one image. Grid `full`: in all of them.
    """
    is_full, cases = settings.grid == "full", []
    for name, is_int8 in int8.items():
        precision: Precision = "int8" if is_int8 else "f32"
        latency = best_rows[name].latency
        kinds: list[tuple[Runtime, Precision, Layout]] = []
        if is_full:
            kinds += [("ort", precision, "file"), ("openvino", precision, "file")]
            kinds += [("openvino", "bf16", "file")] if not is_int8 and has_fast_bf16() else []
        elif latency is not None:
            kinds.append((latency.runtime, precision, "file"))
        if name in networks and (is_full or name == ROOT):
            kinds.append(("eager", "f32", "contiguous"))
        cases += [BenchmarkCase(name, *kind, batch=1, threads=cores()) for kind in kinds]
    return cases


def _footprints(cases: Sequence[BenchmarkCase], candidates: Path, image_size: int) -> list[ProcessFootprint]:
    """Measure each case in a fresh process."""
    wait_until_idle()
    log.info("benchmark: memory and start-up of %d files, each in a process of its own", len(cases))
    return [measure_footprint(candidates / case.candidate, case, image_size) for case in cases]


def _gpu_name() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else ""


def _unavailable_cases(cuda: bool) -> list[AbsentCase]:
    """Return the cases that this machine cannot run."""
    unavailable = []
    if not has_fast_bf16():
        reason = "the processor has neither avx512_bf16 nor amx_bf16: bf16 would be emulated"
        unavailable.append(AbsentCase(runtime="all", precision="bf16", reason=reason))
    if not cuda:
        unavailable.append(AbsentCase(runtime="eager-cuda", precision="all", reason="no CUDA device"))
    return unavailable


def benchmark_warnings(outcome: BenchmarkResult, best_rows: Mapping[str, BestRows]) -> tuple[str, ...]:
    """Return warnings of files that could not be timed, PyTorch that did not compile, and imprecise times."""
    refused = sorted({(row.candidate, row.runtime, row.precision) for row in outcome.refused})
    warnings = [
        f"{name} on {runtime} {precision} was not timed: its predictions differ from those of the file "
        "(see details.refused)"
        for name, runtime, precision in refused
    ]
    not_compiled = [row for row in outcome.absent if row.runtime in PYTORCH_RUNTIMES]
    if not_compiled:
        reasons = "; ".join(dict.fromkeys(row.reason for row in not_compiled))
        cases = ", ".join(dict.fromkeys(f"{row.runtime} {row.precision}" for row in not_compiled))
        warnings.append(
            f"compiled PyTorch did not run here ({cases}: {reasons}), so the best float PyTorch is that of the other "
            "cases, and speed-ups over it may be too high; once it can run: dvc repro --force --single-item benchmark, "
            "then winnow run"
        )
    timed = {name: [row for row in (rows.latency, rows.throughput) if row] for name, rows in best_rows.items()}
    spreads = {name: max(row.inner_spread for row in rows) for name, rows in timed.items() if rows}
    if noisy := [name for name, spread in spreads.items() if spread > MAX_STEADY_SPREAD]:
        warnings.append(
            f"times of {', '.join(noisy)} varied by up to {max(spreads.values()):.0%} from round to round, the fastest "
            "and the slowest left out: other programs may have been running. Comparisons with them are imprecise; to "
            "time again: dvc repro --force --single-item benchmark, then winnow run"
        )
    return tuple(warnings)
