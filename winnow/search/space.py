"""The search space: each point is a short chain of candidates as `params.yaml` holds them.

    Point("prune", macs=0.35, hint="attention", int8=True)  ->  {"found": {prune ...}, "found-int8": {quantize ...}}

The optimiser proposes points in round numbers, so that equal ones are recognised. The candidates are ordinary ones: the
same steps make them, and the chosen ones go into params.yaml unchanged.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from winnow.config import Config, NoPretraining, Search
from winnow.config.backbones import has_feature_maps
from winnow.config.search import MAX_MACS, Structure
from winnow.config.weights import NO_WEIGHTS

MACS_STEP = 0.05
WIDTHS = (0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)
FIRST_WIDTHS = (0.75, 0.5)
HINTS = ("none", "features", "attention", "pretrained", "embeddings")
IMPORTANCES = ("magnitude", "taylor", "lamp")


class ParameterSuggester(Protocol):
    """The interface of Optuna's trial by which parameters are suggested."""

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        """Return one of the choices."""

    def suggest_float(self, name: str, low: float, high: float, *, step: float) -> float:
        """Return `low` plus a multiple of `step`, at most `high`."""


@dataclass(frozen=True)
class Point:
    """One point of the search space."""

    structure: Structure
    macs: float
    """The share of dense's multiply-adds that is kept; 1 for a student, which has its own."""
    hint: str
    importance: str = "magnitude"
    """The channel importance; for pruning only."""
    int8: bool = False
    width: float = 1.0
    """The student's width as a share of its backbone's."""


def available_hints(config: Config) -> list[str]:
    """Return the hints that can be learned: "pretrained" with a pretrained backbone, "attention" where dense has maps,
    "embeddings" with a large network.
    """
    unavailable = set()
    if config.teacher.weights == NO_WEIGHTS:
        unavailable.add("embeddings")
    if isinstance(config.pretrain, NoPretraining):
        unavailable.add("pretrained")
    if not has_feature_maps(config.pretrain.backbone):
        unavailable.add("attention")
    return [hint for hint in HINTS if hint not in unavailable]


def propose_point(trial: ParameterSuggester, settings: Search, hints: list[str]) -> Point:
    """Return the optimiser's next point. `hints`: those that are available."""
    structure: Structure = trial.suggest_categorical("structure", list(settings.structures))
    macs = width = 1.0
    if structure == "student":
        width = trial.suggest_categorical("width", list(WIDTHS))
    else:
        macs = round(trial.suggest_float("macs", settings.least_macs, MAX_MACS, step=MACS_STEP), 4)
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


def initial_points(settings: Search, hints: list[str]) -> list[dict[str, Any]]:
    """Return the parameters of the first trials, before the optimiser has results to learn from.

    `hints`: those that are available; embeddings are learned where there are some, as by the candidates in params.yaml.
    """
    hint = "embeddings" if "embeddings" in hints else "none"
    shares = [share for share in (0.5, 0.25) if share > settings.least_macs]
    points: list[dict[str, Any]] = []
    for structure in settings.structures:
        sizes = [{"macs": _on_grid(share, settings)} for share in shares]
        points += [
            {"structure": structure, **size, "hint": hint}
            for size in ([{"width": width} for width in FIRST_WIDTHS] if structure == "student" else sizes)
        ]
    for point in points:
        if point["structure"] == "prune":
            point["importance"] = "magnitude"
        if settings.int8 == "both":
            point["int8"] = True
    return points


def _on_grid(share: float, settings: Search) -> float:
    return round(settings.least_macs + round((share - settings.least_macs) / MACS_STEP) * MACS_STEP, 4)


def candidate_names(name: str) -> tuple[str, str]:
    """Return the names that the candidates of a search called `name` may have: the network, and its int8 file."""
    return name, f"{name}-int8"


def candidate_chain(
    point: Point, config: Config, epochs: int, name: str = "found", overflow_safe: bool = False
) -> dict[str, dict[str, Any]]:
    """Return a point's candidates as in `params.yaml`, the parent first. `overflow_safe`: for processors without VNNI.

    Recovery mirrors no image where fine-tuning mirrors none; data.mirrors, data.colour and data.scale hold as for all
    candidates.
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
        "teacher": "auto",
        "temperature": 4.0,
        "teacher_weight": 0.9,
        "images": "all",
        "hint": point.hint,
        "hint_weight": 1.0,
        "augmentation": {
            "crop_scale_min": 0.6,
            # With data.mirrors off, loading the configuration turns flips off; this is for when it is on again.
            "flip": config.finetune.augmentation.flip or not config.data.mirrors,
            "jitter": 0.0,
            "grayscale": 0.0,
        },
        "seed": settings.seed,
    }
    candidates = {name: {"from": "dense", **STRUCTURES[point.structure](point, settings), "recovery": recovery}}
    if point.int8:
        candidates[candidate_names(name)[1]] = {
            "from": name,
            "method": "quantize",
            "scheme": "static",
            "calibration_images": 500,
            "preset": "mixed",
            "overflow_safe": overflow_safe,
            "seed": settings.seed,
        }
    return candidates


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
