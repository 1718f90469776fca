"""What a refit on training and validation labels buys on the test split, and how much of the answers it keeps.

CIFAR-10 (JPEG) sample, of whose training and validation images LABELLED have a label, drawn anew by each seed; the
others serve without one. For each seed: fine-tuning, pruned, pruned-int8, and the refit of pruned-int8 as the step does
it. The gain is paired on the test split, which chooses nothing here; the interval over seeds is Student's t.

What the guard has to tell apart is measured beside: the agreement of an honest refit with the selected file, on the
images that the guard looks at, and that of refits which are broken on purpose: validation labels shuffled, or
all of them turned to the next class, and a learning rate of dense's that is thirty times too high.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.chain import Chain, configure, leave, markdown, right_on_test
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
SHORTER = {"pretrain.epochs": 3, "candidates.pruned.recovery.epochs": 5}
"""Than params.yaml: five seeds in half an hour."""
BROKEN = ("validation labels shuffled", "validation labels of the next class", "rate of dense times 30")


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
    data, pretrained = chain.data(), chain.pretrained()
    rows, figures = [], []
    for seed in SEEDS:
        at = chain.folder / f"seed{seed}"
        _make(config, data, pretrained, at, seed)
        row = _measured(at)
        figures.append({"seed": seed, **row})
        rows.append({"label seed": seed, **_shown(row)})
    broken = {what: _broken(config, chain.folder / f"seed{SEEDS[0]}", what) for what in BROKEN}
    tables, gains = [markdown(rows)], {}
    for who in ("selected", "dense"):
        after = {"selected": "refitted", "dense": "refitted dense"}[who]
        mean, low, high = paired_gain([row[after] for row in figures], [row[who] for row in figures])
        gains[who] = {"mean": mean, "low": low, "high": high}
        name = {"selected": CHAIN[-1], "dense": "dense"}[who]
        tables.append(f"{name}: **{mean:+.1f} points** (95 % interval {low:+.1f} to {high:+.1f}, {len(SEEDS)} pairs).")
    tables.append(markdown([{"broken on purpose (seed 0)": what, **row} for what, row in broken.items()]))
    labels = RefitRecord.read(chain.folder / "seed0" / "refit").details.labels
    conditions = (
        f"CIFAR-10 (JPEG) sample, {LABELLED} labels (seed 0: {labels.training} for training, {labels.choosing} "
        f"for choosing) drawn anew by each seed, all other images without a label; {config.pretrain.backbone}, one "
        f"backbone pretrained by {config.pretrain.method} for all seeds; "
        f"shorter than shipped: {SHORTER}. Top-1 on the 2,000 test images, single pass; "
        "agreement and kappa on validation images without a label."
    )
    settings = config.model_dump(mode="json", by_alias=True)
    leave(
        NAME, conditions, {"seeds": figures, "gain": gains, "broken": broken, "config": settings}, "\n\n".join(tables)
    )


def _make(config: Config, data: Path, pretrained: Path, at: Path, seed: int) -> None:
    """artifacts of one label seed in `at`, each step once."""
    if not (at / "data").is_dir():
        partial = at / "data.tmp"
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(data, partial)
        np.save(partial / "labels.npy", _few_labels(load_images(data), seed))
        partial.rename(at / "data")
    if not (at / "pretrain").is_dir():
        shutil.copytree(pretrained, at / "pretrain")
    candidates = at / "candidates"
    if not (candidates / "dense").is_dir():
        finetune(config, at / "data", at / "pretrain", candidates / "dense", at / "scratch" / "finetune")
    for name in CHAIN:
        if not (candidates / name).is_dir():
            folders = CandidateFolders(at / "data", at / "pretrain", candidates, at / "scratch" / name)
            compress(config, name, folders, candidates / name)
    (at / "select").mkdir(exist_ok=True)
    write_json(at / "select" / "winner.json", {"winner": CHAIN[-1]})
    if not (at / "refit").is_dir():
        refit(config, at, at / "refit", at / "scratch" / "refit")


def _few_labels(images: ImageSet, seed: int) -> np.ndarray[Any, Any]:
    """Labels (N,) of which LABELLED stay outside the test split, drawn by the seed; -1 for the rest of it."""
    labels_N = np.array(images.labels_N)
    others = np.flatnonzero((images.split_N != TEST) & (labels_N >= 0))
    kept = np.random.default_rng([seed, LABELLED]).choice(others, LABELLED, replace=False)
    labels_N[np.setdiff1d(others, kept)] = -1
    return labels_N


def _measured(at: Path) -> dict[str, float]:
    """Top-1 on the test split before and after, and what the guard saw."""
    images, record = load_images(at / "data"), RefitRecord.read(at / "refit")
    assert record.details.is_refitted, record.details.why
    folders = {
        "dense": at / "candidates" / "dense",
        "refitted dense": at / "scratch" / "refit" / "networks" / "dense",
        "selected": at / "candidates" / CHAIN[-1],
        "refitted": at / "refit",
    }
    top1 = {who: float(right_on_test(folder, images).mean()) for who, folder in folders.items()}
    return {**top1, **{key: record.metrics[f"refit/{key}"] for key in ("agreement", "kappa")}}


def _shown(row: dict[str, float]) -> dict[str, str]:
    shown = {f"{who}, %": f"{row[who] * 100:.1f}" for who in ("dense", "refitted dense", "selected", "refitted")}
    shown["gain, points"] = f"{(row['refitted'] - row['selected']) * 100:+.1f}"
    return {**shown, "agreement, %": f"{row['agreement'] * 100:.1f}", "kappa": f"{row['kappa']:.2f}"}


def _broken(config: Config, whole: Path, what: str) -> dict[str, str]:
    """What the guard says of a refit that is broken on purpose."""
    at = whole.parent / f"broken-{what.replace(' ', '-')}"
    if not (at / "refit").is_dir():
        shutil.rmtree(at, ignore_errors=True)
        for name in ("data", "pretrain", "candidates", "select"):
            shutil.copytree(whole / name, at / name)
        if what == BROKEN[2]:
            _raise_rate(at / "candidates" / "dense", 30.0)
        else:
            _spoil(at / "data", shuffled=what == BROKEN[0])
        refit(config, at, at / "refit", at / "scratch" / "refit")
    record = RefitRecord.read(at / "refit")
    check = record.details.check
    shown = {"agreement, %": "-", "kappa": "-"}
    if check:
        shown = {"agreement, %": f"{check.agreement * 100:.1f}", "kappa": f"{check.kappa:.2f}"}
    return {**shown, "verdict": "accepted" if record.details.is_refitted else record.details.why}


def _spoil(data: Path, shuffled: bool) -> None:
    images = load_images(data)
    at, labels_N = images.indices(VALIDATION, labelled=True), np.array(images.labels_N)
    wrong = np.random.default_rng(0).permutation(labels_N[at]) if shuffled else (labels_N[at] + 1) % len(images.classes)
    labels_N[at] = wrong
    np.save(data / "labels.npy", labels_N)


def _raise_rate(dense: Path, factor: float) -> None:
    record = FinetuneRecord.read(dense)
    arms = record.details.arms
    raised = [
        row.model_copy(update={"learning_rate": row.learning_rate * factor}) for row in arms.trainings("pretrained")
    ]
    details = record.details.model_copy(update={"arms": arms.model_copy(update={"pretrained": raised})})
    write_record(dense, record.model_copy(update={"details": details}))


if __name__ == "__main__":
    main()
