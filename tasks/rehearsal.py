"""Each step's own work in small, timed: so many training steps, so many images answered, each file made and opened.

The user's files serve where pixels matter (decoding), random ones where they do not; networks are as they come from
their builder, since training makes none of them faster. Methods run as they are, on few images.
"""

from __future__ import annotations

import ctypes
import gc
import hashlib
import itertools
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import psutil

from tasks.memory import watched
from tasks.planning import Counts, Forecast
from winnow.benchmarking import (
    CALLS_PER_ROUND_LARGE,
    CHECKED_IMAGES,
    WARM_UP_LARGE,
    WARM_UP_SINGLE,
    time_calls,
)
from winnow.config import ROOT, Candidate, Config, NoPretraining, Optimiser, Quantize, Recovered, in_order
from winnow.config.section import NOTHING
from winnow.data.decoding import Item
from winnow.data.images import TRAIN, VALIDATION, ImageSet, load_images
from winnow.machine import cores
from winnow.records import write_json
from winnow.runtimes import Cell, NotHere, open_cell

if TYPE_CHECKING:
    from torch import nn

    from winnow.config import Benchmark
    from winnow.training import Loss

MEASURED_SECONDS, MOST_STEPS = 2.0, 12
"""A training is tried for so long, or so many steps."""
SAMPLED_FILES = (256, 2048)
"""The difference between the two holds no start of processes."""
CALIBRATED = (8, 72)
FEW_IMAGES = 128
LEAST_SHARE = 0.3
"""Of the time for a file, with the start of processes in it, that reading and decoding take at least."""
BYTES_HASHED = 64_000_000
PLAIN_SECONDS = {"select": 5.0, "report": 6.0}
"""Steps that only read and draw."""


class Rehearsal:
    """Does each step's work in small. Made once for all steps: they share networks, files and rates."""

    def __init__(self, config: Config, counts: Counts, scratch: Path, folder: Path) -> None:
        from winnow.models.backbones import Architecture, build, save_model

        self.config, self.counts, self.scratch, self.folder = config, counts, scratch, folder
        self.architecture = Architecture(
            backbone=config.pretrain.backbone, num_classes=counts.classes, image_size=config.data.image_size
        )
        self.images = _random_images(folder / "data", config.data.image_size, counts.classes)
        dense = folder / ROOT
        dense.mkdir()
        save_model(dense, build(self.architecture), self.architecture)
        self.hash_rate = _hash_rate()
        self.started = time.time() - psutil.Process().create_time()
        """Seconds from the start of this process to here: what each step's process takes to begin."""
        self._rates: dict[str, float] = {}

    def rehearse(self, step: str) -> Forecast:
        """Measure and multiply. Raises WinnowError where the step itself would."""
        gc.collect()
        with suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        act = {"ingest": self._ingest, "pretrain": self._pretrain, "finetune": self._finetune}
        act |= {"benchmark": self._benchmark}
        with watched(every=0.05) as peak:
            if step in act:
                seconds, disk_mb, counted = act[step]()
            elif step in PLAIN_SECONDS:
                seconds, disk_mb, counted = PLAIN_SECONDS[step], 1.0, "reads and draws"
            else:
                seconds, disk_mb, counted = self._candidate(step)
        seconds += self.started + disk_mb * 1e6 / self.hash_rate
        return Forecast(step, seconds, peak.mb, disk_mb, counted)

    def _ingest(self) -> tuple[float, float, str]:
        from winnow.data.sources import open_source
        from winnow.steps.ingest import store

        data, total = self.config.data, self.counts.images
        taken = []
        for wanted in SAMPLED_FILES:
            source, wanted = open_source(data, self.scratch), min(wanted, total)
            # Of a folder every so-manieth file; an archive would have to be read whole for that.
            stride = max(1, source.count // wanted) if data.source == "folder" else 1
            few = replace(source, count=wanted, missing=(), items=_every(source.items, stride, wanted))
            began = time.monotonic()
            with tempfile.TemporaryDirectory(dir=self.folder) as out, tempfile.TemporaryFile(dir=out) as signatures:
                store(few, data, Path(out), signatures)
            taken.append((wanted, time.monotonic() - began))
            if wanted == total:
                break
        (few_files, few_seconds), (files, seconds) = taken[0], taken[-1]
        each = seconds / files
        if files > few_files:
            each = max((seconds - few_seconds) / (files - few_files), each * LEAST_SHARE)
        disk_mb = total * (data.image_size**2 * 3 + 60) / 1e6
        return seconds + each * (total - files), disk_mb, f"{total} files, {1 / each:.0f}/s"

    def _pretrain(self) -> tuple[float, float, str]:
        from winnow.models.backbones import WEIGHTS, build
        from winnow.pretraining import METHODS

        settings, counts = self.config.pretrain, self.counts
        disk_mb = (self.folder / ROOT / WEIGHTS).stat().st_size / 1e6
        if isinstance(settings, NoPretraining):
            return 0.0, disk_mb, "no pretraining"
        model = build(self.architecture, seed=settings.seed)
        loss = METHODS[type(settings)](settings, model)
        each = self._per_step(model, loss, settings.batch_size, settings.optimiser)
        steps = settings.epochs * max(1, counts.train // settings.batch_size)
        looks = -(-settings.epochs // settings.monitor_every)
        looking = looks * (counts.validation + counts.budget) / self._embedded(model)
        return steps * each + looking, disk_mb, _steps(steps, settings.batch_size, each)

    def _finetune(self) -> tuple[float, float, str]:
        from winnow.finetuning import classification
        from winnow.models.backbones import build

        settings, counts = self.config.finetune, self.counts
        model = build(self.architecture)
        rate = settings.optimiser(settings.learning_rates[0])
        each = self._per_step(model, classification(settings), settings.batch_size, rate)
        arms = 1 + (not isinstance(self.config.pretrain, NoPretraining)) + (settings.weights != NOTHING)
        trainings = arms * (len(settings.learning_rates) + len(settings.seeds) - 1)
        folds = settings.folds if settings.crosses(counts.choosing) else 0
        labels = [counts.budget] * trainings + [counts.budget + counts.choosing] * folds
        steps = sum(settings.steps_for(count) for count in labels)
        answering = (trainings * counts.choosing + folds * (counts.budget + counts.choosing)) / self._embedded(model)
        probing = (counts.budget + counts.choosing) / self._embedded(model) + self._probed(model)
        began = time.monotonic()
        self._need(ROOT)
        exporting = time.monotonic() - began
        finishing, disk_mb = self._finish(ROOT)
        told = f"{trainings} trainings" + (f" and {folds} of cross-validation" if folds else "")
        seconds = steps * each + answering + probing + exporting + finishing
        return seconds, disk_mb, f"{told}: {_steps(steps, settings.batch_size, each)}"

    def _candidate(self, name: str) -> tuple[float, float, str]:
        settings = self.config.candidates[name]
        if isinstance(settings, Quantize):
            return self._quantized(name, settings)
        assert isinstance(settings, Recovered)
        recovery = settings.recovery
        shortest = settings.model_copy(update={"recovery": recovery.model_copy(update={"epochs": 1})})
        making = self._make(name, shortest)
        from winnow.compression.recovery import distillation
        from winnow.models.backbones import load_model

        model, _ = load_model(self.folder / name)
        teacher = load_model(self.folder / ROOT)[0] if recovery.teacher == "dense" else None
        each = self._per_step(model, distillation(recovery, teacher), recovery.batch_size, recovery.optimiser)
        steps = recovery.epochs * max(1, self.counts.train // recovery.batch_size)
        done = max(1, len(self.images.indices(TRAIN)) // recovery.batch_size)
        finishing, disk_mb = self._finish(name)
        told = _steps(steps, recovery.batch_size, each)
        return making + max(0, steps - done) * each + finishing, disk_mb, told

    def _quantized(self, name: str, settings: Quantize) -> tuple[float, float, str]:
        taken = []
        for count in CALIBRATED:
            taken.append(self._make(name, settings.model_copy(update={"calibration_images": count})))
        each = max(0.0, (taken[1] - taken[0]) / (CALIBRATED[1] - CALIBRATED[0]))
        wanted = min(settings.calibration_images, self.counts.train)
        finishing, disk_mb = self._finish(name)
        told = f"{wanted} images at {each * 1e3:.0f} ms"
        return taken[1] + max(0.0, each * (wanted - CALIBRATED[1])) + finishing, disk_mb, told

    def _make(self, name: str, settings: Candidate) -> float:
        """Seconds of the method itself on the few random images; leaves the candidate's folder."""
        from winnow.compression import METHODS
        from winnow.compression.inputs import Inputs

        self._need(settings.parent)
        folder = self.folder / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        train = self.images.indices(TRAIN)
        scratch = self.folder / "scratch" / name
        inputs = Inputs(
            self.images, train, self.images.labels_N, self.folder / settings.parent, self.folder / ROOT, scratch
        )
        began = time.monotonic()
        METHODS[type(settings)](settings, inputs, folder)
        shutil.rmtree(scratch, ignore_errors=True)
        return time.monotonic() - began

    def _need(self, name: str) -> None:
        """See that the folder of a candidate is there; those whose steps are up to date are made on the way."""
        from winnow.export import export_onnx
        from winnow.model_file import MODEL
        from winnow.models.backbones import load_model

        if (self.folder / name / MODEL).is_file():
            return
        if name == ROOT:
            model, architecture = load_model(self.folder / ROOT)
            export_onnx(model, architecture, self.folder / ROOT / MODEL)
        else:
            self._candidate(name)

    def _finish(self, name: str) -> tuple[float, float]:
        """Seconds of measuring and writing the file, and MB of the folder, with all validation images."""
        from winnow.finishing import finish
        from winnow.inference import predict_file
        from winnow.model_file import MODEL

        folder, counts, indices = self.folder / name, self.counts, self.images.indices(VALIDATION)
        began = time.monotonic()
        finish(
            folder,
            name=name,
            method="-",
            lineage=[name],
            images=self.images,
            budget=self.images.indices(TRAIN),
            dense=None,
        )
        finished = time.monotonic()
        predict_file(folder / MODEL, self.images.images_NHWC, indices)
        each = (time.monotonic() - finished) / len(indices)
        size = sum(path.stat().st_size for path in folder.iterdir()) + counts.validation * counts.classes * 4
        return finished - began + max(0, counts.validation - len(indices)) * each, size / 1e6

    def _benchmark(self) -> tuple[float, float, str]:
        from winnow.benchmarking import plan
        from winnow.footprint import footprint
        from winnow.runtimes import Cell, set_torch_threads

        settings, counts = self.config.benchmark, self.counts
        names = (ROOT, *in_order(dict(self.config.candidates)))
        for name in names:
            self._need(name)
        int8 = {name: isinstance(self.config.candidates.get(name), Quantize) for name in names}
        cells, seconds = plan(int8, settings, cores(), cuda=False), 0.0
        fastest: dict[tuple[str, int], float] = {}
        compiling: float | None = None
        for cell in cells:
            before = set_torch_threads(cell.threads)
            try:
                if cell.runtime == "compile":
                    compiling = self._opened(cell)[0] if compiling is None else compiling
                    opening, call = compiling, fastest.get((cell.candidate, cell.batch), 0.0)
                else:
                    opening, call = self._opened(cell)
            except NotHere:
                continue
            finally:
                set_torch_threads(before)
            key = (cell.candidate, cell.batch)
            fastest[key] = min(call, fastest.get(key, call))
            seconds += opening + call * _calls(settings, cell.batch, min(counts.validation, CHECKED_IMAGES))
        seconds += sum(call * -(-counts.validation // batch) for (_, batch), call in fastest.items())
        began = time.monotonic()
        footprint(self.folder / ROOT, Cell(ROOT, "ort", "f32", "file", 1, cores()), self.config.data.image_size)
        processes = 2 * len(names) + 1
        seconds += (time.monotonic() - began) * processes
        disk_mb = 2 * len(names) * counts.validation * counts.classes * 4 / 1e6
        return seconds, disk_mb, f"{len(cells)} cells of {len(names)} files, {processes} processes"

    def _opened(self, cell: Cell) -> tuple[float, float]:
        """Seconds to open it, and of a call."""
        began = time.monotonic()
        predict = open_cell(self.folder / cell.candidate, cell)
        opening = time.monotonic() - began
        pixels_NHWC = np.ascontiguousarray(
            np.resize(self.images.images_NHWC, (cell.batch, *self.images.images_NHWC.shape[1:]))
        )
        return opening, float(np.median(time_calls(predict, pixels_NHWC, 1, 1 if cell.batch > 1 else 5)))

    def _per_step(self, model: nn.Module, loss: Loss, batch: int, optimiser: Optimiser) -> float:
        """Seconds of a training step, the first ones left out: they make room and choose kernels."""
        from winnow.data.batches import Batches
        from winnow.training import Plan, fit

        train = self.images.indices(TRAIN)
        batches = Batches(self.images.images_NHWC, self.images.labels_N, train, batch, seed=0)
        training = fit(model, batches, loss, Plan(MOST_STEPS, 1, optimiser, seed=0))
        taken: list[float] = []
        with closing(training):
            while len(taken) < MOST_STEPS - 1 and (len(taken) < 3 or sum(taken[1:]) < MEASURED_SECONDS):
                began = time.monotonic()
                next(training)
                taken.append(time.monotonic() - began)
        model.cpu()
        return float(np.median(taken[1:]))

    def _embedded(self, model: nn.Module) -> float:
        """Images a second that the network answers in PyTorch, as training looks at them."""
        from winnow.inference import predict_torch

        if "embedded" not in self._rates:
            indices = self.images.indices(VALIDATION)
            predict_torch(model, self.images.images_NHWC, indices[:8])
            began = time.monotonic()
            predict_torch(model, self.images.images_NHWC, indices)
            self._rates["embedded"] = len(indices) / (time.monotonic() - began)
        return self._rates["embedded"]

    def _probed(self, model: nn.Module) -> float:
        """Seconds of the linear probe on so many features."""
        from winnow.finetuning import fit_probe
        from winnow.models.heads import feature_dim

        count = min(self.counts.budget, 20 * FEW_IMAGES)
        rng = np.random.default_rng(0)
        labels = np.arange(count) % self.counts.classes
        features = rng.normal(size=(count, feature_dim(model))) + labels[:, None] * 0.01
        began = time.monotonic()
        fit_probe(features, labels)
        return (time.monotonic() - began) * self.counts.budget / max(1, count)


def _calls(settings: Benchmark, batch: int, checked: int) -> int:
    """How often a cell is called: to check its answers, warm-up, and timed."""
    checking = -(-checked // batch)
    if batch > 1:
        return checking + settings.rounds * (WARM_UP_LARGE + CALLS_PER_ROUND_LARGE)
    return checking + settings.rounds * (WARM_UP_SINGLE + -(-settings.samples // settings.rounds))


def _steps(steps: int, batch: int, each: float) -> str:
    return f"{steps} steps of {batch} images at {each * 1e3:.0f} ms"


def _every(items: Callable[[], Iterator[Item]], stride: int, count: int) -> Callable[[], Iterator[Item]]:
    return lambda: itertools.islice(items(), 0, stride * count, stride)


def _random_images(folder: Path, side: int, classes: int) -> ImageSet:
    """FEW_IMAGES for training and as many for validation, in files as a stored data set is."""
    folder.mkdir(parents=True)
    rng, count = np.random.default_rng(0), 2 * FEW_IMAGES
    np.save(folder / "images.npy", rng.integers(0, 256, (count, side, side, 3), dtype=np.uint8))
    np.save(folder / "labels.npy", np.arange(count) % classes)
    np.save(folder / "split.npy", np.where(np.arange(count) < FEW_IMAGES, TRAIN, VALIDATION).astype(np.uint8))
    np.save(folder / "keys.npy", rng.integers(0, 256, (count, 16), dtype=np.uint8))
    write_json(folder / "classes.json", [str(number) for number in range(classes)])
    return load_images(folder)


def _hash_rate() -> float:
    """Bytes a second that DVC reads and hashes of what a step leaves."""
    content = os.urandom(BYTES_HASHED // 8) * 8
    began = time.monotonic()
    hashlib.md5(content, usedforsecurity=False).digest()
    return BYTES_HASHED / (time.monotonic() - began)
