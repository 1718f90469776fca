"""The one-page report: what is proposed for production and why, then the evidence.

    html = page(records, test_result)

Every number comes from a record of the run, those of the test split from the report step; only ratios are computed
here. The page holds no date and no count of test readings: the same records give the same bytes. This file holds the
frame and the verdict; the files *_section.py hold the sections, html.py the markup, plots.py the plots.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from winnow.config import ROOT
from winnow.evaluation.abstention import TABLE_THRESHOLDS, counts_at_threshold
from winnow.evaluation.effective_sample_size import in_groups
from winnow.evaluation.metrics import drop_metrics_on_test
from winnow.records.report import Abstention
from winnow.reporting.candidates_section import render_candidates, render_classes, render_gates, render_quality
from winnow.reporting.html import (
    Content,
    Html,
    Row,
    bullets,
    digits,
    document,
    folded,
    format_interval,
    join,
    number,
    paragraph,
    percent,
    section,
    side_by_side,
    signed,
    strong,
    table,
    tag,
    two_lines,
)
from winnow.reporting.images_section import render_images
from winnow.reporting.method_section import render_controls, render_glossary, render_memory, render_method
from winnow.reporting.run_records import RunRecords
from winnow.reporting.speed_section import render_speed_factors, render_speeds
from winnow.reporting.training_section import render_pretraining

Render = Callable[[RunRecords], Html]
DETAILS: dict[str, tuple[str, str, Render]] = {
    "speed": ("Speed", "times in the fastest runtime, and speed-ups over three baselines", render_speeds),
    "quality": ("Quality and size", "every figure of accuracy and size, with intervals", render_quality),
    "gates": ("Gates", "why each candidate passes or does not", render_gates),
    "causes": ("Causes of the speed-up", "runtime, structure and precision", render_speed_factors),
    "classes": ("Class by class", "precision, recall, confusions and calibration", render_classes),
    "images": ("The images", "splits, near-duplicates, suspicious labels, unusable files", render_images),
    "pretraining": ("Gain by pretraining", "arms, curves, and a map of the embeddings", render_pretraining),
    "memory": ("Memory and start-up", "each file in a fresh process", render_memory),
    "controls": ("Controls", "what the teacher and longer training gain", render_controls),
    "method": ("Method and conditions", "settings, machine, versions, digests of files", render_method),
    "words": ("Terms", "drop, agreement, speed-up and others", render_glossary),
}
"""Anchor -> title, what it holds, and how it is written, of the sections that are closed at first."""
TEST_METRIC = "test/dense_top1"
"""A metric that exists where the test split has images."""
ROUNDS_TO_ZERO = 0.05
"""Points of accuracy below this are shown as 0.0."""


@dataclass(frozen=True)
class TestResult:
    """The results on the test split, which is evaluated after everything has been chosen."""

    __test__ = False

    version: str
    """Digest of the test images."""
    metrics: dict[str, float]
    """Names as in winnow/selection/test_evaluation.py; test/images alone without labelled test images."""
    baseline: str = ROOT
    """The reference of the drop: dense or dense-kd."""
    measured_in: str = ""
    """The runtime and precision in which the winner was evaluated."""
    warnings: tuple[str, ...] = ()
    """Warnings that come before any figure."""
    abstention: Abstention = field(default_factory=Abstention)
    """Counts at thresholds on confidence."""


def render_run_page(records: RunRecords, test_result: TestResult) -> str:
    """Return the HTML file. Raises MissingExtra without matplotlib and Bokeh."""
    parts = [
        section("candidates", "The candidates", render_candidates(records, test_result.metrics)),
        *([folded("test", *_test_section(records, test_result))] if TEST_METRIC in test_result.metrics else []),
        *(folded(anchor, title, what, write(records)) for anchor, (title, what, write) in DETAILS.items()),
    ]
    return document(f"winnow report: {records.source}", render_verdict(records, test_result), *parts)


def _test_section(records: RunRecords, test_result: TestResult) -> tuple[str, str, Html]:
    """Return title, summary and content of the section on the test split."""
    abstention = [_abstention_table(test_result)] if test_result.abstention.test else []
    content = side_by_side(_test_table(records, test_result), *abstention)
    return "The test split", "accuracy of what is deployed, and when to abstain", content


def render_verdict(records: RunRecords, test_result: TestResult) -> Html:
    """Return the decision in a sentence, its figures, the test split, and the warnings."""
    name, reason = records.winner, f"{records.selection.details.why}."
    title = f"Proposed for production: {name}" if name else "Nothing is proposed for production"
    return tag(
        "header",
        paragraph(f"winnow report · {records.source}", css="above"),
        tag("h1", title),
        *([_test_warnings(test_result.warnings)] if test_result.warnings else []),
        paragraph(_summary(records, name) if name else reason[0].upper() + reason[1:], css="lead"),
        *([_figures(records, records.shown, test_result)] if records.shown else []),
        *([paragraph(f"{reason} {_describe_deployed(records)}")] if name else []),
        paragraph(_describe_test(records, test_result)),
        _warnings(records),
    )


def _summary(records: RunRecords, name: str) -> str:
    """Return how much smaller and faster the candidate is, its loss of accuracy, and the data."""
    batch = records.large if records.selection.parameters["objective"] == "throughput" else 1
    smaller = _times(records.quality(ROOT)["size/mb"] / records.quality(name)["size/mb"], "smaller", "larger")
    faster = _times(records.serving(name)[f"speedup/float_b{batch}"], "faster", "slower")
    machine = f" on {records.target}" if records.target else ""
    call = "one image" if batch == 1 else f"batches of {batch} images"
    start = (
        f"{name} is {smaller} than dense, the fine-tuned network, and {faster} on {call} "
        f"(each on its fastest runtime{machine})"
    )
    drop = records.drop(name)
    if drop is None:
        share = percent(records.selection.details.agreement[name])
        count = number(records.data.metrics["data/validation"])
        return (
            f"{start}, and predicts the same class on {share} of {count} validation images of {records.source}; none "
            "of them has a label."
        )
    reference = records.selection.details.reference
    against = "" if reference == ROOT else f" against {reference}, which is better than dense"
    loss = f"{_describe_change(drop.points, 'costs', 'gains')} of top-1 accuracy{against}"
    interval = f"interval of the loss, {records.level}, {format_interval(drop.low, drop.high)} points"
    summary = f"{start}, and {loss} ({interval}; {records.choosing} of {records.source})."
    disagreement, image_count = records.otherwise(name), records.data.metrics["data/validation"]
    if records.selection.details.route == "labels":
        return summary
    unlabelled = number(image_count - records.dense.details.labels.choosing)
    return (
        f"{summary} Agreement bounds the loss to {signed(disagreement.high)} points ({records.level}): it predicts the "
        f"same class as {reference} on {percent(1 - disagreement.points / 100)} of {number(image_count)} "
        f"validation images, {unlabelled} of them without a label."
    )


def _describe_deployed(records: RunRecords) -> str:
    """Return how many labels trained the deployed file, and whether it is a refit."""
    labels, reason = records.refit.details.labels, records.refit.details.why
    note = ". Figures on validation are those of the file before the refit" if records.is_refitted else ""
    return f"{number(labels.deployed)} labels trained the file that is deployed; {reason}{note}."


def _describe_change(points: float, loss_verb: str, gain_verb: str) -> str:
    """Return e.g. "costs 0.4 points" or "gains 0.2 points"; a gain that rounds to zero counts as a loss of 0.0."""
    return f"{gain_verb if points <= -ROUNDS_TO_ZERO else loss_verb} {signed(abs(points))} points"


def _times(ratio: float, above: str, below: str) -> str:
    return f"{ratio:.1f} times {above}" if ratio >= 1 else f"{1 / ratio:.1f} times {below}"


def _abstention_table(test_result: TestResult) -> Html:
    """Return the coverage and accuracy of `winnow predict --abstain-below` at some thresholds, on both splits."""
    rows = []
    for threshold in TABLE_THRESHOLDS:
        cells: list[Content] = [f"{threshold:g}"]
        for counts in (test_result.abstention.validation, test_result.abstention.test):
            assert counts is not None
            answered, right = counts_at_threshold(counts, threshold)
            cells += [percent(answered / counts.images if counts.images else None)]
            cells += [percent(right / answered if answered else None)]
        rows.append(Row(cells))
    caption = (
        "Share of images that get a class if a minimum probability is required, and share of these that is correct"
    )
    heading: list[Content] = ["--abstain-below"]
    for split in ("validation", "test"):
        heading += [two_lines("classified", split), two_lines("correct", split)]
    return table(heading, rows, caption=caption)


def _figures(records: RunRecords, name: str, test_result: TestResult) -> Html:
    """Return figures beside dense's, top-1 on the test split next to that on validation."""
    candidate, dense = records.quality(name), records.quality(ROOT)
    speed, dense_speed = records.serving(name), records.serving(ROOT)
    dense_latency, dense_throughput = dense_speed.get("best/latency_ms"), dense_speed.get("best/throughput_ips")
    quality = ("top-1 on validation", percent(candidate.get("quality/top1")), percent(dense.get("quality/top1")))
    if "quality/top1" not in candidate:
        quality = ("agreement on validation", percent(records.selection.details.agreement[name]), percent(1.0))
    test = [percent(test_result.metrics.get(f"test/{key}_top1")) for key in ("winner", ROOT)]
    tiles = (
        quality,
        *([("top-1 on test", *test)] if TEST_METRIC in test_result.metrics else []),
        ("file", digits(candidate["size/mb"], "MB"), digits(dense["size/mb"], "MB")),
        ("one image, median", digits(speed.get("best/latency_ms"), "ms"), digits(dense_latency, "ms")),
        (f"images/s, batch {records.large}", number(speed.get("best/throughput_ips")), number(dense_throughput)),
    )
    boxes = [
        tag("div", tag("span", label), strong(value), tag("small", f"dense: {dense_value}"), css="tile")
        for label, value, dense_value in tiles
    ]
    intro = [] if records.winner else [paragraph("The nearest candidate, ", strong(name), ", compared with dense:")]
    return join(*intro, tag("div", *boxes, css="tiles"))


def _test_warnings(warnings: tuple[str, ...]) -> Html:
    """Return the warnings from the test split."""
    return tag("div", *[paragraph(f"{warning}.") for warning in warnings], css="heed")


def _describe_test(records: RunRecords, test_result: TestResult) -> str:
    """Return the results on the test split, by which nothing was selected."""
    metrics = test_result.metrics
    if TEST_METRIC not in metrics:
        return "There is no labelled test image: every figure on this page is of the validation split."
    groups = in_groups(metrics.get("test/groups"))
    text = (
        f"On {number(metrics['test/images'])} test images{groups} of {records.source}, by which nothing was selected, "
    )
    if not records.winner:
        dense = percent(metrics[TEST_METRIC])
        return f"{text}dense is correct on {dense}; no candidate is proposed, so no other was evaluated."
    points, low, high = (metrics[key] for key in drop_metrics_on_test(test_result.baseline))
    change = _describe_change(points, "loses", "gains")
    refit_note = f", refitted on {number(records.refit.details.labels.deployed)} labels," if records.is_refitted else ""
    return (
        f"{text}{records.winner}{refit_note} {change} against {test_result.baseline} (95 % interval of the loss "
        f"{format_interval(low, high)}), measured in {test_result.measured_in}."
    )


def _test_table(records: RunRecords, test_result: TestResult) -> Html:
    names = dict.fromkeys((ROOT, test_result.baseline))
    rows = [_test_row(test_result.metrics, name, name) for name in names]
    if records.winner:
        name = records.winner
        rows.append(_test_row(test_result.metrics, "winner", f"{name}, refitted" if records.is_refitted else name))
        if records.is_refitted:
            rows.append(_test_row(test_result.metrics, "selected", f"{name} before the refit"))
    caption = f"On the test split, version {test_result.version}; the report step prints how often it was read"
    return table(
        ["test split", "top-1", "macro F1", two_lines("calibration error", "before temperature")], rows, caption=caption
    )


def _test_row(metrics: dict[str, float], key: str, name: str) -> Row:
    interval = f"{metrics[f'test/{key}_top1_low'] * 100:.1f} to {percent(metrics[f'test/{key}_top1_high'])}"
    cells = [percent(metrics[f"test/{key}_{part}"]) for part in ("macro_f1", "ece")]
    return Row([name, two_lines(percent(metrics[f"test/{key}_top1"]), interval), *cells])


def _warnings(records: RunRecords) -> Html:
    items = [join(strong(step), f": {warning}") for step, warning in records.warnings()]
    if not items:
        return paragraph("No step had a warning.", css="note")
    return tag("div", tag("h3", "Before you rely on this"), bullets(items), css="heed")
