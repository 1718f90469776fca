"""Measure the gain from random crops of images that are stored larger than the network's input, on photographs.

    python -m benchmarks.training_size FOLDER [--image-size 32]   # FOLDER/CLASS/*.jpg, larger than twice that

Trains the dense network from random weights, with all labels, the shipped fine-tuning and one learning rate; the arms
differ only in data.training_size. A seed draws initial weights, order and crops, the same in all arms. Three fifths of
the images are held out (validation and test, which select nothing here), so that the interval resolves half a point. An
interrupted run resumes.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.chain import Chain, all_labels_overrides, configure, markdown_table, write_results
from winnow.data.dataset import TRAIN, load_images
from winnow.deploy.batch_inference import predict_torch
from winnow.evaluation.intervals import paired_gain
from winnow.models.backbones import load_architecture
from winnow.records import IngestRecord, read_json, write_json
from winnow.training.finetuning import train_arms

NAME = "training_size"
SHARES = {"none": 1.0, "auto": 1.14, "half as large again": 1.5}
"""Arm -> data.training_size over data.image_size."""
SEEDS = (0, 1, 2, 3, 4)


def measure(folder: Path, size: int, arm: str) -> dict[str, Any]:
    """Return top1 by seed on the held-out images (fractions), steps, and the numbers of images and classes."""
    overrides = all_labels_overrides("resnet8", folder) | {
        "data.image_size": size,
        "data.training_size": arm if arm in ("none", "auto") else round(SHARES[arm] * size),
        "data.validation_fraction": 0.3,
        "data.test_fraction": 0.3,
        "finetune.seeds": list(SEEDS),
    }
    chain = Chain(f"{NAME}-{size}-{SHARES[arm]}", configure(overrides))
    result_file = chain.folder / "measured.json"
    if not result_file.exists():
        data, pretrained = chain.ingest(), chain.pretrain()
        images = load_images(data)
        held_out = np.flatnonzero(images.split_N != TRAIN)
        labels_H = images.labels_N[held_out]
        trained, _ = train_arms(chain.config, images, load_architecture(pretrained), {"scratch": None}, chain.scratch)
        predictions = (predict_torch(run.model, images.images_NHWC, held_out).argmax(1) for run in trained)
        figures: dict[str, Any] = {"top1": [float((classes_H == labels_H).mean()) for classes_H in predictions]}
        figures |= {"steps": trained[0].steps, "training": len(images.indices(TRAIN)), "held_out": len(held_out)}
        figures |= {"classes": len(images.classes), "source": IngestRecord.read(data).details.source}
        write_json(result_file, figures)
    result: dict[str, Any] = read_json(result_file)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--image-size", type=int, default=32)
    args = parser.parse_args()
    figures = {arm: measure(args.folder, args.image_size, arm) for arm in SHARES}
    baseline, rows = figures["none"], []
    for arm, result in figures.items():
        gain = "-"
        if arm != "none":
            mean, low, high = paired_gain(result["top1"], baseline["top1"])
            gain = f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"
        rows.append(
            {
                "data.training_size": f"{arm} ({round(SHARES[arm] * args.image_size)} pixels)",
                "top-1 %, mean": f"{statistics.fmean(result['top1']) * 100:.1f}",
                "by seed": ", ".join(f"{value * 100:.1f}" for value in result["top1"]),
                "gain over none, points": gain,
            }
        )
    conditions = (
        f"{baseline['source']}: {baseline['training']} photographs of {baseline['classes']} classes for training, "
        f"{baseline['held_out']} held out; resnet8 from random weights at {args.image_size} pixels, "
        f"{baseline['steps']} steps, crops from 0.6; {len(SEEDS)} seeds, Student's t intervals over them."
    )
    write_results(NAME, conditions, {"arms": figures}, markdown_table(rows))


if __name__ == "__main__":
    main()
