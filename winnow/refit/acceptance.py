"""Whether a refitted file may take the place of the selected one: same graph, same learning, much the same answers.

The figures of the selected file speak for the refitted one only while both compute the same, so its operations, shapes
and types must be the same, and its size within SIZE_TOLERANCE.

Answers are compared on images that taught both files alike: validation images without a label, which taught neither;
where there are too few, training images, which taught both (the labels of a validation image taught the refitted file
alone, so answers there differ wherever it learned from them). A training that failed answers like chance there, and
Cohen's kappa is near 0; honest trainings on more labels differ as two trainings do (benchmarks/refit_gain.py measures
how much). No drop can be bounded that way: it is the share of answers that change, and a refit is to change some.

On the labels themselves the comparison is biased towards the refitted file, which learned all of them where the
selected one learned a part. So it proves nothing when it is passed, and a failed training when it is not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from winnow.data.dataset import TRAIN, VALIDATION, ImageSet, spread
from winnow.deploy.batch_inference import predict_file
from winnow.deploy.onnx_export import load_onnx
from winnow.evaluation.intervals import paired_drop
from winnow.evaluation.metrics import cohens_kappa

LEAST_IMAGES, MOST_IMAGES = 100, 2000
"""Unlabelled validation images from which on they are taken; training images that are looked at, at most."""
SIZE_TOLERANCE = 0.01


@dataclass(frozen=True)
class Check:
    """What was compared, and what came of it."""

    images: int
    kind: str
    """Which images: validation images without a label, or training images."""
    agreement: float
    kappa: float
    gain_on_labels: float
    """Points of the learned labels that the refitted file has right more than the selected one; flatters it."""
    refusal: str
    """Why the refitted file is refused; empty where it is accepted."""


def check_refit(images: ImageSet, known: NDArray[np.int64], selected: Path, refitted: Path, min_kappa: float) -> Check:
    """Compare two files in ONNX Runtime; `known`: images whose labels the refitted one learned."""
    at, kind = guard_images(images)
    before_N, after_N = (predict_file(path, images.images_NHWC, at).argmax(1) for path in (selected, refitted))
    kappa, agreement = cohens_kappa(before_N, after_N), float((before_N == after_N).mean())
    labels = images.labels_N[known]
    was_right, is_right = (
        predict_file(path, images.images_NHWC, known).argmax(1) == labels for path in (selected, refitted)
    )
    drop = paired_drop(was_right, is_right, groups_N=images.groups_N[known])
    refusals = [other_graph(selected, refitted)]
    if kappa < min_kappa:
        refusals.append(
            f"it answers like the selected file on {agreement * 100:.1f} % of {len(at):,} {kind}, a kappa of "
            f"{kappa:.2f}, less than refit.min_kappa {min_kappa:g}"
        )
    if drop.low > 0:
        refusals.append(
            f"of the {len(known):,} labels that it learned it has {drop.points:.1f} points fewer right than the "
            f"selected file ({drop.low:.1f} to {drop.high:.1f}), which learned only some of them"
        )
    return Check(len(at), kind, agreement, kappa, -drop.points, "; ".join(filter(None, refusals)))


def guard_images(images: ImageSet) -> tuple[NDArray[np.int64], str]:
    """Return the images on which answers are compared, and what they are called; none is of the test split."""
    unseen = images.indices(VALIDATION, labelled=False)
    if len(unseen) >= LEAST_IMAGES:
        return unseen, "validation images without a label"
    learned = images.indices(TRAIN)
    return learned[spread(len(learned), MOST_IMAGES)], "training images"


def other_graph(selected: Path, refitted: Path) -> str:
    """Return in what the two files differ beside their weights; empty where they compute the same in the same size."""
    for number, (one, other) in enumerate(zip(_nodes(selected), _nodes(refitted), strict=False), start=1):
        if one != other:
            return f"its graph is not the one that was measured: operation {number} is {other}, was {one}"
    counts = [sum(1 for _ in _nodes(path)) for path in (selected, refitted)]
    if counts[0] != counts[1]:
        return f"its graph is not the one that was measured: it has {counts[1]} operations, not {counts[0]}"
    sizes = [path.stat().st_size for path in (selected, refitted)]
    if abs(sizes[1] - sizes[0]) > SIZE_TOLERANCE * sizes[0]:
        return f"it has {sizes[1]:,} bytes, and the file that was measured {sizes[0]:,}"
    return ""


def _nodes(path: Path) -> Iterator[str]:
    """Yield each node in words: operation, attributes, shapes and types of stored inputs; no names, no values."""
    graph = load_onnx(path).graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        inputs = [_shape(stored[name]) if name in stored else "-" for name in node.input]
        attributes = sorted(f"{item.name}={_value(item)}" for item in node.attribute)
        yield f"{node.op_type}({', '.join(inputs)}) {' '.join(attributes)}".strip()


def _value(attribute: Any) -> str:
    """Of a stored tensor the shape alone: its content is a weight."""
    if attribute.HasField("t"):
        return _shape(attribute.t)
    import onnx

    return str(onnx.helper.get_attribute_value(attribute))


def _shape(tensor: Any) -> str:
    return f"{list(tensor.dims)}:{tensor.data_type}"
