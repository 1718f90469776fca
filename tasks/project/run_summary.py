"""Summary of a run from its records, as rows and lines for the terminal and for Prefect. Imports nothing heavy."""

from __future__ import annotations

import math

from tasks.project.paths import ProjectPaths
from tasks.registry import promotion_state
from winnow.benchmark.measurement_error import describe_errors
from winnow.config import load_config, topological_order
from winnow.config.candidate_names import ROOT
from winnow.config.data import Data
from winnow.evaluation.effective_sample_size import in_groups
from winnow.evaluation.intervals import Ratio
from winnow.records import RECORD, RefitRecord, ReportRecord, SelectionRecord, read_record
from winnow.records.benchmark import BestRows, PeakShares
from winnow.records.finetune import PretrainingGain
from winnow.reporting.candidate_rows import CandidateRow, Share, candidate_row
from winnow.reporting.pretraining_advice import pretraining_advice
from winnow.reporting.run_records import RunRecords, read_run_records
from winnow.selection.gates import GATES, describe_reasons

NOTHING = "-"
TEST = "test top-1 %"


def _read_records(paths: ProjectPaths) -> tuple[RunRecords, ReportRecord]:
    config = load_config(paths.root / "params.yaml")
    names = [ROOT, *topological_order(dict(config.candidates))]
    return read_run_records(paths.artifacts, names), ReportRecord.read(paths.artifacts / "report")


def candidate_table(paths: ProjectPaths) -> list[dict[str, str]]:
    """Return one row per candidate with all its figures, dense first, formatted; the keys contain the units."""
    rows, large = _candidate_rows(paths)
    with_test = any(row.test_top1 for row in rows)
    return [_format_row(row, large, with_test) for row in rows]


def closing_table(paths: ProjectPaths, objective: str) -> list[dict[str, str]]:
    """Return one row per candidate, dense first, with the figures that decide, formatted for a narrow terminal.

    Speed is that of one image at a time or, where `objective` is throughput, of large batches.
    """
    rows, large = _candidate_rows(paths)
    at_large = objective == "throughput"
    return [
        {
            "candidate": row.name,
            "accuracy %": _accuracy(row.top1),
            "on test %": _accuracy(row.test_top1),
            "file MB": f"{row.size_mb:.2f}",
            **(
                {f"images/s batch {large}": _cell("{:,.0f}", row.throughput_ips)}
                if at_large
                else {"one image ms": _cell("{:.2f}", row.latency_ms)}
            ),
            "x PyTorch dense": _cell("{:.1f}", ratio.value if (ratio := row.speedups["eager"][at_large]) else None),
            "x fastest dense": _with_ends(row.speedups["float"][at_large]),
            "verdict": row.outcome,
        }
        for row in rows
    ]


def _candidate_rows(paths: ProjectPaths) -> tuple[list[CandidateRow], int]:
    """Return the rows of all candidates, dense first, and the size of a large batch."""
    records, report = _read_records(paths)
    rows = [
        candidate_row(candidate, records.benchmark, records.selection, report)
        for candidate in records.candidates.values()
    ]
    return rows, records.large


def report_warnings(paths: ProjectPaths) -> list[str]:
    """Return the warnings of the report, mainly about the test split, to be shown before the table."""
    return list(read_record(paths.artifacts / "report").warnings)


def _format_row(row: CandidateRow, batch: int, with_test: bool) -> dict[str, str]:
    best, peak = row.best, row.peak
    return {
        "candidate": row.name,
        "top-1 %": _accuracy(row.top1),
        **({TEST: _accuracy(row.test_top1)} if with_test else {}),
        "macro F1 %": _cell("{:.1f}", row.macro_f1, 100),
        "parameters": f"{row.parameters / 1e6:.2f} M",
        "MB": f"{row.size_mb:.2f}",
        "p50 ms, b1": _cell("{:.2f}", row.latency_ms),
        f"images/s, b{batch}": _cell("{:,.0f}", row.throughput_ips),
        "x eager f32": _pair(row.speedups["eager"]),
        "x best float PyTorch": _pair(row.speedups["pytorch"]),
        "x best float": " / ".join(_with_ends(ratio) for ratio in row.speedups["float"]),
        "of peak, %": _of_peak(peak, best),
        "fastest on, b1": f"{best.latency.runtime} {best.latency.precision}" if best.latency else NOTHING,
        "verdict": row.outcome,
    }


def _cell(template: str, value: float | None, factor: float = 1.0) -> str:
    return NOTHING if value is None else template.format(value * factor)


def _accuracy(share: Share | None) -> str:
    """Return top-1 in % ± half its 95 % interval; "-" without labelled images."""
    return NOTHING if share is None else f"{share.value * 100:.1f} ± {(share.high - share.low) / 2 * 100:.1f}"


def _pair(ratios: tuple[Ratio | None, Ratio | None]) -> str:
    return " / ".join(_cell("{:.1f}", ratio.value if ratio else None) for ratio in ratios)


def _with_ends(ratio: Ratio | None) -> str:
    """Format a ratio with its 95 % interval, where there is one."""
    if ratio is None or not math.isfinite(ratio.high):
        return _cell("{:.1f}", ratio.value if ratio else None)
    return f"{ratio.value:.1f} ({ratio.low:.1f}-{ratio.high:.1f})"


def _of_peak(shares: PeakShares, best: BestRows) -> str:
    """Format the shares of peak throughput for one image and a large batch, with the precision of each."""
    pairs = ((shares.latency, best.latency), (shares.throughput, best.throughput))
    cells = [_cell("{:.0f}", share, 100) for share, _ in pairs]
    precisions = [f" {row.precision}" if row and share is not None else "" for share, row in pairs]
    if precisions[0] == precisions[1]:
        return " / ".join(cells) + precisions[0]
    return " / ".join(cell + precision for cell, precision in zip(cells, precisions, strict=True))


def rows_on_front(paths: ProjectPaths, table: list[dict[str, str]]) -> list[dict[str, str]]:
    """Return the rows of `candidate_table` that are on the Pareto front of accuracy, size and latency."""
    front = SelectionRecord.read(paths.artifacts / "select").details.front
    return [row for row in table if row["candidate"] in front]


def failure_lines(paths: ProjectPaths) -> list[str]:
    """Return a line per failed candidate with the value and the limit of each failed gate."""
    verdicts = SelectionRecord.read(paths.artifacts / "select").details.verdicts
    return [f"{verdict.candidate} {reasons}" for verdict in verdicts if (reasons := describe_reasons(verdict.gates))]


def unchecked_lines(paths: ProjectPaths) -> list[str]:
    """Return a line per gate that the last selection did not check, with the reason; [] without a selection."""
    folder = paths.artifacts / "select"
    if not (folder / RECORD).is_file():
        return []
    verdicts = SelectionRecord.read(folder).details.verdicts
    return [
        f"{verdict.candidate}, {GATES[gate.name]}: {gate.reason}"
        for verdict in verdicts
        for gate in verdict.gates
        if not gate.checked
    ]


def promotion_lines(paths: ProjectPaths) -> list[str]:
    """Return the reasons of the selection, the refit and the promotion."""
    selection = SelectionRecord.read(paths.artifacts / "select").details
    refit = RefitRecord.read(paths.artifacts / "refit").details
    refit_reasons = [refit.why] if selection.winner else []
    return [selection.why, *refit_reasons, *promotion_state.read_reasons(paths)]


def training_lines(paths: ProjectPaths) -> list[str]:
    """Return lines on the labels used, accuracy, the gain of pretraining, the measurement error, and all warnings."""
    records, report = _read_records(paths)
    gain, labels, test = records.fine_tuning.arms.gain, records.dense.details.labels, report.metrics
    deployed = records.refit.details.labels.deployed
    choosing, tested = (in_groups(count) for count in (labels.choosing_groups, test.get("test/groups")))
    lines = [
        f"labels used: {labels.training:,} for training, {labels.choosing:,}{choosing} for selection, "
        f"{test['test/images']:,.0f}{tested} for the test; {deployed:,} trained the model that is deployed",
        *_other_accuracy_lines(records, report),
    ]
    if gain is not None:
        lines.append(f"{gain.arm} against from scratch, same labels and steps: {_describe_gain(gain)}")
    if (unlabelled := records.fine_tuning.unlabelled) is not None:
        kept = "dense is the result" if unlabelled.kept else "not used, since it did not help"
        lines.append(
            f"training on images without labels ({unlabelled.method}) against labels alone: "
            f"{_describe_gain(unlabelled.gain)}; {kept}"
        )
    data = Data.model_validate(records.data.parameters)
    if advice := pretraining_advice(gain, records.pretrain.parameters["method"], data):
        lines.append(advice)
    if error := describe_errors(records.benchmark.details.measurement_error):
        lines.append(f"speed-ups with 95 % intervals; {error}")
    return lines + [f"{step}: {warning}" for step, warning in records.warnings()]


def _describe_gain(gain: PretrainingGain) -> str:
    """Return the points of top-1 with their interval, and the number of label seeds."""
    interval = f" (95 % interval {gain.low:+.1f} to {gain.high:+.1f})" if gain.pairs > 1 else ""
    seeds = f"{gain.pairs} label seed{'s' if gain.pairs != 1 else ''}"
    return f"{gain.mean:+.1f} points of top-1{interval}, {seeds}"


def _other_accuracy_lines(records: RunRecords, report: ReportRecord) -> list[str]:
    """Return lines with the cross-validated accuracy and the accuracy on the test split."""
    lines, test = [], report.metrics
    if cross_validation := records.fine_tuning.cross_validation:
        accuracy = _top1(records.dense.metrics, "cross_validation/")
        lines.append(f"dense, cross-validated: {accuracy}, {cross_validation.labels:,} labels")
    if "test/dense_top1" in test:
        baseline = report.details.baseline
        others = [baseline] if baseline != ROOT else []
        accuracy = ", ".join(f"{name} {_top1(test, f'test/{name}_')}" for name in (ROOT, *others))
        if "test/winner_top1" in test:
            accuracy += f", the winner {_top1(test, 'test/winner_')} in {report.details.measured_in}"
        if "test/selected_top1" in test:
            accuracy += f", before its refit {_top1(test, 'test/selected_')}"
        lines.append(f"on the test images: {accuracy}")
    return lines


def _top1(metrics: dict[str, float], prefix: str) -> str:
    value, low, high = (metrics[f"{prefix}top1{end}"] * 100 for end in ("", "_low", "_high"))
    return f"top-1 {value:.1f} % (95 % interval {low:.1f} to {high:.1f})"
