"""The rows of a search's front, with intervals, and the trial that is chosen.

Figures are of the half of validation that chooses; those of the chosen trial are of the other half, which confirms it
or does not. Where it does not, no other trial is chosen: that would be choosing on the confirming half.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tasks.project.state_files import CONFIRMATIONS
from winnow.benchmark.peak_throughput import share_of_peak
from winnow.config import ROOT
from winnow.data.dataset import ImageSet, load_images
from winnow.data.splits import selection_half
from winnow.evaluation.metrics import load_logits
from winnow.records import CandidateRecord
from winnow.records.selection import DropEvidence
from winnow.reporting.search_page import FrontRow
from winnow.search.cost import describe_cost, seconds_per_image
from winnow.search.loop import SearchProgress, describe_point
from winnow.search.optuna_study import EndedTrial
from winnow.search.trial import SearchContext, candidates_folder, load_trial_logits
from winnow.search.trial_accuracy import measure_drop, reference_logits
from winnow.search.trial_front import TrialPoint, cheapest_fitting, knee_point, trials_on_front
from winnow.selection.gates import judge_drop


def front_rows(progress: SearchProgress, context: SearchContext) -> list[FrontRow]:
    """Return the rows of the front, the cheapest first; the chosen trial last if it is not on the front."""
    images = load_images(context.folders.data)
    comparison = _Comparison(
        progress,
        context,
        images,
        finished={trial.number: trial for trial in progress.trials if trial.finished_point},
        reference=reference_logits(context.references, images),
        dense=load_logits(context.folders.candidates / ROOT, images),
        choosing_V=selection_half(images),
    )
    chosen, at_knee = cheapest_fitting(progress.finished_points, comparison.fits), knee_point(progress.finished_points)
    points = trials_on_front(progress.finished_points)
    if chosen is not None and chosen not in points:
        points = [*points, chosen]
    return [comparison.row(point, is_chosen=point == chosen, is_knee=point == at_knee) for point in points]


@dataclass(frozen=True)
class _Comparison:
    """The logits that trials are compared with, and the images that select and confirm."""

    progress: SearchProgress
    context: SearchContext
    images: ImageSet
    finished: Mapping[int, EndedTrial]
    reference: NDArray[np.float32]
    """Logits (V, C) of the better of dense and dense-kd."""
    dense: NDArray[np.float32]
    """Logits (V, C) of dense."""
    choosing_V: NDArray[np.bool_]
    """True for validation images of the half that selects."""

    def _answers(self, point: TrialPoint) -> NDArray[np.float32]:
        return load_trial_logits(self.context, self.finished[point.number].folder, self.images)

    def fits(self, point: TrialPoint) -> bool:
        """Return whether a trial is cheaper than dense and passes the accuracy gate on the selecting half."""
        if point.cost >= self.progress.dense_cost:
            return False
        drop = measure_drop(self.reference, self._answers(point), self.images, self.choosing_V)
        return judge_drop(drop, self.context.config.search.max_drop_points).passed

    def row(self, point: TrialPoint, is_chosen: bool, is_knee: bool) -> FrontRow:
        """Return the row of a trial, with figures of the confirming half if it is chosen."""
        settings, trial, answers = self.context.config.search, self.finished[point.number], self._answers(point)
        part_V, candidates = self.choosing_V, 1
        if is_chosen:
            part_V, candidates = ~self.choosing_V, _count_confirmation(self.context, point.number)

        def drop_from(baseline: NDArray[np.float32]) -> DropEvidence:
            return measure_drop(baseline, answers, self.images, part_V, candidates)

        gate = judge_drop(drop_from(self.reference), settings.max_drop_points) if is_chosen else None
        drop, to_dense = (
            evidence.labelled or evidence.answers for evidence in map(drop_from, (self.reference, self.dense))
        )
        marks = {
            "chosen": gate is not None and gate.passed,
            "not confirmed": gate is not None and not gate.passed,
            "knee": is_knee,
        }
        return FrontRow(
            point.number,
            describe_point(trial.point),
            drop,
            to_dense,
            point.cost,
            describe_cost(settings, point.cost),
            self.progress.dense_cost / point.cost,
            _peak_share(point, trial, self.progress, self.context),
            tuple(mark for mark, holds in marks.items() if holds),
            gate.reason if gate else "",
        )


def _count_confirmation(context: SearchContext, number: int) -> int:
    """Count this trial among those evaluated on the confirming half and return how many, for the interval."""
    path = context.trials.parent / Path(CONFIRMATIONS.name).name
    seen = CONFIRMATIONS.read_at(path)
    if number not in seen:
        seen = [*seen, number]
        CONFIRMATIONS.write_at(path, seen)
    return len(seen)


def _peak_share(point: TrialPoint, trial: EndedTrial, progress: SearchProgress, context: SearchContext) -> float | None:
    """Return its multiply-adds per second as a share of the processor's peak; None where cost is not a time."""
    seconds, evaluation = seconds_per_image(context.config.search, point.cost), trial.evaluation
    if evaluation is None or seconds is None or not progress.peaks:
        return None
    candidate_folder = candidates_folder(context, trial.folder, context.config.search.epochs) / evaluation.names[-1]
    peak = progress.peaks[CandidateRecord.read(candidate_folder).details.precision]
    return share_of_peak(1 / seconds, evaluation.metrics["compute/macs"], peak)
