"""The total time that is left of a run: forecasts of its steps, corrected by the steps that have ended.

    with tracked(paths, parent_run, ["ingest", "pretrain", ...]):
        begin_step(parent_run, "ingest")      "step 1 of 14, about 5:20 left in total"
        end_step(parent_run, "ingest", 3.2)

Forecasts are those of `winnow plan` for the same params.yaml, or else the rough ones of
tasks/forecast/rough_forecast.py, which appear some seconds after the images are ingested. Without either there is no
time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence

from tasks.project.paths import ProjectPaths
from tasks.project.state_files import PLAN, ROUGH_FORECAST
from winnow.eta import format_duration
from winnow.records import sha256_of

STEP_OVERHEAD = 1.0
"""Seconds that a step takes outside itself."""
MIN_SECONDS = 10.0
"""The forecast of the ended steps above which their actual time corrects the forecast of the others."""
MAX_CORRECTION = 3.0
"""The largest factor, and one over the smallest, by which forecasts are corrected."""


class TimeLeft:
    """Forecasts of the steps of one run, and the time that the ended ones took."""

    def __init__(self, paths: ProjectPaths, steps: Sequence[str]) -> None:
        """`steps`: those that will run, in this order."""
        self._paths, self._steps = paths, list(steps)
        self._actual: dict[str, float | None] = {}
        self._has_line = False

    def begin(self, step: str) -> str:
        """Return a line on the position of the step and the total time left; without a forecast the position alone."""
        position = f"step {self._steps.index(step) + 1} of {len(self._steps)}" if step in self._steps else step
        seconds = self.seconds_left()
        self._has_line |= seconds is not None
        return position if seconds is None else f"{position}, about {format_duration(seconds)} left in total"

    def first_line(self) -> str:
        """Return a line on the total time left when the first forecast has come within a step; else ""."""
        if self._has_line or (seconds := self.seconds_left()) is None:
            return ""
        self._has_line = True
        return f"about {format_duration(seconds)} left in total"

    def end(self, step: str, seconds: float | None) -> None:
        """Record the seconds that a step took itself; None where it did not do all its work, as a restored one."""
        self._actual[step] = None if seconds is None else seconds + STEP_OVERHEAD

    def seconds_left(self) -> float | None:
        """Return the seconds that the steps without an end will take; None without a forecast."""
        forecast = read_forecast(self._paths)
        left = [step for step in self._steps if step not in self._actual]
        if not set(left) <= forecast.keys():
            return None
        actual = {step: seconds for step, seconds in self._actual.items() if seconds is not None and step in forecast}
        expected = sum(forecast[step] for step in actual)
        factor = 1.0
        if expected >= MIN_SECONDS:
            factor = min(max(sum(actual.values()) / expected, 1 / MAX_CORRECTION), MAX_CORRECTION)
        return sum(forecast[step] for step in left) * factor


def read_forecast(paths: ProjectPaths) -> Mapping[str, float]:
    """Return step -> seconds of the plan or of the rough forecast for the present params.yaml; {} without one.

    They include what a step takes outside itself.
    """
    params = sha256_of(paths.root / "params.yaml")
    plan, rough = PLAN.read(paths), ROUGH_FORECAST.read(paths)
    steps: dict[str, float] = {}
    if rough is not None and rough["params"] == params:
        steps |= {step: seconds + STEP_OVERHEAD for step, seconds in rough["seconds"].items()}
    if plan is not None and plan["params"] == params:
        steps |= {step: planned["seconds"] for step, planned in plan["steps"].items()}
    return steps


_runs: dict[str, TimeLeft] = {}
"""MLflow run of the execution -> its time."""


@contextlib.contextmanager
def tracked(paths: ProjectPaths, parent_run: str, steps: Sequence[str]) -> Iterator[None]:
    """Keep the time of a run within the block."""
    _runs[parent_run] = TimeLeft(paths, steps)
    try:
        yield
    finally:
        del _runs[parent_run]


def begin_step(parent_run: str, step: str) -> str:
    """Return the line of `TimeLeft.begin`; "" outside `tracked`."""
    return _runs[parent_run].begin(step) if parent_run in _runs else ""


def first_line(parent_run: str) -> str:
    """Return the line of `TimeLeft.first_line`; "" outside `tracked`."""
    return _runs[parent_run].first_line() if parent_run in _runs else ""


def end_step(parent_run: str, step: str, seconds: float | None) -> None:
    """Record the time that a step took, as `TimeLeft.end` does; outside `tracked` do nothing."""
    if parent_run in _runs:
        _runs[parent_run].end(step, seconds)
