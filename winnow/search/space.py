"""What a trial is: a short chain of candidates that `params.yaml` could hold.

    Point("prune", macs=0.35, hint="attention", int8=True)  ->  {"found": {prune ...}, "found-int8": {quantize ...}}

A point is what an optimiser proposes, in round numbers, so that two that are the same are seen to be. What comes of it
are ordinary candidates: the same steps make them, and the chosen ones go into the tree as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from winnow.config import Config, NoPretraining, Search
from winnow.config.backbones import has_maps
from winnow.config.search import MOST_MACS, Structure

MACS_STEP = 0.05
WIDTHS = (0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)
FIRST_WIDTHS = (0.75, 0.5)
HINTS = ("none", "features", "attention", "pretrained")
IMPORTANCES = ("magnitude", "taylor", "lamp")


class Proposes(Protocol):
    """What the optimiser asks with: Optuna's trial."""

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        """One of these."""

    def suggest_float(self, name: str, low: float, high: float, *, step: float) -> float:
        """A multiple of `step` above `low`."""


@dataclass(frozen=True)
class Point:
    """One place in the space."""

    structure: Structure
    macs: float
    """Share of dense's multiply-adds that stays; 1 of a student, which has its own."""
    hint: str
    importance: str = "magnitude"
    """Of pruning."""
    int8: bool = False
    width: float = 1.0
    """Of a student, as a share of its backbone's."""


def hints_of(config: Config) -> list[str]:
    """Those that dense can give: the pretrained backbone's where there is one, maps where it and students have them."""
    missing = set()
    if isinstance(config.pretrain, NoPretraining):
        missing.add("pretrained")
    if not has_maps(config.pretrain.backbone):
        missing.add("attention")
    return [hint for hint in HINTS if hint not in missing]


def propose(trial: Proposes, settings: Search, hints: list[str]) -> Point:
    """The optimiser's next point; `hints`: those that may be tried."""
    structure: Structure = trial.suggest_categorical("structure", list(settings.structures))
    macs = width = 1.0
    if structure == "student":
        width = trial.suggest_categorical("width", list(WIDTHS))
    else:
        macs = round(trial.suggest_float("macs", settings.least_macs, MOST_MACS, step=MACS_STEP), 4)
    return Point(
        structure,
        macs,
        width=width,
        hint=trial.suggest_categorical("hint", hints),
        importance=trial.suggest_categorical("importance", list(IMPORTANCES)) if structure == "prune" else "magnitude",
        int8={"always": True, "never": False}[settings.int8]
        if settings.int8 != "both"
        else trial.suggest_categorical("int8", [True, False]),
    )


def first_points(settings: Search) -> list[dict[str, Any]]:
    """What is tried before the optimiser has anything to learn from, as it would have proposed it."""
    shares = [share for share in (0.5, 0.25) if share > settings.least_macs]
    found: list[dict[str, Any]] = []
    for kind in settings.structures:
        sizes = [{"macs": _on_grid(share, settings)} for share in shares]
        found += [
            {"structure": kind, **size, "hint": "none"}
            for size in ([{"width": width} for width in FIRST_WIDTHS] if kind == "student" else sizes)
        ]
    for each in found:
        if each["structure"] == "prune":
            each["importance"] = "magnitude"
        if settings.int8 == "both":
            each["int8"] = True
    return found


def _on_grid(share: float, settings: Search) -> float:
    return round(settings.least_macs + round((share - settings.least_macs) / MACS_STEP) * MACS_STEP, 4)


def chain(
    point: Point, config: Config, epochs: int, name: str = "found", overflow_safe: bool = False
) -> dict[str, dict[str, Any]]:
    """Candidates of `params.yaml`, the parent first. `overflow_safe`: for a processor whose sums would saturate.

    Where fine-tuning mirrors no image, they do not, either; data.mirrors, data.colour and data.scale hold for them as
    for all candidates.
    """
    settings = config.search
    recovery = {
        "epochs": epochs,
        "min_steps": epochs * -(-settings.min_steps // settings.epochs),
        "batch_size": settings.batch_size,
        "optimiser": {
            "learning_rate": settings.learning_rate,
            "momentum": 0.9,
            "weight_decay": 5.0e-4,
            "warmup": 0.1,
        },
        "teacher": "dense",
        "temperature": 4.0,
        "teacher_weight": 0.9,
        "images": "all",
        "hint": point.hint,
        "hint_weight": 1.0,
        "augmentation": {
            "crop_scale_min": 0.6,
            # Where data.mirrors says no, that switch does it at each load, also after it was set back.
            "flip": config.finetune.augmentation.flip or not config.data.mirrors,
            "jitter": 0.0,
            "grayscale": 0.0,
        },
        "seed": settings.seed,
    }
    made = {name: {"from": "dense", **STRUCTURES[point.structure](point, settings), "recovery": recovery}}
    if point.int8:
        made[f"{name}-int8"] = {
            "from": name,
            "method": "quantize",
            "scheme": "static",
            "calibration_images": 500,
            "preset": "mixed",
            "overflow_safe": overflow_safe,
            "seed": settings.seed,
        }
    return made


def _pruned(point: Point, _settings: Search) -> dict[str, Any]:
    return {
        "method": "prune",
        "remove": {"macs": round(1 - point.macs, 4)},
        "importance": point.importance,
        "max_channels": 0.9,
        "round_to": 8,
        "rounds": 1,
        "round_epochs": 1,
        "sparse_learning": {"epochs": 0, "strength": 5.0e-4},
    }


def _factorized(point: Point, _settings: Search) -> dict[str, Any]:
    return {"method": "factorize", "remove": {"macs": round(1 - point.macs, 4)}, "round_to": 8}


def _student(point: Point, settings: Search) -> dict[str, Any]:
    return {"method": "distill", "student": settings.student, "width": point.width}


STRUCTURES: dict[Structure, Callable[[Point, Search], dict[str, Any]]] = {
    "prune": _pruned,
    "factorize": _factorized,
    "student": _student,
}
