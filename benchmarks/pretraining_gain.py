"""What pretraining buys on the embedded sample at 25 labels per class: five paired label seeds.

Both arms get the same labels, head, order, augmentation, steps and tried rates (winnow/finetuning.py); each arm's rate
is chosen on validation with the first seed. Accuracy is that of the last step on the validation split, single pass.
The interval is Student's t over the paired differences.
"""

from __future__ import annotations

from safetensors.torch import load_file

from benchmarks.chain import Chain, configure, leave, markdown
from winnow.config import NoPretraining
from winnow.data.images import TRAIN, load_images
from winnow.finetuning import train_arms
from winnow.intervals import paired_gain
from winnow.models.backbones import WEIGHTS, load_architecture
from winnow.records import read_record

NAME = "pretraining_gain"
SEEDS = [0, 1, 2, 3, 4]


def main() -> None:
    config = configure({"finetune.seeds": SEEDS})
    chain = Chain(NAME, config)
    data, pretrained = chain.data(), chain.pretrained()
    images, architecture = load_images(data), load_architecture(pretrained)
    arms = {"pretrained": load_file(pretrained / WEIGHTS), "scratch": None}
    chosen, tried = train_arms(config, images, architecture, arms, chain.scratch / "arms")
    top1 = {arm: {t.seed: t.top1 for t in chosen if t.arm == arm} for arm in arms}
    mean, low, high = paired_gain([top1["pretrained"][s] for s in SEEDS], [top1["scratch"][s] for s in SEEDS])
    rows = [
        {
            "label seed": seed,
            "pretrained, top-1 %": f"{top1['pretrained'][seed] * 100:.1f}",
            "from scratch, top-1 %": f"{top1['scratch'][seed] * 100:.1f}",
            "gain, points": f"{(top1['pretrained'][seed] - top1['scratch'][seed]) * 100:+.1f}",
        }
        for seed in SEEDS
    ]
    knn = read_record(pretrained).metrics
    assert not isinstance(config.pretrain, NoPretraining)
    table = markdown(rows) + f"\n\nGain: **{mean:+.1f} points** (95 % interval {low:+.1f} to {high:+.1f}, 5 pairs)."
    conditions = (
        f"CIFAR-10 (JPEG) sample, {config.data.label_budget} labels per class, {config.pretrain.backbone}, "
        f"{config.pretrain.method} for {config.pretrain.epochs} epochs on {len(images.indices(TRAIN))} images "
        f"without labels (kNN {knn['pretrain/knn'] * 100:.1f} %), then {chosen[0].steps} steps. "
        f"Rates tried for each arm: {list(config.finetune.learning_rates)}. "
        "Validation accuracy; the rate was chosen on the same split, for both arms alike."
    )
    figures = {
        "gain_points": {"mean": mean, "low": low, "high": high},
        "top1": top1,
        "tried": [{"arm": t.arm, **t.row()} for t in tried],
        "config": config.model_dump(mode="json", by_alias=True),
    }
    leave(NAME, conditions, figures, table)


if __name__ == "__main__":
    main()
