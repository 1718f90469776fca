"""Whether fresh images still look like those that the model was trained for: three two-sample tests on its own answers.

    embeddings   a linear classifier that tells fresh from reference is learned on half of the images and tested on the
                 other half (Lopez-Paz & Oquab 2017, arXiv 1610.06545); p by Mann-Whitney's U
    classes      frequencies of the predicted classes, chi-squared
    confidence   the largest class probability, Kolmogorov-Smirnov (Rabanser et al. 2019, arXiv 1810.11953)

Shift is called real where a test is significant (its level is alpha / 3: three are made) *and* its effect is as large
as asked for: with many images the smallest difference is significant, and nobody should be called for it. The
reference is held-out data: on images that it learned, a model is surer than on fresh ones that shifted by nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from winnow.config.drift import Drift
from winnow.deploy.onnx_session import open_session, session_of
from winnow.errors import MissingExtra
from winnow.evaluation.metrics import softmax
from winnow.random_streams import stream_seed

TESTS = ("embeddings", "classes", "confidence")


@dataclass(frozen=True)
class DriftFeatures:
    """What a file says of N images."""

    logits_NC: NDArray[np.float32]
    embeddings_ND: NDArray[np.float32]


@dataclass(frozen=True)
class Shift:
    """One test: its p value, how large the effect is, and whether that is a real shift."""

    test: str
    p: float
    effect: float
    """embeddings: area under the ROC curve less a half, times two; classes: total variation distance (0 to 1);
    confidence: mean confidence of fresh less that of reference."""
    is_real: bool
    words: str


def answer(
    path: Path, images_NHWC: NDArray[np.uint8], batch_size: int = 256, indices: NDArray[np.int64] | None = None
) -> DriftFeatures:
    """Logits and embeddings of a deployed file (float or int8), in ONNX Runtime on the CPU, batch by batch.

    `indices`: of the images that are asked about; None: all.

    Embeddings are what enters the last layer of weights; of a file without one, the logits. Raises ArtifactError for a
    damaged file.
    """
    open_session(path)  # says what is wrong with a file that cannot be read
    try:
        import onnx
    except ImportError as error:
        raise MissingExtra("onnx", "compress") from error
    model = onnx.load(str(path))
    inner = _before_head(model.graph)
    if inner is not None:
        model.graph.output.append(onnx.helper.make_tensor_value_info(inner, onnx.TensorProto.FLOAT, None))
    session = session_of(model.SerializeToString())
    name = session.get_inputs()[0].name
    chosen = np.arange(len(images_NHWC)) if indices is None else indices
    parts = [
        session.run(None, {name: np.ascontiguousarray(images_NHWC[chosen[start : start + batch_size]])})
        for start in range(0, len(chosen), batch_size)
    ]
    logits_NC, embeddings = (np.concatenate([part[at] for part in parts]) for at in (0, -1))
    return DriftFeatures(logits_NC.astype(np.float32), embeddings.reshape(len(chosen), -1).astype(np.float32))


def _before_head(graph: Any) -> str | None:
    """Name of the float tensor that enters the last MatMul, Gemm or Conv, before it is quantized."""
    made_by = {output: node for node in graph.node for output in node.output}
    heads = [node for node in graph.node if node.op_type in ("Gemm", "MatMul", "Conv")]
    if not heads:
        return None
    tensor: str = heads[-1].input[0]
    while tensor in made_by and made_by[tensor].op_type in ("QuantizeLinear", "DequantizeLinear"):
        tensor = made_by[tensor].input[0]
    return tensor


def compare(reference: DriftFeatures, fresh: DriftFeatures, settings: Drift, seed: int = 0) -> list[Shift]:
    """The three tests, in the order of TESTS. Raises MissingExtra without scikit-learn or scipy."""
    try:
        import scipy.stats  # noqa: F401
        import sklearn.linear_model  # noqa: F401
    except ImportError as error:
        raise MissingExtra("scikit-learn", "report") from error
    level = settings.alpha / len(TESTS)
    return [
        _embeddings(reference.embeddings_ND, fresh.embeddings_ND, settings, level, seed),
        _classes(reference.logits_NC, fresh.logits_NC, settings, level),
        _confidence(reference.logits_NC, fresh.logits_NC, settings, level),
    ]


def _embeddings(
    reference_ND: NDArray[np.float32], fresh_ND: NDArray[np.float32], settings: Drift, level: float, seed: int
) -> Shift:
    """Half of each side teaches, the other half tests: so the p value is exact, whatever was learned."""
    from scipy.stats import mannwhitneyu
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rng = np.random.default_rng(stream_seed(seed, "drift"))
    halves = [np.array_split(rng.permutation(len(side)), 2) for side in (reference_ND, fresh_ND)]
    teach = np.concatenate([reference_ND[halves[0][0]], fresh_ND[halves[1][0]]])
    is_fresh = np.repeat([0, 1], [len(halves[0][0]), len(halves[1][0])])
    learned = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, class_weight="balanced", max_iter=1000))
    learned.fit(teach, is_fresh)
    then, now = (
        learned.decision_function(side_ND[tested])
        for side_ND, (_, tested) in zip((reference_ND, fresh_ND), halves, strict=True)
    )
    found = mannwhitneyu(now, then, alternative="greater")
    area = float(found.statistic) / (len(now) * len(then))
    effect = 2 * area - 1
    real = bool(found.pvalue < level and effect >= settings.min_separation)
    words = f"a linear classifier tells fresh from known images with an AUC of {area:.2f} (0.5: it cannot)"
    return Shift("embeddings", float(found.pvalue), effect, real, words)


def _classes(reference_NC: NDArray[np.float32], fresh_NC: NDArray[np.float32], settings: Drift, level: float) -> Shift:
    from scipy.stats import chi2_contingency

    count = reference_NC.shape[1]
    table_2C = np.stack([np.bincount(side.argmax(1), minlength=count) for side in (reference_NC, fresh_NC)])
    table_2C = table_2C[:, table_2C.sum(0) > 0]
    p = float(chi2_contingency(table_2C).pvalue) if table_2C.shape[1] > 1 else 1.0
    shares_2C = table_2C / table_2C.sum(1, keepdims=True)
    effect = float(np.abs(shares_2C[0] - shares_2C[1]).sum() / 2)
    words = f"{effect * 100:.0f} % of the predictions would have to change class for the old frequencies"
    return Shift("classes", p, effect, bool(p < level and effect >= settings.min_class_shift), words)


def _confidence(
    reference_NC: NDArray[np.float32], fresh_NC: NDArray[np.float32], settings: Drift, level: float
) -> Shift:
    from scipy.stats import ks_2samp

    then, now = (softmax(side).max(1) for side in (reference_NC, fresh_NC))
    p, effect = float(ks_2samp(then, now).pvalue), float(now.mean() - then.mean())
    real = bool(p < level and abs(effect) >= settings.min_confidence_shift)
    return Shift("confidence", p, effect, real, f"mean confidence {now.mean():.2f}, was {then.mean():.2f}")


def to_label(fresh: DriftFeatures, count: int) -> NDArray[np.int64]:
    """Positions of the images whose labels would teach most: the least sure ones, of every predicted class in turn."""
    chances_NC = softmax(fresh.logits_NC)
    predicted_N, sure_N = chances_NC.argmax(1), chances_NC.max(1)
    order = np.argsort(sure_N, kind="stable")
    rank = np.empty(len(order), np.int64)
    seen: dict[int, int] = {}
    for at in order:
        label = int(predicted_N[at])
        rank[at] = seen[label] = seen.get(label, -1) + 1
    return np.lexsort((sure_N, rank))[:count].astype(np.int64)


@dataclass(frozen=True)
class Advice:
    """What to do."""

    wants: Literal["nothing", "labels", "retrain"]
    why: str

    def __str__(self) -> str:
        return f"{self.wants}: {self.why}"


def advice(shifts: list[Shift]) -> Advice:
    """What to do: nothing, a retrain, or labels."""
    real: Mapping[str, Shift] = {shift.test: shift for shift in shifts if shift.is_real}
    if not real:
        return Advice("nothing", "no shift is both significant and large enough to matter")
    if "confidence" in real and real["confidence"].effect < 0:
        return Advice("labels", "the model is less sure of these images; label those listed, then run again")
    if "embeddings" in real:
        why = "the images look different; add them without labels, pretraining learns from them"
        return Advice("retrain", why)
    return Advice("labels", "other classes are predicted than before; label those listed to see whether they are right")
