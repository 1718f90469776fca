"""Forecast of the candidates: each method runs on few made-up images, and its training counts by its steps."""

from __future__ import annotations

import shutil
import time
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from tasks.forecast.data_counts import Cost
from tasks.forecast.trial_networks import EMBED, TrialNetworks, describe_steps
from winnow.compression import write_candidate
from winnow.compression.fake_quantization import simulated_int8
from winnow.compression.method_inputs import MethodInputs, NetworkFolder
from winnow.compression.quantize import quantization_recipe, static_rungs
from winnow.compression.recovery import distillation_loss, frozen, image_targets, teacher_kind, with_projector
from winnow.compression.teacher_cache import MAX_BYTES, CacheHit, is_cacheable, row_bytes
from winnow.config import ROOT, Candidate, Probe, Propagation, Prune, Quantize, Recovery, TrainedCandidate
from winnow.config.candidates import SparseLearning
from winnow.data.dataset import TRAIN, VALIDATION
from winnow.deploy.batch_inference import predict_file
from winnow.deploy.candidate_card import finish_candidate
from winnow.deploy.onnx_export import export_onnx
from winnow.deploy.onnx_session import MODEL
from winnow.models.backbones import load_backbone, load_model
from winnow.training.stored_pseudo_labels import are_labels_few

CALIBRATED = (8, 72)
"""Two calibration set sizes: the difference of their times gives the cost per image without the start-up."""


class CandidateCosts:
    """Runs each method once on the networks of a trial; candidates share their parents' files."""

    def __init__(self, trial: TrialNetworks) -> None:
        self.trial = trial
        self._cached_steps: dict[str, int] = {}
        """Settings of the teacher's views -> steps whose teacher outputs an earlier candidate has cached."""

    def cost(self, name: str) -> Cost:
        """Return the cost of a candidate, and write its file if it is missing."""
        settings = self.trial.config.candidates[name]
        if isinstance(settings, Quantize):
            return self._quantized(name, settings)
        if isinstance(settings, Probe):
            self.trial.ensure_teacher()
            seconds = self._make(name, settings)
            finish_seconds, disk_mb = self.finish(name)
            return Cost(seconds + finish_seconds, disk_mb, "logistic regression")
        assert isinstance(settings, TrainedCandidate)
        recovery = settings.recovery
        method_seconds = self._make(name, _shortest(settings))
        per_step = self._per_step(load_model(self.trial.folder / name)[0], recovery)
        steps = settings.steps_for(self.trial.counts.train)
        steps_done = _shortest(settings).steps_for(len(self.trial.images.indices(TRAIN)))
        finish_seconds, disk_mb = self.finish(name)
        basis = describe_steps(steps, recovery.batch_size, per_step)
        return Cost(method_seconds + max(0, steps - steps_done) * per_step + finish_seconds, disk_mb, basis)

    def _quantized(self, name: str, settings: Quantize) -> Cost:
        plain_static = settings.model_copy(update={"scheme": "static", "recovery": None})
        timings = [
            self._make(name, plain_static.model_copy(update={"calibration_images": count})) for count in CALIBRATED
        ]
        per_image = max(0.0, (timings[1] - timings[0]) / (CALIBRATED[1] - CALIBRATED[0]))
        images = min(settings.calibration_images, self.trial.counts.train)
        finish_seconds, disk_mb = self.finish(name)
        basis = f"{images} images at {per_image * 1e3:.0f} ms"
        seconds = timings[1] + max(0.0, per_image * (images - CALIBRATED[1]))
        if settings.scheme == "ladder":
            rungs = len(static_rungs(quantization_recipe(settings)))
            seconds, basis = seconds * rungs, f"up to {rungs} times {basis}"
        if settings.scheme in ("ladder", "controlled"):
            basis += ", layers that go back to float not counted"
        if settings.recovery is not None:
            training, steps = self._quantization_aware(settings.parent, settings.recovery)
            seconds, basis = seconds + training, f"{basis}, {steps}"
        return Cost(seconds + finish_seconds, disk_mb, basis)

    def _quantization_aware(self, parent: str, recovery: Recovery) -> tuple[float, str]:
        """Return the seconds of quantization-aware training, and their basis for users."""
        model = load_model(self.trial.folder / parent)[0]
        with simulated_int8(model):
            per_step = self._per_step(model, recovery)
        steps = recovery.steps_for(self.trial.counts.train)
        return steps * per_step, describe_steps(steps, recovery.batch_size, per_step)

    def _per_step(self, model: nn.Module, recovery: Recovery) -> float:
        inputs = self._method_inputs(ROOT, self.trial.folder / "scratch")
        dense = frozen(load_model(self.trial.folder / ROOT)[0])
        teacher = None
        if teacher_kind(recovery, inputs) == ROOT:
            teacher = CacheHit(self.trial.counts.classes) if self._is_cached(recovery) else dense
        targets = image_targets(recovery, inputs)
        student = with_projector(model, recovery, dense, targets)
        loss = distillation_loss(recovery, self.trial.architecture.image_size, teacher, dense, targets)
        return self.trial.microbenchmarks.seconds_per_step(student, loss, recovery.batch_size, recovery.optimiser)

    def _pseudo_labels(self) -> NDArray[np.float32] | None:
        """Return pseudo-labels where fine-tuning will probably make some, for recoveries to learn."""
        config, counts = self.trial.config, self.trial.counts
        is_propagated = isinstance(config.finetune.unlabelled, Propagation) and self.trial.has_teacher
        if not is_propagated or not are_labels_few(counts.budget, counts.train):
            return None
        return np.full((len(self.trial.images.labels_N), counts.classes), 1 / counts.classes, dtype=np.float32)

    def _is_cached(self, recovery: Recovery) -> bool:
        """Return whether an earlier candidate has cached all teacher outputs that this one needs."""
        rows = recovery.steps_for(self.trial.counts.train)
        if not is_cacheable(recovery) or rows * row_bytes(recovery.batch_size, self.trial.counts.classes) > MAX_BYTES:
            return False
        views = recovery.model_dump_json(include={"batch_size", "images", "augmentation", "seed"})
        before = self._cached_steps.get(views, 0)
        self._cached_steps[views] = max(before, rows)
        return before >= rows

    def _make(self, name: str, settings: Candidate) -> float:
        """Run the method on the random images; return its seconds. Writes the candidate's folder."""
        self.ensure(settings.parent)
        folder = self.trial.folder / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        scratch = self.trial.folder / "scratch" / name
        inputs = self._method_inputs(settings.parent, scratch)
        started = time.monotonic()
        write_candidate(settings, inputs, folder)
        shutil.rmtree(scratch, ignore_errors=True)
        return time.monotonic() - started

    def _method_inputs(self, parent: str, scratch: Path) -> MethodInputs:
        """Return the inputs of a method: the made-up images, all of them with labels, and untrained networks."""
        if self.trial.has_teacher:
            self.trial.ensure_teacher()
        return MethodInputs(
            self.trial.images,
            self.trial.images.indices(TRAIN),
            self.trial.images.labels_N,
            parent=NetworkFolder(self.trial.folder / parent),
            dense=NetworkFolder(self.trial.folder / ROOT),
            load_backbone=partial(load_backbone, self.trial.folder / "pretrain"),
            scratch=scratch,
            pseudo_labels_NC=self._pseudo_labels(),
            teacher=self.trial.folder / EMBED if self.trial.has_teacher else None,
        )

    def ensure(self, name: str) -> None:
        """Create the folder of a candidate, and of its parents, where it is missing."""
        if (self.trial.folder / name / MODEL).is_file():
            return
        if name == ROOT:
            model, architecture = load_model(self.trial.folder / ROOT)
            export_onnx(model, architecture, self.trial.folder / ROOT / MODEL)
        else:
            self.cost(name)

    def finish(self, name: str) -> tuple[float, float]:
        """Return (seconds to evaluate the file and write its card, MB of the folder) for all validation images."""
        folder, counts, indices = self.trial.folder / name, self.trial.counts, self.trial.images.indices(VALIDATION)
        started = time.monotonic()
        finish_candidate(
            folder,
            name=name,
            method="-",
            lineage=[name],
            images=self.trial.images,
            budget=self.trial.images.indices(TRAIN),
            dense=None,
        )
        prediction_started = time.monotonic()
        predict_file(folder / MODEL, self.trial.images.images_NHWC, indices)
        per_image = (time.monotonic() - prediction_started) / len(indices)
        size_bytes = sum(path.stat().st_size for path in folder.iterdir()) + counts.validation * counts.classes * 4
        return prediction_started - started + max(0, counts.validation - len(indices)) * per_image, size_bytes / 1e6


def _shortest(settings: TrainedCandidate) -> TrainedCandidate:
    """Return the settings with one epoch and nothing before it."""
    changes: dict[str, object] = {"recovery": settings.recovery.model_copy(update={"epochs": 1, "min_steps": 1})}
    if isinstance(settings, Prune):
        changes |= {"rounds": 1, "sparse_learning": SparseLearning()}
    return settings.model_copy(update=changes)
