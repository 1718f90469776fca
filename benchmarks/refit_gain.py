"""Measure the gain on the test split from a refit on training and validation labels, and the check that accepts it.

CIFAR-10 (JPEG) sample, with labels for LABELLED of its training and validation images, drawn again by each seed; the
others are unlabelled. For each seed: fine-tuning, pruned, pruned-int8, and the step refit of pruned-int8. The gain is
paired on the test split, which selects nothing here; the interval over seeds is Student's t.

The acceptance check compares the refit's predictions with those of the selected file. Its agreement and kappa are
reported for the valid refits and for three that are invalid on purpose: validation labels shuffled, all of them set to
the next class, and a learning rate of dense thirty times too high.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.chain import Chain, configure, correct_on_test, markdown_table, write_results
from winnow.config import Config
from winnow.data.dataset import TEST, VALIDATION, ImageSet, load_images
from winnow.evaluation.intervals import paired_gain
from winnow.records import FinetuneRecord, RefitRecord, write_json, write_record
from winnow.steps.compress import CandidateFolders, compress
from winnow.steps.finetune import finetune
from winnow.steps.refit import refit

NAME = "refit_gain"
LABELLED, SEEDS = 1500, [0, 1, 2, 3, 4]
CHAIN = ("pruned", "pruned-int8")
SHORTER = {
    "pretrain.epochs": 10,
    "finetune.unlabelled": {"method": "propagation", "epochs": 10},
    "candidates.pruned.recovery.epochs": 10,
}
"""Fewer epochs than in params.yaml, so that five seeds take an hour."""
INVALID = ("validation labels shuffled", "validation labels of the next class", "rate of dense times 30")


def main() -> None:
    config = configure(
        {
            "data.labels_per_class": "all",
            "finetune.seeds": [0],
            "finetune.learning_rates": [0.1],
            "finetune.cross_validation": "never",
            **SHORTER,
        }
    )
    chain = Chain(NAME, config)
    sources = {"data": chain.ingest(), "pretrain": chain.pretrain(), "embed": chain.embed()}
    rows, figures = [], []
    for seed in SEEDS:
        folder = chain.folder / f"seed{seed}"
        _run_seed(config, sources, folder, seed)
        metrics = _measure(folder)
        figures.append({"seed": seed, **metrics})
        rows.append({"label seed": seed, **_format_metrics(metrics)})
    invalid = {fault: _run_invalid(config, chain.folder / f"seed{SEEDS[0]}", fault) for fault in INVALID}
    tables, gains = [markdown_table(rows)], {}
    for key, refitted, name in (("selected", "refitted", CHAIN[-1]), ("dense", "refitted dense", "dense")):
        mean, low, high = paired_gain([row[refitted] for row in figures], [row[key] for row in figures])
        gains[key] = {"mean": mean, "low": low, "high": high}
        tables.append(f"{name}: **{mean:+.1f} points** (95 % interval {low:+.1f} to {high:+.1f}, {len(SEEDS)} pairs).")
    tables.append(markdown_table([{"invalid refit (seed 0)": fault, **row} for fault, row in invalid.items()]))
    labels = RefitRecord.read(chain.folder / "seed0" / "refit").details.labels
    conditions = (
        f"CIFAR-10 (JPEG) sample, {LABELLED} labels (seed 0: {labels.training} for training, {labels.choosing} "
        f"for selection) drawn again by each seed, all other images unlabelled; {config.pretrain.backbone}, one "
        f"backbone pretrained by {config.pretrain.method} for all seeds; "
        f"fewer epochs than shipped: {SHORTER}. Top-1 on the 2,000 test images, single pass; "
        "agreement and kappa on unlabelled validation images."
    )
    settings = config.model_dump(mode="json", by_alias=True)
    results = {"seeds": figures, "gain": gains, "broken": invalid, "config": settings}
    write_results(NAME, conditions, results, "\n\n".join(tables))


def _run_seed(config: Config, sources: dict[str, Path], folder: Path, seed: int) -> None:
    """Run the steps of one label seed in `folder`, each once. `sources`: step -> folder that all seeds share."""
    if not (folder / "data").is_dir():
        partial = folder / "data.tmp"
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(sources["data"], partial)
        np.save(partial / "labels.npy", _draw_labels(load_images(partial), seed))
        partial.rename(folder / "data")
    for name in ("pretrain", "embed"):
        if not (folder / name).is_dir():
            shutil.copytree(sources[name], folder / name)
    candidates, scratch, embedded = folder / "candidates", folder / "scratch", folder / "embed"
    if not (candidates / "dense").is_dir():
        finetune(config, folder / "data", folder / "pretrain", candidates / "dense", scratch / "finetune", embedded)
    for name in CHAIN:
        if not (candidates / name).is_dir():
            folders = CandidateFolders(
                folder / "data", folder / "pretrain", candidates, scratch / name, embedded=embedded
            )
            compress(config, name, folders, candidates / name)
    (folder / "select").mkdir(exist_ok=True)
    write_json(folder / "select" / "winner.json", {"winner": CHAIN[-1]})
    if not (folder / "refit").is_dir():
        refit(config, folder, folder / "refit", scratch / "refit")


def _draw_labels(images: ImageSet, seed: int) -> np.ndarray[Any, Any]:
    """Return labels (N,): LABELLED random ones outside the test split and all of that split; -1 for the others."""
    labels_N = np.array(images.labels_N)
    labelled = np.flatnonzero((images.split_N != TEST) & (labels_N >= 0))
    drawn = np.random.default_rng([seed, LABELLED]).choice(labelled, LABELLED, replace=False)
    labels_N[np.setdiff1d(labelled, drawn)] = -1
    return labels_N


def _measure(folder: Path) -> dict[str, float]:
    """Return top-1 on the test split (fractions) before and after the refit, and its agreement and kappa."""
    images, record = load_images(folder / "data"), RefitRecord.read(folder / "refit")
    assert record.details.is_refitted, record.details.why
    files = {
        "dense": folder / "candidates" / "dense",
        "refitted dense": folder / "scratch" / "refit" / "networks" / "dense",
        "selected": folder / "candidates" / CHAIN[-1],
        "refitted": folder / "refit",
    }
    top1 = {name: float(correct_on_test(file, images).mean()) for name, file in files.items()}
    return {**top1, **{key: record.metrics[f"refit/{key}"] for key in ("agreement", "kappa")}}


def _format_metrics(metrics: dict[str, float]) -> dict[str, str]:
    row = {f"{name}, %": f"{metrics[name] * 100:.1f}" for name in ("dense", "refitted dense", "selected", "refitted")}
    row["gain, points"] = f"{(metrics['refitted'] - metrics['selected']) * 100:+.1f}"
    return {**row, "agreement, %": f"{metrics['agreement'] * 100:.1f}", "kappa": f"{metrics['kappa']:.2f}"}


def _run_invalid(config: Config, valid: Path, fault: str) -> dict[str, str]:
    """Refit a copy of the folder `valid` with this fault; return the agreement, kappa and verdict of the check."""
    folder = valid.parent / f"broken-{fault.replace(' ', '-')}"
    if not (folder / "refit").is_dir():
        shutil.rmtree(folder, ignore_errors=True)
        for name in ("data", "pretrain", "embed", "candidates", "select"):
            shutil.copytree(valid / name, folder / name)
        if fault == INVALID[2]:
            _multiply_learning_rate(folder / "candidates" / "dense", 30.0)
        else:
            _corrupt_validation_labels(folder / "data", shuffled=fault == INVALID[0])
        refit(config, folder, folder / "refit", folder / "scratch" / "refit")
    details = RefitRecord.read(folder / "refit").details
    row = {"agreement, %": "-", "kappa": "-"}
    if details.check:
        row = {"agreement, %": f"{details.check.agreement * 100:.1f}", "kappa": f"{details.check.kappa:.2f}"}
    return {**row, "verdict": "accepted" if details.is_refitted else details.why}


def _corrupt_validation_labels(data: Path, shuffled: bool) -> None:
    """Shuffle the validation labels, or set each to the next class."""
    images = load_images(data)
    indices, labels_N = images.indices(VALIDATION, labelled=True), np.array(images.labels_N)
    labels_V = labels_N[indices]
    labels_N[indices] = (
        np.random.default_rng(0).permutation(labels_V) if shuffled else (labels_V + 1) % len(images.classes)
    )
    np.save(data / "labels.npy", labels_N)


def _multiply_learning_rate(dense: Path, factor: float) -> None:
    record = FinetuneRecord.read(dense)
    arms = record.details.arms
    changed = [
        training.model_copy(update={"learning_rate": training.learning_rate * factor})
        for training in arms.trainings("pretrained")
    ]
    details = record.details.model_copy(update={"arms": arms.model_copy(update={"pretrained": changed})})
    write_record(dense, record.model_copy(update={"details": details}))


if __name__ == "__main__":
    main()
