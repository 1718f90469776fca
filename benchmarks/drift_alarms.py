"""How often drift is called where there is none, and how often it is found where there is some.

A dense resnet8 on the sample (25 labels per class, no pretraining: what it can does not matter here). Its validation
images are halved at random in every draw: one half is the reference, images of the other half are the fresh ones, as
they are (false alarms) or changed (found). The settings are those of params.yaml; no label is read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.chain import Chain, configure, leave, markdown
from winnow.data.dataset import VALIDATION, load_images
from winnow.deploy.drift_tests import DriftFeatures, compute_features, run_drift_tests
from winnow.deploy.onnx_session import MODEL
from winnow.evaluation.intervals import wilson_interval
from winnow.random_streams import stream_seed

NAME = "drift_alarms"
DRAWS = 500
SIZES = (100, 300, 900)
Pixels = NDArray[np.uint8]


def darker(pixels: Pixels) -> Pixels:
    """Half as bright."""
    return (pixels * 0.5).astype(np.uint8)


def noisier(pixels: Pixels) -> Pixels:
    """Gaussian noise of 15 of 255."""
    noise = np.random.default_rng(0).normal(0, 15, pixels.shape)
    return (pixels + noise).clip(0, 255).astype(np.uint8)


def blurred(pixels: Pixels) -> Pixels:
    """Mean of 3x3 neighbours."""
    padded = np.pad(pixels.astype(np.float32), ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    side = pixels.shape[1]
    shifted = [padded[:, y : y + side, x : x + side] for y in range(3) for x in range(3)]
    return np.asarray(np.mean(shifted, axis=0), np.uint8)


CHANGES: dict[str, Callable[[Pixels], Pixels] | None] = {
    "none": None,
    "half as bright": darker,
    "noise": noisier,
    "blur": blurred,
}


def part(answers: DriftFeatures, chosen: NDArray[np.int64]) -> DriftFeatures:
    return DriftFeatures(answers.logits_NC[chosen], answers.embeddings_ND[chosen])


def main() -> None:
    changes = {"pretrain": {"method": "none", "backbone": "resnet8", "seed": 0}, "finetune.seeds": [0]}
    chain = Chain(NAME, configure(changes, {}))
    folder, images = chain.dense(), load_images(chain.data())
    pixels = np.ascontiguousarray(images.images_NHWC[images.indices(VALIDATION)])
    plain = compute_features(folder / MODEL, pixels)
    common = plain.logits_NC.argmax(1) == np.bincount(plain.logits_NC.argmax(1)).argmax()
    rows: list[dict[str, Any]] = []
    figures: list[dict[str, Any]] = []
    for what, change in [*CHANGES.items(), ("a third of one predicted class", None)]:
        changed = plain if change is None else compute_features(folder / MODEL, change(pixels))
        for size in SIZES:
            if "class" in what and size // 3 > 0.4 * common.sum():
                continue  # the other half would not hold so many of that class
            found = [
                _look(chain, plain, changed, common if "class" in what else None, size, seed) for seed in range(DRAWS)
            ]
            hits = sum(any(shift.is_real for shift in shifts) for shifts in found)
            low, high = wilson_interval(hits, DRAWS)
            by = {shift.test: sum(looked[at].is_real for looked in found) for at, shift in enumerate(found[0])}
            figures.append({"change": what, "images": size, "draws": DRAWS, "called": hits, "by": by})
            share = f"{hits / DRAWS * 100:.1f} % ({low * 100:.1f} to {high * 100:.1f})"
            rows.append({"change": what, "fresh images": size, "called": share, **by})
            print(rows[-1])
    settings = chain.config.drift.model_dump(mode="json")
    conditions = (
        f"{DRAWS} draws a row, resnet8 on the CIFAR-10 (JPEG) sample; reference: a random half of {len(pixels):,} "
        f"validation images, fresh: images of the other half. Draws share these images. {settings}"
    )
    leave(NAME, conditions, {"settings": settings, "rows": figures}, markdown(rows))


def _look(chain: Chain, plain: DriftFeatures, changed: DriftFeatures, common: Any, size: int, seed: int) -> Any:
    """One draw: the tests on a random reference and on fresh images, a third of them of one class where asked for."""
    rng = np.random.default_rng(stream_seed(seed, "halves"))
    order = rng.permutation(len(plain.logits_NC))
    reference, rest = order[: len(order) // 2], order[len(order) // 2 :]
    fresh = rest[:size]
    if common is not None:
        extra, others = rest[common[rest]], rest[~common[rest]]
        fresh = np.concatenate([extra[: size // 3], others[: size - size // 3]])
    return run_drift_tests(part(plain, reference), part(changed, fresh), chain.config.drift, seed)


if __name__ == "__main__":
    main()
