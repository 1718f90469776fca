"""A rough forecast of a run within seconds: one training step is timed, everything else follows by formulas.

`winnow run` makes it once the images are ingested, for the total time that is left (tasks/time_left.py). `winnow plan`
measures every step, which takes a minute or two and is more accurate. The constants were measured on two cores.
"""

from __future__ import annotations

import contextlib
import math
import shutil
from pathlib import Path

from tasks.forecast.benchmark_cost import COMPARED_CASES
from tasks.forecast.data_counts import Counts, count_images
from tasks.forecast.microbenchmarks import Microbenchmarks, random_images
from tasks.project import gpu_slots
from tasks.project.paths import ProjectPaths
from tasks.project.state_files import ROUGH_FORECAST
from winnow.benchmark.cases import plan_cases
from winnow.benchmark.grid import SCREENING_ROUNDS, screening_settings
from winnow.compression.network_size import count_macs
from winnow.compression.quantize import quantization_recipe, static_rungs
from winnow.config import (
    ROOT,
    Benchmark,
    Candidate,
    Config,
    Distill,
    Probe,
    Prune,
    Quantize,
    RotNet,
    SimCLR,
    TrainedCandidate,
    TrainedPretraining,
    UnlabelledTraining,
    load_config,
)
from winnow.config.weights import NO_WEIGHTS
from winnow.deploy.pytorch_inference import set_torch_threads
from winnow.errors import WinnowError
from winnow.hardware import cores
from winnow.models.backbones import Architecture, build_model
from winnow.records import RECORD, sha256_of
from winnow.training.finetuning import classification_loss

TIMED_PIXELS = 2**19
"""The most pixels of a timed batch: larger batches take memory from the step that runs meanwhile."""
INGESTED_PER_S = 4000
"""Images."""
TEACHER_MACS = 2e8
"""Multiply-adds of a usual teacher for one image."""
USUAL_SIDE, MAX_ENLARGEMENT = 224, 5
"""The side of the images that networks with known weights take, unless images would be enlarged more than this."""
FORWARD_SHARE = 0.45
"""Time of a prediction as a share of that of a training step on the same image."""
SELECT_SECONDS, REFIT_START_SECONDS, REPORT_SECONDS = 2.0, 2.0, 12.0
CANDIDATE_SECONDS, QUANTIZE_SECONDS, PROBE_SECONDS = 5.0, 3.0, 15.0
"""To export and check a candidate; to quantize one scheme; to fit the head of the teacher."""
CONTROLLED_FILES = 4
"""Files that the scheme `controlled` usually quantizes."""
VIEWS = {RotNet: 4, SimCLR: 2}
"""Pretraining method -> views of each image in a step; others have one."""
THREADS_EXPONENT = 0.85
"""Training on n cores is n to this power times as fast as on one."""
BENCHMARK_SECONDS, COMPILE_SECONDS, PAUSE_SECONDS = 25.0, 3.0, 0.02
"""Peaks, footprints and checks of the benchmark; to compile PyTorch once; from one visit of a case to the next."""
BATCH_SIZES = 2
"""Of the benchmark: one image, and a large batch."""


class RoughForecast:
    """Seconds of each step."""

    def __init__(self, config: Config, counts: Counts, folder: Path) -> None:
        """Time a training step of the backbone on random images in `folder`. No weights are downloaded."""
        self.config, self.counts = config, counts
        architecture = self._architecture(config.pretrain.backbone, _network_size(config))
        model, settings = build_model(architecture), config.finetune
        self._macs = count_macs(model, architecture)
        microbenchmarks = Microbenchmarks(random_images(folder / "data", config.data, counts.classes), folder)
        rate = settings.learning_rates[0]
        loss = classification_loss(settings, architecture.image_size)
        batch = min(settings.batch_size, max(4, TIMED_PIXELS // architecture.image_size**2))
        threads_before = set_torch_threads(1)  # a step runs meanwhile
        per_step = microbenchmarks.seconds_per_step(model, loss, batch, settings.optimiser(rate))
        set_torch_threads(threads_before)
        self._per_image = per_step / batch / math.pow(cores(), THREADS_EXPONENT)
        """Seconds of training dense on one image."""

    def seconds(self) -> dict[str, float]:
        """Return step or candidate -> seconds."""
        counts = self.counts
        with_teacher = self.config.teacher.weights != NO_WEIGHTS
        embedded = counts.train + counts.validation if with_teacher else 0
        return {
            "ingest": 1.0 + counts.images / INGESTED_PER_S,
            "embed": embedded * self._per_image * FORWARD_SHARE * TEACHER_MACS / self._macs,
            "pretrain": self._pretrain(),
            "finetune": self._finetune(),
            **{name: self._candidate(candidate) for name, candidate in self.config.candidates.items()},
            "benchmark": self._benchmark(self.config.benchmark),
            "select": SELECT_SECONDS,
            "refit": self._refit(),
            "report": REPORT_SECONDS,
        }

    def _pretrain(self) -> float:
        settings = self.config.pretrain
        if not isinstance(settings, TrainedPretraining):
            return 1.0
        shown = settings.steps_for(self.counts.train) * settings.batch_size * VIEWS.get(type(settings), 1)
        return shown * self._per_image

    def _finetune(self) -> float:
        settings, counts = self.config.finetune, self.counts
        arms = 1 + isinstance(self.config.pretrain, TrainedPretraining)
        trainings = arms * (len(settings.learning_rates) + len(settings.seeds) - 1)
        folds = settings.folds if settings.needs_cross_validation(counts.choosing) else 0
        shown = (trainings + folds) * settings.steps_for(counts.budget) * settings.batch_size
        shown += (len(settings.seeds) + folds) * self._further_images()
        return shown * self._per_image + 2 * CANDIDATE_SECONDS

    def _further_images(self) -> int:
        """Return the images that one further training on images without labels shows, 0 where there is none."""
        settings = self.config.finetune.unlabelled
        if not isinstance(settings, UnlabelledTraining) or self.counts.budget >= self.counts.train:
            return 0
        return settings.steps_for(self.counts.train) * settings.batch_size

    def _candidate(self, candidate: Candidate) -> float:
        if isinstance(candidate, Probe):
            return PROBE_SECONDS
        seconds = CANDIDATE_SECONDS
        if isinstance(candidate, Quantize):
            rungs = len(static_rungs(quantization_recipe(candidate)))
            seconds = QUANTIZE_SECONDS * {"ladder": rungs, "controlled": CONTROLLED_FILES}.get(candidate.scheme, 1)
            if candidate.recovery is not None:
                recovery = candidate.recovery
                seconds += recovery.steps_for(self.counts.train) * recovery.batch_size * self._per_image
        if isinstance(candidate, TrainedCandidate):
            shown = candidate.steps_for(self.counts.train) * candidate.recovery.batch_size
            seconds += shown * self._per_image * math.sqrt(self._share_of_macs(candidate))  # small ones are inefficient
        return seconds

    def _refit(self) -> float:
        """Return the seconds to refit dense and, as the winner is not known, the candidate that takes longest."""
        settings, counts, candidates = self.config.finetune, self.counts, self.config.candidates
        if self.config.refit.reason_against(counts.choosing, self.config.data.label_budget):
            return REFIT_START_SECONDS
        shown = settings.steps_for(counts.budget + counts.choosing) * settings.batch_size
        shown += self._further_images()
        longest = max(map(self._candidate, candidates.values()), default=0.0)
        return REFIT_START_SECONDS + shown * self._per_image + longest + CANDIDATE_SECONDS

    def _share_of_macs(self, candidate: Candidate) -> float:
        """Return the multiply-adds of a candidate as a share of those of dense: of a pruned one about, and a half where
        the amount is known after pruning only.
        """
        if isinstance(candidate, Prune):
            remove = candidate.remove
            if remove.channels is not None:
                return (1 - remove.channels) ** 2
            return 1 - (remove.macs or remove.parameters or 0.5)
        if isinstance(candidate, Distill) and candidate.student != "same":
            architecture = self._architecture(candidate.student, self.config.data.image_size, candidate.width)
            return count_macs(build_model(architecture), architecture) / self._macs
        return 1.0

    def _architecture(self, backbone: str, image_size: int, width: float = 1.0) -> Architecture:
        return Architecture(
            backbone=backbone, num_classes=max(1, self.counts.classes), image_size=image_size, width=width
        )

    def _benchmark(self, settings: Benchmark) -> float:
        int8 = {name: isinstance(candidate, Quantize) for name, candidate in self.config.candidates.items()}
        cases = plan_cases({ROOT: False, **int8}, settings, cores(), cuda=False)
        screening, files = screening_settings(settings), 1 + len(int8)
        compiled = sum(case.runtime.startswith("compile") for case in cases)
        return (
            BENCHMARK_SECONDS
            + COMPILE_SECONDS * compiled
            + SCREENING_ROUNDS * len(cases) * _seconds_per_visit(screening)
            + settings.rounds * BATCH_SIZES * (COMPARED_CASES * files + 1) * _seconds_per_visit(settings)
        )


def write_rough_forecast(paths: ProjectPaths, folder: Path) -> None:
    """Forecast the run of this project and store it; `folder` is created for its files, and removed.

    Nothing is written without ingested images, and on a machine with a GPU, which a step uses meanwhile; nor where the
    project is not usable.
    """
    params = paths.root / "params.yaml"
    if gpu_slots.has_gpu() or not (paths.artifacts / "data" / RECORD).is_file():
        return
    shutil.rmtree(folder, ignore_errors=True)
    try:
        with contextlib.suppress(WinnowError, OSError, RuntimeError, MemoryError, KeyError):
            digest, config = sha256_of(params), load_config(params)
            counts = count_images(config, paths.artifacts / "data", paths.state_dir)
            seconds = RoughForecast(config, counts, folder).seconds()
            if paths.state_dir.is_dir():
                ROUGH_FORECAST.write(paths, {"params": digest, "seconds": seconds})
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _network_size(config: Config) -> int:
    """Return the side of the images that the backbone takes, about: larger for known weights."""
    pretrain, size = config.pretrain, config.data.image_size
    if pretrain.start == NO_WEIGHTS:
        return size
    return min(USUAL_SIDE, MAX_ENLARGEMENT * size) if pretrain.input_size == "auto" else pretrain.input_size


def _seconds_per_visit(settings: Benchmark) -> float:
    return PAUSE_SECONDS + (settings.warm_up_ms + settings.timed_ms) / 1e3
