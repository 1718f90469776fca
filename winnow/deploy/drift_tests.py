"""Test whether fresh images still resemble the reference images, by three two-sample tests on the model's outputs.

    embeddings   a linear classifier of fresh against reference is trained on half of the images and tested on the
                 other half (Lopez-Paz & Oquab 2017, arXiv 1610.06545); p by Mann-Whitney's U
    classes      frequencies of the predicted classes, chi-squared
    confidence   the largest class probability, Kolmogorov-Smirnov (Rabanser et al. 2019, arXiv 1810.11953)

A shift is real where its test is significant at alpha / 3 (Bonferroni: there are three tests) *and* its effect is large
enough: with many images the smallest difference is significant. The reference is held-out data, since a model is more
confident on its training images than on fresh ones without any shift.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from winnow.config.drift import Drift
from winnow.deploy.onnx_session import create_session, open_session
from winnow.errors import MissingExtra
from winnow.evaluation.metrics import softmax
from winnow.random_streams import stream_seed

TESTS = ("embeddings", "classes", "confidence")


@dataclass(frozen=True)
class DriftFeatures:
    """The outputs of a file for N images."""

    logits_NC: NDArray[np.float32]
    embeddings_ND: NDArray[np.float32]


@dataclass(frozen=True)
class DriftTestResult:
    """The result of one test: its p value, the effect size, and whether it is a real shift."""

    test: str
    p: float
    effect: float
    """embeddings: area under the ROC curve less a half, times two; classes: total variation distance (0 to 1);
    confidence: mean confidence of fresh less that of reference."""
    is_real: bool
    words: str


def compute_features(
    path: Path, images_NHWC: NDArray[np.uint8], batch_size: int = 256, indices: NDArray[np.int64] | None = None
) -> DriftFeatures:
    """Return the logits and embeddings of a deployed file (float or int8), in ONNX Runtime on the CPU, in batches.

    `indices` selects images, None all. Embeddings are the inputs of the last layer with weights, or the logits where
    there is none. Raises ArtifactError for a damaged file.
    """
    open_session(path)  # raises ArtifactError for a file that cannot be read
    try:
        import onnx
    except ImportError as error:
        raise MissingExtra("onnx", "compress") from error
    model = onnx.load(str(path))
    head_input = _head_input(model.graph)
    if head_input is not None:
        model.graph.output.append(onnx.helper.make_tensor_value_info(head_input, onnx.TensorProto.FLOAT, None))
    session = create_session(model.SerializeToString())
    name = session.get_inputs()[0].name
    selected = np.arange(len(images_NHWC)) if indices is None else indices
    batches = [
        session.run(None, {name: np.ascontiguousarray(images_NHWC[selected[start : start + batch_size]])})
        for start in range(0, len(selected), batch_size)
    ]
    logits_NC, embeddings = (np.concatenate([outputs[index] for outputs in batches]) for index in (0, -1))
    return DriftFeatures(logits_NC.astype(np.float32), embeddings.reshape(len(selected), -1).astype(np.float32))


def _head_input(graph: Any) -> str | None:
    """Return the name of the float tensor that enters the last MatMul, Gemm or Conv, before its quantization."""
    producers = {output: node for node in graph.node for output in node.output}
    weighted = [node for node in graph.node if node.op_type in ("Gemm", "MatMul", "Conv")]
    if not weighted:
        return None
    tensor: str = weighted[-1].input[0]
    while tensor in producers and producers[tensor].op_type in ("QuantizeLinear", "DequantizeLinear"):
        tensor = producers[tensor].input[0]
    return tensor


def run_drift_tests(
    reference: DriftFeatures, fresh: DriftFeatures, settings: Drift, seed: int = 0
) -> list[DriftTestResult]:
    """Run the three tests, in the order of TESTS. Raises MissingExtra without scikit-learn or scipy."""
    try:
        import scipy.stats  # noqa: F401
        import sklearn.linear_model  # noqa: F401
    except ImportError as error:
        raise MissingExtra("scikit-learn", "report") from error
    level = settings.alpha / len(TESTS)
    return [
        _test_embeddings(reference.embeddings_ND, fresh.embeddings_ND, settings, level, seed),
        _test_classes(reference.logits_NC, fresh.logits_NC, settings, level),
        _test_confidence(reference.logits_NC, fresh.logits_NC, settings, level),
    ]


def _test_embeddings(
    reference_ND: NDArray[np.float32], fresh_ND: NDArray[np.float32], settings: Drift, level: float, seed: int
) -> DriftTestResult:
    """Train a classifier on half of each side and test it on the other, so that the p value is valid for any fit."""
    from scipy.stats import mannwhitneyu
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rng = np.random.default_rng(stream_seed(seed, "drift"))
    halves = [np.array_split(rng.permutation(len(side_ND)), 2) for side_ND in (reference_ND, fresh_ND)]
    training = np.concatenate([reference_ND[halves[0][0]], fresh_ND[halves[1][0]]])
    is_fresh = np.repeat([0, 1], [len(halves[0][0]), len(halves[1][0])])
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, class_weight="balanced", max_iter=1000))
    classifier.fit(training, is_fresh)
    reference_scores, fresh_scores = (
        classifier.decision_function(side_ND[test_half])
        for side_ND, (_, test_half) in zip((reference_ND, fresh_ND), halves, strict=True)
    )
    result = mannwhitneyu(fresh_scores, reference_scores, alternative="greater")
    auc = float(result.statistic) / (len(fresh_scores) * len(reference_scores))
    effect = 2 * auc - 1
    is_real = bool(result.pvalue < level and effect >= settings.min_separation)
    words = f"a linear classifier separates fresh from known images with an AUC of {auc:.2f} (0.5: by chance)"
    return DriftTestResult("embeddings", float(result.pvalue), effect, is_real, words)


def _test_classes(
    reference_NC: NDArray[np.float32], fresh_NC: NDArray[np.float32], settings: Drift, level: float
) -> DriftTestResult:
    from scipy.stats import chi2_contingency

    count = reference_NC.shape[1]
    table_2C = np.stack([np.bincount(side_NC.argmax(1), minlength=count) for side_NC in (reference_NC, fresh_NC)])
    table_2C = table_2C[:, table_2C.sum(0) > 0]
    p = float(chi2_contingency(table_2C).pvalue) if table_2C.shape[1] > 1 else 1.0
    shares_2C = table_2C / table_2C.sum(1, keepdims=True)
    effect = float(np.abs(shares_2C[0] - shares_2C[1]).sum() / 2)
    words = f"{effect * 100:.0f} % of the predictions would have to change class to match the old frequencies"
    return DriftTestResult("classes", p, effect, bool(p < level and effect >= settings.min_class_shift), words)


def _test_confidence(
    reference_NC: NDArray[np.float32], fresh_NC: NDArray[np.float32], settings: Drift, level: float
) -> DriftTestResult:
    from scipy.stats import ks_2samp

    reference_N, fresh_N = (softmax(side_NC).max(1) for side_NC in (reference_NC, fresh_NC))
    p, effect = float(ks_2samp(reference_N, fresh_N).pvalue), float(fresh_N.mean() - reference_N.mean())
    is_real = bool(p < level and abs(effect) >= settings.min_confidence_shift)
    words = f"mean confidence {fresh_N.mean():.2f}, was {reference_N.mean():.2f}"
    return DriftTestResult("confidence", p, effect, is_real, words)


def select_images_to_label(fresh: DriftFeatures, count: int) -> NDArray[np.int64]:
    """Return the positions of the images to label first: the least confident ones, of each predicted class in turn."""
    probabilities_NC = softmax(fresh.logits_NC)
    predicted_N, confidence_N = probabilities_NC.argmax(1), probabilities_NC.max(1)
    order = np.argsort(confidence_N, kind="stable")
    rank_N = np.empty(len(order), np.int64)
    last_rank: dict[int, int] = {}
    for index in order:
        label = int(predicted_N[index])
        rank_N[index] = last_rank[label] = last_rank.get(label, -1) + 1
    return np.lexsort((confidence_N, rank_N))[:count].astype(np.int64)


@dataclass(frozen=True)
class Recommendation:
    """The recommended action, and the reason for it."""

    wants: Literal["nothing", "labels", "retrain"]
    why: str

    def __str__(self) -> str:
        return f"{self.wants}: {self.why}"


def recommend_action(shifts: list[DriftTestResult]) -> Recommendation:
    """Return the recommended action for the test results: nothing, a retrain, or labels."""
    real: Mapping[str, DriftTestResult] = {shift.test: shift for shift in shifts if shift.is_real}
    if not real:
        return Recommendation("nothing", "no shift is both significant and large enough to matter")
    if "confidence" in real and real["confidence"].effect < 0:
        return Recommendation(
            "labels", "the model is less confident on these images; label those listed, then run again"
        )
    if "embeddings" in real:
        return Recommendation(
            "retrain", "the images look different; add them without labels, pretraining learns from them"
        )
    return Recommendation("labels", "the predicted classes have changed; label those listed to check the predictions")
