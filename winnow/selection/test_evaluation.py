"""The one evaluation on the test split: dense, the baseline of the drop, and the winner as it is deployed.

The winner is measured as on validation: in the runtime, precision and batch that serve it
(winnow/benchmark/deployed_answers.py), against the stronger of dense and dense-kd, which `select` recorded. Where the
interval of top-1 on the test split does not overlap the one on validation, the difference is more than chance:
`disagreements` says so, and it is the first thing that a user is shown.

A winner that was refitted is measured as it is deployed, and beside it the selected file (test/selected_*): only that
one has a figure on validation to disagree with.

Names of metrics: test/dense_*, test/dense-kd_* (where that is the baseline), test/winner_*, and the drop with the
baseline in its name: test/drop_from_dense-kd_points, _low, _high.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from winnow.benchmark.deployed_answers import IN_ONNX_RUNTIME, DeployedAnswers, deployed_answers
from winnow.config import ROOT
from winnow.data.dataset import TEST, VALIDATION, ImageSet
from winnow.deploy.batch_inference import predict_file
from winnow.deploy.onnx_session import MODEL
from winnow.evaluation.abstention import abstention, overconfidence
from winnow.evaluation.intervals import paired_drop
from winnow.evaluation.metrics import agreement, drop_metrics_on_test, load_logits, quality
from winnow.records import read_record
from winnow.refit.deployed_folder import deployed_folder

WINNER, SELECTED = "winner", "selected"
TOP1 = ("quality/top1", "quality/top1_low", "quality/top1_high")


@dataclass(frozen=True)
class TestEvaluation:
    """Figures of the test split."""

    __test__ = False

    metrics: dict[str, float]
    details: dict[str, Any] = field(default_factory=dict)
    """Candidate -> per-class figures, confusion, calibration; empty without labelled test images."""
    baseline: str = ROOT
    """What drops are counted against: dense or dense-kd."""
    measured_in: str = IN_ONNX_RUNTIME
    """Where the winner answered."""
    fallback: str = ""
    """Why that is not the place that serves it; empty where it is."""
    disagreements: tuple[str, ...] = ()
    """Of dense and the winner: test and validation intervals of top-1 that do not overlap."""
    cautions: tuple[str, ...] = ()
    """Classes that are never recognised, and probabilities that promise too much, of what is deployed."""
    abstention: dict[str, Any] = field(default_factory=dict)
    """validation, test -> what thresholds on confidence give (winnow/evaluation/abstention.py), of what is deployed."""


def evaluate_test(artifacts: Path, selection: Mapping[str, Any], images: ImageSet) -> TestEvaluation:
    """Measure dense, the baseline and the winner on the labelled test images. `selection`: details of `select`.

    Without a winner only dense is measured. Raises ArtifactError for a file that cannot be opened.
    """
    indices_N = images.indices(TEST, labelled=True)
    if len(indices_N) == 0:
        return TestEvaluation({"test/images": 0.0})
    winner: str | None = selection["winner"]
    baseline = str(selection["reference"]) if winner else ROOT
    answers = {name: _as_a_file(artifacts, name, images) for name in dict.fromkeys((ROOT, baseline))}
    if winner:
        answers |= _winner(artifacts, winner, selection, images)
    logits = {who: each.test(indices_N) for who, each in answers.items()}
    labels_N, groups_N = images.labels_N[indices_N], images.groups_N[indices_N]
    metrics, details, disagreements = {"test/images": float(len(indices_N))}, {}, []
    if (groups := images.group_count(indices_N)) is not None:
        metrics["test/groups"] = float(groups)
    names = {WINNER: winner or "", SELECTED: f"{winner} before the refit"}
    judged = (ROOT, SELECTED if SELECTED in logits else WINNER)
    for who, logits_NC in logits.items():
        name = names.get(who, who)
        figures, details[name] = quality(logits_NC, labels_N, images.classes, groups_N)
        metrics |= {f"test/{who}_{key.removeprefix('quality/')}": value for key, value in figures.items()}
        if who in judged:
            disagreements += _disagreement(name, figures, answers[who].validation(), images)
    deployed_as = WINNER if winner else ROOT
    known_V = images.indices(VALIDATION, labelled=True)
    scored_V = images.labels_N[images.indices(VALIDATION)] >= 0
    chosen_VC = answers[deployed_as].validation()[scored_V]
    scale = read_record(artifacts / "candidates" / (winner or ROOT)).metrics["quality/temperature"]
    given = {
        "validation": abstention(chosen_VC, images.labels_N[known_V], scale),
        "test": abstention(logits[deployed_as], labels_N, scale),
    }
    cautions = [
        *_never_recognised(winner or ROOT, chosen_VC.argmax(1), logits[deployed_as].argmax(1), images),
        *overconfidence(winner or ROOT, logits[deployed_as], labels_N, scale, groups_N),
    ]
    about: dict[str, Any] = {"cautions": tuple(cautions), "abstention": given}
    if not winner:
        return TestEvaluation(metrics, details, disagreements=tuple(disagreements), **about)
    right = {who: np.asarray(logits_NC.argmax(1) == labels_N) for who, logits_NC in logits.items()}
    drop = paired_drop(right[baseline], right[WINNER], groups_N=groups_N)
    metrics |= dict(zip(drop_metrics_on_test(baseline), (drop.points, drop.low, drop.high), strict=True))
    metrics["test/winner_agreement_with_dense"] = agreement(logits[ROOT], logits[WINNER])
    deployed = answers[WINNER]
    return TestEvaluation(
        metrics, details, baseline, deployed.measured_in, deployed.fallback, tuple(reversed(disagreements)), **about
    )


def _never_recognised(
    name: str, validation_L: NDArray[np.int64], test_N: NDArray[np.int64], images: ImageSet
) -> list[str]:
    """Return a warning for each class of which not one image is recognised, on either split."""
    found = []
    for label, own in enumerate(images.classes):
        missed = []
        for split, word, answers in ((VALIDATION, "validation", validation_L), (TEST, "test", test_N)):
            is_it = images.labels_N[images.indices(split, labelled=True)] == label
            if is_it.any() and not (answers[is_it] == label).any():
                missed.append(f"{int(is_it.sum()):,} {word}")
        if missed:
            found.append(
                f"class {own!r} has a recall of 0 %: {name} recognises none of its {' and none of its '.join(missed)} "
                "images. Add images of it, or do not rely on answers where it may occur"
            )
    return found


def _winner(artifacts: Path, winner: str, selection: Mapping[str, Any], images: ImageSet) -> dict[str, DeployedAnswers]:
    """The file that is deployed and, where that is a refit, the selected one, which alone has a validation figure."""
    selected = deployed_answers(artifacts, winner, selection, images)
    folder = deployed_folder(artifacts, winner)
    if folder == artifacts / "candidates" / winner:
        return {WINNER: selected}
    return {WINNER: deployed_answers(artifacts, winner, selection, images, folder), SELECTED: selected}


def _as_a_file(artifacts: Path, name: str, images: ImageSet) -> DeployedAnswers:
    """Dense and dense-kd answer in ONNX Runtime, as on validation: they are compared with, and do not serve."""
    folder = artifacts / "candidates" / name
    return DeployedAnswers(
        IN_ONNX_RUNTIME,
        "",
        lambda indices_N: predict_file(folder / MODEL, images.images_NHWC, indices_N),
        lambda: load_logits(folder, images),
    )


def _disagreement(
    name: str, test: Mapping[str, float], validation_VC: NDArray[np.float32], images: ImageSet
) -> list[str]:
    """Return the warning that the two intervals of top-1 do not overlap, if they do not."""
    indices_V = images.indices(VALIDATION)
    scored_V = images.labels_N[indices_V] >= 0
    known_L = indices_V[scored_V]
    validation, _ = quality(validation_VC[scored_V], images.labels_N[known_L], images.classes, images.groups_N[known_L])
    if not validation:
        return []
    (value, low, high), (chosen, chosen_low, chosen_high) = (
        [figures[key] * 100 for key in TOP1] for figures in (test, validation)
    )
    if low <= chosen_high and chosen_low <= high:
        return []
    side = "below" if value < chosen else "above"
    return [
        f"{name} has {value:.1f} % top-1 on the test split (95 % interval {low:.1f} to {high:.1f}), {side} the "
        f"{chosen:.1f} % on validation ({chosen_low:.1f} to {chosen_high:.1f}): the intervals do not overlap. Expect "
        "the figure of the test split in production, and find out how the two splits differ"
    ]
