"""Evaluate dense, the baseline of the drop, and the winner as it is deployed, once on the test split.

The winner is measured as on validation: in the runtime, precision and batch that serve it
(winnow/benchmark/deployed_logits.py), against the stronger of dense and dense-kd, which `select` recorded. Where the
intervals of top-1 on the test split and on validation do not overlap, the difference is more than chance:
`disagreements` holds a warning, which is shown first.

A refitted winner is measured as it is deployed, and beside it the selected file (test/selected_*): only that one has a
figure on validation to compare with.

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

from winnow.benchmark.deployed_logits import IN_ONNX_RUNTIME, DeployedPredictions, deployed_predictions
from winnow.config import ROOT
from winnow.data.dataset import TEST, VALIDATION, ImageSet
from winnow.deploy.batch_inference import predict_file
from winnow.deploy.onnx_session import MODEL
from winnow.evaluation.abstention import abstention_counts, overconfidence_warnings
from winnow.evaluation.intervals import paired_drop
from winnow.evaluation.metrics import agreement, drop_metrics_on_test, load_logits, quality_metrics
from winnow.records import CandidateRecord, SelectionDetails
from winnow.records.candidate_file import ClassDetails
from winnow.records.report import Abstention
from winnow.refit.deployed_folder import deployed_folder

WINNER, SELECTED = "winner", "selected"
TOP1 = ("quality/top1", "quality/top1_low", "quality/top1_high")


@dataclass(frozen=True)
class TestEvaluation:
    """The results on the test split."""

    __test__ = False

    metrics: dict[str, float]
    details: dict[str, ClassDetails] = field(default_factory=dict)
    """Candidate -> per-class figures, confusion, calibration; empty without labelled test images."""
    baseline: str = ROOT
    """The reference of the drop: dense or dense-kd."""
    measured_in: str = IN_ONNX_RUNTIME
    """The runtime and precision in which the winner was evaluated."""
    fallback: str = ""
    """Why the winner was not evaluated as it will be served; empty where it was."""
    disagreements: tuple[str, ...] = ()
    """Warnings that test and validation intervals of top-1 do not overlap, for dense and the winner."""
    cautions: tuple[str, ...] = ()
    """Warnings on the deployed file: classes that are never recognised, and overconfident probabilities."""
    abstention: Abstention = field(default_factory=Abstention)
    """Counts at thresholds on the deployed file's confidence (winnow/evaluation/abstention.py)."""


def evaluate_test(artifacts: Path, selection: SelectionDetails, images: ImageSet) -> TestEvaluation:
    """Evaluate dense, the baseline and the winner on the labelled test images. `selection`: details of `select`.

    Without a winner only dense is evaluated. Raises ArtifactError for a file that cannot be opened.
    """
    indices_N = images.indices(TEST, labelled=True)
    if len(indices_N) == 0:
        return TestEvaluation({"test/images": 0.0})
    winner = selection.winner
    baseline = selection.reference if winner else ROOT
    answers = {name: _file_answers(artifacts, name, images) for name in dict.fromkeys((ROOT, baseline))}
    if winner:
        answers |= _winner_answers(artifacts, winner, selection, images)
    logits = {key: deployed_candidate.test(indices_N) for key, deployed_candidate in answers.items()}
    labels_N, groups_N = images.labels_N[indices_N], images.groups_N[indices_N]
    metrics, disagreements = {"test/images": float(len(indices_N))}, list[str]()
    details: dict[str, ClassDetails] = {}
    if (groups := images.group_count(indices_N)) is not None:
        metrics["test/groups"] = float(groups)
    names = {WINNER: winner or "", SELECTED: f"{winner} before the refit"}
    compared = (ROOT, SELECTED if SELECTED in logits else WINNER)
    for role, logits_NC in logits.items():
        name = names.get(role, role)
        candidate_metrics, details[name] = quality_metrics(logits_NC, labels_N, images.classes, groups_N)
        metrics |= {f"test/{role}_{key.removeprefix('quality/')}": value for key, value in candidate_metrics.items()}
        if role in compared:
            disagreements += _disagreement(name, candidate_metrics, answers[role].validation(), images)
    deployed_as = WINNER if winner else ROOT
    labelled_V = images.indices(VALIDATION, labelled=True)
    scored_V = images.labels_N[images.indices(VALIDATION)] >= 0
    validation_VC = answers[deployed_as].validation()[scored_V]
    scale = CandidateRecord.read(artifacts / "candidates" / (winner or ROOT)).metrics["quality/temperature"]
    abstention = Abstention(
        validation=abstention_counts(validation_VC, images.labels_N[labelled_V], scale),
        test=abstention_counts(logits[deployed_as], labels_N, scale),
    )
    cautions = [
        *_never_recognised(winner or ROOT, validation_VC.argmax(1), logits[deployed_as].argmax(1), images),
        *overconfidence_warnings(winner or ROOT, logits[deployed_as], labels_N, scale, groups_N),
    ]
    shared: dict[str, Any] = {"cautions": tuple(cautions), "abstention": abstention}
    if not winner:
        return TestEvaluation(metrics, details, disagreements=tuple(disagreements), **shared)
    correct = {role: np.asarray(logits_NC.argmax(1) == labels_N) for role, logits_NC in logits.items()}
    drop = paired_drop(correct[baseline], correct[WINNER], groups_N=groups_N)
    metrics |= dict(zip(drop_metrics_on_test(baseline), (drop.points, drop.low, drop.high), strict=True))
    metrics["test/winner_agreement_with_dense"] = agreement(logits[ROOT], logits[WINNER])
    winner_answers = answers[WINNER]
    return TestEvaluation(
        metrics,
        details,
        baseline,
        winner_answers.measured_in,
        winner_answers.fallback,
        tuple(reversed(disagreements)),
        **shared,
    )


def _never_recognised(
    name: str, validation_L: NDArray[np.int64], test_N: NDArray[np.int64], images: ImageSet
) -> list[str]:
    """Return a warning for each class of which no image is recognised on a split."""
    warnings = []
    for label, class_name in enumerate(images.classes):
        unrecognised = []
        for split, split_name, answers in ((VALIDATION, "validation", validation_L), (TEST, "test", test_N)):
            is_class = images.labels_N[images.indices(split, labelled=True)] == label
            if is_class.any() and not (answers[is_class] == label).any():
                unrecognised.append(f"{int(is_class.sum()):,} {split_name}")
        if unrecognised:
            warnings.append(
                f"class {class_name!r} has a recall of 0 %: {name} recognises none of its "
                f"{' and none of its '.join(unrecognised)} images. Add images of it, or do not rely "
                "on predictions where it may occur"
            )
    return warnings


def _winner_answers(
    artifacts: Path, winner: str, selection: SelectionDetails, images: ImageSet
) -> dict[str, DeployedPredictions]:
    """Return the predictions of the deployed file and, if that is a refit, those of the selected file."""
    selected = deployed_predictions(artifacts, winner, selection, images)
    folder = deployed_folder(artifacts, winner)
    if folder == artifacts / "candidates" / winner:
        return {WINNER: selected}
    return {WINNER: deployed_predictions(artifacts, winner, selection, images, folder), SELECTED: selected}


def _file_answers(artifacts: Path, name: str, images: ImageSet) -> DeployedPredictions:
    """Return the predictions of dense or dense-kd in ONNX Runtime, as on validation: these references do not serve."""
    folder = artifacts / "candidates" / name
    return DeployedPredictions(
        IN_ONNX_RUNTIME,
        "",
        lambda indices_N: predict_file(folder / MODEL, images.images_NHWC, indices_N),
        lambda: load_logits(folder, images),
    )


def _disagreement(
    name: str, test: Mapping[str, float], validation_VC: NDArray[np.float32], images: ImageSet
) -> list[str]:
    """Return a warning where the two intervals of top-1 do not overlap."""
    indices_V = images.indices(VALIDATION)
    scored_V = images.labels_N[indices_V] >= 0
    known_L = indices_V[scored_V]
    validation, _ = quality_metrics(
        validation_VC[scored_V], images.labels_N[known_L], images.classes, images.groups_N[known_L]
    )
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
