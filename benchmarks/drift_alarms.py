"""Measure the false alarm rate and the detection rate of the drift tests.

A dense resnet8 on the sample (25 labels per class, no pretraining; its accuracy does not matter here). Each draw splits
its validation images at random into halves: one half is the reference, images of the other half are the fresh ones,
unchanged (false alarms) or changed (detections). The settings are those of params.yaml; no label is read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.chain import Chain, configure, markdown_table, write_results
from winnow.data.dataset import VALIDATION, load_images
from winnow.deploy.drift_tests import DriftFeatures, DriftTestResult, compute_features, run_drift_tests
from winnow.deploy.onnx_session import MODEL
from winnow.evaluation.intervals import wilson_interval
from winnow.random_streams import stream_seed

NAME = "drift_alarms"
DRAWS = 500
SIZES = (100, 300, 900)
Pixels = NDArray[np.uint8]


def darken(pixels_NHWC: Pixels) -> Pixels:
    """Return the images at half their brightness."""
    return (pixels_NHWC * 0.5).astype(np.uint8)


def add_noise(pixels_NHWC: Pixels) -> Pixels:
    """Return the images with Gaussian noise of standard deviation 15 (of 255)."""
    noise = np.random.default_rng(0).normal(0, 15, pixels_NHWC.shape)
    return (pixels_NHWC + noise).clip(0, 255).astype(np.uint8)


def blur(pixels_NHWC: Pixels) -> Pixels:
    """Return the images with each pixel replaced by the mean of its 3x3 neighbours."""
    padded = np.pad(pixels_NHWC.astype(np.float32), ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    side = pixels_NHWC.shape[1]
    shifted = [padded[:, y : y + side, x : x + side] for y in range(3) for x in range(3)]
    return np.asarray(np.mean(shifted, axis=0), np.uint8)


CHANGES: dict[str, Callable[[Pixels], Pixels] | None] = {
    "none": None,
    "half as bright": darken,
    "noise": add_noise,
    "blur": blur,
}


def select_features(features: DriftFeatures, indices: NDArray[np.int64]) -> DriftFeatures:
    return DriftFeatures(features.logits_NC[indices], features.embeddings_ND[indices])


def main() -> None:
    overrides = {"pretrain": {"method": "none", "backbone": "resnet8", "seed": 0}, "finetune.seeds": [0]}
    chain = Chain(NAME, configure(overrides, {}))
    folder, images = chain.finetune(), load_images(chain.ingest())
    pixels_NHWC = np.ascontiguousarray(images.images_NHWC[images.indices(VALIDATION)])
    unchanged = compute_features(folder / MODEL, pixels_NHWC)
    classes_N = unchanged.logits_NC.argmax(1)
    is_common_N = classes_N == np.bincount(classes_N).argmax()
    rows: list[dict[str, Any]] = []
    figures: list[dict[str, Any]] = []
    for name, change in [*CHANGES.items(), ("a third of one predicted class", None)]:
        changed = unchanged if change is None else compute_features(folder / MODEL, change(pixels_NHWC))
        enriched_N = is_common_N if "class" in name else None
        for size in SIZES:
            if enriched_N is not None and size // 3 > 0.4 * is_common_N.sum():
                continue  # the fresh half would not contain enough images of that class
            draws = [_run_draw(chain, unchanged, changed, enriched_N, size, seed) for seed in range(DRAWS)]
            alarms = sum(any(result.is_real for result in results) for results in draws)
            low, high = wilson_interval(alarms, DRAWS)
            by_test = {test.test: sum(draw[i].is_real for draw in draws) for i, test in enumerate(draws[0])}
            figures.append({"change": name, "images": size, "draws": DRAWS, "called": alarms, "by": by_test})
            share = f"{alarms / DRAWS * 100:.1f} % ({low * 100:.1f} to {high * 100:.1f})"
            rows.append({"change": name, "fresh images": size, "drift reported": share, **by_test})
            print(rows[-1])
    settings = chain.config.drift.model_dump(mode="json")
    conditions = (
        f"{DRAWS} draws a row, resnet8 on the CIFAR-10 (JPEG) sample; reference: a random half of {len(pixels_NHWC):,} "
        "validation images, fresh: images of the other half. All draws use the same images. Drift reported: share of "
        f"draws with 95 % interval; then the number of draws in which each test reported it. {settings}"
    )
    write_results(NAME, conditions, {"settings": settings, "rows": figures}, markdown_table(rows))


def _run_draw(
    chain: Chain,
    unchanged: DriftFeatures,
    changed: DriftFeatures,
    enriched_N: NDArray[np.bool_] | None,
    size: int,
    seed: int,
) -> list[DriftTestResult]:
    """Return the test results of one draw: a random reference half against `size` images of the other half.

    `enriched_N`: the images of which a third of the fresh ones is drawn; None: all fresh images are drawn at random.
    """
    rng = np.random.default_rng(stream_seed(seed, "halves"))
    order = rng.permutation(len(unchanged.logits_NC))
    reference, rest = order[: len(order) // 2], order[len(order) // 2 :]
    fresh = rest[:size]
    if enriched_N is not None:
        enriched, others = rest[enriched_N[rest]], rest[~enriched_N[rest]]
        fresh = np.concatenate([enriched[: size // 3], others[: size - size // 3]])
    reference_features, fresh_features = select_features(unchanged, reference), select_features(changed, fresh)
    return run_drift_tests(reference_features, fresh_features, chain.config.drift, seed)


if __name__ == "__main__":
    main()
