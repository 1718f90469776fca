"""The line that papers on pruning compare on: ResNet-56 on CIFAR-10 at 2.6 times fewer multiply-adds.

    python -m benchmarks.depgraph_resnet56 IMAGES [--epochs 20]

IMAGES holds train/ and test/ of class folders. Published (Fang et al. 2023, Torch-Pruning's reproduction): dense 93.5
%, and at 2.6 times fewer 93.6 % with 100 epochs of sparse learning and 100 of fine-tuning, 93.4 % without the former;
the best epoch on the test set, one run. Ours: a tenth of the training images apart, on which everything is chosen;
last epoch; the test split read once for each file. With as many epochs as two cores allow (--epochs, and half of them
for each child, sparse learning included) the level is lower, and what can be compared is what pruning loses against a
parent trained on as long.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.chain import Chain, all_labels, configure, leave, markdown, right_on_test, span
from tasks.forecast.microbenchmarks import Microbenchmarks
from winnow.data.dataset import TRAIN, VALIDATION, ImageSet, load_images
from winnow.eta import format_duration
from winnow.evaluation.ablations import stronger_baseline
from winnow.evaluation.intervals import paired_drop
from winnow.evaluation.metrics import load_logits
from winnow.models.backbones import build_model, load_architecture
from winnow.records import read_record
from winnow.timing_lock import timing_lock
from winnow.training.finetuning import classification_loss

NAME = "depgraph_resnet56"
FEWER = 2.6
PUBLISHED_EPOCHS = 400
"""200 of training, 100 of sparse learning, 100 of fine-tuning."""


def tree(epochs: int) -> dict[str, Any]:
    """Pruned with and without sparse learning, and the control, all with as many epochs."""
    sparse = max(1, epochs // 4)
    recovery = {
        "epochs": 2 * sparse,
        "batch_size": 128,
        "optimiser": {"learning_rate": 0.05},
        "images": "all",
        "augmentation": {"crop_scale_min": 0.6},
    }
    prune = {"from": "dense", "method": "prune", "remove": {"macs": round(1 - 1 / FEWER, 4)}, "round_to": 1}
    prune |= {"max_channels": 0.9, "recovery": recovery}
    return {
        "pruned": prune,
        "sparse-first": prune
        | {"sparse_learning": {"epochs": sparse, "strength": 5.0e-4}, "recovery": recovery | {"epochs": sparse}},
        "dense-kd": {"from": "dense", "method": "distill", "student": "same", "recovery": recovery},
    }


def epoch_seconds(chain: Chain, images: ImageSet) -> float:
    """Of dense's training: the median of some steps on a quiet machine, whatever ran beside the training itself."""
    settings = chain.config.finetune
    model = build_model(load_architecture(chain.candidates / "dense"))
    rate = settings.optimiser(settings.learning_rates[0])
    with timing_lock():
        step = Microbenchmarks(images, chain.folder).seconds_per_step(
            model, classification_loss(settings, images.image_size), settings.batch_size, rate
        )
    return step * (len(images.indices(TRAIN)) // settings.batch_size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", type=Path)
    parser.add_argument("--epochs", type=int, default=20)
    given = parser.parse_args()
    names = tree(given.epochs)
    changes = {"finetune.epochs": given.epochs, "finetune.cross_validation": "never", "data.validation_fraction": 0.1}
    chain = Chain(NAME, configure(all_labels("resnet56", given.images) | changes, names))
    chain.data()
    chain.tree()
    images = load_images(chain.data())
    each = epoch_seconds(chain, images)
    validation = images.labels_N[images.indices(VALIDATION)]
    right = {
        name: {
            "validation": load_logits(chain.candidates / name, images).argmax(1) == validation,
            "test": right_on_test(chain.candidates / name, images),
        }
        for name in ("dense", *names)
    }
    better = stronger_baseline({name: hits["validation"] for name, hits in right.items()})
    dense = read_record(chain.candidates / "dense").metrics
    rows = []
    for name, hits in right.items():
        metrics = read_record(chain.candidates / name).metrics
        row = {
            "": name,
            "MACs": f"1/{dense['compute/macs'] / metrics['compute/macs']:.2f}",
            "parameters": f"{metrics['size/parameters'] / dense['size/parameters']:.1%}",
        }
        for split in ("validation", "test"):
            drop = paired_drop(right[better][split], hits[split])
            row[f"{split}, %"] = f"{hits[split].mean() * 100:.2f}"
            row[f"points below {better}, {split}"] = span(drop, 2)
        rows.append(row)
    conditions = (
        f"ResNet-56, CIFAR-10 (JPEG), {len(images.indices(TRAIN)):,} training images; {given.epochs} epochs from "
        f"random weights, then {2 * max(1, given.epochs // 4)} for each (of sparse-first one half under the penalty); "
        f"one seed. An epoch takes {format_duration(each)} here: the "
        f"published {PUBLISHED_EPOCHS} epochs would take {format_duration(each * PUBLISHED_EPOCHS)}."
    )
    figures = {
        "accuracy": {name: {split: float(np.mean(hit)) for split, hit in hits.items()} for name, hits in right.items()},
        "seconds_an_epoch": each,
    }
    leave(NAME, conditions, figures, markdown(rows))


if __name__ == "__main__":
    main()
