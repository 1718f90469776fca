"""What pretraining buys on the embedded sample at 25 labels per class: three backbones, five paired label seeds.

Both arms get the same labels, head, order, augmentation, steps and tried rates (winnow/training/finetuning.py); each
arm's rate is chosen on validation with the first seed. A baseline that stopped too early would flatter pretraining, so
both arms are also trained three times as long, and the arm from scratch until that gains it less than half a point. The
gain is that of the shipped fine-tuning over the best arm from scratch, however long that took. Accuracy is that of the
last step on the validation split, single pass. Backbones and label draws both vary
(winnow.evaluation.intervals.two_way_gain). Work goes on where it stopped.
"""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import load_file

from benchmarks.chain import Chain, configure, leave, markdown
from winnow.config import Config, NoPretraining
from winnow.data.dataset import TRAIN, load_images
from winnow.data.splits import draw_label_budget
from winnow.evaluation.intervals import two_way_gain
from winnow.models.backbones import WEIGHTS_FILE, load_architecture
from winnow.records import read_json, read_record, write_json
from winnow.training.finetuning import StateDict, train_arms

NAME = "pretraining_gain"
BACKBONES, SEEDS = (0, 1, 2), [0, 1, 2, 3, 4]
LONGER, LONGEST, STOPS = 3, 27, 0.5
"""Factor between two lengths, the largest one tried, and the points that a longer training must gain to go on."""

Trained = dict[str, Any]
"""top1 by label seed as fractions, learning rate and steps of one arm at one length."""


def chain_of(backbone: int) -> Chain:
    return Chain(f"{NAME}-backbone{backbone}", configure({"pretrain.seed": backbone, "finetune.seeds": SEEDS}))


def trained(chain: Chain, arm: str, factor: int) -> Trained:
    """One arm with `factor` times the shipped steps, on every label seed; kept once it is done."""
    kept = chain.folder / f"{arm}-{factor}.json"
    if not kept.exists():
        pretrained, images = chain.pretrained(), load_images(chain.data())
        state: StateDict | None = load_file(pretrained / WEIGHTS_FILE) if arm == "pretrained" else None
        scratch = chain.scratch / f"arms-{factor}"
        labels = len(draw_label_budget(images, chain.config.data.label_budget, SEEDS[0]))
        config = longer(chain.config, factor, labels)
        chosen, _ = train_arms(config, images, load_architecture(pretrained), {arm: state}, scratch)
        told = {"top1": [each.top1 for each in chosen], "learning_rate": chosen[0].learning_rate}
        write_json(kept, told | {"steps": chosen[0].steps})
    found: Trained = read_json(kept)
    return found


def longer(config: Config, factor: int, labels: int) -> Config:
    """The same fine-tuning on so many labels with `factor` times the epochs and the least steps."""
    least = config.finetune.resolve_min_steps(labels)
    changes = {"epochs": config.finetune.epochs * factor, "min_steps": least * factor}
    return config.model_copy(update={"finetune": config.finetune.model_copy(update=changes)})


def points(arm: Trained) -> float:
    """Mean top-1 over the label seeds, in percent."""
    return statistics.fmean(arm["top1"]) * 100


def scratch_until_it_stops(chain: Chain) -> dict[int, Trained]:
    """Factor -> the arm from scratch, ever longer until that gains less than STOPS points."""
    found = {1: trained(chain, "scratch", 1)}
    factor = LONGER
    while factor <= LONGEST:
        found[factor] = trained(chain, "scratch", factor)
        if points(found[factor]) - points(found[factor // LONGER]) < STOPS:
            break
        factor *= LONGER
    return found


def gains(pretrained: list[Trained], scratch: Trained) -> NDArray[np.float64]:
    """Points of each backbone (rows) on each label draw (columns)."""
    found: NDArray[np.float64] = np.array([one["top1"] for one in pretrained]) - np.array(scratch["top1"])[None]
    return found * 100


def told(found: tuple[float, float, float]) -> str:
    mean, low, high = found
    return f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"


def main() -> None:
    chains = [chain_of(backbone) for backbone in BACKBONES]
    scratch = scratch_until_it_stops(chains[0])
    pretrained = {factor: [trained(chain, "pretrained", factor) for chain in chains] for factor in (1, LONGER)}
    best = max(scratch, key=lambda factor: points(scratch[factor]))
    rows = []
    for factor, alone in scratch.items():
        row = {"steps": alone["steps"], "from scratch, top-1 %": f"{points(alone):.1f}"}
        of = pretrained.get(factor)
        row["pretrained, top-1 %, by backbone"] = ", ".join(f"{points(one):.1f}" for one in of) if of else "-"
        row["gain at equal steps, points"] = told(two_way_gain(gains(of, alone))) if of else "-"
        rows.append(row)
    mean, low, high = two_way_gain(gains(pretrained[1], scratch[best]))
    config, first = chains[0].config, chains[0]
    assert not isinstance(config.pretrain, NoPretraining)
    knn = [read_record(chain.pretrained()).metrics["pretrain/knn"] * 100 for chain in chains]
    table = markdown(rows) + (
        f"\n\nGain: **{mean:+.1f} points** (95 % interval {low:+.1f} to {high:+.1f}) of {pretrained[1][0]['steps']} "
        f"steps from a pretrained backbone over {scratch[best]['steps']} steps from scratch, its best length."
    )
    conditions = (
        f"CIFAR-10 (JPEG) sample, {config.data.label_budget} labels per class, {config.pretrain.backbone}, "
        f"{config.pretrain.method} for {config.pretrain.epochs} epochs with batches of {config.pretrain.batch_size} on "
        f"{len(load_images(first.data()).indices(TRAIN))} images without labels (kNN "
        f"{', '.join(f'{value:.1f}' for value in knn)} %), {len(BACKBONES)} backbones, {len(SEEDS)} label seeds. "
        f"Rates tried for each arm and length: {list(config.finetune.learning_rates)}. Validation accuracy; rate and "
        "length were chosen on the same split. 95 % intervals over backbones and label draws."
    )
    figures = {
        "gain_points": {"mean": mean, "low": low, "high": high},
        "scratch": scratch,
        "pretrained": pretrained,
        "config": config.model_dump(mode="json", by_alias=True),
    }
    leave(NAME, conditions, figures, table)


if __name__ == "__main__":
    main()
