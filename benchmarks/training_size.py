"""What random crops gain from images that are kept larger than networks see, on photographs.

    python -m benchmarks.training_size FOLDER [--image-size 32]   # FOLDER/CLASS/*.jpg, larger than twice that

The dense network from random weights, all labels known, with fine-tuning as shipped and one learning rate; only
data.training_size differs. A seed draws initial weights, order and views, the same in all arms. Three fifths of the
images are held out (validation and test, which choose nothing here), for an interval that tells half a point. Work
goes on where it stopped.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.chain import Chain, all_labels, configure, leave, markdown
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


def measured(folder: Path, size: int, arm: str) -> dict[str, Any]:
    """top1 of each seed on the held-out images, as fractions, and how many images there were."""
    keys = all_labels("resnet8", folder) | {
        "data.image_size": size,
        "data.training_size": arm if arm in ("none", "auto") else round(SHARES[arm] * size),
        "data.validation_fraction": 0.3,
        "data.test_fraction": 0.3,
        "finetune.seeds": list(SEEDS),
    }
    chain = Chain(f"{NAME}-{size}-{SHARES[arm]}", configure(keys))
    kept = chain.folder / "measured.json"
    if not kept.exists():
        data, pretrained = chain.data(), chain.pretrained()
        images = load_images(data)
        held_out = np.flatnonzero(images.split_N != TRAIN)
        chosen, _ = train_arms(chain.config, images, load_architecture(pretrained), {"scratch": None}, chain.scratch)
        answers = (predict_torch(each.model, images.images_NHWC, held_out).argmax(1) for each in chosen)
        found: dict[str, Any] = {"top1": [float((each == images.labels_N[held_out]).mean()) for each in answers]}
        found |= {"steps": chosen[0].steps, "training": len(images.indices(TRAIN)), "held_out": len(held_out)}
        write_json(kept, found | {"classes": len(images.classes), "source": IngestRecord.read(data).details.source})
    result: dict[str, Any] = read_json(kept)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--image-size", type=int, default=32)
    options = parser.parse_args()
    figures = {arm: measured(options.folder, options.image_size, arm) for arm in SHARES}
    plain, rows = figures["none"], []
    for arm, each in figures.items():
        gain = "-"
        if arm != "none":
            mean, low, high = paired_gain(each["top1"], plain["top1"])
            gain = f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"
        rows.append(
            {
                "data.training_size": f"{arm} ({round(SHARES[arm] * options.image_size)} pixels)",
                "top-1 %, mean": f"{statistics.fmean(each['top1']) * 100:.1f}",
                "by seed": ", ".join(f"{value * 100:.1f}" for value in each["top1"]),
                "gain over none, points": gain,
            }
        )
    conditions = (
        f"{plain['source']}: {plain['training']} photographs of {plain['classes']} classes for training, "
        f"{plain['held_out']} held out; resnet8 from random weights at {options.image_size} pixels, {plain['steps']} "
        f"steps, crops from 0.6; {len(SEEDS)} seeds, intervals are Student's t over them."
    )
    leave(NAME, conditions, {"arms": figures}, markdown(rows))


if __name__ == "__main__":
    main()
