"""Summary of a run from its records, as rows and lines for the terminal and for Prefect. Imports nothing heavy."""

from __future__ import annotations

from typing import Any

from tasks.project.paths import ProjectPaths
from tasks.registry import promotion_state
from winnow.benchmark.measurement_error import describe_errors
from winnow.config import load_config, topological_order
from winnow.config.candidates import CONTROL, ROOT
from winnow.config.data import Data
from winnow.evaluation.effective_sample_size import in_groups
from winnow.records import RECORD, StepRecord, quality_as_served, read_record
from winnow.reporting.pretraining_advice import pretraining_advice
from winnow.selection.gates import GATES, describe_failures, describe_reasons

NOTHING = "-"
TEST = "test top-1 %"
OF_PEAK = "of peak, %"
SPEEDUPS = ("x eager f32", "x best float PyTorch", "x best float")


def candidate_rows(places: ProjectPaths) -> list[dict[str, str]]:
    """Return one row per candidate, dense first, formatted; the keys contain the units."""
    config = load_config(places.root / "params.yaml")
    benchmark = read_record(places.artifacts / "benchmark")
    selection = read_record(places.artifacts / "select")
    verdicts = {verdict["candidate"]: verdict for verdict in selection.details["verdicts"]}
    test_accuracy = _test_accuracy(places, selection.details["winner"])
    rows = []
    for name in [ROOT, *topological_order(dict(config.candidates))]:
        record = read_record(places.artifacts / "candidates" / name)
        row = _row(
            name,
            record.metrics | quality_as_served(selection, name),
            benchmark,
            verdicts.get(name),
            selection.details["winner"] == name,
        )
        if test_accuracy:  # next to the accuracy on the validation split
            row = {
                "candidate": row.pop("candidate"),
                "top-1 %": row.pop("top-1 %"),
                TEST: test_accuracy.get(name, NOTHING),
                **row,
            }
        rows.append(row)
    return rows


def _test_accuracy(places: ProjectPaths, winner: str | None) -> dict[str, str]:
    """Return candidate -> top-1 on the test split ± half its interval, for the candidates that were tested."""
    folder = places.artifacts / "report"
    metrics = read_record(folder).metrics if (folder / RECORD).is_file() else {}
    names = {ROOT: ROOT, CONTROL: CONTROL, **({"winner": winner} if winner else {})}
    accuracy = {}
    for key, name in names.items():
        if f"test/{key}_top1" in metrics:
            half = (metrics[f"test/{key}_top1_high"] - metrics[f"test/{key}_top1_low"]) / 2
            accuracy[name] = f"{metrics[f'test/{key}_top1'] * 100:.1f} ± {half * 100:.1f}"
    return accuracy


def report_warnings(places: ProjectPaths) -> list[str]:
    """Return the warnings of the report, mainly about the test split, to be shown before the table."""
    return list(read_record(places.artifacts / "report").warnings)


def _row(
    name: str, quality: dict[str, float], benchmark: StepRecord, verdict: dict[str, Any] | None, won: bool
) -> dict[str, str]:
    speed = benchmark.details["candidates"][name]
    batch = benchmark.parameters["large_batch"]
    best = benchmark.details["best"][name]["latency"]
    return {
        "candidate": name,
        "top-1 %": _accuracy(quality),
        "macro F1 %": _cell("{:.1f}", quality.get("quality/macro_f1"), 100),
        "parameters": f"{quality['size/parameters'] / 1e6:.2f} M",
        "MB": f"{quality['size/mb']:.2f}",
        "p50 ms, b1": _cell("{:.2f}", speed.get("best/latency_ms")),
        f"images/s, b{batch}": _cell("{:,.0f}", speed.get("best/throughput_ips")),
        "x eager f32": _pair(speed, "eager", batch),
        "x best float PyTorch": _pair(speed, "pytorch", batch),
        "x best float": " / ".join(_with_ends(speed, f"speedup/float_b{size}") for size in (1, batch)),
        OF_PEAK: _of_peak(benchmark.details["peak_share"][name], benchmark.details["best"][name]),
        "fastest on, b1": f"{best['runtime']} {best['precision']}" if best else NOTHING,
        "verdict": _verdict(verdict, won),
    }


def _cell(template: str, value: float | None, factor: float = 1.0) -> str:
    return NOTHING if value is None else template.format(value * factor)


def _accuracy(quality: dict[str, float]) -> str:
    """Return top-1 in % ± half its 95 % interval; "-" without labelled validation images."""
    if "quality/top1" not in quality:
        return NOTHING
    half = (quality["quality/top1_high"] - quality["quality/top1_low"]) / 2
    return f"{quality['quality/top1'] * 100:.1f} ± {half * 100:.1f}"


def _pair(speed: dict[str, float], kind: str, batch: int) -> str:
    ratios = [speed.get(f"speedup/{kind}_b{size}") for size in (1, batch)]
    return " / ".join(_cell("{:.1f}", ratio) for ratio in ratios)


def _with_ends(speed: dict[str, float], key: str) -> str:
    """Format a ratio with its 95 % interval, where there is one."""
    if f"{key}_low" not in speed:
        return _cell("{:.1f}", speed.get(key))
    return f"{speed[key]:.1f} ({speed[f'{key}_low']:.1f}-{speed[f'{key}_high']:.1f})"


def _of_peak(shares: dict[str, float], best: dict[str, Any]) -> str:
    """Format the shares of peak throughput for one image and a large batch, with the precision of each."""
    kinds = ("latency", "throughput")
    cells = [_cell("{:.0f}", shares.get(kind), 100) for kind in kinds]
    precisions = [f" {best[kind]['precision']}" if kind in shares else "" for kind in kinds]
    if precisions[0] == precisions[1]:
        return " / ".join(cells) + precisions[0]
    return " / ".join(cell + precision for cell, precision in zip(cells, precisions, strict=True))


def _verdict(verdict: dict[str, Any] | None, won: bool) -> str:
    if verdict is None:
        return "reference"
    unchecked = ", ".join(GATES[gate["name"]] for gate in verdict["gates"] if not gate.get("checked", True))
    return _outcome(verdict, won) + (f" (not checked: {unchecked})" if unchecked else "")


def _outcome(verdict: dict[str, Any], won: bool) -> str:
    if won:
        return "winner"
    return describe_failures(verdict["gates"]) or "passed"


def front_rows(places: ProjectPaths) -> list[dict[str, str]]:
    """Return the rows of the candidates on the Pareto front of accuracy, size and latency."""
    front = read_record(places.artifacts / "select").details["front"]
    return [row for row in candidate_rows(places) if row["candidate"] in front]


def failure_lines(places: ProjectPaths) -> list[str]:
    """Return a line per failed candidate with the value and the limit of each failed gate."""
    verdicts = read_record(places.artifacts / "select").details["verdicts"]
    lines = []
    for verdict in verdicts:
        if reasons := describe_reasons(verdict["gates"]):
            lines.append(f"{verdict['candidate']} {reasons}")
    return lines


def unchecked_lines(places: ProjectPaths) -> list[str]:
    """Return a line per gate that the last selection did not check, with the reason; [] without a selection."""
    folder = places.artifacts / "select"
    if not (folder / RECORD).is_file():
        return []
    verdicts = read_record(folder).details["verdicts"]
    return [
        f"{verdict['candidate']}, {GATES[gate['name']]}: {gate['reason']}"
        for verdict in verdicts
        for gate in verdict["gates"]
        if not gate.get("checked", True)
    ]


def promotion_lines(places: ProjectPaths) -> list[str]:
    """Return the reasons of the selection, the refit and the promotion."""
    selection, refit = read_record(places.artifacts / "select"), read_record(places.artifacts / "refit")
    refit_reasons = [str(refit.details["why"])] if selection.details["winner"] else []
    return [str(selection.details["why"]), *refit_reasons, *promotion_state.read_reasons(places)]


def training_lines(places: ProjectPaths) -> list[str]:
    """Return lines on the labels used, accuracy, the gain of pretraining, the measurement error, and all warnings."""
    record = read_record(places.artifacts / "candidates" / ROOT)
    gain, labels = record.details["arms"]["gain"], record.details["labels"]
    report = read_record(places.artifacts / "report")
    test = report.metrics
    deployed = read_record(places.artifacts / "refit").details["labels"]["deployed"]
    choosing, tested = (in_groups(count) for count in (labels.get("choosing_groups"), test.get("test/groups")))
    lines = [
        f"labels used: {labels['training']:,} for training, {labels['choosing']:,}{choosing} for choosing, "
        f"{test['test/images']:,.0f}{tested} for the test; {deployed:,} trained the model that is deployed",
        *_other_accuracy_lines(record, report),
    ]
    if gain is not None:
        interval = f" (95 % interval {gain['low']:+.1f} to {gain['high']:+.1f})" if gain["pairs"] > 1 else ""
        lines.append(
            f"{gain['arm']} against from scratch, same labels and steps: {gain['mean']:+.1f} points of top-1"
            f"{interval}, {gain['pairs']} label seed{'s' if gain['pairs'] != 1 else ''}"
        )
    method = read_record(places.artifacts / "pretrain").parameters["method"]
    data = Data.model_validate(read_record(places.artifacts / "data").parameters)
    if advice := pretraining_advice(gain, method, data):
        lines.append(advice)
    benchmark = read_record(places.artifacts / "benchmark").details
    if error := describe_errors(benchmark["measurement_error"]):
        lines.append(f"speed-ups with 95 % intervals; {error}")
    return lines + _warning_lines(places)


def _other_accuracy_lines(dense: StepRecord, report: StepRecord) -> list[str]:
    """Return lines with the cross-validated accuracy and the accuracy on the test split."""
    lines, test = [], report.metrics
    if cross_validation := dense.details["cross_validation"]:
        accuracy = _top1(dense.metrics, "cross_validation/")
        lines.append(f"dense, cross-validated: {accuracy}, {cross_validation['labels']:,} labels")
    if "test/dense_top1" in test:
        baseline = report.details.get("baseline", ROOT)
        others = [baseline] if baseline != ROOT else []
        accuracy = ", ".join(f"{name} {_top1(test, f'test/{name}_')}" for name in (ROOT, *others))
        if "test/winner_top1" in test:
            accuracy += f", the winner {_top1(test, 'test/winner_')} in {report.details['measured_in']}"
        if "test/selected_top1" in test:
            accuracy += f", before its refit {_top1(test, 'test/selected_')}"
        lines.append(f"on the test images: {accuracy}")
    return lines


def _top1(metrics: dict[str, float], prefix: str) -> str:
    value, low, high = (metrics[f"{prefix}top1{end}"] * 100 for end in ("", "_low", "_high"))
    return f"top-1 {value:.1f} % (95 % interval {low:.1f} to {high:.1f})"


def _warning_lines(places: ProjectPaths) -> list[str]:
    """Return the warnings of every step but the report, each once."""
    candidates = load_config(places.root / "params.yaml").candidates
    names = [ROOT, *topological_order(dict(candidates))]
    folders = ["data", "pretrain", *(f"candidates/{name}" for name in names), "benchmark", "select", "refit"]
    first_by_warning: dict[str, str] = {}
    for folder in folders:
        record = read_record(places.artifacts / folder)
        for warning in record.warnings:
            first_by_warning.setdefault(warning, f"{record.name}: {warning}")
    return list(first_by_warning.values())
