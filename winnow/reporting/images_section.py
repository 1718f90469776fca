"""The section of the page on the images: splits, used labels, near-duplicates, suspicious labels, files set aside."""

from __future__ import annotations

from collections.abc import Sequence

from winnow.labels.label_errors import UNRELIABLE
from winnow.records.ingest import RejectedFile
from winnow.reporting.html import (
    Html,
    Row,
    figure,
    join,
    number,
    paragraph,
    table,
)
from winnow.reporting.label_findings import REASONS, SHOWN_FINDINGS
from winnow.reporting.run_records import RunRecords
from winnow.reporting.thumbnails import SHOWN

PURPOSES = {"train": "training", "validation": "selection", "test": "final test"}
SHOWN_REJECTED = 10


def render_images(records: RunRecords) -> Html:
    """Return the counts, the splits, the use of the labels, and the files that were set aside."""
    metrics, details = records.data.metrics, records.data.details
    labels, classes, per_class = records.dense.details.labels, details.classes, details.per_class
    groups = details.groups_by_split
    labels_used = {"train": labels.training, "validation": labels.choosing, "test": metrics["data/test"]}
    rows = []
    for split, purpose in PURPOSES.items():
        counts = [per_class[name].of(split) for name in classes]
        cells = [number(metrics[f"data/{split}"]), number(sum(counts)), _span(counts), number(labels_used[split])]
        if groups:
            cells.insert(1, number(groups.of(split)))
        rows.append(Row([split, purpose, *cells]))
    budget = details.labels_per_class
    budget_note = f" {budget} training labels per class may be used; all steps ignore the others." if budget else ""
    exception = (
        ", except in the test set, which the source defines" if details.test_set == "named by the source" else ""
    )
    text = (
        f"{records.source}: {number(metrics['data/images'])} images in {len(classes)} classes. The split of an image "
        f"follows from its own pixels{exception}. Pretraining uses all training images and no label.{budget_note}"
    )
    heading = ["split", "for", "images", *(["groups"] if groups else []), "with a label", "per class", "labels used"]
    refit_note = (
        f"The deployed file was also trained on the {number(labels_used['validation'])} validation labels: it was "
        f"refitted on {number(records.refit.details.labels.deployed)} labels after the selection."
    )
    left_out_note = f"{number(metrics['data/left_out'])} training images equal a test image and are left out."
    return join(
        paragraph(text),
        table(heading, rows, caption="Images and labels by split", left=2),
        *([paragraph(refit_note)] if records.is_refitted else []),
        *([paragraph(left_out_note)] if metrics["data/left_out"] else []),
        *_near_duplicates(records),
        *_suspicious_labels(records),
        _rejected(details.rejected),
    )


def _near_duplicates(records: RunRecords) -> list[Html]:
    """Show the first pairs of a held-out image and the training image that it almost equals."""
    near = records.data.details.near_duplicates
    if not records.near_duplicates:
        return []
    pairs = near.pairs[:SHOWN]
    names = "; ".join(
        f"{index}. {held_out} and {training}" for index, (held_out, training) in enumerate(pairs, start=1)
    )
    note = f", the {len(pairs)} most similar" if near.found > len(pairs) else ""
    caption = (
        f"{number(near.found)} of {number(near.looked_at)} held-out images almost equal a training image"
        f"{note}, one pair per row, the held-out one on the left: {names}"
    )
    alt = "Pairs of images that are almost equal, named below"
    return [figure(records.near_duplicates, alt, caption, css="wide")]


def _suspicious_labels(records: RunRecords) -> list[Html]:
    """Return the result of the check of the labels, and the images whose labels are most suspicious."""
    check = records.label_check
    if check is None:
        return []
    labels = f"Of {number(check.checked)} labels of training and validation"
    if is_part := check.checked < records.visible_labels:
        labels += f", a random part of {number(records.visible_labels)}"
    judge = f"by the features of {records.embedded_by}"
    unjudged = [records.data.details.classes[label] for label in check.not_judged]
    note = f" Too few labels or groups to judge: {', '.join(unjudged)}." if unjudged else ""
    if not check.is_reliable:
        errors = number(check.count("label error"))
        return [paragraph(f"{labels} {errors} differ from a prediction {judge}: {UNRELIABLE}.{note}")]
    counts = [f"{number(count)} {predicate}" for reason, predicate in REASONS.items() if (count := check.count(reason))]
    if not counts:
        return [paragraph(f"{labels} none is suspicious {judge}.{note}")]
    rest = "; winnow label check checks all" if is_part else ""
    text = (
        f"{labels}, judged {judge}, {'; '.join(counts)}. label_check.csv in the folder of the report lists them"
        f"{rest}.{note}"
    )
    shown = min(len(check.findings), SHOWN_FINDINGS)
    title = "The most suspicious label" if shown == 1 else f"The {shown} most suspicious labels"
    caption = f"{title}: the label, and after an arrow the suggested one. Correct only labels that you see to be wrong"
    return [paragraph(text), figure(records.suspicious, "Images with suspicious labels", caption, css="wide")]


def _span(counts: list[int]) -> str:
    low, high = min(counts), max(counts)
    return number(low) if low == high else f"{number(low)} to {number(high)}"


def _rejected(rejected: Sequence[RejectedFile]) -> Html:
    if not rejected:
        return paragraph("Every file could be used; none was set aside.", css="note")
    more = f", the first {SHOWN_REJECTED}" if len(rejected) > SHOWN_REJECTED else ""
    caption = f"Files set aside: {len(rejected)}{more}"
    rows = [Row([row.file, row.reason]) for row in rejected[:SHOWN_REJECTED]]
    return table(["file", "why it cannot be used"], rows, caption=caption, left=2)
