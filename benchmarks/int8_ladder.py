"""Where static int8 may fail: MobileNetV3-Small at half width, by each rung, beside its float parent trained as long.

    python -m benchmarks.int8_ladder [IMAGES]

Depthwise convolutions and hard-swish leave wide ranges in few channels; such networks are known to lose points in
post-training quantization (timm's mobilenetv3_small_050 falls from 57.9 to 42.2 % on ImageNet). The parent is taught
by dense, of full width. Arms: static (NNCF), static with other ranges, full bias correction, the worst layers back in
float until 0.3 points or less are lost, the ladder over all of these, and training under rounding. That trains on: so
the parent taught on by the same recovery stands beside it, and drops are counted against the better of the two. On a
processor without VNNI sums of two products saturate: there all int8 files keep weights in 7 bits, and one more, static
with 8, shows what that spares. IMAGES is a folder of class folders; the embedded sample without it. On validation and
test; three seeds of dense, each with its own tree.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.chain import SATURATES, Chain, all_labels, configure, leave, markdown, right_on_test, rungs_told, span
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
INT8: dict[str, Any] = {"from": PARENT, "method": "quantize", "overflow_safe": SATURATES}
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
if SATURATES:
    TREE["static-8-bits"] = INT8 | {"overflow_safe": False}


def lost(chain: Chain) -> dict[str, Any]:
    """Candidate -> points lost against the better of the float parent and its control, on validation and on test."""
    images = load_images(chain.data())
    labels_N = images.labels_N[images.indices(VALIDATION)]
    known = labels_N >= 0
    right = {
        name: (load_logits(chain.candidates / name, images).argmax(1) == labels_N)[known] for name in ("dense", *TREE)
    }
    best = max((PARENT, CONTROL), key=lambda name: right[name].mean())
    tested = {name: right_on_test(chain.candidates / name, images) for name in right}
    return {
        name: {
            "top1": float(right[name].mean()),
            "drop": paired_drop(right[best], right[name]),
            "test_drop": paired_drop(tested[best], tested[name]),
        }
        for name in right
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", type=Path, nargs="?", default=None, help="a folder of class folders")
    given = parser.parse_args().images
    found, rungs, config = [], [], None
    for seed in SEEDS:
        changes = all_labels("mobilenet_v3_small", given, seed) | {"data.image_size": 64, "finetune.epochs": 20}
        config = configure(changes | {"finetune.cross_validation": "never"}, TREE)
        chain = Chain(f"{NAME}/{seed}", config)
        chain.tree()
        found.append(lost(chain))
        details = CandidateRecord.read(chain.candidates / "ladder").details
        assert isinstance(details, QuantizeDetails)
        rungs.append(details.rungs)
    assert config is not None
    rows = []
    for name in ("dense", *TREE):
        tops = np.array([each[name]["top1"] for each in found]) * 100
        tested = [each[name]["test_drop"].points for each in found]
        rows.append(
            {
                "file": name,
                "top-1 %, mean of 3 seeds": f"{tops.mean():.1f}",
                "points lost": ", ".join(span(each[name]["drop"], 1) for each in found),
                "points lost on test: mean": f"{np.mean(tested):.1f} ({', '.join(f'{each:.1f}' for each in tested)})",
            }
        )
    climbed = "\n".join(f"- seed {seed}: {rungs_told(each)}" for seed, each in zip(SEEDS, rungs, strict=True))
    what = f"images of {given}" if given else "the embedded sample"
    conditions = (
        f"mobilenet_v3_small at 64 pixels, all labels of {what}, 20 epochs; half the width taught as long; training "
        f"under rounding, and {CONTROL}, its control, {RECOVERY['epochs']} epochs. Points of top-1 lost on validation "
        f"against the better of {PARENT} and {CONTROL}, paired, with 95 % intervals; the same on the test split, on "
        "which nothing was chosen: ladder chose its rung on validation."
        f"{' Weights in 7 bits, but for static-8-bits.' if SATURATES else ''}"
    )
    table = f"{markdown(rows)}\n\nWhat the ladder lost on its rungs, against its parent:\n\n{climbed}"
    leave(
        NAME,
        conditions,
        {
            "rows": rows,
            "rungs": [[rung.model_dump(mode="json") for rung in each] for each in rungs],
            "config": config.model_dump(mode="json", by_alias=True),
        },
        table,
    )


if __name__ == "__main__":
    main()
