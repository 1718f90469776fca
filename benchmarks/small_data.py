"""What students lose on 2,000 labelled images: with recoveries counted in epochs alone, and as shipped.

    python -m benchmarks.small_data FOLDER [--seeds 0 1 2]   # FOLDER/train/CLASS/*.jpg, CIFAR-10 (JPEG)

Two classes that are told apart with ease, 1,000 images of each, all labels known; a seed draws the images and is that
of fine-tuning and of every recovery. Nothing is pretrained: students begin from random weights, so a backbone changes
none of them. Both arms are in one tree below one dense, with the shipped settings; in the arm `epochs alone` every
recovery has min_steps 1. Drops are counted on the validation split, paired, over all seeds.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from benchmarks.chain import ROOT, SATURATES, Chain, configure, leave, markdown, span
from winnow.config import Config, TrainedCandidate
from winnow.data.dataset import TRAIN, VALIDATION, load_images
from winnow.evaluation.ablations import stronger_baseline
from winnow.evaluation.intervals import paired_drop
from winnow.evaluation.metrics import correct_predictions, load_logits
from winnow.random_streams import stream_seed

NAME = "small_data"
CLASSES = ("airplane", "frog")
PER_CLASS = 1000
TAKEN = ("student", "student-int8", "student-alone")
"""Candidates of params.yaml, in both arms; dense-kd, the other reference, in the shipped one alone."""
SHORT = "-epochs"
"""How names end of those that count epochs alone."""


def draw(images: Path, folder: Path, seed: int) -> Path:
    """Copy the images of one draw into class folders -> `folder`."""
    for name in CLASSES:
        files = sorted((images / "train" / name).glob("*.jpg"))
        rng = np.random.default_rng(stream_seed(seed, f"images of {name}"))
        (folder / name).mkdir(parents=True, exist_ok=True)
        for at in rng.permutation(len(files))[:PER_CLASS].tolist():
            shutil.copyfile(files[at], folder / name / files[at].name)
    return folder


def config_of(photos: Path, seed: int) -> Config:
    """params.yaml on these images, its students twice."""
    shipped = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))["candidates"]
    tree: dict[str, Any] = {}
    for suffix in ("", SHORT):
        for name in TAKEN if suffix else (*TAKEN, "dense-kd"):
            each = dict(shipped[name])
            each["from"] += suffix if each["from"] != "dense" else ""
            if "recovery" in each:
                each["recovery"] = each["recovery"] | {"seed": seed} | ({"min_steps": 1} if suffix else {})
            else:
                each["overflow_safe"] = SATURATES
            tree[name + suffix] = each
    changes = {
        "data.source": "folder",
        "data.path": str(photos),
        "data.validation_fraction": 0.3,
        "pretrain": {"method": "none", "backbone": "resnet8", "seed": seed},
        "finetune.seeds": [seed],
        "finetune.cross_validation": "never",
    }
    return configure(changes, tree)


def measure(photos: Path, seed: int) -> dict[str, Any]:
    """Who is right on which validation image, images, and steps of each recovery."""
    chain = Chain(f"{NAME}/{seed}", config_of(photos, seed))
    folder, images = chain.tree(), load_images(chain.data())
    known = {name: load_logits(folder / name, images) for name in ("dense", *chain.config.candidates)}
    counts = {part: len(images.indices(split)) for part, split in (("train", TRAIN), ("validation", VALIDATION))}
    trained = {name: each for name, each in chain.config.candidates.items() if isinstance(each, TrainedCandidate)}
    steps = {name: each.steps_for(counts["train"]) for name, each in trained.items()}
    return {"right": correct_predictions(known, images), "steps": steps, **counts}


def rows_of(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each network, the validation images of all seeds together."""
    names = list(runs[0]["right"])
    right: dict[str, NDArray[np.bool_]] = {name: np.concatenate([run["right"][name] for run in runs]) for name in names}
    better = np.concatenate([run["right"][stronger_baseline(run["right"])] for run in runs])
    return [
        {
            "network": name.removesuffix(SHORT),
            "recovery": "" if name == "dense" else "epochs alone" if name.endswith(SHORT) else "as shipped",
            "steps": runs[0]["steps"].get(name, ""),
            "top-1 %": f"{right[name].mean() * 100:.1f}",
            "of each seed": ", ".join(f"{run['right'][name].mean() * 100:.1f}" for run in runs),
            "points lost against dense": span(paired_drop(right["dense"], right[name]), 1),
            "against the better of dense and dense-kd": span(paired_drop(better, right[name]), 1),
        }
        for name in names
    ]


def main() -> None:
    """Each seed's tree, and the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    given = parser.parse_args()
    images, work = given.images.resolve(), ROOT / ".winnow" / "benchmarks" / "small_data_images"
    runs = [measure(draw(images, work / str(seed), seed), seed) for seed in given.seeds]
    rows = rows_of(runs)
    conditions = (
        f"CIFAR-10 (JPEG), {' and '.join(CLASSES)}, {PER_CLASS:,} labelled images of each, drawn anew by each of the "
        f"seeds {', '.join(map(str, given.seeds))}: {runs[0]['train']:,} for training, {runs[0]['validation']} for "
        "validation (of the first). params.yaml as shipped, but: nothing pretrained, one seed, validation_fraction 0.3"
        f"{', int8 weights of 7 bits (no VNNI here)' if SATURATES else ''}. Points lost: validation images of all "
        "seeds together, paired, with their 95 % interval."
    )
    leave(NAME, conditions, {"rows": rows}, markdown(rows))


if __name__ == "__main__":
    main()
