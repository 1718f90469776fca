"""Acceptance of a refitted file in place of the selected one: same graph, similar predictions, labels learned.

The metrics of the selected file hold for the refitted one only if both compute the same. So operations, shapes and
types must be equal, and sizes within SIZE_TOLERANCE.

Predictions are compared on images that both files used in the same way: validation images without a label, which
trained neither, or, if there are too few, training images, which trained both. (Labelled validation images trained only
the refitted file, so predictions differ there wherever it learned from them.) A failed training predicts like chance,
and Cohen's kappa is near 0; successful trainings on more labels differ as two trainings do (benchmarks/refit_gain.py
measures how much). This bounds no accuracy drop: it is the share of predictions that change, and a refit is meant to
change some.

On the labels themselves the comparison favours the refitted file, which learned all of them, while the selected one
learned a part. So passing proves nothing, but failing proves a failed training.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from winnow.data.dataset import TRAIN, VALIDATION, ImageSet, spread_indices
from winnow.deploy.batch_inference import predict_file
from winnow.deploy.onnx_export import load_onnx
from winnow.evaluation.intervals import paired_drop
from winnow.evaluation.metrics import cohens_kappa
from winnow.records.refit import RefitCheck

MIN_IMAGES, MAX_IMAGES = 100, 2000
"""Fewest unlabelled validation images that are enough; most training images that are compared instead."""
SIZE_TOLERANCE = 0.01


def check_refit(
    images: ImageSet, known: NDArray[np.int64], selected: Path, refitted: Path, min_kappa: float
) -> RefitCheck:
    """Compare two files in ONNX Runtime; `known`: indices of the images whose labels the refitted file learned."""
    indices_N, kind = comparison_images(images)
    selected_N, refitted_N = (
        predict_file(path, images.images_NHWC, indices_N).argmax(1) for path in (selected, refitted)
    )
    kappa, agreement = cohens_kappa(selected_N, refitted_N), float((selected_N == refitted_N).mean())
    labels = images.labels_N[known]
    selected_correct, refitted_correct = (
        predict_file(path, images.images_NHWC, known).argmax(1) == labels for path in (selected, refitted)
    )
    drop = paired_drop(selected_correct, refitted_correct, groups_N=images.groups_N[known])
    reasons = [graph_difference(selected, refitted)]
    if kappa < min_kappa:
        reasons.append(
            f"it agrees with the selected file on {agreement * 100:.1f} % of {len(indices_N):,} {kind}, a kappa of "
            f"{kappa:.2f}, less than refit.min_kappa {min_kappa:g}"
        )
    if drop.low > 0:
        reasons.append(
            f"on the {len(known):,} labels that it learned its accuracy is {drop.points:.1f} points lower than that of "
            f"the selected file (95 % interval {drop.low:.1f} to {drop.high:.1f}), which learned only some of them"
        )
    return RefitCheck(len(indices_N), kind, agreement, kappa, -drop.points, "; ".join(filter(None, reasons)))


def comparison_images(images: ImageSet) -> tuple[NDArray[np.int64], str]:
    """Return (indices of the images that are compared, their description); never test images."""
    unlabelled = images.indices(VALIDATION, labelled=False)
    if len(unlabelled) >= MIN_IMAGES:
        return unlabelled, "validation images without a label"
    train_indices = images.indices(TRAIN)
    return train_indices[spread_indices(len(train_indices), MAX_IMAGES)], "training images"


def graph_difference(selected: Path, refitted: Path) -> str:
    """Return the difference of two files besides their weights; empty if graph and size are the same."""
    for number, (selected_node, refitted_node) in enumerate(
        zip(_nodes(selected), _nodes(refitted), strict=False), start=1
    ):
        if selected_node != refitted_node:
            return (
                f"its graph differs from the measured one: operation {number} is {refitted_node}, was {selected_node}"
            )
    counts = [sum(1 for _ in _nodes(path)) for path in (selected, refitted)]
    if counts[0] != counts[1]:
        return f"its graph differs from the measured one: it has {counts[1]} operations, not {counts[0]}"
    sizes = [path.stat().st_size for path in (selected, refitted)]
    if abs(sizes[1] - sizes[0]) > SIZE_TOLERANCE * sizes[0]:
        return f"its size is {sizes[1]:,} bytes, that of the measured file {sizes[0]:,} bytes"
    return ""


def _nodes(path: Path) -> Iterator[str]:
    """Yield each node as text: operation, attributes, shapes and types of stored inputs; no names or values."""
    graph = load_onnx(path).graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        inputs = [_shape(stored[name]) if name in stored else "-" for name in node.input]
        attributes = sorted(f"{item.name}={_value(item)}" for item in node.attribute)
        yield f"{node.op_type}({', '.join(inputs)}) {' '.join(attributes)}".strip()


def _value(attribute: Any) -> str:
    """Return an attribute as text; of a stored tensor only its shape, since its content is a weight."""
    if attribute.HasField("t"):
        return _shape(attribute.t)
    import onnx

    return str(onnx.helper.get_attribute_value(attribute))


def _shape(tensor: Any) -> str:
    return f"{list(tensor.dims)}:{tensor.data_type}"
