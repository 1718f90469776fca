"""Prune ResNet-56 on CIFAR-10 to 2.6 times fewer multiply-adds, the setting that papers on pruning report.

    python -m benchmarks.depgraph_resnet56 IMAGES [--epochs 20]

IMAGES holds train/ and test/ of class folders. Published (Fang et al. 2023, Torch-Pruning's reproduction): dense 93.5
%; pruned 93.6 % with 100 epochs of sparse learning and 100 of fine-tuning, 93.4 % without sparse learning; the best
epoch on the test set, one run. Here: a tenth of the training images is held out for validation, and everything is
selected on it; the last epoch counts; each file reads the test split once. Two cores allow few epochs (--epochs, and
half of them for each child, sparse learning included), so accuracies are lower. Compare only the points that pruning
loses against a parent trained for as many epochs.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.chain import (
    Chain,
    all_labels_overrides,
    configure,
    correct_on_test,
    format_drop,
    markdown_table,
    write_results,
)
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
MACS_REDUCTION = 2.6
PUBLISHED_EPOCHS = 400
"""200 of training, 100 of sparse learning, 100 of fine-tuning."""


def candidate_tree(epochs: int) -> dict[str, Any]:
    """Return candidates pruned with and without sparse learning, and the control; all train for as many epochs."""
    sparse_epochs = max(1, epochs // 4)
    recovery = {
        "epochs": 2 * sparse_epochs,
        "batch_size": 128,
        "optimiser": {"learning_rate": 0.05},
        "images": "all",
        "augmentation": {"crop_scale_min": 0.6},
    }
    prune = {"from": "dense", "method": "prune", "remove": {"macs": round(1 - 1 / MACS_REDUCTION, 4)}, "round_to": 1}
    prune |= {"max_channels": 0.9, "recovery": recovery}
    return {
        "pruned": prune,
        "sparse-first": prune
        | {
            "sparse_learning": {"epochs": sparse_epochs, "strength": 5.0e-4},
            "recovery": recovery | {"epochs": sparse_epochs},
        },
        "dense-kd": {"from": "dense", "method": "distill", "student": "same", "recovery": recovery},
    }


def seconds_per_epoch(chain: Chain, images: ImageSet) -> float:
    """Return the seconds of an epoch of dense, from the median step time measured under the timing lock.

    The duration of the training itself would include whatever else ran on the machine.
    """
    settings = chain.config.finetune
    model = build_model(load_architecture(chain.candidates / "dense"))
    optimiser = settings.optimiser(settings.learning_rates[0])
    with timing_lock():
        step_seconds = Microbenchmarks(images, chain.folder).seconds_per_step(
            model, classification_loss(settings, images.image_size), settings.batch_size, optimiser
        )
    return step_seconds * (len(images.indices(TRAIN)) // settings.batch_size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", type=Path)
    parser.add_argument("--epochs", type=int, default=20)
    args = parser.parse_args()
    candidates = candidate_tree(args.epochs)
    overrides = all_labels_overrides("resnet56", args.images)
    overrides |= {"finetune.epochs": args.epochs, "finetune.cross_validation": "never", "data.validation_fraction": 0.1}
    chain = Chain(NAME, configure(overrides, candidates))
    chain.compress()
    images = load_images(chain.ingest())
    epoch_seconds = seconds_per_epoch(chain, images)
    labels_V = images.labels_N[images.indices(VALIDATION)]
    correct = {
        name: {
            "validation": load_logits(chain.candidates / name, images).argmax(1) == labels_V,
            "test": correct_on_test(chain.candidates / name, images),
        }
        for name in ("dense", *candidates)
    }
    reference = stronger_baseline({name: by_split["validation"] for name, by_split in correct.items()})
    dense = read_record(chain.candidates / "dense").metrics
    rows = []
    for name, by_split in correct.items():
        metrics = read_record(chain.candidates / name).metrics
        row = {
            "": name,
            "MACs": f"1/{dense['compute/macs'] / metrics['compute/macs']:.2f}",
            "parameters": f"{metrics['size/parameters'] / dense['size/parameters']:.1%}",
        }
        for split in ("validation", "test"):
            drop = paired_drop(correct[reference][split], by_split[split])
            row[f"{split} top-1, %"] = f"{by_split[split].mean() * 100:.2f}"
            row[f"points below {reference}, {split}"] = format_drop(drop, 2)
        rows.append(row)
    conditions = (
        f"ResNet-56, CIFAR-10 (JPEG), {len(images.indices(TRAIN)):,} training images; dense: {args.epochs} epochs from "
        f"random weights; children: {2 * max(1, args.epochs // 4)} epochs each (sparse-first: half of them under the "
        f"sparsity penalty); one seed. An epoch takes {format_duration(epoch_seconds)} here: the published "
        f"{PUBLISHED_EPOCHS} epochs would take {format_duration(epoch_seconds * PUBLISHED_EPOCHS)}."
    )
    accuracy = {
        name: {split: float(np.mean(is_correct)) for split, is_correct in by_split.items()}
        for name, by_split in correct.items()
    }
    figures = {"accuracy": accuracy, "seconds_an_epoch": epoch_seconds}
    write_results(NAME, conditions, figures, markdown_table(rows))


if __name__ == "__main__":
    main()
