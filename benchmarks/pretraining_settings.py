"""Compare settings of RotNet by fine-tuned accuracy at 25 labels per class and by the images processed in pretraining.

Each setting pretrains backbones from two seeds; each backbone is fine-tuned on three label seeds as in params.yaml, and
the first selects the learning rate. Accuracy is that on validation; the test split is not read. An interrupted run
resumes; delete .winnow/benchmarks/pretraining_settings* to start again.
"""

from __future__ import annotations

import statistics
from typing import Any

from safetensors.torch import load_file

from benchmarks.chain import Chain, configure, markdown_table, write_results
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
"""Name -> images per batch (each in four rotations), learning rate, epochs."""
ROTATIONS = 4


def measure(setting: tuple[int, float, int], seed: int) -> dict[str, Any]:
    """Return top1 by label seed and knn accuracy (fractions) of a backbone, fine-tuning steps and training images."""
    batch_size, learning_rate, epochs = setting
    overrides: dict[str, Any] = {
        "pretrain.batch_size": batch_size,
        "pretrain.optimiser.learning_rate": learning_rate,
        "pretrain.epochs": epochs,
    }
    config = configure({**overrides, "pretrain.seed": seed, "finetune.seeds": LABEL_SEEDS})
    chain = Chain(f"{NAME}-{batch_size}-{learning_rate:g}-{epochs}-seed{seed}", config)
    result_file = chain.folder / "measured.json"
    if not result_file.exists():
        images, pretrained = load_images(chain.ingest()), chain.pretrain()
        arms: dict[str, StateDict | None] = {"pretrained": load_file(pretrained / WEIGHTS_FILE)}
        trained, _ = train_arms(config, images, load_architecture(pretrained), arms, chain.scratch / "arms")
        figures = {"top1": [training.top1 for training in trained], "steps": trained[0].steps}
        figures |= {"knn": read_record(pretrained).metrics["pretrain/knn"], "images": len(images.indices(TRAIN))}
        write_json(result_file, figures)
    result: dict[str, Any] = read_json(result_file)
    return result


def main() -> None:
    figures = {name: [measure(setting, seed) for seed in BACKBONE_SEEDS] for name, setting in SETTINGS.items()}
    rows = []
    for (name, results), (_, _, epochs) in zip(figures.items(), SETTINGS.values(), strict=True):
        top1 = [statistics.fmean(result["top1"]) * 100 for result in results]
        rows.append(
            {
                "RotNet": name,
                "fine-tuned top-1 %, mean": f"{statistics.fmean(top1):.1f}",
                "by backbone": ", ".join(f"{value:.1f}" for value in top1),
                "kNN %": ", ".join(f"{result['knn'] * 100:.1f}" for result in results),
                "images processed": f"{epochs * ROTATIONS * results[0]['images']:,}",
            }
        )
    first = next(iter(figures.values()))[0]
    conditions = (
        f"CIFAR-10 (JPEG) sample, {first['images']} images without labels, 25 labels per class, resnet8; "
        f"{len(BACKBONE_SEEDS)} backbones, {len(LABEL_SEEDS)} label seeds, {first['steps']} steps of fine-tuning. "
        "Accuracy on the validation split."
    )
    write_results(NAME, conditions, {"settings": figures}, markdown_table(rows))


if __name__ == "__main__":
    main()
