"""Measure the gain by known weights with few labels, from random weights to a distilled network, three label seeds.

    python -m benchmarks.known_weights [--images FOLDER] [--labels 25] [--seeds 0 1 2] [--set KEY=VALUE ...]

Every arm has the same labels, seeds and tried rates; each ends once with labels alone, and once after training on
images without labels by each method (finetune.unlabelled), whether that helped or not. The large network is the
teacher with a linear head; its rows are those of the first seed. Accuracy is that of the last step on the validation
split, where rates were chosen; nothing reads the test split. Minutes are those of embedding and pretraining, before any
label is used. The int8 files of the distilled network and of the teacher are exported, measured and timed.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from benchmarks.chain import INT8_SATURATES, Chain, configure, markdown_table, write_results
from winnow.evaluation.intervals import paired_gain
from winnow.records import RECORD, BenchmarkRecord, CandidateRecord, FinetuneRecord

NAME = "known_weights"
TEACHER = "package:efficientnet-lite0"
PRETRAINING: dict[str, dict[str, Any]] = {
    "distilled": {"pretrain.method": "distill", "teacher.weights": TEACHER},
    "rotnet": {"pretrain.method": "rotnet", "teacher.weights": "none"},
    "simclr": {"pretrain.method": "simclr", "teacher.weights": "none"},
    "start": {
        "pretrain.method": "none",
        "pretrain.start": TEACHER,
        "pretrain.backbone": "auto",
        "teacher.weights": "none",
        "finetune.learning_rates": [0.03],
    },
}
"""Arm -> settings. `start` fine-tunes the large network itself, with one rate, as each of its trainings takes long."""
UNLABELLED = ("propagation", "fixmatch")
INT8 = {"method": "quantize", "overflow_safe": INT8_SATURATES}
CANDIDATES = {
    "dense-int8": {"from": "dense", **INT8},
    "large": {"from": "dense", "method": "probe"},
    "large-int8": {"from": "large", **INT8},
}
"""The candidates of the distilled arm, which alone are timed."""
SHARED = ("data", "embed", "pretrain")
"""Folders that chains with the same pretraining share; they also share the checkpoints of fine-tuning on labels."""


def make_chain(arm: str, unlabelled: str, args: argparse.Namespace) -> Chain:
    """Return the chain of one pretraining and one training on unlabelled images, with what another has done."""
    overrides = {"finetune.seeds": args.seeds, "data.labels_per_class": args.labels, **PRETRAINING[arm]}
    if args.images is not None:
        overrides |= {"data.source": "folder", "data.path": str(args.images.resolve())}
    overrides |= {key: yaml.safe_load(value) for key, _, value in (each.partition("=") for each in args.set)}
    config = configure(
        {**overrides, "finetune.unlabelled": unlabelled, "finetune.cross_validation": "never"},
        CANDIDATES if arm == "distilled" else {},
    )
    suffix = f"-{args.name}" if args.name else ""
    chain = Chain(f"{NAME}{suffix}-{args.labels}-{arm}-{unlabelled}", config)
    donor = chain.folder.with_name(chain.folder.name.replace(f"-{unlabelled}", f"-{UNLABELLED[0]}"))
    for name in SHARED:
        if donor != chain.folder and (donor / name / RECORD).is_file() and not (chain.folder / name).exists():
            shutil.copytree(donor / name, chain.folder / name)
    trained = donor / "scratch" / "finetune"
    if trained.is_dir() and not (chain.scratch / "finetune").exists():
        ignored = shutil.ignore_patterns("unlabelled-*")
        shutil.copytree(trained, chain.scratch / "finetune", ignore=ignored)
    return chain


def describe(top1: list[float], scratch: list[float]) -> dict[str, str]:
    """Return the mean accuracy, that of each seed, and the gain over random weights with its interval."""
    mean, low, high = paired_gain(top1, scratch)
    return {
        "top-1 %": f"{fmean(top1) * 100:.1f}",
        "of each seed": ", ".join(f"{value * 100:.1f}" for value in top1),
        "gain over random weights, points": f"{mean:+.1f} ({low:+.1f} to {high:+.1f})",
    }


def arm_rows(arm: str, args: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Run all chains of an arm; return its rows and the figures behind them."""
    rows: list[dict[str, Any]] = []
    figures: dict[str, Any] = {}
    for unlabelled in UNLABELLED:
        chain = make_chain(arm, unlabelled, args)
        details = FinetuneRecord.read(chain.finetune()).details
        assert details.unlabelled is not None
        scratch = [row.top1 for row in details.arms.scratch]
        alone = [row.top1 for row in details.arms.trainings("start" if arm == "start" else "pretrained")]
        minutes = {step: seconds / 60 for step, seconds in chain.seconds().items()}
        figures[unlabelled] = {"minutes": minutes, "details": details.model_dump(mode="json")}
        if unlabelled == UNLABELLED[0]:
            if arm == args.arms[0]:
                rows.append({"arm": "random weights", "then": "", **describe(scratch, scratch)})
            before = sum(minutes.get(step, 0.0) for step in ("embed", "pretrain"))
            rows.append({"arm": arm, "then": "", **describe(alone, scratch), "minutes": f"{before:.1f}"})
        top1 = [row.top1 for row in details.unlabelled.trainings]
        precision = [row.precision for row in details.unlabelled.trainings if row.precision is not None]
        right = f"{fmean(precision) * 100:.1f}" if precision else "-"
        rows.append({"arm": arm, "then": unlabelled, **describe(top1, scratch), "pseudo-labels right, %": right})
    return rows, figures


def file_rows(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return accuracy, size and speed of the files of the distilled arm, after label propagation where that helped."""
    chain = make_chain("distilled", UNLABELLED[0], args)
    folder = chain.compress()
    timed = BenchmarkRecord.read(chain.benchmark()).details.candidates
    large = chain.config.benchmark.large_batch
    rows = []
    for name in ("dense", *chain.config.candidates):
        metrics, times = CandidateRecord.read(folder / name).metrics, timed[name]
        speedups = [f"{times[f'speedup/eager_b{batch}']:.1f}" for batch in (1, large)]
        rows.append(
            {
                "file": name,
                "top-1 %": f"{metrics['quality/top1'] * 100:.1f}",
                "MB": f"{metrics['size/mb']:.2f}",
                "parameters, M": f"{metrics['size/parameters'] / 1e6:.2f}",
                "latency, ms": f"{times['best/latency_ms']:.2f}",
                f"x dense in eager f32 (1 / {large})": " / ".join(speedups),
            }
        )
    return rows


def main() -> None:
    """Run every arm and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="a folder of class folders; without it the embedded sample")
    parser.add_argument("--name", default="", help="the name of those images in the results")
    parser.add_argument("--arms", nargs="+", default=list(PRETRAINING), choices=list(PRETRAINING))
    parser.add_argument("--labels", type=int, default=25)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="other settings of params.yaml")
    args = parser.parse_args()
    rows, figures = [], {}
    for arm in args.arms:
        arm_table, figures[arm] = arm_rows(arm, args)
        rows += arm_table
    columns = list(dict.fromkeys(key for row in rows for key in row))
    rows = [{key: row.get(key, "") for key in columns} for row in rows]
    files = file_rows(args) if "distilled" in args.arms else []
    source = "CIFAR-10 (JPEG), the embedded sample" if args.images is None else args.name
    settings = "".join(f", {each}" for each in args.set)
    conditions = (
        f"{source}, {args.labels} labels per class, label seeds {', '.join(map(str, args.seeds))}; settings of "
        f"params.yaml but for the arms, without cross-validation{settings}. Teacher: {TEACHER}. Minutes: embedding and "
        "pretraining, before any label is used. Accuracy on the validation split; 95 % intervals over label seeds, "
        f"paired. Files: first seed; {'int8 weights of 7 bits (no VNNI here)' if INT8_SATURATES else 'int8'}."
    )
    name = f"{NAME}_{args.labels}" + (f"_{args.name}" if args.name else "")
    table = markdown_table(rows) + (f"\n\nFiles of the distilled arm:\n\n{markdown_table(files)}" if files else "")
    write_results(name, conditions, {"arms": figures, "files": files}, table)


if __name__ == "__main__":
    main()
