"""The section of the page on training: what pretraining and images without labels gained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from winnow.config import ROOT
from winnow.config.data import Data
from winnow.evaluation.intervals import paired_gain
from winnow.records.finetune import ArmTraining, LinearProbe, PretrainingGain
from winnow.reporting import plots
from winnow.reporting.html import (
    MISSING,
    Html,
    Row,
    figure,
    format_interval,
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

KNN_SPAN = 8.0
"""Points that the axis of the kNN plot spans at least; otherwise noise would fill it."""
SHORT = {"scratch": "random weights", "start": "known weights", "pretrained": "pretrained", "weights": "own weights"}
RANDOM_WEIGHTS = "random weights"
NOT_PRETRAINED = "There was no pretraining: dense started from random weights."


def render_pretraining(records: RunRecords) -> Html:
    """Return the arms per label seed, the gain with its interval, the linear probe, and the curve of kNN."""
    arms = records.fine_tuning.arms
    names = _arm_names(records)
    by_arm = {names[arm]: sorted(arms.trainings(arm), key=lambda row: row.seed) for arm in names if arms.trainings(arm)}
    probe = arms.linear_probe
    caption = (
        f"Top-1 on validation. All arms had the same {number(records.dense.details.labels.training)} labels per "
        "seed, steps, augmentation and number of learning rates; the linear probe does not train the backbone"
    )
    caption_text = "One line per label seed; dashed: the linear probe."
    lines = {SHORT[arm]: [row.top1 for row in by_arm[names[arm]]] for arm in names if names[arm] in by_arm}
    pictures = [figure(plots.plot_arms(lines, probe.top1), "Top-1 of each arm, as in the table above", caption_text)]
    knn = [row for row in records.pretrain.details.curves if "knn" in row]
    if knn:
        caption_text = "kNN over the label budget during pretraining, for monitoring only."
        alt = f"kNN accuracy over {knn[-1]['epoch']:.0f} epochs, at the end {percent(knn[-1]['knn'])}"
        plot = plots.plot_curve(knn, "knn", "kNN accuracy on validation, %", 100, least_span=KNN_SPAN)
        pictures.append(figure(plot, alt, caption_text))
    advice = pretraining_advice(
        arms.gain, records.pretrain.parameters["method"], Data.model_validate(records.data.parameters)
    )
    return join(
        paragraph(_describe_gain(records, arms.gain)),
        *([paragraph(strong("What to try: "), f"{advice}.")] if advice else []),
        _arm_table(by_arm, probe, caption),
        *_unlabelled(records),
        *_cross_validation(records),
        side_by_side(*pictures),
        *_embeddings(records),
    )


def _embeddings(records: RunRecords) -> list[Html]:
    """Return the map of validation images and the sheet of their neighbours."""
    pictures = []
    if records.embedding_map:
        caption = (
            f"Validation images by the similarity of their embeddings (t-SNE), those of {records.embedded_by}. Groups "
            "of one colour can be learned from few labels; distances between groups mean little."
        )
        pictures.append(figure(records.embedding_map, "A map of validation images, coloured by class", caption))
    if records.neighbours:
        caption = "Validation images on the left, and the training images with the most similar embeddings."
        pictures.append(figure(records.neighbours, "Rows of a validation image and its neighbours", caption))
    return [side_by_side(*pictures)] if pictures else []


UNLABELLED_METHODS = {
    "propagation": "pseudo-labels from similar images (label propagation)",
    "fixmatch": "pseudo-labels from its own confident predictions (FixMatch)",
}


def _unlabelled(records: RunRecords) -> list[Html]:
    """Return what training on images without labels gained, where there was such a training."""
    comparison = records.fine_tuning.unlabelled
    if comparison is None and records.dense.parameters.get("unlabelled", {}).get("method", "none") != "none":
        return [paragraph("Every training image has a label, so there was no training on images without labels.")]
    if comparison is None:
        return []
    rows = comparison.trainings
    outcome = (
        "dense is the network after this training"
        if comparison.kept
        else "it did not help, so dense is the network before"
    )
    precisions = [row.precision for row in rows if row.precision is not None]
    right = f", of which {percent(fmean(precisions))} were correct" if precisions else ""
    return [
        paragraph(
            "Each network was then trained further on all training images, with "
            f"{UNLABELLED_METHODS[comparison.method]}: "
            f"{percent(fmean(row.top1 for row in rows))} top-1, {_describe_interval(comparison.gain)}; {outcome}. Of "
            f"the labelled validation images {percent(fmean(row.coverage for row in rows))} got a pseudo-label{right}."
        )
    ]


def _describe_interval(gain: PretrainingGain) -> str:
    """Return the gain in points with its interval, or the note that a single seed has none."""
    points = f"{signed(gain.mean, plus=True)} points"
    if gain.pairs == 1:
        return f"{points} (a single label seed: a hint, without an interval)"
    interval = format_interval(gain.low, gain.high, plus=True)
    return f"{points} (95 % interval {interval}, {gain.pairs} label seeds)"


def _cross_validation(records: RunRecords) -> list[Html]:
    """Return dense's cross-validated accuracy, where labels were few."""
    summary, metrics = records.fine_tuning.cross_validation, records.quality(ROOT)
    if summary is None:
        return []
    top1, low, high = (metrics[f"cross_validation/{key}"] * 100 for key in ("top1", "top1_low", "top1_high"))
    return [
        paragraph(
            f"Cross-validated, each of all {number(summary.labels)} labels predicted by one of {summary.folds} "
            f"networks that were not trained on it: top-1 {top1:.1f} % (95 % interval {low:.1f} to {high:.1f}), macro "
            f"F1 {percent(metrics['cross_validation/macro_f1'])}. Each network was trained on about "
            f"{number(round(summary.labels * (1 - 1 / summary.folds)))} labels, dense from "
            f"{number(records.dense.details.labels.training)}; its "
            f"{number(records.dense.details.labels.choosing)} validation labels alone are too few."
        )
    ]


def _arm_names(records: RunRecords) -> dict[str, str]:
    """Return arm -> its name for users."""
    method, start = records.pretrain.parameters["method"], records.pretrain.details.start
    return {
        "scratch": RANDOM_WEIGHTS,
        "start": f"known weights ({start.name})" if start else "",
        "pretrained": "no pretraining" if method == "none" else f"pretrained by {method}",
        "weights": f"own weights ({str(records.dense.parameters.get('weights', '')).rpartition('/')[2]})",
    }


def _arm_table(by_arm: Mapping[str, Sequence[ArmTraining]], probe: LinearProbe, caption: str) -> Html:
    seeds = sorted({row.seed for trainings in by_arm.values() for row in trainings})
    scratch = {row.seed: row.top1 for row in by_arm.get(RANDOM_WEIGHTS, [])}
    rows = []
    for label, trainings in by_arm.items():
        top1 = {row.seed: row.top1 for row in trainings}
        rates = ", ".join(f"{rate:g}" for rate in sorted({row.learning_rate for row in trainings}))
        gain = MISSING if label == RANDOM_WEIGHTS else _gain_cell(top1, scratch)
        per_seed = [percent(top1.get(seed)) for seed in seeds]
        rows.append(Row([label, percent(fmean(top1.values())), gain, *per_seed, rates]))
    probed = [percent(probe.top1 if seed == probe.seed else None) for seed in seeds]
    rows.append(Row(["linear probe", percent(probe.top1), MISSING, *probed, MISSING]))
    heading = ["arm", "mean", "gain over random weights", *[f"seed {seed:g}" for seed in seeds], "learning rate"]
    return table(heading, rows, caption=caption)


def _gain_cell(top1: Mapping[int, float], scratch: Mapping[int, float]) -> str:
    """Return the mean gain in points over the shared seeds with its 95 % interval, which a single one does not have."""
    seeds = sorted(top1.keys() & scratch.keys())
    if not seeds:
        return MISSING
    mean, low, high = paired_gain([top1[seed] for seed in seeds], [scratch[seed] for seed in seeds])
    interval = f" ({format_interval(low, high, plus=True)})" if len(seeds) > 1 else ""
    return f"{signed(mean, plus=True)}{interval}"


def _describe_gain(records: RunRecords, gain: PretrainingGain | None) -> str:
    """Return the gain over scratch, and how well it is shown."""
    if gain is None:
        return NOT_PRETRAINED
    points, pairs = signed(gain.mean, plus=True), gain.pairs
    subject = f"Fine-tuning {_arm_names(records)[gain.arm]} instead of random ones"
    if gain.arm == "pretrained":
        subject = (
            f"Fine-tuning after pretraining by {records.pretrain.parameters['method']} instead of from random weights"
        )
    start = f"{subject}: {points} points of top-1"
    if pairs == 1:
        return f"{start}. This is a single label seed: a hint, without an interval."
    hint = f" These are fewer than {ENOUGH_PAIRS} seeds, so it is a hint." if pairs < ENOUGH_PAIRS else ""
    interval = format_interval(gain.low, gain.high, plus=True)
    return f"{start} (95 % interval {interval}, {pairs} label seeds).{hint}"
