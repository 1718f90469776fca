"""The one-page report: what is proposed for production and why, for whoever decides, then for whoever asks further.

    html = page(facts, tested)

Every number comes from a record of the run, those of the test split from the report step; nothing is computed here but
ratios. No date and no count of readings stands on the page: the same records give the same bytes. This file holds the
frame and the verdict; learning, candidates and conditions hold the sections, html the
markup, plots the pictures.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from winnow.config import ROOT
from winnow.evaluation.abstention import SHOWN, at_threshold
from winnow.evaluation.effective_sample_size import in_groups
from winnow.evaluation.metrics import drop_metrics_on_test
from winnow.reporting.candidates_section import SPEEDUPS, by_class, candidates, causes, span, trade_off
from winnow.reporting.html import (
    MISSING,
    Content,
    Html,
    Row,
    bullets,
    digits,
    document,
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
from winnow.reporting.method_section import controls, glossary, memory, method
from winnow.reporting.run_records import RunRecords
from winnow.reporting.training_section import images, pretraining

SECTIONS = {
    "images": ("The images", images),
    "pretraining": ("What pretraining bought", pretraining),
    "candidates": ("The candidates", candidates),
    "trade-off": ("Accuracy, latency and size", trade_off),
    "causes": ("Where the speed came from", causes),
    "classes": ("Class by class", by_class),
    "memory": ("Memory and start-up", memory),
    "controls": ("Controls", controls),
    "method": ("Method and conditions", method),
    "words": ("Words", glossary),
}
KNOWN = "test/dense_top1"
"""Is there where the test split has images."""
HALF_A_DIGIT = 0.05
"""Points of accuracy below this are shown as 0.0."""


@dataclass(frozen=True)
class TestResult:
    """What the test split said, once everything had been chosen."""

    version: str
    """Digest of its images."""
    metrics: dict[str, float]
    """As winnow/selection/test_evaluation.py names them; test/images alone without labelled test images."""
    baseline: str = ROOT
    """What the drop is counted against: dense or dense-kd."""
    measured_in: str = ""
    """Where the winner answered."""
    warnings: tuple[str, ...] = ()
    """What a user must know first."""
    abstention: Mapping[str, Any] = field(default_factory=dict)
    """validation, test -> what thresholds on confidence give."""


def page(facts: RunRecords, tested: TestResult) -> str:
    """The HTML file. Raises MissingExtra without matplotlib."""
    links = [join(tag("a", title, more=f'href="#{anchor}"'), " ") for anchor, (title, _) in SECTIONS.items()]
    nav = tag("nav", *links, more='aria-label="Sections"')
    parts = [section(anchor, title, write(facts)) for anchor, (title, write) in SECTIONS.items()]
    return document(f"winnow report: {facts.source}", verdict(facts, tested), nav, *parts)


def verdict(facts: RunRecords, tested: TestResult) -> Html:
    """The answer in a sentence, its figures, the test split, and what to know before relying on it."""
    name, why = facts.winner, f"{facts.selection.details['why']}."
    title = f"Proposed for production: {name}" if name else "Nothing is proposed for production"
    return tag(
        "header",
        paragraph(f"winnow report · {facts.source}", css="above"),
        tag("h1", title),
        *([_first_warnings(tested.warnings)] if tested.warnings else []),
        paragraph(_promise(facts, name) if name else why[0].upper() + why[1:], css="lead"),
        *([paragraph(why), paragraph(_deployed(facts))] if name else []),
        *([_figures(facts, facts.shown, tested)] if facts.shown else []),
        paragraph(_tested_words(facts, tested)),
        side_by_side(
            *([_speedups(facts, facts.shown)] if facts.shown else []),
            *([_tested_table(facts, tested)] if KNOWN in tested.metrics else []),
            *([_abstention_table(tested)] if tested.abstention else []),
        ),
        _heed(facts),
    )


def _promise(facts: RunRecords, name: str) -> str:
    """How much smaller and faster, what it costs, on which data."""
    batch = facts.large if facts.selection.parameters["objective"] == "throughput" else 1
    smaller = _times(facts.quality(ROOT)["size/mb"] / facts.quality(name)["size/mb"], "smaller", "larger")
    faster = _times(facts.serving(name)[f"speedup/float_b{batch}"], "faster", "slower")
    where = f" on {facts.target}" if facts.target else ""
    on = "one image" if batch == 1 else f"batches of {batch} images"
    start = (
        f"{name} is {smaller} than dense, the fine-tuned network, {faster} on {on} (each on its fastest runtime{where})"
    )
    drop = facts.drop(name)
    if drop is None:
        share, count = (
            percent(facts.selection.details["agreement"][name]),
            number(facts.data.metrics["data/validation"]),
        )
        return (
            f"{start}, and answers like it on {share} of {count} validation images of {facts.source}; none has a label."
        )
    reference = facts.selection.details["reference"]
    against = "" if reference == ROOT else f" against {reference}, which is better than dense"
    lost = f"{_changed(drop['points'], 'costs', 'gains')} of top-1 accuracy{against}"
    interval = f"interval of the loss, {facts.level}, {span(drop['low'], drop['high'])} points"
    told = f"{start}, and {lost} ({interval}; {facts.choosing} of {facts.source})."
    bound, images = facts.otherwise(name), facts.data.metrics["data/validation"]
    if facts.selection.details["route"] == "labels":
        return told
    unlabelled = number(images - facts.dense.details["labels"]["choosing"])
    return (
        f"{told} Answers bound the loss to {signed(bound['high'])} points ({facts.level}): it answers like "
        f"{reference} on {percent(1 - bound['points'] / 100)} of {number(images)} validation images, {unlabelled} of "
        "them without a label."
    )


def _deployed(facts: RunRecords) -> str:
    """How many labels trained the file that is deployed, and whether it is a refit."""
    labels, why = facts.refit.details["labels"], facts.refit.details["why"]
    rest = ". Figures on validation are those of the file before the refit" if facts.is_refitted else ""
    return f"{number(labels['deployed'])} labels trained the file that is deployed; {why}{rest}."


def _changed(points: float, down: str, up: str) -> str:
    """costs 0.4 points; gains 0.2 points; nothing is gained that rounds to nothing."""
    return f"{up if points <= -HALF_A_DIGIT else down} {signed(abs(points))} points"


def _times(ratio: float, above: str, below: str) -> str:
    return f"{ratio:.1f} times {above}" if ratio >= 1 else f"{1 / ratio:.1f} times {below}"


def _abstention_table(tested: TestResult) -> Html:
    """What `winnow predict --abstain-below` gives at some thresholds, on both splits."""
    rows = []
    for threshold in SHOWN:
        cells: list[Content] = [f"{threshold:g}"]
        for split in ("validation", "test"):
            counts = tested.abstention[split]
            answered, right = at_threshold(counts, threshold)
            cells += [percent(answered / counts["images"] if counts["images"] else None)]
            cells += [percent(right / answered if answered else None)]
        rows.append(Row(cells))
    caption = "Share of images answered where no class below a probability is named, and share of those that are right"
    heading: list[Content] = ["--abstain-below"]
    for split in ("validation", "test"):
        heading += [two_lines("answered", split), two_lines("right", split)]
    return table(heading, rows, caption=caption)


def _figures(facts: RunRecords, name: str, tested: TestResult) -> Html:
    """Figures beside dense's, top-1 on the test split next to that on validation."""
    own, dense, speed, base = facts.quality(name), facts.quality(ROOT), facts.serving(name), facts.serving(ROOT)
    one, many = base.get("best/latency_ms"), base.get("best/throughput_ips")
    quality = ("top-1 on validation", percent(own.get("quality/top1")), percent(dense.get("quality/top1")))
    if "quality/top1" not in own:
        quality = ("agreement on validation", percent(facts.selection.details["agreement"][name]), percent(1.0))
    test = [percent(tested.metrics.get(f"test/{who}_top1")) for who in ("winner", ROOT)]
    tiles = (
        quality,
        *([("top-1 on test", *test)] if KNOWN in tested.metrics else []),
        ("file", digits(own["size/mb"], "MB"), digits(dense["size/mb"], "MB")),
        ("one image, median", digits(speed.get("best/latency_ms"), "ms"), digits(one, "ms")),
        (f"images/s, batch {facts.large}", number(speed.get("best/throughput_ips")), number(many)),
    )
    boxes = [
        tag("div", tag("span", label), strong(value), tag("small", f"dense: {beside}"), css="tile")
        for label, value, beside in tiles
    ]
    intro = [] if facts.winner else [paragraph("The nearest candidate, ", strong(name), ", beside dense:")]
    return join(*intro, tag("div", *boxes, css="tiles"))


def _speedups(facts: RunRecords, name: str) -> Html:
    """All three, for both batches."""
    speed, rows = facts.speed(name), []
    for kind, (base, _) in SPEEDUPS.items():
        rows.append(Row([base, *[_ratio_cell(speed, f"speedup/{kind}_b{batch}") for batch in (1, facts.large)]]))
    heading = ["speed-up against", "one image", f"batch of {facts.large}"]
    return table(
        heading, rows, caption=f"How many times as fast {name} is, on its fastest runtime; below: 95 % intervals"
    )


def _ratio_cell(speed: Mapping[str, float], key: str) -> Content:
    """The ratio, and below it the ends of its interval."""
    if f"{key}_low" not in speed:
        return f"{speed[key]:.1f} ×" if key in speed else MISSING
    return two_lines(f"{speed[key]:.1f} ×", f"{speed[f'{key}_low']:.1f} to {speed[f'{key}_high']:.1f}")


def _first_warnings(warnings: tuple[str, ...]) -> Html:
    """What the test split warns of, before any figure."""
    return tag("div", *[paragraph(f"{warning}.") for warning in warnings], css="heed")


def _tested_words(facts: RunRecords, tested: TestResult) -> str:
    """The only figures that nothing was chosen by."""
    metrics = tested.metrics
    if KNOWN not in metrics:
        return "There is no labelled test image: every figure on this page is of the validation split."
    groups = in_groups(metrics.get("test/groups"))
    text = f"On {number(metrics['test/images'])} test images{groups} of {facts.source}, by which nothing was chosen, "
    if not facts.winner:
        return f"{text}dense has {percent(metrics[KNOWN])} right; with nobody proposed, nobody else was looked at."
    points, low, high = (metrics[key] for key in drop_metrics_on_test(tested.baseline))
    changed = _changed(points, "loses", "gains")
    refitted = f", refitted on {number(facts.refit.details['labels']['deployed'])} labels," if facts.is_refitted else ""
    return (
        f"{text}{facts.winner}{refitted} {changed} against {tested.baseline} (95 % interval of the loss "
        f"{span(low, high)}), measured in {tested.measured_in}."
    )


def _tested_table(facts: RunRecords, tested: TestResult) -> Html:
    names = dict.fromkeys((ROOT, tested.baseline))
    rows = [_test_row(tested.metrics, name, name) for name in names]
    if facts.winner:
        name = facts.winner
        rows.append(_test_row(tested.metrics, "winner", f"{name}, refitted" if facts.is_refitted else name))
        if facts.is_refitted:
            rows.append(_test_row(tested.metrics, "selected", f"{name} before the refit"))
    caption = f"On the test split, version {tested.version}; the step counts and prints how often it was read"
    return table(
        ["test split", "top-1", "macro F1", two_lines("calibration error", "before temperature")], rows, caption=caption
    )


def _test_row(told: dict[str, float], who: str, name: str) -> Row:
    ends = f"{told[f'test/{who}_top1_low'] * 100:.1f} to {percent(told[f'test/{who}_top1_high'])}"
    rest = [percent(told[f"test/{who}_{part}"]) for part in ("macro_f1", "ece")]
    return Row([name, two_lines(percent(told[f"test/{who}_top1"]), ends), *rest])


def _heed(facts: RunRecords) -> Html:
    found = [join(strong(step), f": {warning}") for step, warning in facts.warnings()]
    if not found:
        return paragraph("No step had a warning.", css="note")
    return tag("div", tag("h3", "Before you rely on this"), bullets(found), css="heed")
