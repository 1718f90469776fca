"""The search loop: propose points, make and measure each, and extend the Pareto front.

    progress = search(context, Path("study.db"), on_trial=print)

winnow/search/optuna_study.py keeps the trials and proposes the next; a search that was stopped resumes from it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from winnow.config import Search
from winnow.config.search import Structure
from winnow.errors import ConfigError
from winnow.records.benchmark import Precision
from winnow.search.cost import describe_cost
from winnow.search.optuna_study import EndedTrial, SearchStudy
from winnow.search.space import Point
from winnow.search.trial import EarlierTrial, SearchContext, TrialResult, run_point
from winnow.search.trial_front import TrialPoint

log = logging.getLogger(__name__)

REPEATS_BEFORE_RANDOM = 3
"""Proposals in a row that were all tried before; after them the next are drawn at random."""
MAX_REPEATS = 50
"""Proposals in a row, random ones included, that were all tried before: nothing new is left."""
MAX_STARTS = 3
"""Starts of a trial during which its process died; then the trial is marked impossible."""
MAX_IMPOSSIBLE = 8
"""Trials in a row that cannot be made; then the settings are wrong."""


@dataclass(frozen=True)
class SearchProgress:
    """The trials, time and reference costs of a search, over all its calls."""

    trials: list[EndedTrial]
    seconds: float
    dense_cost: float
    peaks: Mapping[Precision, float]
    """Precision -> peak multiply-adds per second of the processor at the search's start; empty where cost is not a
    time.
    """

    @property
    def finished_points(self) -> list[TrialPoint]:
        """Return drop and cost of the finished trials."""
        return [trial.finished_point for trial in self.trials if trial.finished_point]


class TrialRunner(Protocol):
    """Runs trials: in this process, or in several at once."""

    slots: int
    """The number of trials at once."""

    def submit(
        self, context: SearchContext, number: int, point: Point, earlier: Sequence[EarlierTrial], dense: float
    ) -> None:
        """Start a trial. `number` names its folder; `dense` is the cost of dense."""

    def next(self) -> tuple[int, TrialResult]:
        """Wait for a trial to end and return (number, result)."""


class SequentialRunner:
    """Runs one trial after another, in this process."""

    slots = 1

    def __init__(self) -> None:
        self._ended: list[tuple[int, TrialResult]] = []

    def submit(
        self, context: SearchContext, number: int, point: Point, earlier: Sequence[EarlierTrial], dense: float
    ) -> None:
        """Run the trial."""
        self._ended.append((number, run_point(context, number, point, earlier, dense)))

    def next(self) -> tuple[int, TrialResult]:
        """Return the trial that was just run."""
        return self._ended.pop()


def search(
    context: SearchContext, storage: Path, on_trial: Callable[[EndedTrial], None], runner: TrialRunner | None = None
) -> SearchProgress:
    """Search until the budget is spent or nothing new is left. `on_trial` is called after every trial of this call.

    Raises ConfigError where `storage` holds a search with other settings or other data, or where nothing can be made.
    """
    runner = runner or SequentialRunner()
    study = SearchStudy(context, storage, runner.slots)
    _log_resumed(study)
    repeats = failures_in_row = 0
    with study.marking_stops():
        while True:
            while study.under_way < runner.slots and repeats < MAX_REPEATS and not study.is_spent:
                running = study.begin(at_random=repeats >= REPEATS_BEFORE_RANDOM)
                if running is None:
                    repeats += 1
                    continue
                repeats = 0
                log.info("trial %d begins: %s", running.number, describe_point(running.point))
                if running.process_deaths >= MAX_STARTS:
                    reason = f"its process died {running.process_deaths} times during it, perhaps for lack of memory"
                    on_trial(study.end(running.folder, TrialResult("impossible", reason, None, None, 0.0)))
                    continue
                runner.submit(context, running.folder, running.point, study.short_evaluations, study.dense_cost)
            if not study.under_way:
                if repeats == MAX_REPEATS:
                    log.info("the last %d proposals had all been tried before: the search ends", repeats)
                else:
                    log.info("the budget is spent: the search ends, %s", study.spent)
                break
            trial = study.end(*runner.next())
            repeats = 0  # the optimiser knows more now
            log.info("trial %d: %s; %s", trial.number, describe_trial(trial, context.config.search), study.spent)
            on_trial(trial)
            failures_in_row = failures_in_row + 1 if trial.state == "impossible" else 0
            if failures_in_row == MAX_IMPOSSIBLE:
                raise ConfigError(f"{failures_in_row} trials in a row were impossible; reason of the last: {trial.why}")
    return SearchProgress(study.trials, study.seconds, study.dense_cost, study.peaks)


def _log_resumed(study: SearchStudy) -> None:
    """Log how far a resumed search is, and how to end it here."""
    if (count := len(study.trials)) and not study.is_spent:
        log.info(
            "resuming the search after %d trials, %s; to end it here: -S search.trials=%d", count, study.spent, count
        )
        log.info("(this stays in params.yaml; search.trials=0 removes the limit)")


STRUCTURE_WORDS: dict[Structure, str] = {"prune": "pruned to", "factorize": "factorized to"}


def describe_point(point: Point) -> str:
    """Return a point in words."""
    if point.structure == "student":
        description = f"student at width {point.width:g}"
    else:
        description = f"{STRUCTURE_WORDS[point.structure]} {point.macs:.0%} of the multiply-adds"
    description += f", hint {point.hint}" if point.hint != "none" else ""
    description += f", {point.importance}" if point.structure == "prune" and point.importance != "magnitude" else ""
    return description + (", int8" if point.int8 else "")


def describe_trial(trial: EndedTrial, settings: Search) -> str:
    """Return one line on a trial, for people."""
    description = describe_point(trial.point)
    if trial.evaluation is None:
        return f"{description}: {trial.state} ({trial.why})"
    cost = describe_cost(settings, trial.evaluation.cost)
    if trial.state == "given up":
        return f"{description}: given up at {cost}; {trial.why}"
    return f"{description}: {round(trial.evaluation.drop, 1) + 0.0:.1f} points lost, {cost}, {trial.state}"
