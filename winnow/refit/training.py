"""Refit: train dense and the winner's chain of methods once more, on training and validation labels.

Nothing is selected again. dense keeps its learning rate, starting weights and seed. Each network of the chain keeps its
structure (channels, ranks, zeros, shared values) and trains on from its own weights with its own recovery; where that
learns from dense or its pseudo-labels, from the refitted ones. A student starts as the selected one did; an int8 file
is quantized again with the recipe that was selected. So the refitted file has the graph and the latency of the measured
one.

Labelled validation images count as training images here, so every rule of the methods (steps by the number of images,
calibration images, unlabelled pool) applies as written. The test split is not read.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from winnow.compression import write_candidate, write_network
from winnow.compression.cluster import shared_value_hooks
from winnow.compression.method_inputs import MethodInputs, NetworkFolder, backbone_loader
from winnow.compression.quantize import quantization_recipe, static_rungs
from winnow.compression.recovery import recover
from winnow.compression.sparsify import fixed_zero_hooks
from winnow.config import ROOT, Candidate, Cluster, Config, Distill, Probe, Quantize, Sparsify, TrainedCandidate
from winnow.data.dataset import TRAIN, VALIDATION, ImageSet
from winnow.data.splits import known_label_indices, visible_labels
from winnow.models.backbones import load_architecture, load_model
from winnow.models.network import Network
from winnow.records import CandidateRecord, CurveRow
from winnow.records.candidate import QuantizeDetails
from winnow.records.finetune import FinetuneDetails
from winnow.training.checkpoint import Checkpoint
from winnow.training.finetuning import initial_model, train_on_labels
from winnow.training.loop import NO_HOOKS, Hooks, joined_curves
from winnow.training.starting_weights import starting_weights
from winnow.training.stored_pseudo_labels import has_pseudo_labels, read_pseudo_labels, write_pseudo_labels
from winnow.training.unlabelled_images import unlabelled_training

log = logging.getLogger(__name__)

STRUCTURE_HOOKS: dict[type, Callable[[], Hooks]] = {Sparsify: fixed_zero_hooks, Cluster: shared_value_hooks}
"""Config type -> hooks that keep a method's structure during training, beyond the shapes of the layers."""
Records = Mapping[str, CandidateRecord]


@dataclass(frozen=True)
class RefitFolders:
    """The folders that a refit reads, and its scratch folder."""

    pretrain: Path
    candidates: Path
    scratch: Path
    """Checkpoints and the networks of the chain, from which an interrupted refit resumes."""
    embedded: Path | None = None
    """The folder of embed: for pseudo-labels, the method probe and the hint `embeddings`."""


def with_validation_labels(images: ImageSet) -> ImageSet:
    """Return the same images with every labelled validation image in the training split."""
    split_N = np.array(images.split_N)
    split_N[images.indices(VALIDATION, labelled=True)] = TRAIN
    return dataclasses.replace(images, split_N=split_N)


def refit_indices(config: Config, images: ImageSet) -> NDArray[np.int64]:
    """Return sorted indices of the images whose labels a refit learns: dense's label budget and validation."""
    return known_label_indices(images, config.data.label_budget, config.finetune.seeds[0])


def refit_order(config: Config, lineage: Sequence[str]) -> list[str]:
    """Return the candidates of a lineage that a refit of the last one has to train, in order, without dense.

    A candidate that starts from its own selected weights, or from random ones, needs no refit of its parent.
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
    recoveries = (config.candidates[name].training for name in chain)
    taught = any(recovery is not None and recovery.teacher != "none" for recovery in recoveries)
    return taught or _starts_from_parent(config.candidates[chain[0]])


def refit_obstacle(config: Config, records: Records, chain: Sequence[str]) -> str:
    """Return the reason why the chain cannot be trained again with the same structure; empty if it can."""
    for name in chain:
        settings = config.candidates[name]
        if isinstance(settings, Quantize) and settings_as_chosen(settings, records[name]) is None:
            return (
                f"{name} keeps layers in float that were selected on validation labels, which a refit would train on; "
                "scheme: static or qat can be refitted"
            )
    return ""


def settings_as_chosen(settings: Quantize, record: CandidateRecord) -> Quantize | None:
    """Return settings that make the selected int8 file without selecting again; None if there are none."""
    if settings.scheme == "controlled":
        return None
    if settings.scheme != "ladder":
        return settings
    assert isinstance(record.details, QuantizeDetails)
    chosen = record.details.chosen
    if chosen == "trained":
        return settings.model_copy(update={"scheme": "qat"})
    recipe = static_rungs(quantization_recipe(settings)).get(chosen)
    if recipe is None:
        return None
    return settings.model_copy(update={"scheme": "static", "recovery": None, **dataclasses.asdict(recipe)})


def refit_chain(
    config: Config, images: ImageSet, records: Records, chain: Sequence[str], sources: RefitFolders
) -> RefitResult:
    """Train the chain again, and dense first if it is a teacher or a parent; return the last network and all curves.

    Raises TrainingError when a loss is no longer a number.
    """
    known, refit_images = refit_indices(config, images), with_validation_labels(images)
    networks, curves = sources.scratch / "networks", {}
    labels_N, dense = visible_labels(refit_images, known), sources.candidates / ROOT
    if _needs_dense(config, chain):
        dense = networks / ROOT
        curves[ROOT] = _refit_dense(config, refit_images, known, records[ROOT], sources, dense)
    folder = dense
    for name in chain:
        settings = config.candidates[name]
        parent = folder if _starts_from_parent(settings) else dense
        inputs = MethodInputs(
            refit_images,
            known,
            labels_N,
            parent=NetworkFolder(parent),
            dense=NetworkFolder(dense),
            load_backbone=backbone_loader(sources.pretrain),
            scratch=sources.scratch / name,
            pseudo_labels_NC=read_pseudo_labels(dense, refit_images),
            teacher=sources.embedded,
        )
        log.info("refit: %s on %d labels", name, len(known))
        folder = networks / name
        folder.mkdir(parents=True, exist_ok=True)
        curves[name] = _refit_candidate(settings, inputs, records[name], sources.candidates / name, folder)
    return RefitResult(folder, curves)


@dataclass(frozen=True)
class RefitResult:
    """The result of a refit."""

    folder: Path
    """Contains model.onnx, and weights if the file is float."""
    curves: dict[str, list[CurveRow]]
    """Candidate -> curves; empty where nothing is trained, as in static quantization."""


def _refit_dense(
    config: Config,
    images: ImageSet,
    known: NDArray[np.int64],
    record: CandidateRecord,
    sources: RefitFolders,
    out: Path,
) -> list[CurveRow]:
    """Fine-tune on the labels of `known` with starting weights, seed and rate of `record`, and return the curves."""
    architecture, seed = load_architecture(sources.candidates / ROOT), config.finetune.seeds[0]
    starting = starting_weights(config, sources.pretrain, architecture)
    assert isinstance(record.details, FinetuneDetails)
    trainings = record.details.arms.trainings(starting.main)
    rate = next(training.learning_rate for training in trainings if training.seed == seed)
    log.info("refit: %s on %d labels, rate %g", ROOT, len(known), rate)
    state = starting.arms[starting.main]
    model, settings = initial_model(architecture, state, seed), config.finetune.for_arm(state is not None)
    checkpoint = Checkpoint(sources.scratch / ROOT, "finetune")
    _, curves = train_on_labels(settings, images, model, known, (seed, rate), checkpoint)
    unlabelled, pseudo_labels_NC = record.details.unlabelled, None
    if unlabelled is not None and unlabelled.kept:
        train_on = unlabelled_training(config, images, sources.embedded)
        assert train_on is not None
        result = train_on(model, known, Checkpoint(sources.scratch / ROOT, "unlabelled"))
        curves, pseudo_labels_NC = joined_curves(curves, result.curves), result.pseudo_labels_NC
    out.mkdir(parents=True, exist_ok=True)
    write_network(Network(model, architecture), out)
    if pseudo_labels_NC is not None and has_pseudo_labels(sources.candidates / ROOT):
        write_pseudo_labels(out, pseudo_labels_NC, images)
    return curves


def _refit_candidate(
    settings: Candidate, inputs: MethodInputs, record: CandidateRecord, selected: Path, out: Path
) -> list[CurveRow]:
    """Train one candidate again with the structure of `selected`, write it to `out`, and return the curves."""
    if isinstance(settings, Quantize):
        quantized = settings_as_chosen(settings, record)
        assert quantized is not None, "`refit_obstacle` was not called"
        return write_candidate(quantized, inputs, out).curves
    if isinstance(settings, Distill | Probe):
        return write_candidate(settings, inputs, out).curves
    assert isinstance(settings, TrainedCandidate)
    model, architecture = load_model(selected)
    hooks = STRUCTURE_HOOKS[type(settings)]() if type(settings) in STRUCTURE_HOOKS else NO_HOOKS
    curves = recover(model, settings.recovery, inputs, hooks=hooks)
    write_network(Network(model, architecture), out)
    return curves
