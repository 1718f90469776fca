"""Step 4, once per candidate: make it from its parent by its one method, export, check and measure the file."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from winnow.compression import METHODS
from winnow.compression.method_inputs import Inputs
from winnow.config import ROOT, Config
from winnow.data.dataset import load_images
from winnow.data.splits import label_budget, visible_labels
from winnow.deploy.candidate_card import CARD, finish
from winnow.deploy.onnx_session import MODEL
from winnow.errors import ConfigError
from winnow.evaluation.metrics import LOGITS
from winnow.models.backbones import ARCHITECTURE, WEIGHTS
from winnow.records import StepRecord, describe, publish, read_record, record_digest, write_record

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Folders:
    """What a candidate is made from."""

    data: Path
    pretrain: Path
    candidates: Path
    scratch: Path
    """Checkpoints of this candidate with these settings alone: training goes on from what lies there."""
    answers: Path | None = None
    """What teachers said, shared by all candidates (winnow/compression/teacher_cache.py); None: nothing is kept."""


def compress(config: Config, name: str, folders: Folders, out: Path) -> StepRecord:
    """Make candidate `name` of config.candidates from its parent's folder and leave it in `out`."""
    if name not in config.candidates:
        raise ConfigError(f"candidates: no candidate is called {name!r}; valid: {', '.join(config.candidates)}")
    settings = config.candidates[name]
    parent, dense = folders.candidates / settings.parent, folders.candidates / ROOT
    images = load_images(folders.data)
    budget = label_budget(images, config.data.label_budget, config.finetune.seeds[0])
    labels_N = visible_labels(images, budget)
    inputs = Inputs(images, budget, labels_N, parent, dense, folders.pretrain, folders.scratch, folders.answers)
    lineage = [*read_record(parent).details["lineage"], name]
    log.info("%s: %s from %s", name, settings.method, settings.parent)
    with publish(out) as folder:
        made = METHODS[type(settings)](settings, inputs, folder)
        metrics, details = finish(
            folder,
            name=name,
            method=settings.method,
            lineage=lineage,
            images=images,
            budget=budget,
            dense=dense,
            parent=parent,
        )
        files = [file for file in (MODEL, CARD, LOGITS, WEIGHTS, ARCHITECTURE) if (folder / file).is_file()]
        record = StepRecord(
            step="compress",
            name=name,
            parameters=settings.model_dump(mode="json", by_alias=True),
            inputs={
                "data": record_digest(folders.data),
                settings.parent: record_digest(parent),
                ROOT: record_digest(dense),
            },
            metrics=metrics,
            details={**details, **made},
            artifacts=describe(folder, *files),
        )
        write_record(folder, record)
    log.info("%s: %s", name, _said(metrics))
    return record


def _said(metrics: dict[str, float]) -> str:
    """One line for the terminal."""
    top1 = f"top-1 {metrics['quality/top1'] * 100:.1f} %, " if "quality/top1" in metrics else ""
    return (
        f"{top1}agreement with dense {metrics['quality/agreement'] * 100:.1f} %, "
        f"{metrics['size/parameters'] / 1e6:.2f} M parameters, {metrics['size/mb']:.2f} MB"
    )
