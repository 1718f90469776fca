"""Forecast of each step: time a small part of its work, and multiply by the units that the whole step needs.

Decoding is timed on the user's files; everything else on random images and untrained networks, whose speed is the same.
The methods themselves run unchanged, on few images. The forecast runs in a process of its own
(tasks/forecast/__main__.py), because the peak memory of that process is part of it.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from tasks.forecast.benchmark_cost import benchmark_cost
from tasks.forecast.candidate_costs import CandidateCosts
from tasks.forecast.data_counts import Cost, Counts, Forecast
from tasks.forecast.learning_costs import (
    embed_cost,
    finetune_cost,
    finetuning_step_seconds,
    pretrain_cost,
    report_cost,
)
from tasks.forecast.microbenchmarks import hash_rate, seconds_per_file
from tasks.forecast.trial_networks import TrialNetworks
from tasks.project.peak_memory import measure_peak_memory
from winnow.config import ROOT, Config, Quantize, TrainedCandidate, topological_order
from winnow.models.backbones import build_model

SELECT = Cost(5.0, 1.0, "reads records")


class StepForecaster:
    """Times a small part of each step's work. One instance serves all steps: they share networks, files and rates."""

    def __init__(
        self, config: Config, counts: Counts, scratch: Path, folder: Path, weights_cache: Path | None = None
    ) -> None:
        """Build the networks in `folder`. `weights_cache`: downloaded weights; None: `scratch`."""
        self.config, self.counts, self.scratch, self.folder = config, counts, scratch, folder
        self.trial = TrialNetworks(config, counts, folder, weights_cache or scratch)
        self.candidates = CandidateCosts(self.trial)
        self.hash_rate = hash_rate()
        self.startup_seconds = 0.0
        """Seconds to start the process of a step."""

    def forecast_step(self, step: str) -> Forecast:
        """Return the forecast of a step. Raises WinnowError where the step itself would."""
        gc.collect()
        with suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        costs: dict[str, Callable[[], Cost]] = {
            "ingest": self._ingest,
            "embed": partial(embed_cost, self.trial),
            "pretrain": partial(pretrain_cost, self.trial),
            "finetune": partial(finetune_cost, self.trial, self.candidates),
            "benchmark": self._benchmark,
            "select": lambda: SELECT,
            "refit": self._refit,
            "report": partial(report_cost, self.trial),
        }
        with measure_peak_memory(every=0.05) as peak:
            cost = costs[step]() if step in costs else self.candidates.cost(step)
        seconds = cost.seconds + self.startup_seconds + cost.disk_mb * 1e6 / self.hash_rate
        return Forecast(step, seconds, peak.mb, cost.disk_mb, cost.basis)

    def _ingest(self) -> Cost:
        data, total = self.config.data, self.counts.images
        worker_startup, per_file, files = seconds_per_file(data, self.scratch, self.folder)
        disk_mb = total * ((data.image_size**2 + (data.larger_size or 0) ** 2) * 3 + 60) / 1e6
        return Cost(worker_startup + per_file * files, disk_mb, f"{files} files, {1 / per_file:.0f}/s")

    def _benchmark(self) -> Cost:
        for name in (ROOT, *topological_order(dict(self.config.candidates))):
            self.candidates.ensure(name)
        return benchmark_cost(self.config, self.counts, self.trial.microbenchmarks, self.folder)

    def _refit(self) -> Cost:
        """Return the cost of refitting dense and, as the winner is not known, the longest training and an int8 file."""
        counts, settings, candidates = self.counts, self.config.finetune, self.config.candidates
        if reason := self.config.refit.reason_against(counts.choosing, self.config.data.label_budget):
            return Cost(0.0, 0.1, f"none: {reason}")
        steps = settings.steps_for(counts.budget + counts.choosing)
        seconds = steps * finetuning_step_seconds(self.trial, build_model(self.trial.architecture))
        trained = {
            name: candidate.steps_for(counts.train)
            for name, candidate in candidates.items()
            if isinstance(candidate, TrainedCandidate)
        }
        longest = max(trained, key=lambda name: trained[name], default=None)
        int8 = next((name for name, candidate in candidates.items() if isinstance(candidate, Quantize)), None)
        retrained, disk_mb = [name for name in (longest, int8) if name is not None], 0.1
        for name in retrained:
            cost = self.candidates.cost(name)
            seconds, disk_mb = seconds + cost.seconds, disk_mb + cost.disk_mb
        if longest is not None:  # the validation images are training images here
            seconds *= 1 + counts.choosing / max(1, counts.train)
        return Cost(
            seconds, disk_mb, f"{' and '.join((ROOT, *retrained))} again, as an upper estimate of the winner's refit"
        )
