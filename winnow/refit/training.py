"""Refit: dense and the winner's chain of methods trained once more, on training and validation labels.

Nothing is chosen again. dense takes the learning rate, the starting weights and the seed that it had; each network of
the chain keeps its structure (channels, ranks, zeros, shared values) and learns on from its own weights by its own
recovery, with the refitted dense as teacher; a student begins anew, an int8 file is quantized again by the recipe that
was chosen. So the file computes what the measured one computes, in the same time.

Labelled validation images count as training images here, so every rule of the methods (steps by the number of images,
calibration images, unlabelled pool) holds as written. The test split is not read.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from winnow.compression import METHODS
from winnow.compression.cluster import fixed_ties
from winnow.compression.method_inputs import Inputs
from winnow.compression.quantize import recipe_of, static_rungs
from winnow.compression.recovery import recover
from winnow.compression.sparsify import fixed_zeros
from winnow.config import ROOT, Candidate, Cluster, Config, Distill, Quantize, Recovered, Sparsify
from winnow.data.dataset import TRAIN, VALIDATION, ImageSet
from winnow.data.splits import label_budget, visible_labels
from winnow.deploy.onnx_export import export_onnx
from winnow.deploy.onnx_session import MODEL
from winnow.models.backbones import load_architecture, load_model, save_model
from winnow.records import StepRecord
from winnow.training.finetuning import learn, start
from winnow.training.loop import NO_HOOKS, Checkpoint, Hooks, Row
from winnow.training.starting_weights import starting_weights

log = logging.getLogger(__name__)

KEPT: dict[type, Callable[[], Hooks]] = {Sparsify: fixed_zeros, Cluster: fixed_ties}
"""What a method holds in place while its network learns on, beyond the shapes of its layers."""
Records = Mapping[str, StepRecord]


@dataclass(frozen=True)
class Sources:
    """What a refit reads and where it trains."""

    pretrain: Path
    candidates: Path
    scratch: Path
    """Checkpoints and the networks of the chain: an interrupted refit goes on from there."""


def with_validation_labels(images: ImageSet) -> ImageSet:
    """Return the same images with every labelled validation image in the training split."""
    split_N = np.array(images.split_N)
    split_N[images.indices(VALIDATION, labelled=True)] = TRAIN
    return dataclasses.replace(images, split_N=split_N)


def known_labels(config: Config, images: ImageSet) -> NDArray[np.int64]:
    """Return the sorted indices of the images whose labels a refit learns: dense's label budget, and validation."""
    budget = label_budget(images, config.data.label_budget, config.finetune.seeds[0])
    return np.sort(np.concatenate([budget, images.indices(VALIDATION, labelled=True)]))


def chain_of(config: Config, lineage: Sequence[str]) -> list[str]:
    """Return the candidates of a lineage that a refit of its last one has to make, in their order, without dense.

    One that starts from its own selected weights, or anew, needs no refit of its parent.
    """
    chain: list[str] = []
    for name in reversed(lineage):
        if name == ROOT:
            break
        chain.insert(0, name)
        if not _starts_from_parent(config.candidates[name]):
            break
    return chain


def _starts_from_parent(settings: Candidate) -> bool:
    return isinstance(settings, Quantize) or (isinstance(settings, Distill) and settings.student == "same")


def _needs_dense(config: Config, chain: Sequence[str]) -> bool:
    recoveries = (getattr(config.candidates[name], "recovery", None) for name in chain)
    taught = any(recovery is not None and recovery.teacher == ROOT for recovery in recoveries)
    return taught or _starts_from_parent(config.candidates[chain[0]])


def obstacle(config: Config, records: Records, chain: Sequence[str]) -> str:
    """Return why the chain cannot be made again with the same structure; empty where it can."""
    for name in chain:
        settings = config.candidates[name]
        if isinstance(settings, Quantize) and as_chosen(settings, records[name]) is None:
            return (
                f"{name} keeps layers in float that were chosen on validation labels, and these labels are to be "
                "learned; scheme: static or qat can be refitted"
            )
    return ""


def as_chosen(settings: Quantize, record: StepRecord) -> Quantize | None:
    """Return the settings that make the int8 file as it was chosen, without choosing; None where there are none."""
    if settings.scheme == "controlled":
        return None
    if settings.scheme != "ladder":
        return settings
    chosen = record.details["chosen"]
    if chosen == "trained":
        return settings.model_copy(update={"scheme": "qat"})
    recipe = static_rungs(recipe_of(settings)).get(chosen)
    if recipe is None:
        return None
    return settings.model_copy(update={"scheme": "static", "recovery": None, **dataclasses.asdict(recipe)})


def refit_chain(config: Config, images: ImageSet, records: Records, chain: Sequence[str], at: Sources) -> Trainings:
    """Train the chain again, dense before it where it teaches or is built on -> the last network, and all curves.

    Raises TrainingError where a loss is no longer a number.
    """
    known, added = known_labels(config, images), with_validation_labels(images)
    networks, curves = at.scratch / "networks", {}
    labels_N, dense = visible_labels(added, known), at.candidates / ROOT
    if _needs_dense(config, chain):
        dense = networks / ROOT
        curves[ROOT] = _refit_dense(config, added, known, records[ROOT], at, dense)
    made = dense
    for name in chain:
        settings = config.candidates[name]
        parent = made if _starts_from_parent(settings) else dense
        inputs = Inputs(added, known, labels_N, parent, dense, at.pretrain, at.scratch / name)
        log.info("refit: %s on %d labels", name, len(known))
        made = networks / name
        made.mkdir(parents=True, exist_ok=True)
        curves[name] = _refit_candidate(settings, inputs, records[name], at.candidates / name, made)
    return Trainings(made, curves)


@dataclass(frozen=True)
class Trainings:
    """What a refit trained."""

    folder: Path
    """Holds model.onnx, and weights where the file is float."""
    curves: dict[str, list[Row]]
    """By candidate; empty where nothing was trained, as by static quantization."""


def _refit_dense(
    config: Config, images: ImageSet, known: NDArray[np.int64], record: StepRecord, at: Sources, out: Path
) -> list[Row]:
    """Fine-tune again from the starting weights, seed and rate of `record` on the labels of `known` -> curves."""
    architecture, seed = load_architecture(at.pretrain), config.finetune.seeds[0]
    starting = starting_weights(config, at.pretrain, architecture)
    rows: list[dict[str, Any]] = record.details["arms"][starting.main]
    rate = float(next(row["learning_rate"] for row in rows if row["seed"] == seed))
    log.info("refit: %s on %d labels, rate %g", ROOT, len(known), rate)
    model = start(architecture, starting.arms[starting.main], seed)
    _, curves = learn(config, images, model, known, (seed, rate), Checkpoint(at.scratch / ROOT, "finetune"))
    out.mkdir(parents=True, exist_ok=True)
    save_model(out, model, architecture)
    export_onnx(model, architecture, out / MODEL)
    return curves


def _refit_candidate(settings: Candidate, inputs: Inputs, record: StepRecord, selected: Path, out: Path) -> list[Row]:
    """Make one candidate again with the structure of `selected` and leave it in `out` -> curves."""
    if isinstance(settings, Quantize):
        quantized = as_chosen(settings, record)
        assert quantized is not None, "`obstacle` was not asked"
        curves: list[Row] = METHODS[Quantize](quantized, inputs, out).get("curves", [])
        return curves
    if isinstance(settings, Distill):
        curves = METHODS[Distill](settings, inputs, out)["curves"]
        return curves
    assert isinstance(settings, Recovered)
    model, architecture = load_model(selected)
    hooks = KEPT[type(settings)]() if type(settings) in KEPT else NO_HOOKS
    curves = recover(model, settings.recovery, inputs, hooks=hooks)
    save_model(out, model, architecture)
    export_onnx(model, architecture, out / MODEL)
    return curves
