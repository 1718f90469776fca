"""The sections of the page that compare the candidates: the Pareto front, quality and size, gates, and classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from winnow.config import ROOT
from winnow.records.candidate_file import ClassScores
from winnow.records.selection import Gate
from winnow.reporting import plots
from winnow.reporting.candidate_rows import Share, tested_top1
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
from winnow.reporting.interactive_front import FrontPoint, draw_interactive_front
from winnow.reporting.plots import TradeOffPoint, accuracy_measure
from winnow.reporting.run_records import RunRecords
from winnow.reporting.speed_section import SPEEDUPS, format_ratio, ratio_cell
from winnow.selection.gates import GATES, describe_failures

SHOWN_CLASSES = 30


def render_candidates(records: RunRecords, test_metrics: Mapping[str, float]) -> Html:
    """Return the interactive front, and a table with the figures that decide, dense first.

    `test_metrics`: the metrics of the report, for top-1 on the test split. Speed is that of the machine that serves.
    """
    batched = records.selection.parameters["objective"] == "throughput"
    batch, kinds = records.large if batched else 1, _shown_baselines(records)
    tested = {name: tested_top1(name, records.winner, test_metrics) for name in records.candidates}
    has_test, rows = any(tested.values()), []
    for name in records.candidates:
        row, speed = records.row(name), records.serving(name)
        time = number(speed.get("best/throughput_ips")) if batched else digits(speed.get("best/latency_ms"))
        speedups = [ratio_cell(speed, f"speedup/{kind}_b{batch}") for kind in kinds]
        test_cell = [_top1_cell(tested[name])] if has_test else []
        cells = [two_lines(name, row.origin), _top1_cell(row.top1), *test_cell, digits(row.size_mb), time, *speedups]
        rows.append(Row([*cells, tag("span", row.outcome, css="verdict")], records.row_css(name)))
    heading: list[Content] = ["candidate", "top-1", *(["on test"] if has_test else []), "file, MB"]
    heading += [f"images/s, batch {batch}" if batched else "one image, ms", *(SPEEDUPS[kind][1] for kind in kinds)]
    caption = f"Small figures: 95 % intervals. Speed-ups are over dense, {_machine(records)}"
    return join(_front(records), table([*heading, "verdict"], rows, caption=caption))


def _shown_baselines(records: RunRecords) -> tuple[str, ...]:
    """Return the baselines of the speed-ups: on another serving machine dense was timed as a file alone."""
    return ("float",) if records.target else tuple(SPEEDUPS)


def _machine(records: RunRecords) -> str:
    """Return the machine whose figures decide."""
    machine = records.benchmark.machine
    assert machine is not None
    own = f"on {machine.cpu}, {machine.threads} threads"
    return f"on the serving machine, {records.target}" if records.target else own


def _top1_cell(share: Share | None) -> Content:
    return MISSING if share is None else two_lines(percent(share.value), _interval(share))


def _interval(share: Share) -> str:
    return f"{share.low * 100:.1f} to {percent(share.high)}"


def render_quality(records: RunRecords) -> Html:
    """Return accuracy and size of every candidate, dense first."""
    rows, reference = [], records.selection.details.reference
    for name in records.candidates:
        row = records.row(name)
        lost: Content = (
            MISSING
            if row.drop is None
            else two_lines(signed(row.drop.points), format_interval(row.drop.low, row.drop.high))
        )
        if row.top1 is not None and name == reference:
            lost = two_lines("0", "reference")
        cells: list[Content] = [two_lines(name, row.origin), _top1_cell(row.top1), lost, percent(row.macro_f1)]
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


def render_gates(records: RunRecords) -> Html:
    """Return what each gate says of each candidate, and why."""
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


def _front(records: RunRecords) -> Html:
    """Return the candidates that were timed as an interactive plot; the picture of MLflow without JavaScript."""
    selection, points = records.selection.details, trade_off_points(records)
    shown = [_front_point(records, point) for point in points if point.latency_ms is not None]
    alt = "Accuracy over latency of all candidates; the numbers are in the table below"
    picture = figure(records.trade_off, alt, "", css="wide")
    if not shown:
        return picture
    caption = (
        "Point at a candidate to see its figures. Squares are int8 files; the larger the marker, the larger the file. "
        f"On the front are {', '.join(selection.front)}: no other candidate beats any of them in accuracy, size and "
        "latency at once. The line joins those that no other beats in accuracy and latency. Latency "
        f"{_machine(records)}. "
    )
    caption += f"Ringed: {records.winner}." if records.winner else "No candidate passes every gate."
    plot = draw_interactive_front(shown, accuracy_measure(points), picture)
    return tag("figure", plot, tag("figcaption", caption))


def _front_point(records: RunRecords, point: TradeOffPoint) -> FrontPoint:
    """Return a candidate of the interactive plot, with its figures as text."""
    row, speed = records.row(point.name), records.serving(point.name)
    top1 = f"{percent(row.top1.value)} ({_interval(row.top1)})" if row.top1 else MISSING
    lost = f"{signed(row.drop.points)} ({format_interval(row.drop.low, row.drop.high)})" if row.drop else MISSING
    details = {
        "made from": row.origin,
        "top-1": top1,
        "points lost": lost,
        "agreement": percent(row.agreement),
        "file": digits(row.size_mb, "MB"),
        "one image": digits(point.latency_ms, "ms"),
        **{SPEEDUPS[kind][0]: f"× {format_ratio(speed, f'speedup/{kind}_b1')}" for kind in _shown_baselines(records)},
        "verdict": row.outcome,
    }
    method = "fine-tuned" if point.name == ROOT else row.method
    return FrontPoint(point, method, is_int8=row.precision == "int8", details=tuple(details.items()))


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
