"""Each step's own work in small, timed: so many training steps, so many images answered, each file made and opened.

The user's files serve where pixels matter (decoding), random ones where they do not; networks are as they come from
their builder, since training makes none of them faster. Methods run as they are, on few images. In a process of its
own, since its peak memory is the forecast:

    python -m tasks.forecast.step_costs PARAMS COUNTS SCRATCH FOLDER STEP ...      # a Forecast as JSON a line
"""

from __future__ import annotations

import ctypes
import gc
import json
import logging
import shutil
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from tasks.forecast.data_counts import Counts, Forecast
from tasks.forecast.microbenchmarks import Trials, hash_rate, random_images, seconds_per_file
from tasks.project.peak_memory import watched
from winnow.benchmark.grid import CHECKED_IMAGES, SCREENING_ROUNDS, calls_per_round
from winnow.benchmark.timing import SLICE_SECONDS
from winnow.config import (
    ROOT,
    Benchmark,
    Candidate,
    Config,
    NoPretraining,
    Prune,
    Quantize,
    Recovered,
    Recovery,
    in_order,
    load_config,
)
from winnow.config.candidates import SparseLearning
from winnow.config.section import NOTHING
from winnow.data.dataset import TRAIN, VALIDATION
from winnow.deploy.runtimes import BenchmarkCase, Predict, RuntimeUnavailable
from winnow.errors import WinnowError
from winnow.hardware import cores

if TYPE_CHECKING:
    from torch import nn

COMPARED_CELLS = 2
"""Cells a candidate that the benchmark compares: its own, and its part of the baselines and what lies between."""
CALIBRATED = (8, 72)
"""Images that a file is quantized with, to tell the cost of one from that of beginning."""
PLAIN_SECONDS = {"select": 5.0, "report": 6.0}
"""Steps that only read and draw."""


@dataclass(frozen=True)
class Cost:
    """Of a step's own work."""

    seconds: float
    disk_mb: float
    counted: str
    """What was multiplied, in words."""


class Rehearsal:
    """Does each step's work in small. Made once for all steps: they share networks, files and rates."""

    def __init__(self, config: Config, counts: Counts, scratch: Path, folder: Path) -> None:
        from winnow.models.backbones import Architecture, build, save_model

        self.config, self.counts, self.scratch, self.folder = config, counts, scratch, folder
        self.architecture = Architecture(
            backbone=config.pretrain.backbone, num_classes=counts.classes, image_size=config.data.image_size
        )
        self.images = random_images(folder / "data", config.data, counts.classes)
        self.trials = Trials(self.images, folder)
        dense = folder / ROOT
        for at in (dense, folder / "pretrain"):
            at.mkdir()
            save_model(at, build(self.architecture), self.architecture)
        self.hash_rate = hash_rate()
        self.answered: dict[str, int] = {}
        """Views that the teacher was asked about by a candidate before -> steps."""
        self.started = 0.0
        """Seconds that each step's process takes to begin."""

    def rehearse(self, step: str) -> Forecast:
        """Measure and multiply. Raises WinnowError where the step itself would."""
        gc.collect()
        with suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        act = {"ingest": self._ingest, "pretrain": self._pretrain, "finetune": self._finetune}
        act |= {"benchmark": self._benchmark, "refit": self._refit}
        with watched(every=0.05) as peak:
            if step in act:
                cost = act[step]()
            elif step in PLAIN_SECONDS:
                cost = Cost(PLAIN_SECONDS[step], 1.0, "reads and draws")
            else:
                cost = self._candidate(step)
        seconds = cost.seconds + self.started + cost.disk_mb * 1e6 / self.hash_rate
        return Forecast(step, seconds, peak.mb, cost.disk_mb, cost.counted)

    def _ingest(self) -> Cost:
        data, total = self.config.data, self.counts.images
        beginning, each, files = seconds_per_file(data, self.scratch, self.folder)
        disk_mb = total * ((data.image_size**2 + (data.larger_size or 0) ** 2) * 3 + 60) / 1e6
        return Cost(beginning + each * files, disk_mb, f"{files} files, {1 / each:.0f}/s")

    def _pretrain(self) -> Cost:
        from winnow.models.backbones import WEIGHTS, build
        from winnow.pretraining import METHODS

        settings, counts = self.config.pretrain, self.counts
        disk_mb = (self.folder / ROOT / WEIGHTS).stat().st_size / 1e6
        if isinstance(settings, NoPretraining):
            return Cost(0.0, disk_mb, "no pretraining")
        model = build(self.architecture, seed=settings.seed)
        loss = METHODS[type(settings)](settings, model, self.architecture.image_size)
        each = self.trials.per_step(model, loss, settings.batch_size, settings.optimiser)
        steps = settings.steps_for(counts.train)
        looks = -(-settings.epochs // settings.monitor_every)
        looking = looks * (counts.validation + counts.budget) / self.trials.embedded(model)
        return Cost(steps * each + looking, disk_mb, _steps(steps, settings.batch_size, each))

    def _finetune(self) -> Cost:
        from winnow.models.backbones import build
        from winnow.training.finetuning import classification

        settings, counts = self.config.finetune, self.counts
        model = build(self.architecture)
        rate = settings.optimiser(settings.learning_rates[0])
        each = self.trials.per_step(
            model, classification(settings, self.architecture.image_size), settings.batch_size, rate
        )
        arms = 1 + (not isinstance(self.config.pretrain, NoPretraining)) + (settings.weights != NOTHING)
        trainings = arms * (len(settings.learning_rates) + len(settings.seeds) - 1)
        folds = settings.folds if settings.crosses(counts.choosing) else 0
        labels = [counts.budget] * trainings
        labels += [(counts.budget + counts.choosing) * (folds - 1) // folds for _ in range(folds)]
        steps = sum(settings.steps_for(count) for count in labels)
        embedding = 1 / self.trials.embedded(model)
        crossed = counts.budget + counts.choosing if folds else 0
        answering = (trainings * counts.choosing + crossed) * embedding
        probing = (counts.budget + counts.choosing) * embedding
        probing += self.trials.probed(model, counts.budget, counts.classes)
        began = time.monotonic()
        self._need(ROOT)
        exporting = time.monotonic() - began
        finishing, disk_mb = self._finish(ROOT)
        told = f"{trainings} trainings" + (f" and {folds} of cross-validation" if folds else "")
        seconds = steps * each + answering + probing + exporting + finishing
        return Cost(seconds, disk_mb, f"{told}: {_steps(steps, settings.batch_size, each)}")

    def _candidate(self, name: str) -> Cost:
        settings = self.config.candidates[name]
        if isinstance(settings, Quantize):
            return self._quantized(name, settings)
        assert isinstance(settings, Recovered)
        recovery = settings.recovery
        making = self._make(name, _shortest(settings))
        from winnow.models.backbones import load_model

        each = self._per_step(load_model(self.folder / name)[0], recovery)
        steps = settings.steps_for(self.counts.train)
        done = _shortest(settings).steps_for(len(self.images.indices(TRAIN)))
        finishing, disk_mb = self._finish(name)
        told = _steps(steps, recovery.batch_size, each)
        return Cost(making + max(0, steps - done) * each + finishing, disk_mb, told)

    def _quantized(self, name: str, settings: Quantize) -> Cost:
        from winnow.compression.quantize import recipe_of, static_rungs

        plain = settings.model_copy(update={"scheme": "static", "recovery": None})
        taken = []
        for count in CALIBRATED:
            taken.append(self._make(name, plain.model_copy(update={"calibration_images": count})))
        each = max(0.0, (taken[1] - taken[0]) / (CALIBRATED[1] - CALIBRATED[0]))
        wanted = min(settings.calibration_images, self.counts.train)
        finishing, disk_mb = self._finish(name)
        told = f"{wanted} images at {each * 1e3:.0f} ms"
        seconds = taken[1] + max(0.0, each * (wanted - CALIBRATED[1]))
        if settings.scheme == "ladder":
            rungs = len(static_rungs(recipe_of(settings)))
            seconds, told = seconds * rungs, f"up to {rungs} times {told}"
        if settings.scheme in ("ladder", "controlled"):
            told += ", layers that go back to float not counted"
        if settings.recovery is not None:
            training, steps = self._rounding(settings.parent, settings.recovery)
            seconds, told = seconds + training, f"{told}, {steps}"
        return Cost(seconds + finishing, disk_mb, told)

    def _rounding(self, parent: str, recovery: Recovery) -> tuple[float, str]:
        """Seconds of training under rounding, and what was multiplied."""
        from winnow.compression.fake_quantization import simulated_int8
        from winnow.models.backbones import load_model

        model = load_model(self.folder / parent)[0]
        with simulated_int8(model):
            each = self._per_step(model, recovery)
        steps = recovery.steps_for(self.counts.train)
        return steps * each, _steps(steps, recovery.batch_size, each)

    def _per_step(self, model: nn.Module, recovery: Recovery) -> float:
        from winnow.compression.recovery import distillation, with_translation
        from winnow.compression.teacher_cache import CacheHit
        from winnow.models.backbones import load_model

        dense = load_model(self.folder / ROOT)[0]
        teacher = None
        if recovery.teacher == "dense":
            teacher = CacheHit(self.counts.classes) if self._is_answered(recovery) else dense
        trained = with_translation(model, recovery, dense)
        loss = distillation(recovery, self.architecture.image_size, teacher, dense)
        return self.trials.per_step(trained, loss, recovery.batch_size, recovery.optimiser)

    def _is_answered(self, recovery: Recovery) -> bool:
        """Whether a candidate before this one asked the teacher the same, and all of it."""
        from winnow.compression.teacher_cache import LARGEST, is_recalled, row_bytes

        rows = recovery.steps_for(self.counts.train)
        if not is_recalled(recovery) or rows * row_bytes(recovery.batch_size, self.counts.classes) > LARGEST:
            return False
        views = recovery.model_dump_json(include={"batch_size", "images", "augmentation", "seed"})
        before = self.answered.get(views, 0)
        self.answered[views] = max(before, rows)
        return before >= rows

    def _make(self, name: str, settings: Candidate) -> float:
        """Seconds of the method itself on the few random images; leaves the candidate's folder."""
        from winnow.compression import METHODS
        from winnow.compression.method_inputs import Inputs

        self._need(settings.parent)
        folder = self.folder / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        train = self.images.indices(TRAIN)
        scratch = self.folder / "scratch" / name
        parent, dense, pretrained = (self.folder / each for each in (settings.parent, ROOT, "pretrain"))
        inputs = Inputs(self.images, train, self.images.labels_N, parent, dense, pretrained, scratch)
        began = time.monotonic()
        METHODS[type(settings)](settings, inputs, folder)
        shutil.rmtree(scratch, ignore_errors=True)
        return time.monotonic() - began

    def _need(self, name: str) -> None:
        """See that the folder of a candidate is there; those whose steps are up to date are made on the way."""
        from winnow.deploy.onnx_export import export_onnx
        from winnow.deploy.onnx_session import MODEL
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
        from winnow.deploy.batch_inference import predict_file
        from winnow.deploy.candidate_card import finish
        from winnow.deploy.onnx_session import MODEL

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

    def _benchmark(self) -> Cost:
        from winnow.benchmark.grid import plan
        from winnow.benchmark.memory_footprint import footprint
        from winnow.deploy.runtimes import set_torch_threads

        settings, counts = self.config.benchmark, self.counts
        names = (ROOT, *in_order(dict(self.config.candidates)))
        for name in names:
            self._need(name)
        int8 = {name: isinstance(self.config.candidates.get(name), Quantize) for name in names}
        cells, seconds = plan(int8, settings, cores(), cuda=False), 0.0
        fastest: dict[tuple[str, int], float] = {}
        compiling: float | None = None
        held: list[Predict] = []  # the benchmark times a group's cells in turns, and so has them all open
        group = (0, 0)
        for cell in cells:
            if (cell.batch, cell.threads) != group:
                held, group = [], (cell.batch, cell.threads)
            before = set_torch_threads(cell.threads)
            try:
                if cell.runtime == "compile":
                    compiling = self.trials.opened(cell)[0] if compiling is None else compiling
                    opening, call = compiling, fastest.get((cell.candidate, cell.batch), 0.0)
                else:
                    opening, call, predict = self.trials.opened(cell)
                    held.append(predict)
            except RuntimeUnavailable:
                continue
            finally:
                set_torch_threads(before)
            key = (cell.candidate, cell.batch)
            fastest[key] = min(call, fastest.get(key, call))
            checked = -(-min(counts.validation, CHECKED_IMAGES) // cell.batch)
            seconds += opening + call * checked + SCREENING_ROUNDS * _visit_seconds(settings, cell.batch, call)
        for (_, batch), call in fastest.items():
            compared = COMPARED_CELLS * settings.rounds * _visit_seconds(settings, batch, call)
            seconds += compared + call * -(-counts.validation // batch)
        began = time.monotonic()
        footprint(
            self.folder / ROOT, BenchmarkCase(ROOT, "ort", "f32", "file", 1, cores()), self.config.data.image_size
        )
        processes = 2 * len(names) + 1
        seconds += (time.monotonic() - began) * processes
        disk_mb = 2 * len(names) * counts.validation * counts.classes * 4 / 1e6
        return Cost(seconds, disk_mb, f"{len(cells)} cells of {len(names)} files, {processes} processes")

    def _refit(self) -> Cost:
        """dense, and a candidate: nobody knows the winner yet, so the one that trains longest, and an int8 file."""
        from winnow.models.backbones import build
        from winnow.training.finetuning import classification

        counts, settings, candidates = self.counts, self.config.finetune, self.config.candidates
        if reason := self.config.refit.reason_against(counts.choosing, self.config.data.label_budget):
            return Cost(0.0, 0.1, f"none: {reason}")
        rate = settings.optimiser(settings.learning_rates[0])
        each = self.trials.per_step(
            build(self.architecture), classification(settings, self.architecture.image_size), settings.batch_size, rate
        )
        seconds = settings.steps_for(counts.budget + counts.choosing) * each
        trained = {name: c.steps_for(counts.train) for name, c in candidates.items() if isinstance(c, Recovered)}
        longest = max(trained, key=lambda name: trained[name], default=None)
        int8 = next((name for name, c in candidates.items() if isinstance(c, Quantize)), None)
        made, disk_mb = [name for name in (longest, int8) if name is not None], 0.1
        for name in made:
            cost = self._candidate(name)
            seconds, disk_mb = seconds + cost.seconds, disk_mb + cost.disk_mb
        if longest is not None:  # validation images teach, too
            seconds *= 1 + counts.choosing / max(1, counts.train)
        return Cost(seconds, disk_mb, f"{' and '.join((ROOT, *made))} again, if the winner is like that")


def _shortest(settings: Recovered) -> Recovered:
    """With one epoch, and what comes before it left out."""
    changes: dict[str, object] = {"recovery": settings.recovery.model_copy(update={"epochs": 1, "min_steps": 1})}
    if isinstance(settings, Prune):
        changes |= {"rounds": 1, "sparse_learning": SparseLearning()}
    return settings.model_copy(update=changes)


def _visit_seconds(settings: Benchmark, batch: int, call: float) -> float:
    """Seconds of one visit to a cell whose call takes `call` seconds: rest, warm-up and timed calls."""
    return SLICE_SECONDS + max(call, settings.warm_up_ms / 1e3) + call * calls_per_round(batch, settings)


def _steps(steps: int, batch: int, each: float) -> str:
    return f"{steps} steps of {batch} images at {each * 1e3:.0f} ms"


def main(arguments: list[str]) -> int:
    """What the child process does: a forecast a line, and at the end {"error": ...} where a step could not be tried."""
    params, counts, scratch, folder, *steps = arguments
    for noisy in ("winnow", "nncf", "torch", "onnxscript"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    try:
        rehearsal = Rehearsal(load_config(Path(params)), Counts(**json.loads(counts)), Path(scratch), Path(folder))
        rehearsal.started = time.time() - psutil.Process().create_time()  # as a step's process, this one imported torch
        for step in steps:
            sys.stdout.write(json.dumps(asdict(rehearsal.rehearse(step))) + "\n")
            sys.stdout.flush()
    except WinnowError as error:
        sys.stdout.write(json.dumps({"error": str(error)}) + "\n")
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
