"""The page on where the networks come from: the images, whose labels were used, and what pretraining bought."""

from __future__ import annotations

from statistics import fmean
from typing import Any

from winnow.config import ROOT
from winnow.config.data import Data
from winnow.reporting import plots
from winnow.reporting.html import (
    MISSING,
    Html,
    Row,
    figure,
    join,
    number,
    paragraph,
    percent,
    side_by_side,
    signed,
    strong,
    table,
)
from winnow.reporting.pretraining_advice import ENOUGH_PAIRS, pretraining_advice
from winnow.reporting.run_records import RunRecords
from winnow.reporting.thumbnails import SHOWN

KNN_SPAN = 8.0
"""Points that the axis of the kNN plot spans at least: its own noise would fill it otherwise."""
PURPOSES = {"train": "learning", "validation": "choosing", "test": "the last look"}
SHORT = {"scratch": "random weights", "pretrained": "pretrained", "weights": "own weights"}
SHOWN_REJECTED = 10
NOT_PRETRAINED = "Nothing was pretrained: dense starts from random weights."


def images(facts: RunRecords) -> Html:
    """Counts, splits, whose labels were used for what, and what was set aside."""
    told, details = facts.data.metrics, facts.data.details
    labels, classes, per_class = facts.dense.details["labels"], details["classes"], details["per_class"]
    grouped = details.get("groups_by_split")
    used = {"train": labels["training"], "validation": labels["choosing"], "test": told["data/test"]}
    rows = []
    for split, purpose in PURPOSES.items():
        counts = [per_class[name][split] for name in classes]
        cells = [number(told[f"data/{split}"]), number(sum(counts)), _span(counts), number(used[split])]
        if grouped:
            cells.insert(1, number(grouped[split]))
        rows.append(Row([split, purpose, *cells]))
    budget = details["labels_per_class"]
    hidden = (
        f" {budget} training labels per class may be used; the others are hidden from everything." if budget else ""
    )
    named = " but for the test set, which the source names" if details["test_set"] == "named by the source" else ""
    text = (
        f"{facts.source}: {number(told['data/images'])} images in {len(classes)} classes. The split of an image "
        f"follows from its own pixels{named}. Pretraining sees all training images and no label.{hidden}"
    )
    heading = ["split", "for", "images", *(["groups"] if grouped else []), "with a label", "per class", "labels used"]
    refitted = (
        f"The deployed file learned the {number(used['validation'])} labels of the validation split, too: it was "
        f"refitted on {number(facts.refit.details['labels']['deployed'])} labels after everything was chosen."
    )
    left_out = f"{number(told['data/left_out'])} training images equal a test image and are left out."
    return join(
        paragraph(text),
        table(heading, rows, caption="Images and labels by split", left=2),
        *([paragraph(refitted)] if facts.is_refitted else []),
        *([paragraph(left_out)] if told["data/left_out"] else []),
        *_near_duplicates(facts),
        _rejected(details["rejected"]),
    )


def _near_duplicates(facts: RunRecords) -> list[Html]:
    """The first pairs of a held-out image and the training image that it almost equals, to be looked at."""
    near = facts.data.details.get("near_duplicates", {})
    if not facts.near_duplicates:
        return []
    pairs = near["pairs"][:SHOWN]
    names = "; ".join(f"{at}. {one} and {other}" for at, (one, other) in enumerate(pairs, start=1))
    first = f", the {len(pairs)} most alike" if near["found"] > len(pairs) else ""
    caption = (
        f"{number(near['found'])} of {number(near['looked_at'])} held-out images almost equal a training image"
        f"{first}, row by row, the held-out one on the left: {names}"
    )
    alt = "Pairs of images that are almost equal, named below"
    return [figure(facts.near_duplicates, alt, caption, css="wide")]


def _span(counts: list[int]) -> str:
    low, high = min(counts), max(counts)
    return number(low) if low == high else f"{number(low)} to {number(high)}"


def _rejected(rejected: list[dict[str, str]]) -> Html:
    if not rejected:
        return paragraph("Every file could be used; none was set aside.", css="note")
    more = f", the first {SHOWN_REJECTED}" if len(rejected) > SHOWN_REJECTED else ""
    caption = f"Files set aside: {len(rejected)}{more}"
    rows = [Row([row["file"], row["reason"]]) for row in rejected[:SHOWN_REJECTED]]
    return table(["file", "why it cannot be used"], rows, caption=caption, left=2)


def pretraining(facts: RunRecords) -> Html:
    """Arms per label seed, the gain with its interval, the linear probe, and the curve of kNN."""
    arms: dict[str, Any] = facts.dense.details["arms"]
    names = {"scratch": "random weights", "pretrained": _pretrained(facts), "weights": _weights(facts)}
    by_arm = {names[arm]: sorted(arms[arm], key=lambda row: row["seed"]) for arm in names if arm in arms}
    probe = arms["linear_probe"]
    caption = (
        f"Top-1 on validation. All arms had the same {number(facts.dense.details['labels']['training'])} labels per "
        "seed, steps, augmentation and number of tried rates; the linear probe leaves the backbone as it was pretrained"
    )
    told = "One line per label seed; dashed: the linear probe."
    lines = {SHORT[arm]: [row["top1"] for row in by_arm[names[arm]]] for arm in names if arm in arms}
    pictures = [figure(plots.arms(lines, probe["top1"]), "Top-1 of each arm, as in the table above", told)]
    knn = [row for row in facts.pretrain.details["curves"] if "knn" in row]
    if knn:
        told = "kNN over the label budget, while the backbone learns without labels: a monitor that steers nothing."
        alt = f"kNN accuracy over {knn[-1]['epoch']:.0f} epochs, at the end {percent(knn[-1]['knn'])}"
        drawn = plots.curves(knn, "knn", "kNN accuracy on validation, %", 100, least_span=KNN_SPAN)
        pictures.append(figure(drawn, alt, told))
    advice = pretraining_advice(
        arms["gain"], facts.pretrain.parameters["method"], Data.model_validate(facts.data.parameters)
    )
    return join(
        paragraph(_gain(facts, arms["gain"])),
        *([paragraph(strong("What to try: "), f"{advice}.")] if advice else []),
        _arm_table(by_arm, probe, caption),
        *_crossed(facts),
        side_by_side(*pictures),
    )


def _crossed(facts: RunRecords) -> list[Html]:
    """What cross-validation says of dense, where labels were few."""
    found, told = facts.dense.details["cross_validation"], facts.quality(ROOT)
    if found is None:
        return []
    top1, low, high = (told[f"cross_validation/{key}"] * 100 for key in ("top1", "top1_low", "top1_high"))
    return [
        paragraph(
            f"Cross-validated, each of all {number(found['labels'])} labels answered by one of {found['folds']} "
            f"networks that had not seen it: top-1 {top1:.1f} % (95 % interval {low:.1f} to {high:.1f}), macro F1 "
            f"{percent(told['cross_validation/macro_f1'])}. Each network learned from about "
            f"{number(round(found['labels'] * (1 - 1 / found['folds'])))} labels, dense from "
            f"{number(facts.dense.details['labels']['training'])}; its "
            f"{number(facts.dense.details['labels']['choosing'])} validation labels alone say little."
        )
    ]


def _pretrained(facts: RunRecords) -> str:
    method = facts.pretrain.parameters["method"]
    return "no pretraining" if method == "none" else f"pretrained by {method}"


def _start(facts: RunRecords, arm: str) -> str:
    """The first words on the gain."""
    if arm == "weights":
        return f"Fine-tuning {_weights(facts)} instead of random ones"
    return f"Fine-tuning what {facts.pretrain.parameters['method']} pretrained instead of random weights"


def _weights(facts: RunRecords) -> str:
    return f"own weights ({str(facts.dense.parameters.get('weights', '')).rpartition('/')[2]})"


def _arm_table(by_arm: dict[str, list[dict[str, float]]], probe: dict[str, float], caption: str) -> Html:
    seeds = sorted({row["seed"] for trainings in by_arm.values() for row in trainings})
    rows = []
    for label, trainings in by_arm.items():
        top1 = {row["seed"]: row["top1"] for row in trainings}
        rates = ", ".join(f"{rate:g}" for rate in sorted({row["learning_rate"] for row in trainings}))
        rows.append(Row([label, percent(fmean(top1.values())), *[percent(top1.get(seed)) for seed in seeds], rates]))
    probed = [percent(probe["top1"] if seed == probe["seed"] else None) for seed in seeds]
    rows.append(Row(["linear probe", percent(probe["top1"]), *probed, MISSING]))
    heading = ["arm", "mean", *[f"seed {seed:g}" for seed in seeds], "learning rate"]
    return table(heading, rows, caption=caption)


def _gain(facts: RunRecords, gain: dict[str, Any] | None) -> str:
    """What was gained over scratch, and how far that is shown."""
    if gain is None:
        return NOT_PRETRAINED
    points, pairs = signed(gain["mean"], plus=True), gain["pairs"]
    start = f"{_start(facts, gain['arm'])}: {points} points of top-1"
    if pairs == 1:
        return f"{start}. That is a single label seed: a hint, without an interval."
    hint = f" Fewer than {ENOUGH_PAIRS} seeds: take it as a hint." if pairs < ENOUGH_PAIRS else ""
    ends = f"{signed(gain['low'], plus=True)} to {signed(gain['high'], plus=True)}"
    return f"{start} (95 % interval {ends}, {pairs} label seeds).{hint}"
