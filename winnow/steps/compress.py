"""Step 4, once per candidate: make it from its parent by its method, then export, check and measure the file."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from winnow.compression import write_candidate
from winnow.compression.method_inputs import MethodInputs, NetworkFolder, TeacherCacheFolder, backbone_loader
from winnow.compression.recovery import learns_from_large_network
from winnow.config import ROOT, Candidate, Config, Distill, Probe, may_train
from winnow.data.dataset import load_images
from winnow.data.splits import draw_label_budget, visible_labels
from winnow.deploy.candidate_card import finish_candidate
from winnow.deploy.onnx_session import MODEL
from winnow.errors import ConfigError
from winnow.evaluation.metrics import VALIDATION_LOGITS
from winnow.models.backbones import ARCHITECTURE_FILE, WEIGHTS_FILE
from winnow.records import CARD, CandidateRecord, describe_files, publish, record_digest, write_record
from winnow.records.candidate import candidate_details
from winnow.training.stored_pseudo_labels import read_pseudo_labels

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CandidateFolders:
    """The folders that a candidate is made from."""

    data: Path
    pretrain: Path
    candidates: Path
    scratch: Path
    """Checkpoints of this candidate with these settings alone: training resumes from them."""
    answers: Path | None = None
    """Cached teacher outputs, shared by all candidates (winnow/compression/teacher_cache.py); None: no cache."""
    embedded: Path | None = None
    """The folder of embed; None: there is no large network."""


def compress(config: Config, name: str, folders: CandidateFolders, out: Path) -> CandidateRecord:
    """Make candidate `name` of config.candidates from its parent's folder and write it to `out`."""
    if name not in config.candidates:
        raise ConfigError(f"candidates: there is no candidate {name!r}; valid: {', '.join(config.candidates)}")
    settings = config.candidates[name]
    parent, dense = folders.candidates / settings.parent, folders.candidates / ROOT
    images = load_images(folders.data)
    budget = draw_label_budget(images, config.data.label_budget, config.finetune.seeds[0])
    inputs = MethodInputs(
        images,
        budget,
        visible_labels(images, budget),
        parent=NetworkFolder(parent),
        dense=NetworkFolder(dense),
        load_backbone=backbone_loader(folders.pretrain),
        scratch=folders.scratch,
        teacher_cache=TeacherCacheFolder(folders.answers, record_digest(dense)) if folders.answers else None,
        pseudo_labels_NC=read_pseudo_labels(dense, images) if may_train(settings) else None,
        teacher=folders.embedded,
    )
    lineage = [*CandidateRecord.read(parent).details.lineage, name]
    log.info("%s: %s from %s", name, settings.method, settings.parent)
    with publish(out) as folder:
        result = write_candidate(settings, inputs, folder)
        metrics, details = finish_candidate(
            folder,
            name=name,
            method=settings.method,
            lineage=lineage,
            images=images,
            budget=budget,
            dense=dense,
            parent=parent,
        )
        files = [
            file
            for file in (MODEL, CARD, VALIDATION_LOGITS, WEIGHTS_FILE, ARCHITECTURE_FILE)
            if (folder / file).is_file()
        ]
        record = CandidateRecord(
            step="compress",
            name=name,
            parameters=settings.model_dump(mode="json", by_alias=True),
            inputs={
                "data": record_digest(folders.data),
                settings.parent: record_digest(parent),
                ROOT: record_digest(dense),
                **_further_inputs(settings, folders, inputs),
            },
            metrics=metrics,
            details=candidate_details(details, result),
            artifacts=describe_files(folder, *files),
        )
        write_record(folder, record)
    log.info("%s: %s", name, _describe_metrics(metrics))
    return record


def _further_inputs(settings: Candidate, folders: CandidateFolders, inputs: MethodInputs) -> dict[str, str]:
    """Return the digests of pretrain and of embed where the method reads them."""
    recovery = settings.training
    is_student = isinstance(settings, Distill) and settings.student != "same" and settings.start == "auto"
    is_hinted = recovery is not None and recovery.hint == "pretrained"
    digests = {"pretrain": record_digest(folders.pretrain)} if is_student or is_hinted else {}
    is_taught = recovery is not None and learns_from_large_network(recovery, inputs)
    if folders.embedded is not None and (is_taught or isinstance(settings, Probe)):
        digests["embed"] = record_digest(folders.embedded)
    return digests


def _describe_metrics(metrics: dict[str, float]) -> str:
    """Return one line for the terminal."""
    top1 = f"top-1 {metrics['quality/top1'] * 100:.1f} %, " if "quality/top1" in metrics else ""
    return (
        f"{top1}agreement with dense {metrics['quality/agreement'] * 100:.1f} %, "
        f"{metrics['size/parameters'] / 1e6:.2f} M parameters, {metrics['size/mb']:.2f} MB"
    )
