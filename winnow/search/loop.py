"""The search: points are proposed, each is made and measured, and the front of what was found grows.

    progress = search(place, Path("study.db"), tell=print)

What was tried, and what to try next, is in memory.py; a search that was stopped goes on from there.
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
from winnow.search.cost import describe_cost
from winnow.search.optuna_study import Memory, Trial
from winnow.search.pareto import TrialPoint
from winnow.search.space import Point
from winnow.search.trial import Earlier, Result, SearchContext, run_point

log = logging.getLogger(__name__)

FEW_REPEATS = 3
"""Proposals in a row that were all tried already: the optimiser goes in circles, and the next are drawn at random."""
MANY_REPEATS = 50
"""As many of them, those at random included: nothing new is left."""
MANY_BEGINNINGS = 3
"""Times that a trial is begun whose process ends within it."""
MANY_IMPOSSIBLE = 8
"""Trials in a row that cannot be made: something is wrong with the settings."""


@dataclass(frozen=True)
class Progress:
    """What a search has done, over all its calls."""

    trials: list[Trial]
    seconds: float
    dense_cost: float
    peaks: Mapping[str, float]
    """Precision -> multiply-adds a second of the processor at best, as the search began; none where cost is no time."""

    @property
    def found(self) -> list[TrialPoint]:
        """Where the finished ones lie."""
        return [trial.found for trial in self.trials if trial.found]


class Runner(Protocol):
    """Where trials run: in this process, or in several at once."""

    slots: int
    """How many at once."""

    def submit(self, place: SearchContext, number: int, point: Point, earlier: Sequence[Earlier], dense: float) -> None:
        """Begin with a trial; `number` names its folder, `dense` is what dense costs."""

    def next(self) -> tuple[int, Result]:
        """(number, what became of it) of one that has ended; waits for it."""


class InTurn:
    """One trial after another, in this process."""

    slots = 1

    def __init__(self) -> None:
        self._ended: list[tuple[int, Result]] = []

    def submit(self, place: SearchContext, number: int, point: Point, earlier: Sequence[Earlier], dense: float) -> None:
        """Run it."""
        self._ended.append((number, run_point(place, number, point, earlier, dense)))

    def next(self) -> tuple[int, Result]:
        """What was just run."""
        return self._ended.pop()


def search(
    place: SearchContext, storage: Path, tell: Callable[[Trial], None], runner: Runner | None = None
) -> Progress:
    """Search until the budget is spent or nothing new is left; `tell` is called for every trial that was run now.

    Raises ConfigError where `storage` holds a search of other settings or other data, or where nothing can be made.
    """
    runner = runner or InTurn()
    memory = Memory(place, storage, runner.slots)
    _tell_what_is_there(memory)
    repeats = impossible = 0
    with memory.marking_stops():
        while True:
            while memory.under_way < runner.slots and repeats < MANY_REPEATS and not memory.is_spent:
                begun = memory.begin(at_random=repeats >= FEW_REPEATS)
                if begun is None:
                    repeats += 1
                    continue
                repeats = 0
                log.info("trial %d begins: %s", begun.number, what_of(begun.point))
                if begun.ended_within >= MANY_BEGINNINGS:
                    why = f"its process ended {begun.ended_within} times within it, for want of memory perhaps"
                    tell(memory.end(begun.folder, Result("impossible", why, None, None, 0.0)))
                    continue
                runner.submit(place, begun.folder, begun.point, memory.first_looks, memory.dense_cost)
            if not memory.under_way:
                if repeats == MANY_REPEATS:
                    log.info("the last %d proposals were all tried already: the search ends here", repeats)
                else:
                    log.info("the budget is spent: the search ends here, %s", memory.spent)
                break
            done = memory.end(*runner.next())
            repeats = 0  # the optimiser knows more now
            log.info("trial %d: %s; %s", done.number, told(done, place.config.search), memory.spent)
            tell(done)
            impossible = impossible + 1 if done.state == "impossible" else 0
            if impossible == MANY_IMPOSSIBLE:
                raise ConfigError(f"{impossible} trials in a row were impossible, the last because: {done.why}")
    return Progress(memory.trials, memory.seconds, memory.dense_cost, memory.peaks)


def _tell_what_is_there(memory: Memory) -> None:
    """Of a search that goes on: how far it is, and how to end it here."""
    if (done := len(memory.trials)) and not memory.is_spent:
        log.info(
            "%d trials are there, %s: the search goes on; to end it here: -S search.trials=%d", done, memory.spent, done
        )
        log.info("(it stays in params.yaml; 0 takes it back)")


MADE: dict[Structure, str] = {"prune": "pruned to", "factorize": "factorized to"}


def what_of(point: Point) -> str:
    """A point in words."""
    if point.structure == "student":
        what = f"student at width {point.width:g}"
    else:
        what = f"{MADE[point.structure]} {point.macs:.0%} of the multiply-adds"
    what += f", hint {point.hint}" if point.hint != "none" else ""
    what += f", {point.importance}" if point.structure == "prune" and point.importance != "magnitude" else ""
    return what + (", int8" if point.int8 else "")


def told(trial: Trial, settings: Search) -> str:
    """One line for people."""
    what = what_of(trial.point)
    if trial.look is None:
        return f"{what}: {trial.state} ({trial.why})"
    cost = describe_cost(settings, trial.look.cost)
    if trial.state == "given up":
        return f"{what}: given up at {cost}; {trial.why}"
    return f"{what}: {round(trial.look.drop, 1) + 0.0:.1f} points lost, {cost}, {trial.state}"
