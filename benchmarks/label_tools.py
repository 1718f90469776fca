"""Measure what `winnow label suggest` and `winnow label check` are worth, on the sample with the teacher's embeddings.

    python -m benchmarks.label_tools [--images FOLDER] [--seeds 0 1 2 3 4]

Suggestion: from no label, each method asks for 10, 40 and 100 labels in total, one after the other; all true labels of
the training split are known to the benchmark alone. Accuracy is that of logistic regression on the teacher's embeddings
of the labelled images, on the validation split. `margin` needs labels, so typiclust chooses its first 10.

Check: 5 % of the labels are changed, each to a class drawn at random, or to the class of the most similar image of
another class, which is harder. Found are changed labels that the check lists with the reason `label error`. Precision
is the share of changed ones among those listed; of the first: among as many of the list as were changed.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.chain import Chain, configure, markdown_table, write_results
from winnow.config import Config
from winnow.data.dataset import TRAIN, VALIDATION, ImageSet, load_images
from winnow.data.splits import known_label_indices
from winnow.deploy.teacher_embeddings import load_embeddings
from winnow.evaluation.intervals import paired_gain
from winnow.evaluation.unit_vectors import centred_unit_vectors
from winnow.labels.label_errors import CheckedImages, check_labels
from winnow.labels.suggestion import INVERSE_REGULARISATION, METHODS, LabelPool, suggest_images
from winnow.training.label_propagation import unit_components
from winnow.training.linear_probe import fit_probe

NAME = "label_tools"
TEACHER = "package:efficientnet-lite0"
TOTALS = (10, 40, 100)
FIRST_METHOD = "typiclust"
PLANTED = 0.05
FOLDS = 5


def configure_labels(images: Path | None, labels_per_class: int | str) -> Config:
    """Return the settings of the images and of the teacher; nothing is trained."""
    overrides: dict[str, Any] = {"teacher.weights": TEACHER, "data.labels_per_class": labels_per_class}
    if images is not None:
        overrides |= {"data.source": "folder", "data.path": str(images.resolve())}
    return configure(overrides, {})


def suggestion_accuracy(images: ImageSet, rows_ND: NDArray[np.float16], method: str, seed: int) -> dict[int, float]:
    """Return total number of labels -> accuracy of the probe on the validation split."""
    train, held_out = images.indices(TRAIN, labelled=True), images.indices(VALIDATION, labelled=True)
    features_MD = np.asarray(rows_ND[np.concatenate([train, held_out])], dtype=np.float32)
    vectors_MD = centred_unit_vectors(features_MD)
    pool_ND, known_N = unit_components(features_MD[: len(train)]), np.full(len(train), -1, dtype=np.int64)
    accuracy = {}
    for total in TOTALS:
        asked = total - int((known_N >= 0).sum())
        is_first = method == "margin" and total == TOTALS[0]
        pool = LabelPool(pool_ND, known_N.copy())
        chosen = suggest_images(pool, asked, FIRST_METHOD if is_first else method, seed)
        known_N[chosen] = images.labels_N[train[chosen]]
        rows = np.flatnonzero(known_N >= 0)
        if len(np.unique(known_N[rows])) < 2:
            accuracy[total] = float((images.labels_N[held_out] == known_N[rows[0]]).mean())
            continue
        probe = fit_probe(vectors_MD[rows], known_N[rows], INVERSE_REGULARISATION, standardise=False)
        accuracy[total] = float((probe.predict(vectors_MD[len(train) :]) == images.labels_N[held_out]).mean())
    return accuracy


def suggestion_rows(figures: dict[str, list[dict[int, float]]]) -> list[dict[str, str]]:
    """Return one row for each method: mean accuracy and gain over random labels at each total."""
    rows = []
    for method, seeds in figures.items():
        row = {"method": method}
        for total in TOTALS:
            top1 = [seed[total] for seed in seeds]
            mean, low, high = paired_gain(top1, [seed[total] for seed in figures["random"]])
            gain = "" if method == "random" else f" ({mean:+.1f}; {low:+.1f} to {high:+.1f})"
            row[f"{total} labels"] = f"{fmean(top1) * 100:.1f}{gain}"
        rows.append(row)
    return rows


def plant_errors(
    images: ImageSet, features_LD: NDArray[np.float32], indices_L: NDArray[np.int64], kind: str, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return labels (L,) of which 5 % are changed, and which are, bool (L,). `kind`: random, or similar."""
    rng = np.random.default_rng(seed)
    labels_L, classes = images.labels_N[indices_L].copy(), len(images.classes)
    is_changed_L = np.zeros(len(labels_L), dtype=np.bool_)
    is_changed_L[rng.choice(len(labels_L), round(PLANTED * len(labels_L)), replace=False)] = True
    truth_L = images.labels_N[indices_L]
    if kind == "random":
        labels_L[is_changed_L] = (truth_L[is_changed_L] + rng.integers(1, classes, is_changed_L.sum())) % classes
        return labels_L, is_changed_L
    vectors_LD = centred_unit_vectors(features_LD)
    for row in np.flatnonzero(is_changed_L):
        cosines_L = np.where(truth_L == truth_L[row], -2.0, vectors_LD @ vectors_LD[row])
        labels_L[row] = truth_L[int(cosines_L.argmax())]
    return labels_L, is_changed_L


def check_quality(
    images: ImageSet, rows_ND: NDArray[np.float16], indices_L: NDArray[np.int64], kind: str, seed: int
) -> dict[str, float]:
    """Return recall and precision of a check of these images' labels, of which 5 % are wrong."""
    features_LD = np.asarray(rows_ND[indices_L], dtype=np.float32)
    labels_L, is_changed_L = plant_errors(images, features_LD, indices_L, kind, seed)
    checked = CheckedImages(
        features_LD, labels_L, images.groups_N[indices_L], images.images_NHWC, indices_L, len(images.classes)
    )
    findings = [row for row in check_labels(checked, FOLDS, seed).findings if "label error" in row.reasons]
    listed = np.array([row.position for row in sorted(findings, key=lambda row: -row.score)], dtype=np.int64)
    planted = int(is_changed_L.sum())
    return {
        "labels": float(len(labels_L)),
        "planted": float(planted),
        "listed": float(len(listed)),
        "recall": float(is_changed_L[listed].sum() / planted),
        "precision": float(is_changed_L[listed].mean()) if len(listed) else float("nan"),
        "precision of the first": float(is_changed_L[listed[:planted]].mean()) if len(listed) else float("nan"),
    }


def check_rows(figures: dict[str, list[dict[str, float]]]) -> list[dict[str, str]]:
    """Return one row for each kind of error and set of labels: means, and the range over seeds."""
    rows = []
    for name, seeds in figures.items():
        row = {"labels": name}
        for key in ("labels", "planted", "listed"):
            row[f"number of {key}"] = f"{fmean(seed[key] for seed in seeds):,.0f}"
        for key in ("recall", "precision", "precision of the first"):
            values = [seed[key] * 100 for seed in seeds]
            row[f"{key}, %"] = f"{fmean(values):.0f} ({min(values):.0f} to {max(values):.0f})"
        rows.append(row)
    return rows


def main() -> None:
    """Measure both, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    args = parser.parse_args()
    all_labels = configure_labels(args.images, "all")
    name = NAME if args.images is None else f"{NAME}_{args.images.name}"
    chain = Chain(name, all_labels)
    images, rows_ND = load_images(chain.ingest()), load_embeddings(chain.embed())
    suggested = {
        method: [suggestion_accuracy(images, rows_ND, method, seed) for seed in args.seeds] for method in METHODS
    }
    budgets = {"all labels": all_labels, "25 per class and validation": configure_labels(args.images, 25)}
    checked = {
        f"{labels}; {kind} class": [
            check_quality(
                images,
                rows_ND,
                known_label_indices(images, config.data.label_budget, config.finetune.seeds[0]),
                kind,
                seed,
            )
            for seed in args.seeds
        ]
        for labels, config in budgets.items()
        for kind in ("random", "similar")
    }
    source = "the embedded sample" if args.images is None else f"the images in {args.images.name}"
    conditions = (
        f"CIFAR-10 (JPEG), {source}, embeddings of {TEACHER}; seeds {', '.join(map(str, args.seeds))}. Suggestion: "
        "top-1 % of a linear probe on the validation split; in brackets the gain over random labels in points with its "
        "95 % interval over seeds. Check: 5 % of the labels changed; mean and range over seeds."
    )
    table = f"{markdown_table(suggestion_rows(suggested))}\n\n{markdown_table(check_rows(checked))}"
    write_results(name, conditions, {"suggested": suggested, "checked": checked}, table)


if __name__ == "__main__":
    main()
