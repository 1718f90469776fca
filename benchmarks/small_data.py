"""Measure the points that students lose on 2,000 labelled images, with and without a minimum number of recovery steps.

    python -m benchmarks.small_data FOLDER [--seeds 0 1 2]   # FOLDER/train/CLASS/*.jpg, CIFAR-10 (JPEG)

Two classes that are easy to distinguish, 1,000 images of each, all labelled. A seed draws the images and is the seed of
fine-tuning and of every recovery. Nothing is pretrained: students start from random weights, so a backbone would change
none of them. Both arms are in one tree under the same dense network, with the shipped settings; in the arm `epochs
alone` every recovery has min_steps 1. Drops are those on the validation split, paired, over all seeds.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.chain import (
    INT8_SATURATES,
    ROOT,
    Chain,
    configure,
    format_drop,
    full_settings,
    markdown_table,
    write_results,
)
from winnow.config import Config, TrainedCandidate
from winnow.data.dataset import TRAIN, VALIDATION, load_images
from winnow.evaluation.ablations import stronger_baseline
from winnow.evaluation.intervals import paired_drop
from winnow.evaluation.metrics import correct_predictions, load_logits
from winnow.random_streams import stream_seed

NAME = "small_data"
CLASSES = ("airplane", "frog")
PER_CLASS = 1000
STUDENTS = ("student", "student-int8", "student-alone")
"""Candidates in both arms; dense-kd, the other reference, is in the shipped arm only."""
EPOCHS_SUFFIX = "-epochs"
"""Suffix of the candidates in the arm `epochs alone`."""


def draw_images(images: Path, folder: Path, seed: int) -> Path:
    """Copy the images of one draw into class folders in `folder` and return it."""
    for name in CLASSES:
        files = sorted((images / "train" / name).glob("*.jpg"))
        rng = np.random.default_rng(stream_seed(seed, f"images of {name}"))
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index in rng.permutation(len(files))[:PER_CLASS].tolist():
            shutil.copyfile(files[index], folder / name / files[index].name)
    return folder


def make_config(folder: Path, seed: int) -> Config:
    """Return the full settings on the images in `folder`, with their students in both arms."""
    shipped = full_settings()["candidates"]
    tree: dict[str, Any] = {}
    for suffix in ("", EPOCHS_SUFFIX):
        for name in STUDENTS if suffix else (*STUDENTS, "dense-kd"):
            candidate = dict(shipped[name])
            candidate["from"] += suffix if candidate["from"] != "dense" else ""
            if "recovery" in candidate:
                candidate["recovery"] = candidate["recovery"] | {"seed": seed} | ({"min_steps": 1} if suffix else {})
            else:
                candidate["overflow_safe"] = INT8_SATURATES
            tree[name + suffix] = candidate
    overrides = {
        "data.source": "folder",
        "data.path": str(folder),
        "data.validation_fraction": 0.3,
        "pretrain": {"method": "none", "backbone": "resnet8", "seed": seed},
        "finetune.seeds": [seed],
        "finetune.cross_validation": "never",
    }
    return configure(overrides, tree)


def run_seed(folder: Path, seed: int) -> dict[str, Any]:
    """Train the tree on the images in `folder`.

    Returns correct (network -> True for each correct validation image), steps (candidate -> recovery steps), and the
    numbers of train and validation images.
    """
    chain = Chain(f"{NAME}/{seed}", make_config(folder, seed))
    candidates, images = chain.compress(), load_images(chain.ingest())
    logits = {name: load_logits(candidates / name, images) for name in ("dense", *chain.config.candidates)}
    counts = {name: len(images.indices(split)) for name, split in (("train", TRAIN), ("validation", VALIDATION))}
    steps = {
        name: candidate.steps_for(counts["train"])
        for name, candidate in chain.config.candidates.items()
        if isinstance(candidate, TrainedCandidate)
    }
    return {"correct": correct_predictions(logits, images), "steps": steps, **counts}


def table_rows(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each network, on the validation images of all seeds together."""
    names = list(runs[0]["correct"])
    correct: dict[str, NDArray[np.bool_]]
    correct = {name: np.concatenate([run["correct"][name] for run in runs]) for name in names}
    reference = np.concatenate([run["correct"][stronger_baseline(run["correct"])] for run in runs])
    return [
        {
            "network": name.removesuffix(EPOCHS_SUFFIX),
            "recovery": "" if name == "dense" else "epochs alone" if name.endswith(EPOCHS_SUFFIX) else "as shipped",
            "steps": runs[0]["steps"].get(name, ""),
            "top-1 %": f"{correct[name].mean() * 100:.1f}",
            "of each seed": ", ".join(f"{run['correct'][name].mean() * 100:.1f}" for run in runs),
            "points lost against dense": format_drop(paired_drop(correct["dense"], correct[name]), 1),
            "against the better of dense and dense-kd": format_drop(paired_drop(reference, correct[name]), 1),
        }
        for name in names
    ]


def main() -> None:
    """Train each seed's tree and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    images, draws = args.images.resolve(), ROOT / ".winnow" / "benchmarks" / "small_data_images"
    runs = [run_seed(draw_images(images, draws / str(seed), seed), seed) for seed in args.seeds]
    rows = table_rows(runs)
    conditions = (
        f"CIFAR-10 (JPEG), {' and '.join(CLASSES)}, {PER_CLASS:,} labelled images of each, drawn again by each of the "
        f"seeds {', '.join(map(str, args.seeds))}; first seed: {runs[0]['train']:,} for training, "
        f"{runs[0]['validation']} for validation. `winnow run --full`, but nothing pretrained, one seed, "
        f"validation_fraction 0.3{', int8 weights of 7 bits (no VNNI here)' if INT8_SATURATES else ''}. Points lost: "
        "validation images of all seeds together, paired, with 95 % intervals."
    )
    write_results(NAME, conditions, {"rows": rows}, markdown_table(rows))


if __name__ == "__main__":
    main()
