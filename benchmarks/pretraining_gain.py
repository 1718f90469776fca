"""Measure the gain from pretraining on the sample at 25 labels per class: three backbones, five paired label seeds.

    python -m benchmarks.pretraining_gain [--only scratch | distill | rotnet]

Pretrained backbones come from each method: distill, with the teacher of params.yaml, and rotnet, without known weights.
All arms get the same labels, head, order, augmentation, steps and candidate learning rates
(winnow/training/finetuning.py); each arm's rate is selected on validation with the first seed. A baseline that stops
too early would exaggerate the gain, so all arms are also trained three times as long, and the arm from scratch ever
longer until that gains less than half a point. The reported gain is that of the shipped fine-tuning over the best arm
from scratch of any length. Accuracy is that of the last step on the validation split, single pass, before any training
on images without labels. The interval covers both backbones and label draws
(winnow.evaluation.intervals.two_way_gain). An interrupted run resumes.

`--only` trains these arms and writes no table, so that several processes of one thread each can share the machine.
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import load_file

from benchmarks.chain import Chain, configure, markdown_table, write_results
from winnow.config import Config, NoPretraining
from winnow.data.dataset import TRAIN, load_images
from winnow.data.splits import draw_label_budget
from winnow.evaluation.intervals import two_way_gain
from winnow.models.backbones import WEIGHTS_FILE, load_architecture
from winnow.records import read_json, read_record, write_json
from winnow.training.finetuning import StateDict, train_arms

NAME = "pretraining_gain"
METHODS = ("distill", "rotnet")
SCRATCH = "scratch"
BACKBONES, SEEDS = (0, 1, 2), [0, 1, 2, 3, 4]
LENGTH_RATIO, MAX_LENGTH, MIN_GAIN = 3, 27, 0.5
"""Factor between two training lengths, the largest factor, and the points below which a longer training is the last."""
LENGTHS = (1, LENGTH_RATIO)
"""Factors by which the fine-tuning of pretrained backbones is lengthened."""

ArmResult = dict[str, Any]
"""top1 by label seed as fractions, learning_rate and steps of one arm at one length."""


def method_chain(method: str, backbone_seed: int) -> Chain:
    """Return the chain of a backbone pretrained by this method; `scratch`: with random weights."""
    overrides: dict[str, Any] = {"pretrain.method": "none" if method == SCRATCH else method}
    if method != "distill":
        overrides["teacher.weights"] = "none"
    config = configure({**overrides, "pretrain.seed": backbone_seed, "finetune.seeds": SEEDS}, {})
    return Chain(f"{NAME}-{method}-{backbone_seed}", config)


def train_arm(chain: Chain, factor: int) -> ArmResult:
    """Train a chain's backbone for `factor` times the shipped steps on every label seed, or read the saved result."""
    result_file = chain.folder / f"arm-{factor}.json"
    if not result_file.exists():
        pretrained, images = chain.pretrain(), load_images(chain.ingest())
        is_scratch = isinstance(chain.config.pretrain, NoPretraining)
        state: StateDict | None = None if is_scratch else load_file(pretrained / WEIGHTS_FILE)
        scratch = chain.scratch / f"arms-{factor}"
        labels = len(draw_label_budget(images, chain.config.data.label_budget, SEEDS[0]))
        config = lengthen_finetuning(chain.config, factor, labels)
        trained, _ = train_arms(config, images, load_architecture(pretrained), {"arm": state}, scratch)
        accuracies = {"top1": [training.top1 for training in trained], "learning_rate": trained[0].learning_rate}
        write_json(result_file, accuracies | {"steps": trained[0].steps})
    result: ArmResult = read_json(result_file)
    return result


def lengthen_finetuning(config: Config, factor: int, labels: int) -> Config:
    """Return the config with `factor` times the epochs and minimum steps of fine-tuning on this number of labels."""
    min_steps = config.finetune.resolve_min_steps(labels)
    changes = {"epochs": config.finetune.epochs * factor, "min_steps": min_steps * factor}
    return config.model_copy(update={"finetune": config.finetune.model_copy(update=changes)})


def mean_top1(arm: ArmResult) -> float:
    """Return the mean top-1 over the label seeds, in percent."""
    return statistics.fmean(arm["top1"]) * 100


def train_scratch_until_converged(chain: Chain) -> dict[int, ArmResult]:
    """Return factor -> the arm from scratch; the last length gains less than MIN_GAIN points, or is the maximum."""
    results = {1: train_arm(chain, 1)}
    factor = LENGTH_RATIO
    while factor <= MAX_LENGTH:
        results[factor] = train_arm(chain, factor)
        if mean_top1(results[factor]) - mean_top1(results[factor // LENGTH_RATIO]) < MIN_GAIN:
            break
        factor *= LENGTH_RATIO
    return results


def gains(pretrained: list[ArmResult], scratch: ArmResult) -> NDArray[np.float64]:
    """Return the gains in points (B, S) of B backbones on S label draws."""
    gains_BS: NDArray[np.float64] = np.array([arm["top1"] for arm in pretrained]) - np.array(scratch["top1"])[None]
    return gains_BS * 100


def format_gain(interval: tuple[float, float, float]) -> str:
    mean, low, high = interval
    return f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"


def train_pretrained(method: str) -> dict[int, list[ArmResult]]:
    """Return factor -> the arms of one method, one for each backbone."""
    chains = [method_chain(method, seed) for seed in BACKBONES]
    return {factor: [train_arm(chain, factor) for chain in chains] for factor in LENGTHS}


def describe_method(method: str) -> str:
    """Return a sentence on the pretraining of one method."""
    chains = [method_chain(method, seed) for seed in BACKBONES]
    settings = chains[0].config.pretrain
    assert not isinstance(settings, NoPretraining)
    knn = ", ".join(f"{read_record(chain.pretrain()).metrics['pretrain/knn'] * 100:.1f}" for chain in chains)
    return (
        f"{method}: {settings.epochs} epochs in batches of {settings.batch_size}, kNN accuracy of the backbones {knn} %"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=[SCRATCH, *METHODS], help="train these arms and write no table")
    only = parser.parse_args().only
    if only in METHODS:
        train_pretrained(only)
        return
    scratch_chain = method_chain(SCRATCH, 0)
    scratch = train_scratch_until_converged(scratch_chain)
    if only == SCRATCH:
        return
    pretrained = {method: train_pretrained(method) for method in METHODS}
    best = max(scratch, key=lambda factor: mean_top1(scratch[factor]))
    rows = []
    for factor, baseline in scratch.items():
        row = {"steps": str(baseline["steps"]), "from scratch, top-1 %": f"{mean_top1(baseline):.1f}"}
        for method, by_factor in pretrained.items():
            arms = by_factor.get(factor)
            row[f"{method}, top-1 %, by backbone"] = ", ".join(f"{mean_top1(arm):.1f}" for arm in arms) if arms else "-"
            row[f"{method}, gain at equal steps"] = format_gain(two_way_gain(gains(arms, baseline))) if arms else "-"
        rows.append(row)
    total_gains = {method: two_way_gain(gains(pretrained[method][1], scratch[best])) for method in METHODS}
    sentences = [
        f"{method}: **{mean:+.1f} points** (95 % interval {low:+.1f} to {high:+.1f}) of "
        f"{pretrained[method][1][0]['steps']} steps from a pretrained backbone over {scratch[best]['steps']} steps "
        "from scratch, the best length."
        for method, (mean, low, high) in total_gains.items()
    ]
    config = scratch_chain.config
    conditions = (
        f"CIFAR-10 (JPEG) sample, {config.data.label_budget} labels per class, {config.pretrain.backbone}, pretrained "
        f"on {len(load_images(scratch_chain.ingest()).indices(TRAIN))} images without labels. "
        f"{'; '.join(describe_method(method) for method in METHODS)}. {len(BACKBONES)} backbones of each method, "
        f"{len(SEEDS)} label seeds. Learning rates tried for each arm and length: "
        f"{list(config.finetune.learning_rates)}. Validation accuracy before training on images without labels; rate "
        "and length were selected on the same split. 95 % intervals over backbones and label draws."
    )
    figures = {
        "gain_points": {
            method: {"mean": mean, "low": low, "high": high} for method, (mean, low, high) in total_gains.items()
        },
        "scratch": scratch,
        "pretrained": pretrained,
        "config": config.model_dump(mode="json", by_alias=True),
    }
    write_results(NAME, conditions, figures, "\n\n".join([markdown_table(rows), *sentences]))


if __name__ == "__main__":
    main()
