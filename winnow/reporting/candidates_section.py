"""The sections of the page that compare the candidates: quality and size, gates, the Pareto front, and classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from winnow.config import ROOT
from winnow.records.candidate_file import ClassScores
from winnow.records.selection import Gate
from winnow.reporting import plots
from winnow.reporting.html import (
    MISSING,
    Content,
    Html,
    Row,
    digits,
    figure,
    format_interval,
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
from winnow.reporting.plots import TradeOffPoint
from winnow.reporting.run_records import RunRecords
from winnow.reporting.speed_section import render_serving_speed, render_speed
from winnow.selection.gates import GATES, describe_failures

SHOWN_CLASSES = 30


def render_candidates(records: RunRecords) -> Html:
    """Return the tables with one row per candidate, dense first."""
    serving_table = [render_serving_speed(records)] if records.target else []
    return join(_quality(records), *serving_table, render_speed(records), _gates(records))


def _quality(records: RunRecords) -> Html:
    rows, reference = [], records.selection.details.reference
    for name in records.candidates:
        row = records.row(name)
        lost: Content = (
            MISSING
            if row.drop is None
            else two_lines(signed(row.drop.points), format_interval(row.drop.low, row.drop.high))
        )
        top1: Content = MISSING
        if row.top1 is not None:
            top1 = two_lines(percent(row.top1.value), f"{row.top1.low * 100:.1f} to {percent(row.top1.high)}")
            lost = two_lines("0", "reference") if name == reference else lost
        cells: list[Content] = [two_lines(name, row.origin), top1, lost, percent(row.macro_f1)]
        cells += [percent(row.agreement), millions(row.parameters)]
        cells += [millions(row.macs), digits(row.size_mb), digits(row.zipped_mb)]
        rows.append(Row(cells, records.row_css(name)))
    reference_name = f"{reference}, better than dense" if reference != ROOT else reference
    caption = (
        f"Quality on the validation split of {records.source}, in the runtime and precision where each file is fastest "
        f"(in ONNX Runtime for dense and for files that could not be run there), and size. "
        f"Drop: points of top-1 lost against {reference_name}. "
        f"Small figures: intervals, 95 % for top-1, {records.level} for the drop"
    )
    heading = ["candidate", "top-1", "drop", "macro F1", "agreement", "parameters", "MACs", "MB", "MB zipped"]
    return table(heading, rows, caption=caption)


def _gates(records: RunRecords) -> Html:
    rows = []
    for name, verdict in records.verdicts.items():
        gates = {gate.name: gate for gate in verdict.gates}
        failures = describe_failures(verdict.gates)
        outcome = "winner" if name == records.winner else "passes"
        if failures:
            outcome = "does not pass" if failures.startswith("fails") else "not shown"
        front = "on the front" if verdict.on_front else "not on the front"
        cells = [name, two_lines(strong(outcome), front), *[_gate_cell(gates.get(gate)) for gate in GATES]]
        rows.append(Row(cells, records.row_css(name)))
    if not rows:
        return paragraph("There is no candidate other than dense.")
    caption = (
        "Gates: all must pass. Not shown: too few images, or times vary too much; the candidate does not pass. "
        "A gate that was not checked blocks no candidate. The reason states the value and the threshold"
    )
    return tag(
        "div", table(["candidate", "verdict", *GATES.values()], rows, caption=caption, left=2 + len(GATES)), css="prose"
    )


def _gate_cell(gate: Gate | None) -> Content:
    if gate is None:
        return MISSING
    if not gate.checked:
        return join(strong("Not checked"), gate.reason.removeprefix("not checked"))
    if gate.passed:
        return gate.reason
    if not gate.shown:
        return tag("span", strong("Not shown: "), gate.reason.removeprefix("not shown: "), css="unshown")
    return tag("span", strong("Fails: "), gate.reason, css="fails")


def trade_off_points(records: RunRecords) -> list[TradeOffPoint]:
    """Return the points of the plot: top-1, or agreement where no image has a label."""
    selection = records.selection.details
    points = []
    for name, record in records.candidates.items():
        quality = selection.quality[name]
        top1 = quality.get("quality/top1")
        point = TradeOffPoint(
            name=name,
            latency_ms=selection.speeds.candidates[name].get("best/latency_ms"),
            accuracy=quality["quality/agreement"] if top1 is None else top1,
            size_mb=record.metrics["size/mb"],
            measures_agreement=top1 is None,
            on_front=name in selection.front,
            highlighted=name == selection.winner,
        )
        points.append(point)
    return points


def render_trade_off(records: RunRecords) -> Html:
    """Return the plot of the Pareto front."""
    names = ", ".join(records.selection.details.front)
    caption = (
        "The larger the marker, the larger the file. Filled: on the front; no other candidate is better in accuracy, "
        f"size and latency at once ({names}). The line joins the candidates that no other beats in the plotted axes. "
    )
    caption += f"Orange: {records.winner}." if records.winner else "No candidate passes every gate."
    alt = "Accuracy over latency of all candidates; the numbers are in the tables above"
    return figure(records.trade_off, alt, caption, css="wide")


def render_classes(records: RunRecords) -> Html:
    """Compare the shown candidate with dense: precision, recall and F1 of every class, confusion and calibration."""
    name, dense = records.shown, records.dense.details
    if name is None or not dense.per_class:
        return paragraph("Without a candidate or without labelled validation images there is nothing to compare.")
    candidate, classes = records.candidates[name].details, list(dense.per_class)
    pair = {ROOT: dense, name: candidate}
    confusions = [
        figure(
            plots.plot_confusion(details.confusion, classes, label),
            f"Confusion matrix of {label}",
            "Shares of each row, in percent.",
        )
        for label, details in pair.items()
    ]
    errors = ", ".join(f"{label} {_calibration_error(records.quality(label))}" for label in pair)
    calibration_caption = (
        f"Calibration on validation, before temperature scaling. Mean gap between confidence and accuracy: {errors}. "
    )
    calibration_caption += "Marker area: images."
    calibration = plots.plot_reliability({label: details.reliability for label, details in pair.items()})
    return join(
        _class_table(name, dense.per_class, candidate.per_class),
        side_by_side(*confusions, figure(calibration, "Accuracy over confidence of both", calibration_caption)),
    )


def _calibration_error(metrics: dict[str, float]) -> str:
    """Return the calibration error, and the error left with the temperature that the card names."""
    after = metrics.get("quality/ece_calibrated")
    scaled = "" if after is None else f", {percent(after)} with temperature {metrics['quality/temperature']:.2f}"
    return f"{percent(metrics['quality/ece'])}{scaled}"


def _class_table(name: str, dense: Mapping[str, ClassScores], candidate: Mapping[str, ClassScores]) -> Html:
    """Return the table of classes; where there are many, those that lost most."""
    classes: Sequence[str] = list(dense)
    caption = f"{name} and dense on validation, both as files in ONNX Runtime. Change: points of F1"
    if len(classes) > SHOWN_CLASSES:
        classes = sorted(classes, key=lambda label: candidate[label].f1 - dense[label].f1)[:SHOWN_CLASSES]
        caption += f"; the {SHOWN_CLASSES} of {len(dense)} classes that lost most"
    rows = []
    for label in classes:
        pairs = [
            f"{percent(getattr(dense[label], score))} / {percent(getattr(candidate[label], score))}"
            for score in ("precision", "recall", "f1")
        ]
        change = signed((candidate[label].f1 - dense[label].f1) * 100, plus=True)
        rows.append(Row([label, number(dense[label].support), *pairs, change]))
    parts = [two_lines(metric, f"dense / {name}") for metric in ("precision", "recall", "F1")]
    heading: list[Content] = ["class", "images", *parts, "change"]
    return table(heading, rows, caption=caption)
