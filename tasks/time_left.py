"""The total time that is left of a run: forecasts of its steps, corrected by the steps that have ended.

    with tracked(paths, parent_run, ["ingest", "pretrain", ...]):
        begin_step(parent_run, "ingest")      "step 1 of 14, about 5:20 left in total"
        end_step(parent_run, "ingest", 3.2)

Forecasts are those of `winnow plan` for the same params.yaml, or else the rough ones of
tasks/forecast/rough_forecast.py, which appear some seconds after the start. Without either there is no time.
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
LEAST_SECONDS = 10.0
"""The forecast of the ended steps above which their actual time corrects the forecast of the others."""
MOST_CORRECTION = 3.0


class TimeLeft:
    """Forecasts of the steps of one run, and the time that the ended ones took."""

    def __init__(self, paths: ProjectPaths, steps: Sequence[str]) -> None:
        """`steps`: those that will run, in this order."""
        self._paths, self._steps = paths, list(steps)
        self._actual: dict[str, float] = {}

    def begin(self, step: str) -> str:
        """Return a line on the position of the step and the total time left; without a forecast the position alone."""
        position = f"step {self._steps.index(step) + 1} of {len(self._steps)}" if step in self._steps else step
        seconds = self.seconds_left()
        return position if seconds is None else f"{position}, about {format_duration(seconds)} left in total"

    def end(self, step: str, seconds: float) -> None:
        """Record the time that a step took."""
        self._actual[step] = seconds

    def seconds_left(self) -> float | None:
        """Return the seconds that the steps without an end will take; None without a forecast."""
        forecast = read_forecast(self._paths)
        left = [step for step in self._steps if step not in self._actual]
        if not set(left) <= forecast.keys():
            return None
        ended = [step for step in self._actual if step in forecast]
        expected = sum(forecast[step] for step in ended)
        factor = 1.0
        if expected >= LEAST_SECONDS:
            factor = sum(self._actual[step] for step in ended) / expected
            factor = min(max(factor, 1 / MOST_CORRECTION), MOST_CORRECTION)
        return sum(forecast[step] * factor + STEP_OVERHEAD for step in left)


def read_forecast(paths: ProjectPaths) -> Mapping[str, float]:
    """Return step -> seconds of the plan or of the rough forecast for the present params.yaml; {} without one."""
    params = sha256_of(paths.root / "params.yaml")
    plan, rough = PLAN.read(paths), ROUGH_FORECAST.read(paths)
    steps: dict[str, float] = {}
    if rough is not None and rough["params"] == params:
        steps |= rough["seconds"]
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


def end_step(parent_run: str, step: str, seconds: float) -> None:
    """Record the time that a step took; outside `tracked` do nothing."""
    if parent_run in _runs:
        _runs[parent_run].end(step, seconds)
