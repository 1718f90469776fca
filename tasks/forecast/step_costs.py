"""Forecast of each step: time a small part of its work, and multiply by the units that the whole step needs.

Decoding is timed on the user's files; everything else on random images and untrained networks, whose speed is the same.
The methods themselves run unchanged, on few images. The forecast runs in a process of its own
(tasks/forecast/__main__.py), because the peak memory of that process is part of it.
"""

from __future__ import annotations

import ctypes
import gc
import shutil
import time
from contextlib import suppress
from functools import cache, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from tasks.forecast.benchmark_cost import benchmark_cost
from tasks.forecast.data_counts import Cost, Counts, Forecast
from tasks.forecast.microbenchmarks import Microbenchmarks, hash_rate, random_images, seconds_per_file
from tasks.project.peak_memory import measure_peak_memory
from winnow.compression import write_candidate
from winnow.compression.fake_quantization import simulated_int8
from winnow.compression.method_inputs import MethodInputs, NetworkFolder
from winnow.compression.quantize import quantization_recipe, static_rungs
from winnow.compression.recovery import distillation_loss, frozen, image_targets, teacher_kind, with_projector
from winnow.compression.teacher_cache import MAX_BYTES, CacheHit, is_cacheable, row_bytes
from winnow.config import (
    ROOT,
    Candidate,
    Config,
    DistillEmbeddings,
    Probe,
    Propagation,
    Prune,
    Quantize,
    Recovery,
    TrainedCandidate,
    TrainedPretraining,
    UnlabelledTraining,
    topological_order,
)
from winnow.config.candidates import SparseLearning
from winnow.config.section import NO_FILE
from winnow.config.weights import NO_WEIGHTS
from winnow.data.dataset import TRAIN, VALIDATION
from winnow.deploy.batch_inference import predict_file
from winnow.deploy.candidate_card import finish_candidate
from winnow.deploy.feature_extraction import embed_images, open_features
from winnow.deploy.onnx_export import export_onnx
from winnow.deploy.onnx_session import MODEL
from winnow.deploy.teacher_embeddings import TeacherTargets, load_targets
from winnow.models.backbones import WEIGHTS_FILE, build_model, load_backbone, load_model, save_model
from winnow.models.classifier_head import feature_dim
from winnow.models.image_size_check import check_image_size
from winnow.models.weights_lookup import find_weights
from winnow.pretraining import METHODS
from winnow.pretraining.inputs import PretrainingInputs
from winnow.reporting.embedding_pictures import MOST_IMAGES
from winnow.steps.pretrain import check_students, find_start
from winnow.steps.report import MOST_CHECKED, MOST_COMPARED
from winnow.training import unlabelled_images
from winnow.training.finetuning import classification_loss
from winnow.training.pseudo_labels import UnlabelledInputs
from winnow.training.stored_pseudo_labels import are_labels_few

CALIBRATED = (8, 72)
"""Two calibration set sizes: the difference of their times gives the cost per image without the start-up."""
EMBED = "embed"
"""The folder of the teacher and its embeddings."""
PLAIN_SECONDS = {"select": 5.0, "report": 6.0}
"""Seconds to read records and draw plots."""
PLAIN_BASIS = "reads records and draws plots"
"""The basis of these seconds, for users."""


class StepForecaster:
    """Times a small part of each step's work. One instance serves all steps: they share networks, files and rates."""

    def __init__(
        self, config: Config, counts: Counts, scratch: Path, folder: Path, weights_cache: Path | None = None
    ) -> None:
        """Build the networks in `folder`. `weights_cache`: downloaded weights; None: `scratch`."""
        self.config, self.counts, self.scratch, self.folder = config, counts, scratch, folder
        image_size = config.data.image_size
        self.weights_cache = weights_cache or scratch
        _, self.architecture = find_start(config.pretrain, counts.classes, image_size, self.weights_cache)
        check_image_size(self.architecture, "pretrain.backbone")
        check_students(config.candidates, counts.classes, image_size)
        self.images = random_images(folder / "data", config.data, counts.classes)
        self.microbenchmarks = Microbenchmarks(self.images, folder)
        dense = folder / ROOT
        for network_folder in (dense, folder / "pretrain"):
            network_folder.mkdir()
            save_model(network_folder, build_model(self.architecture), self.architecture)
        self.hash_rate = hash_rate()
        self._cached_steps: dict[str, int] = {}
        """Settings of the teacher's views -> steps whose teacher outputs an earlier candidate has cached."""
        self.startup_seconds = 0.0
        """Seconds to start the process of a step."""

    def forecast_step(self, step: str) -> Forecast:
        """Return the forecast of a step. Raises WinnowError where the step itself would."""
        gc.collect()
        with suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        costs = {"ingest": self._ingest, "embed": self._embed, "pretrain": self._pretrain, "finetune": self._finetune}
        costs |= {"benchmark": self._benchmark, "refit": self._refit, "report": self._report}
        costs["select"] = partial(Cost, PLAIN_SECONDS["select"], 1.0, PLAIN_BASIS)
        with measure_peak_memory(every=0.05) as peak:
            cost = costs[step]() if step in costs else self._candidate(step)
        seconds = cost.seconds + self.startup_seconds + cost.disk_mb * 1e6 / self.hash_rate
        return Forecast(step, seconds, peak.mb, cost.disk_mb, cost.basis)

    def _ingest(self) -> Cost:
        data, total = self.config.data, self.counts.images
        worker_startup, per_file, files = seconds_per_file(data, self.scratch, self.folder)
        disk_mb = total * ((data.image_size**2 + (data.larger_size or 0) ** 2) * 3 + 60) / 1e6
        return Cost(worker_startup + per_file * files, disk_mb, f"{files} files, {1 / per_file:.0f}/s")

    def _embed(self) -> Cost:
        if self.config.teacher.weights == NO_WEIGHTS:
            return Cost(0.0, 0.0, "no teacher")
        seconds_per_image = self._ensure_teacher()
        teacher, _ = load_model(self.folder / EMBED)
        images = self.counts.train + self.counts.validation
        embeddings_bytes = self.counts.images * feature_dim(teacher) * 2
        disk_mb = (embeddings_bytes + (self.folder / EMBED / WEIGHTS_FILE).stat().st_size) / 1e6
        return Cost(images * seconds_per_image, disk_mb, f"{images} images, {1 / seconds_per_image:.0f}/s")

    @cache  # noqa: B019  one instance serves a process
    def _ensure_teacher(self) -> float:
        """Write the teacher and its embeddings of the made-up images; return the seconds that one image took."""
        settings, folder = self.config.teacher, self.folder / EMBED
        weights = find_weights(settings.weights, settings.network, self.weights_cache)
        size = None if settings.input_size == "auto" else settings.input_size
        architecture = weights.architecture(self.counts.classes, self.config.data.image_size, size)
        teacher = weights.load(architecture)
        folder.mkdir()
        save_model(folder, teacher, architecture)
        features = open_features(teacher, architecture, folder, self.counts.train + self.counts.validation)
        every = np.arange(len(self.images.labels_N))
        started = time.monotonic()
        embed_images(features, self.images, every, folder)
        return (time.monotonic() - started) / len(every)

    def _targets(self) -> TeacherTargets:
        """Return the teacher's embeddings as targets."""
        self._ensure_teacher()
        return load_targets(self.folder / EMBED, self.images)

    def _pretrain(self) -> Cost:
        settings, counts = self.config.pretrain, self.counts
        disk_mb = (self.folder / ROOT / WEIGHTS_FILE).stat().st_size / 1e6
        if not isinstance(settings, TrainedPretraining):
            return Cost(0.0, disk_mb, "no pretraining")
        model = build_model(self.architecture, seed=settings.seed)
        targets = self._targets() if isinstance(settings, DistillEmbeddings) else None
        loss = METHODS[type(settings)](settings, model, PretrainingInputs(self.architecture.image_size, targets))
        per_step = self.microbenchmarks.seconds_per_step(model, loss, settings.batch_size, settings.optimiser)
        steps = settings.steps_for(counts.train)
        evaluations = -(-settings.epochs // settings.monitor_every)
        evaluation_seconds = (
            evaluations * (counts.validation + counts.budget) / self.microbenchmarks.images_per_second(model)
        )
        return Cost(steps * per_step + evaluation_seconds, disk_mb, _steps(steps, settings.batch_size, per_step))

    def _finetune(self) -> Cost:
        settings, counts = self.config.finetune, self.counts
        model = build_model(self.architecture)
        per_step = self._finetuning_step(model)
        pretraining = self.config.pretrain
        arms = 1 + isinstance(pretraining, TrainedPretraining) + (pretraining.start != NO_WEIGHTS)
        arms += settings.weights != NO_FILE
        trainings = arms * (len(settings.learning_rates) + len(settings.seeds) - 1)
        folds = settings.folds if settings.needs_cross_validation(counts.choosing) else 0
        labels = [counts.budget] * trainings
        labels += [(counts.budget + counts.choosing) * (folds - 1) // folds for _ in range(folds)]
        steps = sum(settings.steps_for(count) for count in labels)
        per_image = 1 / self.microbenchmarks.images_per_second(model)
        crossvalidated = counts.budget + counts.choosing if folds else 0
        prediction_seconds = (trainings * counts.choosing + crossvalidated) * per_image
        probe_seconds = (counts.budget + counts.choosing) * per_image
        probe_seconds += self.microbenchmarks.probe_seconds(model, counts.budget, counts.classes)
        started = time.monotonic()
        self._ensure(ROOT)
        export_seconds = time.monotonic() - started
        finish_seconds, disk_mb = self._finish(ROOT)
        basis = f"{trainings} trainings" + (f" and {folds} of cross-validation" if folds else "")
        unlabelled_seconds, unlabelled_basis = self._unlabelled(model, len(settings.seeds) + folds)
        basis += unlabelled_basis
        seconds = (
            steps * per_step + unlabelled_seconds + prediction_seconds + probe_seconds + export_seconds + finish_seconds
        )
        return Cost(seconds, disk_mb, f"{basis}: {_steps(steps, settings.batch_size, per_step)}")

    def _finetuning_step(self, model: nn.Module) -> float:
        settings = self.config.finetune
        loss, rate = classification_loss(settings, self.architecture.image_size), settings.learning_rates[0]
        return self.microbenchmarks.seconds_per_step(model, loss, settings.batch_size, settings.optimiser(rate))

    def _unlabelled(self, model: nn.Module, trainings: int) -> tuple[float, str]:
        """Return the seconds of the trainings on images without labels, and their basis for users."""
        settings = self.config.finetune.unlabelled
        if not isinstance(settings, UnlabelledTraining) or self.counts.budget == self.counts.train:
            return 0.0, ""
        teacher = None if self.config.teacher.weights == NO_WEIGHTS else self._targets()
        budget = self.images.indices(TRAIN)
        inputs = UnlabelledInputs(self.images, budget, budget, 0, teacher)
        prepared = unlabelled_images.METHODS[type(settings)](settings, inputs, model)
        per_step = self.microbenchmarks.seconds_per_step(
            prepared.trained, prepared.loss, settings.batch_size, settings.optimiser
        )
        steps = settings.steps_for(self.counts.train)
        basis = f", {trainings} on images without labels: {_steps(steps, settings.batch_size, per_step)}"
        return trainings * steps * per_step, basis

    def _report(self) -> Cost:
        """Forecast plots, the embeddings that the report shows, and the check of the labels."""
        counts, model = self.counts, build_model(self.architecture)
        checked = min(counts.budget + counts.choosing, MOST_CHECKED)
        embedded = checked + min(counts.validation, MOST_IMAGES) + min(counts.train, MOST_COMPARED)
        seconds = PLAIN_SECONDS["report"]
        if self.config.teacher.weights == NO_WEIGHTS:
            seconds += embedded / self.microbenchmarks.images_per_second(model)
        folds = self.config.finetune.folds
        seconds += folds * self.microbenchmarks.probe_seconds(model, checked * (folds - 1) // folds, counts.classes)
        return Cost(seconds, 1.0, f"draws plots, checks {checked:,} labels")

    def _candidate(self, name: str) -> Cost:
        settings = self.config.candidates[name]
        if isinstance(settings, Quantize):
            return self._quantized(name, settings)
        if isinstance(settings, Probe):
            self._ensure_teacher()
            seconds = self._make(name, settings)
            finish_seconds, disk_mb = self._finish(name)
            return Cost(seconds + finish_seconds, disk_mb, "logistic regression")
        assert isinstance(settings, TrainedCandidate)
        recovery = settings.recovery
        method_seconds = self._make(name, _shortest(settings))
        per_step = self._per_step(load_model(self.folder / name)[0], recovery)
        steps = settings.steps_for(self.counts.train)
        steps_done = _shortest(settings).steps_for(len(self.images.indices(TRAIN)))
        finish_seconds, disk_mb = self._finish(name)
        basis = _steps(steps, recovery.batch_size, per_step)
        return Cost(method_seconds + max(0, steps - steps_done) * per_step + finish_seconds, disk_mb, basis)

    def _quantized(self, name: str, settings: Quantize) -> Cost:
        plain_static = settings.model_copy(update={"scheme": "static", "recovery": None})
        timings = [
            self._make(name, plain_static.model_copy(update={"calibration_images": count})) for count in CALIBRATED
        ]
        per_image = max(0.0, (timings[1] - timings[0]) / (CALIBRATED[1] - CALIBRATED[0]))
        images = min(settings.calibration_images, self.counts.train)
        finish_seconds, disk_mb = self._finish(name)
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
        model = load_model(self.folder / parent)[0]
        with simulated_int8(model):
            per_step = self._per_step(model, recovery)
        steps = recovery.steps_for(self.counts.train)
        return steps * per_step, _steps(steps, recovery.batch_size, per_step)

    def _per_step(self, model: nn.Module, recovery: Recovery) -> float:
        inputs, dense = self._method_inputs(ROOT, self.folder / "scratch"), frozen(load_model(self.folder / ROOT)[0])
        teacher = None
        if teacher_kind(recovery, inputs) == ROOT:
            teacher = CacheHit(self.counts.classes) if self._is_cached(recovery) else dense
        targets = image_targets(recovery, inputs)
        student = with_projector(model, recovery, dense, targets)
        loss = distillation_loss(recovery, self.architecture.image_size, teacher, dense, targets)
        return self.microbenchmarks.seconds_per_step(student, loss, recovery.batch_size, recovery.optimiser)

    def _pseudo_labels(self) -> NDArray[np.float32] | None:
        """Return pseudo-labels where fine-tuning will probably make some, for recoveries to learn."""
        config, counts = self.config, self.counts
        is_propagated = isinstance(config.finetune.unlabelled, Propagation) and config.teacher.weights != NO_WEIGHTS
        if not is_propagated or not are_labels_few(counts.budget, counts.train):
            return None
        return np.full((len(self.images.labels_N), counts.classes), 1 / counts.classes, dtype=np.float32)

    def _is_cached(self, recovery: Recovery) -> bool:
        """Return whether an earlier candidate has cached all teacher outputs that this one needs."""
        rows = recovery.steps_for(self.counts.train)
        if not is_cacheable(recovery) or rows * row_bytes(recovery.batch_size, self.counts.classes) > MAX_BYTES:
            return False
        views = recovery.model_dump_json(include={"batch_size", "images", "augmentation", "seed"})
        before = self._cached_steps.get(views, 0)
        self._cached_steps[views] = max(before, rows)
        return before >= rows

    def _make(self, name: str, settings: Candidate) -> float:
        """Run the method on the random images; return its seconds. Writes the candidate's folder."""
        self._ensure(settings.parent)
        folder = self.folder / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        scratch = self.folder / "scratch" / name
        inputs = self._method_inputs(settings.parent, scratch)
        started = time.monotonic()
        write_candidate(settings, inputs, folder)
        shutil.rmtree(scratch, ignore_errors=True)
        return time.monotonic() - started

    def _method_inputs(self, parent: str, scratch: Path) -> MethodInputs:
        """Return the inputs of a method: the made-up images, all of them with labels, and untrained networks."""
        has_teacher = self.config.teacher.weights != NO_WEIGHTS
        if has_teacher:
            self._ensure_teacher()
        return MethodInputs(
            self.images,
            self.images.indices(TRAIN),
            self.images.labels_N,
            parent=NetworkFolder(self.folder / parent),
            dense=NetworkFolder(self.folder / ROOT),
            load_backbone=partial(load_backbone, self.folder / "pretrain"),
            scratch=scratch,
            pseudo_labels_NC=self._pseudo_labels(),
            teacher=self.folder / EMBED if has_teacher else None,
        )

    def _ensure(self, name: str) -> None:
        """Create the folder of a candidate, and of its parents, where it is missing."""
        if (self.folder / name / MODEL).is_file():
            return
        if name == ROOT:
            model, architecture = load_model(self.folder / ROOT)
            export_onnx(model, architecture, self.folder / ROOT / MODEL)
        else:
            self._candidate(name)

    def _finish(self, name: str) -> tuple[float, float]:
        """Return (seconds to evaluate the file and write its card, MB of the folder) for all validation images."""
        folder, counts, indices = self.folder / name, self.counts, self.images.indices(VALIDATION)
        started = time.monotonic()
        finish_candidate(
            folder,
            name=name,
            method="-",
            lineage=[name],
            images=self.images,
            budget=self.images.indices(TRAIN),
            dense=None,
        )
        prediction_started = time.monotonic()
        predict_file(folder / MODEL, self.images.images_NHWC, indices)
        per_image = (time.monotonic() - prediction_started) / len(indices)
        size_bytes = sum(path.stat().st_size for path in folder.iterdir()) + counts.validation * counts.classes * 4
        return prediction_started - started + max(0, counts.validation - len(indices)) * per_image, size_bytes / 1e6

    def _benchmark(self) -> Cost:
        for name in (ROOT, *topological_order(dict(self.config.candidates))):
            self._ensure(name)
        return benchmark_cost(self.config, self.counts, self.microbenchmarks, self.folder)

    def _refit(self) -> Cost:
        """Return the cost of refitting dense and, as the winner is not known, the longest training and an int8 file."""
        counts, settings, candidates = self.counts, self.config.finetune, self.config.candidates
        if reason := self.config.refit.reason_against(counts.choosing, self.config.data.label_budget):
            return Cost(0.0, 0.1, f"none: {reason}")
        steps = settings.steps_for(counts.budget + counts.choosing)
        seconds = steps * self._finetuning_step(build_model(self.architecture))
        trained = {
            name: candidate.steps_for(counts.train)
            for name, candidate in candidates.items()
            if isinstance(candidate, TrainedCandidate)
        }
        longest = max(trained, key=lambda name: trained[name], default=None)
        int8 = next((name for name, candidate in candidates.items() if isinstance(candidate, Quantize)), None)
        retrained, disk_mb = [name for name in (longest, int8) if name is not None], 0.1
        for name in retrained:
            cost = self._candidate(name)
            seconds, disk_mb = seconds + cost.seconds, disk_mb + cost.disk_mb
        if longest is not None:  # the validation images are training images here
            seconds *= 1 + counts.choosing / max(1, counts.train)
        return Cost(
            seconds, disk_mb, f"{' and '.join((ROOT, *retrained))} again, as an upper estimate of the winner's refit"
        )


def _shortest(settings: TrainedCandidate) -> TrainedCandidate:
    """Return the settings with one epoch and nothing before it."""
    changes: dict[str, object] = {"recovery": settings.recovery.model_copy(update={"epochs": 1, "min_steps": 1})}
    if isinstance(settings, Prune):
        changes |= {"rounds": 1, "sparse_learning": SparseLearning()}
    return settings.model_copy(update=changes)


def _steps(steps: int, batch: int, per_step: float) -> str:
    return f"{steps} steps of {batch} images at {per_step * 1e3:.0f} ms"
