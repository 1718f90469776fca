"""Which settings of RotNet buy most at 25 labels per class, and how many images they pass: chosen on validation data.

Each setting pretrains backbones from two seeds; each backbone is fine-tuned on three label seeds as params.yaml says,
with its rates tried on the first. The test split is not read. Work goes on where it stopped; delete
.winnow/benchmarks/pretraining_settings* to start anew.
"""

from __future__ import annotations

import statistics
from typing import Any

from safetensors.torch import load_file

from benchmarks.chain import Chain, configure, leave, markdown
from winnow.data.dataset import TRAIN, load_images
from winnow.models.backbones import WEIGHTS_FILE, load_architecture
from winnow.records import read_json, read_record, write_json
from winnow.training.finetuning import StateDict, train_arms

NAME = "pretraining_settings"
BACKBONE_SEEDS, LABEL_SEEDS = (0, 1), [0, 1, 2]
SETTINGS: dict[str, tuple[int, float, int]] = {
    "batch 128, rate 0.1, 10 epochs": (128, 0.1, 10),
    "batch 64, rate 0.1, 5 epochs": (64, 0.1, 5),
    "batch 32, rate 0.05, 4 epochs": (32, 0.05, 4),
    "batch 32, rate 0.05, 6 epochs": (32, 0.05, 6),
    "batch 32, rate 0.05, 10 epochs": (32, 0.05, 10),
}
"""Name -> images a batch (each in four rotations), learning rate, epochs."""
ROTATIONS = 4


def measured(setting: tuple[int, float, int], seed: int) -> dict[str, Any]:
    """kNN accuracy of one backbone, and top-1 of each label seed, as fractions."""
    batch, rate, epochs = setting
    keys: dict[str, Any] = {
        "pretrain.batch_size": batch,
        "pretrain.optimiser.learning_rate": rate,
        "pretrain.epochs": epochs,
    }
    config = configure({**keys, "pretrain.seed": seed, "finetune.seeds": LABEL_SEEDS})
    chain = Chain(f"{NAME}-{batch}-{rate:g}-{epochs}-seed{seed}", config)
    kept = chain.folder / "measured.json"
    if not kept.exists():
        images, pretrained = load_images(chain.data()), chain.pretrained()
        arms: dict[str, StateDict | None] = {"pretrained": load_file(pretrained / WEIGHTS_FILE)}
        chosen, _ = train_arms(config, images, load_architecture(pretrained), arms, chain.scratch / "arms")
        found = {"top1": [each.top1 for each in chosen], "steps": chosen[0].steps}
        found |= {"knn": read_record(pretrained).metrics["pretrain/knn"], "images": len(images.indices(TRAIN))}
        write_json(kept, found)
    result: dict[str, Any] = read_json(kept)
    return result


def main() -> None:
    figures = {name: [measured(setting, seed) for seed in BACKBONE_SEEDS] for name, setting in SETTINGS.items()}
    rows = []
    for (name, each), (_, _, epochs) in zip(figures.items(), SETTINGS.values(), strict=True):
        backbones = [statistics.fmean(one["top1"]) * 100 for one in each]
        rows.append(
            {
                "RotNet": name,
                "fine-tuned top-1 %, mean": f"{statistics.fmean(backbones):.1f}",
                "by backbone": ", ".join(f"{value:.1f}" for value in backbones),
                "kNN %": ", ".join(f"{one['knn'] * 100:.1f}" for one in each),
                "images passed": f"{epochs * ROTATIONS * each[0]['images']:,}",
            }
        )
    first = next(iter(figures.values()))[0]
    conditions = (
        f"CIFAR-10 (JPEG) sample, {first['images']} images without labels, 25 labels per class, resnet8; "
        f"{len(BACKBONE_SEEDS)} backbones, {len(LABEL_SEEDS)} label seeds, {first['steps']} steps of fine-tuning. "
        "Accuracy on the validation split."
    )
    leave(NAME, conditions, {"settings": figures}, markdown(rows))


if __name__ == "__main__":
    main()
