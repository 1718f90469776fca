"""Find labels that are probably wrong: contradicting near-duplicates, label errors by confident learning, outliers.

Northcutt, Jiang, Chuang: Confident Learning: Estimating Uncertainty in Dataset Labels (Journal of Artificial
Intelligence Research 70, 2021, arXiv 1911.00068). Probabilities come from a linear probe that was not trained on the
image. The threshold of a class is the mean probability of that class over the images that carry its label. An image is
confidently of the most probable class among those whose threshold it reaches; the confident joint counts images by
label and confident class. Images off its diagonal are label errors, unless the label is the most probable class.

Near-duplicates and outliers: winnow/labels/neighbours.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from winnow.data.dataset import ImageSet
from winnow.data.splits import merge_groups
from winnow.errors import DataError
from winnow.evaluation.unit_vectors import centred_unit_vectors
from winnow.labels.neighbours import contradicting_duplicates, outlier_scores
from winnow.labels.suggestion import INVERSE_REGULARISATION
from winnow.training.folds import judged_folds
from winnow.training.linear_probe import fit_probe

Reason = Literal["near-duplicate", "label error", "outlier"]
MANY_SUSPICIOUS = 0.2
"""Share of suspected label errors above which the features are doubted rather than the labels."""
UNRELIABLE = "so many suspected errors mean that the features do not separate the classes"


@dataclass(frozen=True)
class CheckedImages:
    """The images whose labels are checked."""

    features_LD: NDArray[np.float32]
    labels_L: NDArray[np.int64]
    groups_L: NDArray[np.int64]
    """Numbers that are equal for images that share a fold."""
    images_NHWC: NDArray[np.uint8]
    """Pixels of the data set."""
    indices_L: NDArray[np.int64]
    """Positions of the checked images in `images_NHWC`."""
    classes: int


def select_checked(images: ImageSet, indices_L: NDArray[np.int64], features_LD: NDArray[np.float32]) -> CheckedImages:
    """Return the images at these indices, with their features, as images to check."""
    labels_L, groups_L = images.labels_N[indices_L], images.groups_N[indices_L]
    return CheckedImages(features_LD, labels_L, groups_L, images.images_NHWC, indices_L, len(images.classes))


@dataclass(frozen=True)
class LabelFinding:
    """An image whose label is suspicious."""

    position: int
    """Position among the checked images."""
    suggested: int
    """The label that it should have; -1 where none is suggested."""
    reasons: tuple[Reason, ...]
    """The most severe one first."""
    score: float
    """Severity by the first reason, between 0 and 1. near-duplicate: cosine; label error: probability of the suggested
    class minus that of the label; outlier: 1 minus the fence divided by the distance."""
    twin: int = -1
    """Position of the near-duplicate; -1 without one."""


@dataclass(frozen=True)
class LabelCheck:
    """The suspicious images, the most severe first, and how far they can be trusted."""

    findings: tuple[LabelFinding, ...]
    agreement: float
    """Share of the judged labels that the probe predicts correctly without training on them."""
    not_judged: tuple[int, ...]
    """Classes whose labels confident learning cannot judge, since all their labels are in one fold."""

    checked: int
    """Number of checked labels."""

    @property
    def is_reliable(self) -> bool:
        """Return whether so few errors are suspected that they say more about the labels than about the features."""
        return self.count("label error") <= MANY_SUSPICIOUS * self.checked

    def count(self, reason: Reason) -> int:
        """Return the number of images with this reason."""
        return sum(reason in finding.reasons for finding in self.findings)


def check_labels(checked: CheckedImages, folds: int, seed: int = 0) -> LabelCheck:
    """Return the suspicious labels. Near-duplicates come first, as one of two labels must be wrong; outliers last.

    Raises DataError where there are too few labels for a cross-validation.
    """
    labels_L = checked.labels_L
    twin_L, cosine_L = contradicting_duplicates(checked.features_LD, labels_L, checked.images_NHWC, checked.indices_L)
    # A near-duplicate in another fold would teach the probe the label that is in doubt.
    groups_L = merge_groups(checked.groups_L, _twin_groups(twin_L))
    probabilities_LC = out_of_fold_probabilities(replace(checked, groups_L=groups_L), folds, seed)
    judged = np.flatnonzero(np.isfinite(probabilities_LC[:, 0]))
    confident_L = np.full(len(labels_L), -1, dtype=np.int64)
    _, confident_L[judged] = confident_joint(probabilities_LC[judged], labels_L[judged])
    rows, predicted_L = np.arange(len(labels_L)), np.nan_to_num(probabilities_LC).argmax(1)
    is_error_L = (confident_L >= 0) & (confident_L != labels_L) & (predicted_L != labels_L)
    margin_L = probabilities_LC[rows, confident_L] - probabilities_LC[rows, labels_L]
    outlier_L = outlier_scores(checked.features_LD)
    findings = []
    for row in np.flatnonzero((twin_L >= 0) | is_error_L | (outlier_L > 0)).tolist():
        scores: dict[Reason, float] = {}
        if twin_L[row] >= 0:
            scores["near-duplicate"] = float(cosine_L[row])
        if is_error_L[row]:
            scores["label error"] = float(margin_L[row])
        if outlier_L[row] > 0:
            scores["outlier"] = float(outlier_L[row])
        twin, suggested = int(twin_L[row]), -1
        if is_error_L[row]:
            suggested = int(confident_L[row])
        elif twin >= 0 and not probabilities_LC[row, labels_L[row]] > probabilities_LC[row, labels_L[twin]]:
            suggested = int(labels_L[twin])  # the more probable label of the two; either where the probe cannot say
        findings.append(LabelFinding(row, suggested, tuple(scores), next(iter(scores.values())), twin))
    agreement = float((predicted_L[judged] == labels_L[judged]).mean()) if len(judged) else float("nan")
    not_judged = np.setdiff1d(labels_L, labels_L[judged])
    return LabelCheck(tuple(sorted(findings, key=_severity)), agreement, tuple(not_judged.tolist()), len(labels_L))


def _twin_groups(twin_L: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return numbers (L,) that are equal for images connected as near-duplicates, also through others."""
    from scipy import sparse  # comes with scikit-learn
    from scipy.sparse.csgraph import connected_components

    first = np.flatnonzero(twin_L >= 0)
    edges = sparse.coo_matrix((np.ones(len(first)), (first, twin_L[first])), shape=(len(twin_L), len(twin_L)))
    return np.asarray(connected_components(edges, directed=False)[1], dtype=np.int64)


def _severity(finding: LabelFinding) -> tuple[int, float, int, int]:
    """Return the sort key of a finding: by first reason, then by score; a pair of near-duplicates stays together."""
    order: tuple[Reason, ...] = ("near-duplicate", "label error", "outlier")
    first = min(finding.position, finding.twin) if finding.twin >= 0 else finding.position
    return order.index(finding.reasons[0]), -finding.score, first, finding.position


def out_of_fold_probabilities(checked: CheckedImages, folds: int, seed: int) -> NDArray[np.float64]:
    """Return the probabilities (L, C) of a linear probe that was trained on the other folds.

    Images of one group, or duplicates, share a fold; classes are spread evenly. Rows of images whose class is missing
    from the other folds are NaN. Raises DataError for labels of fewer than two classes or groups.
    """
    labels_L, groups_L = checked.labels_L, checked.groups_L
    classes, groups = len(np.unique(labels_L)), len(np.unique(groups_L))
    if classes < 2 or groups < 2:
        raise DataError(
            f"{len(labels_L)} labels of {classes} classes in {groups} groups cannot be checked: a check needs two "
            "classes or more, and two groups or more (data.group_by); label more images"
        )
    most = int(np.bincount(labels_L).max())
    if most < 2:
        raise DataError(f"{len(labels_L)} labels cannot be checked, since no class has two of them; label more images")
    folds = min(folds, groups, most)
    vectors_LD = centred_unit_vectors(checked.features_LD)
    probabilities_LC = np.full((len(labels_L), checked.classes), np.nan)
    for train, judged in judged_folds(labels_L, groups_L, folds, seed):
        probe = fit_probe(vectors_LD[train], labels_L[train], INVERSE_REGULARISATION, standardise=False)
        probabilities_LC[judged] = 0
        probabilities_LC[np.ix_(judged, probe.classes_)] = probe.predict_proba(vectors_LD[judged])
    return probabilities_LC


def confident_joint(
    probabilities_LC: NDArray[np.float64], labels_L: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the confident joint (C, C), counts by label and confident class, and the confident class (L,) of each.

    The class is -1 for an image that reaches no threshold. A class without a label has no threshold.
    """
    if probabilities_LC.shape[0] != len(labels_L):
        raise ValueError(f"{probabilities_LC.shape[0]} rows of probabilities and {len(labels_L)} labels")
    classes = probabilities_LC.shape[1]
    counts_C = np.bincount(labels_L, minlength=classes)
    own_L = probabilities_LC[np.arange(len(labels_L)), labels_L]
    sums_C = np.bincount(labels_L, weights=own_L, minlength=classes)
    thresholds_C = np.where(counts_C > 0, sums_C / np.maximum(counts_C, 1), np.inf)
    reached_LC = np.where(probabilities_LC >= thresholds_C, probabilities_LC, -1.0)
    confident_L = np.where(reached_LC.max(1) >= 0, reached_LC.argmax(1), -1).astype(np.int64)
    joint_CC = np.zeros((classes, classes), dtype=np.int64)
    sure_L = confident_L >= 0
    np.add.at(joint_CC, (labels_L[sure_L], confident_L[sure_L]), 1)
    return joint_CC, confident_L
