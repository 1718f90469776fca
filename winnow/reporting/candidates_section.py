"""The page on the candidates side by side: quality and size, speed and its causes, gates, and class by class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from winnow.benchmark.measurement_error import describe_errors
from winnow.config import ROOT
from winnow.reporting import plots
from winnow.reporting.html import (
    MISSING,
    Content,
    Html,
    Row,
    digits,
    figure,
    join,
    millions,
    number,
    paragraph,
    percent,
    side_by_side,
    signed,
    strong,
    table,
    tag,
    two_lines,
)
from winnow.reporting.run_records import RunRecords
from winnow.reporting.wording import of_peak_told
from winnow.selection.decision import GATES, describe_failures

SPEEDUPS = {
    "eager": ("PyTorch eager f32", two_lines("× eager", "PyTorch f32")),
    "pytorch": ("the best float PyTorch", two_lines("× PyTorch", "best float")),
    "float": ("dense as the best float", two_lines("× best float", "dense, any runtime")),
}
"""Kind of baseline -> its name in a sentence, and in a table's heading."""
RUNTIMES = {
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
SHOWN_CLASSES = 30


def candidates(facts: RunRecords) -> Html:
    """Three tables with one row per candidate, dense first."""
    there = [_there(facts)] if facts.target else []
    return join(_quality(facts), *there, _speed(facts), _gates(facts))


def _marked(facts: RunRecords, name: str) -> str:
    return "marked" if name == facts.winner else ""


def _quality(facts: RunRecords) -> Html:
    rows, reference = [], facts.selection.details["reference"]
    for name, record in facts.candidates.items():
        told, drop = facts.quality(name), facts.drop(name)
        lost: Content = MISSING if drop is None else two_lines(signed(drop["points"]), span(drop["low"], drop["high"]))
        top1: Content = MISSING
        if "quality/top1" in told:
            ends = f"{told['quality/top1_low'] * 100:.1f} to {percent(told['quality/top1_high'])}"
            top1 = two_lines(percent(told["quality/top1"]), ends)
            lost = two_lines("0", "reference") if name == reference else lost
        lineage = record.details["lineage"]
        made = "the fine-tuned network" if name == ROOT else f"{lineage[-2]} → {record.details['method']}"
        cells: list[Content] = [two_lines(name, made), top1, lost, percent(told.get("quality/macro_f1"))]
        cells += [percent(facts.selection.details["agreement"][name]), millions(told["size/parameters"])]
        cells += [millions(told["compute/macs"]), digits(told["size/mb"]), digits(told["size/zipped_mb"])]
        rows.append(Row(cells, _marked(facts, name)))
    better = f"{reference}, better than dense" if reference != ROOT else reference
    caption = (
        f"Quality on the validation split of {facts.source}, in the runtime and precision where each file is fastest "
        f"(dense, and what has not answered there: in ONNX Runtime), and size. "
        f"Drop: points of top-1 lost against {better}. "
        f"Small figures: intervals, 95 % for top-1, {facts.level} for the drop"
    )
    heading = ["candidate", "top-1", "drop", "macro F1", "agreement", "parameters", "MACs", "MB", "MB zipped"]
    return table(heading, rows, caption=caption)


def span(low: float, high: float, plus: bool = False) -> str:
    """The ends of an interval, points."""
    return f"{signed(low, plus)} to {signed(high, plus)}"


def _speed(facts: RunRecords) -> Html:
    rows, large, machine = [], facts.large, facts.benchmark.machine
    assert machine is not None
    for name in facts.candidates:
        speed, one, many = facts.speed(name), facts.best(name, "latency"), facts.best(name, "throughput")
        if one is None or many is None:
            rows.append(Row([name, "not timed: its answers differ there", *[MISSING] * 7]))
            continue
        pairs = [
            two_lines(*(ratio_told(speed, f"speedup/{kind}_b{batch}") for batch in (1, large))) for kind in SPEEDUPS
        ]
        on: Content = two_lines(_where(one), _where(many)) if _where(one) != _where(many) else _where(one)
        cells: list[Content] = [
            name,
            on,
            digits(one["p50_ms"]),
            digits(one["p95_ms"]),
            number(many["images_per_s"]),
            _of_peak(facts, name),
            *pairs,
        ]
        rows.append(Row(cells, _marked(facts, name)))
    peaks = facts.benchmark.details["peaks"]
    caption = (
        f"Speed of each file on its fastest runtime: latency of one image, throughput in batches of {large}, speed-ups "
        f"for both (one image; below: batch) with 95 % intervals. {machine.cpu}, {machine.threads} threads. "
        f"{of_peak_told(peaks)}"
    )
    if told := describe_errors(facts.benchmark.details["measurement_error"]):
        caption += f" {told[0].upper()}{told[1:]}."
    where = two_lines("fastest on", f"one image; below: batch of {large}, if another")
    heading: list[Content] = ["candidate", where, "p50, ms", "p95, ms", "images/s", two_lines("of peak", "one / batch")]
    return table([*heading, *[short for _, short in SPEEDUPS.values()]], rows, caption=caption, left=2)


def ratio_told(speed: Mapping[str, float], key: str) -> str:
    """A ratio with the ends of its interval, as far as they are known."""
    if key not in speed:
        return MISSING
    if f"{key}_low" not in speed:
        return f"{speed[key]:.2f}"
    return f"{speed[key]:.2f} ({speed[f'{key}_low']:.2f} to {speed[f'{key}_high']:.2f})"


def _of_peak(facts: RunRecords, name: str) -> Content:
    shares = facts.benchmark.details["peak_share"][name]
    return " / ".join(percent(shares[kind]) if kind in shares else MISSING for kind in ("latency", "throughput"))


def _there(facts: RunRecords) -> Html:
    """Times of the machine that will serve, which gates go by."""
    rows = []
    for name in facts.candidates:
        figures, one, many = (
            facts.serving(name),
            facts.serving_row(name, "latency"),
            facts.serving_row(name, "throughput"),
        )
        if one is None or many is None:
            rows.append(Row([name, "not timed there", *[MISSING] * 5]))
            continue
        ratios = [ratio_told(figures, f"speedup/float_b{batch}") for batch in (1, facts.large)]
        on: Content = two_lines(_where(one), _where(many)) if _where(one) != _where(many) else _where(one)
        cells: list[Content] = [name, on, digits(one["p50_ms"]), digits(one["p95_ms"]), number(many["images_per_s"])]
        rows.append(Row([*cells, *ratios], _marked(facts, name)))
    caption = (
        f"Speed on the machine that will serve, {facts.target}, measured there by check_host.py; gates go by these "
        f"figures alone. Speed-ups against dense as the best float there, for one image and batches of {facts.large}"
    )
    heading = ["candidate", "fastest on", "p50, ms", "p95, ms", "images/s", "× float, one", "× float, batch"]
    return table(heading, rows, caption=caption, left=2)


def _where(row: dict[str, Any]) -> str:
    threads = "1 thread" if row["threads"] == 1 else f"{row['threads']} threads"
    return f"{RUNTIMES[row['runtime']]} {row['precision']}, {threads}"


def _gates(facts: RunRecords) -> Html:
    rows = []
    for name, verdict in facts.verdicts.items():
        gates = {gate["name"]: gate for gate in verdict["gates"]}
        missed = describe_failures(verdict["gates"])
        outcome = "winner" if name == facts.winner else "passes"
        if missed:
            outcome = "does not pass" if missed.startswith("fails") else "not shown"
        front = "on the front" if verdict["on_front"] else "not on the front"
        cells = [name, two_lines(strong(outcome), front), *[_gate(gates.get(gate)) for gate in GATES]]
        rows.append(Row(cells, _marked(facts, name)))
    if not rows:
        return paragraph("There is no candidate beside dense.")
    caption = (
        "Gates: all must pass, whatever the candidate is for. Not shown: the images are too few, or the times too "
        "uneven, to tell; that does not pass. One that was not checked blocks nobody. The reason names "
        "both numbers"
    )
    return tag(
        "div", table(["candidate", "verdict", *GATES.values()], rows, caption=caption, left=2 + len(GATES)), css="prose"
    )


def _gate(gate: dict[str, Any] | None) -> Content:
    if gate is None:
        return MISSING
    if not gate.get("checked", True):
        return join(strong("Not checked"), gate["reason"].removeprefix("not checked"))
    if gate["passed"]:
        return str(gate["reason"])
    if not gate.get("shown", True):
        return tag("span", strong("Not shown: "), gate["reason"].removeprefix("not shown: "), css="unshown")
    return tag("span", strong("Fails: "), gate["reason"], css="fails")


def trade_off(facts: RunRecords) -> Html:
    """The Pareto front."""
    names = ", ".join(facts.selection.details["front"])
    caption = (
        "The larger the marker, the larger the file. Filled: on the front, nobody is better in accuracy, size and "
        f"latency at once ({names}). The line joins those that nobody beats in the two directions drawn. "
    )
    caption += f"Orange: {facts.winner}." if facts.winner else "No candidate passes every gate."
    alt = "Accuracy over latency of all candidates; the numbers are in the tables above"
    return figure(facts.trade_off, alt, caption, css="wide")


def causes(facts: RunRecords) -> Html:
    """Speed-ups over eager f32 as products of runtime, structure and precision."""
    found = facts.benchmark.details["attribution"]
    one = {name: found[name]["latency"] for name in facts.candidates if found[name]["latency"]}
    rows = []
    for name in facts.candidates:
        cells = [_product(found[name][what]) for what in ("latency", "throughput")]
        rows.append(Row([name, *cells], _marked(facts, name)))
    text = (
        "The speed-up over dense in PyTorch eager f32 is a product: dense on the candidate's runtime (runtime), then "
        "the smaller network there (structure), then its int8 or bf16 (precision). A factor below 1 is a loss."
    )
    caption = "Runtime × structure × precision = speed-up over PyTorch eager f32"
    heading = ["candidate", "one image", f"batch of {facts.large}"]
    shown = [table(heading, rows, caption=caption)]
    if one:
        told = "One image at a time; factors follow one another, a loss goes back to the left."
        shown.append(figure(plots.factors(one), "The factors for one image, as in the table", told))
    return join(paragraph(text), side_by_side(*shown))


def _product(row: dict[str, Any] | None) -> Content:
    if row is None:
        return MISSING
    factors = " × ".join(f"{row[factor]:.2f}" for factor in plots.FACTORS)
    return two_lines(f"{factors} = {row['total']:.2f}", f"{RUNTIMES[row['on']]}, {row['ends_in']}")


def by_class(facts: RunRecords) -> Html:
    """Precision, recall and F1 of every class, confusion and calibration: the shown candidate against dense."""
    name, dense = facts.shown, facts.dense.details
    if name is None or "per_class" not in dense:
        return paragraph("Without a candidate or without labelled validation images there is nothing to compare.")
    own, classes = facts.candidates[name].details, list(dense["per_class"])
    pair = {ROOT: dense, name: own}
    confusions = [
        figure(
            plots.confusion(details["confusion"], classes, who),
            f"Confusion matrix of {who}",
            "Shares of each row, in percent.",
        )
        for who, details in pair.items()
    ]
    errors = ", ".join(f"{who} {_calibrated(facts.quality(who))}" for who in pair)
    told = (
        f"Calibration on validation, before temperature scaling. Mean gap between confidence and accuracy: {errors}. "
    )
    told += "Marker area: images."
    calibration = plots.reliability({who: details["reliability"] for who, details in pair.items()})
    return join(
        _class_table(name, dense["per_class"], own["per_class"]),
        side_by_side(*confusions, figure(calibration, "Accuracy over confidence of both", told)),
    )


def _calibrated(metrics: dict[str, float]) -> str:
    """The gap, and what is left of it with the temperature that the card names."""
    after = metrics.get("quality/ece_calibrated")
    scaled = "" if after is None else f", {percent(after)} with temperature {metrics['quality/temperature']:.2f}"
    return f"{percent(metrics['quality/ece'])}{scaled}"


def _class_table(name: str, dense: dict[str, Any], own: dict[str, Any]) -> Html:
    """Those that lost most first where there are many."""
    classes: Sequence[str] = list(dense)
    caption = f"{name} beside dense, on validation, both as files in ONNX Runtime. Change: points of F1"
    if len(classes) > SHOWN_CLASSES:
        classes = sorted(classes, key=lambda label: own[label]["f1"] - dense[label]["f1"])[:SHOWN_CLASSES]
        caption += f"; the {SHOWN_CLASSES} of {len(dense)} classes that lost most"
    rows = []
    for label in classes:
        pairs = [
            f"{percent(dense[label][part])} / {percent(own[label][part])}" for part in ("precision", "recall", "f1")
        ]
        change = signed((own[label]["f1"] - dense[label]["f1"]) * 100, plus=True)
        rows.append(Row([label, number(dense[label]["support"]), *pairs, change]))
    parts = [two_lines(part, f"dense / {name}") for part in ("precision", "recall", "F1")]
    heading: list[Content] = ["class", "images", *parts, "change"]
    return table(heading, rows, caption=caption)
