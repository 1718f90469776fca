"""The sections of the page on speed: the times of every candidate, and the factors of its speed-up."""

from __future__ import annotations

from collections.abc import Mapping

from winnow.benchmark.measurement_error import describe_errors
from winnow.records.benchmark import Attribution, BenchmarkRow
from winnow.reporting import plots
from winnow.reporting.html import (
    MISSING,
    Content,
    Html,
    Row,
    digits,
    figure,
    join,
    number,
    paragraph,
    percent,
    side_by_side,
    table,
    two_lines,
)
from winnow.reporting.run_records import RunRecords
from winnow.reporting.wording import describe_peak_share

SPEEDUPS = {
    "eager": ("PyTorch eager f32", two_lines("× eager", "PyTorch f32")),
    "pytorch": ("the best float PyTorch", two_lines("× PyTorch", "best float")),
    "float": ("dense as the best float", two_lines("× best float", "dense, any runtime")),
}
"""Kind of baseline -> its name in a sentence, and in a table's heading."""
RUNTIME_NAMES = {
    "eager": "PyTorch eager",
    "compile": "torch.compile",
    "compile-autotune": "torch.compile (max-autotune)",
    "ort": "ONNX Runtime",
    "openvino": "OpenVINO",
    "openvino-throughput": "OpenVINO (throughput)",
    "eager-cuda": "PyTorch on the GPU",
    "ort-cuda": "ONNX Runtime on the GPU",
    "ort-tensorrt": "ONNX Runtime with TensorRT",
}


def render_speeds(records: RunRecords) -> Html:
    """Return the speed-ups of the shown candidate, and the times of every candidate, on the serving machine, too."""
    shown = [_shown_speedups(records, records.shown)] if records.shown else []
    serving = [render_serving_speed(records)] if records.target else []
    return join(*shown, *serving, render_speed(records))


def _shown_speedups(records: RunRecords, name: str) -> Html:
    """Return the speed-ups over all three baselines, for both batches."""
    speed, rows = records.speed(name), []
    for kind, (base, _) in SPEEDUPS.items():
        rows.append(Row([base, *[ratio_cell(speed, f"speedup/{kind}_b{batch}", " ×") for batch in (1, records.large)]]))
    heading = ["speed-up against", "one image", f"batch of {records.large}"]
    return table(heading, rows, caption=f"Speed-up of {name} on its fastest runtime; below: 95 % intervals")


def ratio_cell(speed: Mapping[str, float], key: str, sign: str = "") -> Content:
    """Return the ratio with `sign` behind it, and below it the ends of its interval, as far as they are known."""
    if f"{key}_low" not in speed:
        return f"{speed[key]:.1f}{sign}" if key in speed else MISSING
    return two_lines(f"{speed[key]:.1f}{sign}", f"{speed[f'{key}_low']:.1f} to {speed[f'{key}_high']:.1f}")


def render_speed(records: RunRecords) -> Html:
    """Return the times of every candidate on this machine, with its speed-ups over the three baselines."""
    rows, large, machine = [], records.large, records.benchmark.machine
    assert machine is not None
    for name in records.candidates:
        speed, single, batched = records.speed(name), records.best(name, "latency"), records.best(name, "throughput")
        if single is None or batched is None:
            rows.append(Row([name, "not timed: its predictions differ there", *[MISSING] * 7]))
            continue
        pairs = [
            two_lines(*(format_ratio(speed, f"speedup/{kind}_b{batch}") for batch in (1, large))) for kind in SPEEDUPS
        ]
        cells: list[Content] = [
            *_timing_cells(name, single, batched),
            _peak_share(records, name),
            *pairs,
        ]
        rows.append(Row(cells, records.row_css(name)))
    peaks = records.benchmark.details.peaks
    caption = (
        f"Speed of each file on its fastest runtime: latency of one image, throughput in batches of {large}, speed-ups "
        "for both (one image; below: batch) with 95 % intervals. × eager: over dense in PyTorch eager f32; × PyTorch: "
        "over dense on the best float PyTorch; × best float: over dense as the best float file in any runtime. "
        f"{machine.cpu}, {machine.threads} threads. "
        f"{describe_peak_share(peaks)}"
    )
    if errors := describe_errors(records.benchmark.details.measurement_error):
        caption += f" {errors[0].upper()}{errors[1:]}."
    heading: list[Content] = [
        "candidate",
        two_lines("fastest on", f"one image; below: batch of {large}, if different"),
        "p50, ms",
        "p95, ms",
        "images/s",
        two_lines("of peak", "one / batch"),
    ]
    return table([*heading, *[short for _, short in SPEEDUPS.values()]], rows, caption=caption, left=2)


def _peak_share(records: RunRecords, name: str) -> Content:
    shares = records.benchmark.details.peak_share[name]
    return " / ".join(percent(share) for share in (shares.latency, shares.throughput))


def render_serving_speed(records: RunRecords) -> Html:
    """Return the times on the serving machine, which the gates use."""
    rows = []
    for name in records.candidates:
        single, batched = records.serving_row(name, "latency"), records.serving_row(name, "throughput")
        if single is None or batched is None:
            rows.append(Row([name, "not timed there", *[MISSING] * 5]))
            continue
        ratios = [format_ratio(records.serving(name), f"speedup/float_b{batch}") for batch in (1, records.large)]
        rows.append(Row([*_timing_cells(name, single, batched), *ratios], records.row_css(name)))
    caption = (
        f"Speed on the serving machine, {records.target}, measured there by check_host.py; gates use these figures "
        f"alone. Speed-ups against dense as the best float there, for one image and batches of {records.large}"
    )
    heading = ["candidate", "fastest on", "p50, ms", "p95, ms", "images/s", "× float, one", "× float, batch"]
    return table(heading, rows, caption=caption, left=2)


def format_ratio(speed: Mapping[str, float], key: str) -> str:
    """Return a ratio with the ends of its interval, as far as they are known."""
    if key not in speed:
        return MISSING
    if f"{key}_low" not in speed:
        return f"{speed[key]:.2f}"
    return f"{speed[key]:.2f} ({speed[f'{key}_low']:.2f} to {speed[f'{key}_high']:.2f})"


def _timing_cells(name: str, single: BenchmarkRow, batched: BenchmarkRow) -> list[Content]:
    """Return the cells of both tables of speed: candidate, fastest runtime, p50 and p95 in ms, images/s."""
    runtime = _runtime_cell(single, batched)
    return [name, runtime, digits(single.p50_ms), digits(single.p95_ms), number(batched.images_per_s)]


def _runtime_cell(single: BenchmarkRow, batched: BenchmarkRow) -> Content:
    """Return the fastest runtime for one image and, below, the one for batches where it differs."""
    first, second = _describe_row(single), _describe_row(batched)
    return first if first == second else two_lines(first, second)


def _describe_row(row: BenchmarkRow) -> str:
    threads = "1 thread" if row.threads == 1 else f"{row.threads} threads"
    return f"{RUNTIME_NAMES[row.runtime]} {row.precision}, {threads}"


def render_speed_factors(records: RunRecords) -> Html:
    """Return the speed-ups over eager f32 as products of runtime, structure and precision."""
    attribution = records.benchmark.details.attribution
    single = {name: row for name in records.candidates if (row := attribution[name].latency)}
    rows = []
    for name in records.candidates:
        cells = [_factors_cell(attribution[name].latency), _factors_cell(attribution[name].throughput)]
        rows.append(Row([name, *cells], records.row_css(name)))
    text = (
        "The speed-up over dense in PyTorch eager f32 is a product: dense on the candidate's runtime (runtime), then "
        "the smaller network there (structure), then int8 or bf16 (precision). A factor below 1 is a loss."
    )
    caption = "Runtime × structure × precision = speed-up over PyTorch eager f32"
    heading = ["candidate", "one image", f"batch of {records.large}"]
    parts = [table(heading, rows, caption=caption)]
    if single:
        figure_caption = (
            "One image at a time. Each factor starts where the previous one ends; a loss points to the left."
        )
        parts.append(figure(plots.plot_factors(single), "The factors for one image, as in the table", figure_caption))
    return join(paragraph(text), side_by_side(*parts))


def _factors_cell(row: Attribution | None) -> Content:
    if row is None:
        return MISSING
    factors = " × ".join(f"{getattr(row, factor):.2f}" for factor in plots.FACTORS)
    return two_lines(f"{factors} = {row.total:.2f}", f"{RUNTIME_NAMES[row.on]}, {row.ends_in}")
