"""Compare every int8 scheme on MobileNetV3-Small at half width with its float parent, trained for as long.

    python -m benchmarks.int8_ladder [IMAGES]

Depthwise convolutions and hard-swish give a few channels wide ranges; such networks lose accuracy in post-training
quantization (timm's mobilenetv3_small_050 falls from 57.9 to 42.2 % on ImageNet). The parent is distilled from dense of
full width. Arms: static (NNCF), static with other range estimators, full bias correction, the worst layers back in
float until at most 0.3 points are lost, the ladder over all of these, and quantization-aware training. The last one
trains further, so the parent distilled further with the same recovery is the control, and drops are counted against the
better of the two. Processors without VNNI saturate sums of two products: there all int8 files have 7-bit weights, and
one more arm, static with 8 bits, shows the difference. IMAGES is a folder of class folders (default: the embedded
sample). Accuracy on validation and test; three seeds of dense, each with its own tree.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.chain import (
    INT8_SATURATES,
    Chain,
    all_labels_overrides,
    configure,
    correct_on_test,
    format_drop,
    format_rungs,
    markdown_table,
    write_results,
)
from winnow.data.dataset import VALIDATION, load_images
from winnow.evaluation.intervals import paired_drop
from winnow.evaluation.metrics import load_logits
from winnow.records import CandidateRecord
from winnow.records.candidate import QuantizeDetails

NAME = "int8_ladder"
SEEDS = (0, 1, 2)
RECOVERY: dict[str, Any] = {
    "epochs": 5,
    "batch_size": 128,
    "optimiser": {"learning_rate": 0.01},
    "images": "all",
    "augmentation": {"crop_scale_min": 0.6},
}
TEACHING = {**RECOVERY, "epochs": 20, "optimiser": {"learning_rate": 0.1}}
PARENT, CONTROL = "half", "half-on"
INT8: dict[str, Any] = {"from": PARENT, "method": "quantize", "overflow_safe": INT8_SATURATES}
TREE: dict[str, Any] = {
    PARENT: {
        "from": "dense",
        "method": "distill",
        "student": "mobilenet_v3_small",
        "width": 0.5,
        "recovery": TEACHING,
    },
    "static": INT8,
    "minmax": INT8 | {"ranges": "minmax"},
    "histogram": INT8 | {"ranges": "histogram"},
    "percentile": INT8 | {"ranges": "percentile"},
    "full-bias": INT8 | {"bias_correction": "full"},
    "ladder": INT8 | {"scheme": "ladder", "max_drop_points": 0.3},
    "controlled": INT8 | {"scheme": "controlled", "max_drop_points": 0.3},
    "trained": INT8 | {"scheme": "qat", "recovery": RECOVERY},
    CONTROL: {"from": PARENT, "method": "distill", "student": "same", "recovery": RECOVERY},
    f"{CONTROL}-static": INT8 | {"from": CONTROL},
}
if INT8_SATURATES:
    TREE["static-8-bits"] = INT8 | {"overflow_safe": False}


def measure_accuracy(chain: Chain) -> dict[str, dict[str, Any]]:
    """Return candidate -> top1 (a fraction) and drop on validation, and test_drop.

    Drops are in points against the better on validation of the float parent and its control.
    """
    images = load_images(chain.ingest())
    labels_V = images.labels_N[images.indices(VALIDATION)]
    labelled_V = labels_V >= 0
    correct = {
        name: (load_logits(chain.candidates / name, images).argmax(1) == labels_V)[labelled_V]
        for name in ("dense", *TREE)
    }
    reference = max((PARENT, CONTROL), key=lambda name: correct[name].mean())
    correct_test = {name: correct_on_test(chain.candidates / name, images) for name in correct}
    return {
        name: {
            "top1": float(correct[name].mean()),
            "drop": paired_drop(correct[reference], correct[name]),
            "test_drop": paired_drop(correct_test[reference], correct_test[name]),
        }
        for name in correct
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", type=Path, nargs="?", default=None, help="a folder of class folders")
    folder = parser.parse_args().images
    accuracies, rungs, config = [], [], None
    for seed in SEEDS:
        overrides = all_labels_overrides("mobilenet_v3_small", folder, seed)
        overrides |= {"data.image_size": 64, "finetune.epochs": 20, "finetune.cross_validation": "never"}
        config = configure(overrides, TREE)
        chain = Chain(f"{NAME}/{seed}", config)
        chain.compress()
        accuracies.append(measure_accuracy(chain))
        details = CandidateRecord.read(chain.candidates / "ladder").details
        assert isinstance(details, QuantizeDetails)
        rungs.append(details.rungs)
    assert config is not None
    rows = [_table_row(name, [accuracy[name] for accuracy in accuracies]) for name in ("dense", *TREE)]
    rung_lines = [f"- seed {seed}: {format_rungs(of_seed)}" for seed, of_seed in zip(SEEDS, rungs, strict=True)]
    source = f"images of {folder}" if folder else "the embedded sample"
    conditions = (
        f"mobilenet_v3_small at 64 pixels, all labels of {source}, 20 epochs; half the width distilled for as many; "
        f"quantization-aware training, and its control {CONTROL}, {RECOVERY['epochs']} epochs. Points of top-1 lost "
        f"on validation against the better of {PARENT} and {CONTROL}, paired, with 95 % intervals; the same on the "
        "test split, which selected nothing: the ladder selected its rung on validation."
        f"{' Weights in 7 bits, except in static-8-bits.' if INT8_SATURATES else ''}"
    )
    figures = {
        "rows": rows,
        "rungs": [[rung.model_dump(mode="json") for rung in of_seed] for of_seed in rungs],
        "config": config.model_dump(mode="json", by_alias=True),
    }
    rung_title = "Points lost on each rung of the ladder, against its parent:"
    write_results(NAME, conditions, figures, "\n".join([markdown_table(rows), "", rung_title, "", *rung_lines]))


def _table_row(name: str, accuracies: list[dict[str, Any]]) -> dict[str, str]:
    """Return the row of one candidate. `accuracies`: one a seed."""
    top1 = np.array([accuracy["top1"] for accuracy in accuracies]) * 100
    lost_on_test = [accuracy["test_drop"].points for accuracy in accuracies]
    by_seed = ", ".join(f"{points:.1f}" for points in lost_on_test)
    return {
        "file": name,
        "top-1 %, mean of 3 seeds": f"{top1.mean():.1f}",
        "points lost": ", ".join(format_drop(accuracy["drop"], 1) for accuracy in accuracies),
        "points lost on test: mean": f"{np.mean(lost_on_test):.1f} ({by_seed})",
    }


if __name__ == "__main__":
    main()
