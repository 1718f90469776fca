"""The search: Optuna proposes points, each is made and measured, and the front of what was found grows.

Two things are minimised at once, the points of accuracy lost and the cost, by Optuna's TPE (Bergstra et al. 2011; Ozaki
et al. 2020 for several objectives). Its storage is a file, so a search that was stopped goes on: a trial that was under
way is taken up in its own folder, what it had trained included; one that is proposed again is not run again, and counts
once.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from winnow.config import NoPretraining
from winnow.errors import ArtifactError, ConfigError, MissingExtra, TrainingError
from winnow.progress import duration
from winnow.records import record_digest, write_json
from winnow.search.front import Found
from winnow.search.space import Point, chain, first_points, propose
from winnow.search.trial import Earlier, GivenUp, Look, Meter, Workplace, attempt, describe_cost

log = logging.getLogger(__name__)

NAME = "winnow"
MANY_REPEATS = 25
"""Proposals in a row that were all tried already: nothing new is left."""
MANY_IMPOSSIBLE = 8
"""Trials in a row that cannot be made: something is wrong with the settings."""


@dataclass(frozen=True)
class Trial:
    """One that was run: to its end, given up at its first look, or impossible."""

    number: int
    point: Point
    state: str
    """finished, given up, impossible."""
    look: Look | None
    why: str
    seconds: float

    @property
    def found(self) -> Found | None:
        """Where it lies, if it was finished."""
        if self.state != "finished" or self.look is None:
            return None
        return Found(self.number, self.look.drop, self.look.cost)


@dataclass(frozen=True)
class Progress:
    """What a search has done, over all its calls."""

    trials: list[Trial]
    seconds: float
    dense_cost: float


def search(place: Workplace, storage: Path, meter: Meter, tell: Callable[[Trial], None]) -> Progress:
    """Search until the budget is spent or nothing new is left; `tell` is called for every trial that was run now.

    Raises ConfigError where `storage` holds a search of other settings or other data.
    """
    optuna = _library()
    settings = place.config.search
    study = _open(optuna, storage, place, meter)
    dense_cost = study.user_attrs["dense_cost"]
    _take_up(optuna, study)
    repeats = impossible = 0
    while not _spent(study, place) and repeats < MANY_REPEATS:
        trial = study.ask()
        point = propose(trial, settings, not isinstance(place.config.pretrain, NoPretraining))
        key = json.dumps(chain(point, settings, settings.epochs), sort_keys=True)
        if (same := _told_before(optuna, study, key)) is not None:
            trial.set_user_attr("same_as", same.number)
            _repeat(optuna, study, trial, same)
            repeats += 1
            continue
        repeats = 0
        done = _run(optuna, study, trial, place, point, key, meter)
        log.info("trial %d: %s; %s", done.number, told(done, settings), _left(study, place))
        tell(done)
        impossible = impossible + 1 if done.state == "impossible" else 0
        if impossible == MANY_IMPOSSIBLE:
            raise ConfigError(f"{impossible} trials in a row were impossible, the last because: {done.why}")
    return Progress(_trials(optuna, study), _seconds(study), dense_cost)


def told(trial: Trial, settings: Any) -> str:
    """One line for people."""
    point = trial.point
    what = f"{point.structure} to {point.macs:.0%} of the multiply-adds"
    what += f", hint {point.hint}" if point.hint != "none" else ""
    what += f", {point.importance}" if point.structure == "prune" and point.importance != "magnitude" else ""
    what += ", int8" if point.int8 else ""
    if trial.look is None:
        return f"{what}: {trial.state} ({trial.why})"
    return f"{what}: {trial.look.drop:.1f} points lost, {describe_cost(settings, trial.look.cost)}, {trial.state}"


def _library() -> Any:
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise MissingExtra("optuna", "search") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def _open(optuna: Any, storage: Path, place: Workplace, meter: Meter) -> Any:
    storage.parent.mkdir(parents=True, exist_ok=True)
    settings = place.config.search
    study = optuna.create_study(
        study_name=NAME,
        storage=f"sqlite:///{storage}",
        sampler=optuna.samplers.TPESampler(seed=settings.seed, n_startup_trials=8),
        directions=["minimize", "minimize"],
        load_if_exists=True,
    )
    asked = settings.model_dump(mode="json", exclude={"minutes", "trials", "max_drop_points"})
    asked |= {"data": record_digest(place.folders.data), "dense": record_digest(meter.dense)}
    before = study.user_attrs.get("asked")
    if before is None:
        study.set_user_attr("asked", asked)
        study.set_user_attr("dense_cost", meter.cost(meter.dense, "f32"))
        for params in first_points(settings):
            study.enqueue_trial(params)
    elif before != asked:
        changed = ", ".join(sorted(key for key in asked if before.get(key) != asked[key]))
        raise ConfigError(
            f"{storage.parent} holds a search with another {changed}: give this one a name of its own (--name), or "
            "delete that folder"
        )
    return study


def _take_up(optuna: Any, study: Any) -> None:
    """What a process that was killed left under way waits for its turn again, in its own folder."""
    for trial in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
        folder = trial.user_attrs.get("folder", trial.number)
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        if trial.params:
            study.enqueue_trial(trial.params, user_attrs={"folder": folder})


def _run(optuna: Any, study: Any, trial: Any, place: Workplace, point: Point, key: str, meter: Meter) -> Trial:
    folder = trial.user_attrs.get("folder", trial.number)
    trial.set_user_attr("folder", folder)
    trial.set_user_attr("point", asdict(point))
    trial.set_user_attr("key", key)
    began = time.monotonic()
    states = optuna.trial.TrialState
    first: Look | None = None
    look: Look | None = None
    state, why = "finished", ""
    try:
        look, first = attempt(place, folder, point, _earlier(study), meter)
    except GivenUp as end:
        look = first = end.look
        state, why = "given up", str(end)
    except (ConfigError, ArtifactError, TrainingError) as error:
        state, why = "impossible", str(error)
    seconds = time.monotonic() - began
    for name, value in (
        ("seconds", seconds),
        ("state", state),
        ("why", why),
        ("look", _kept(look)),
        ("first", _kept(first)),
    ):
        trial.set_user_attr(name, value)
    if state == "finished" and look is not None:
        study.tell(trial, [look.drop, look.cost])
    else:
        study.tell(trial, state=states.PRUNED if state == "given up" else states.FAIL)
    write_json(place.trials / f"{folder:04d}" / "trial.json", {"point": asdict(point), "state": state, "why": why})
    return Trial(trial.number, point, state, look, why, seconds)


def _kept(look: Look | None) -> dict[str, Any] | None:
    return None if look is None else {**asdict(look), "metrics": dict(look.metrics), "names": list(look.names)}


def _look_of(raw: Mapping[str, Any] | None) -> Look | None:
    return None if raw is None else Look(raw["drop"], raw["cost"], raw["metrics"], tuple(raw["names"]))


def _earlier(study: Any) -> list[Earlier]:
    firsts = (trial.user_attrs.get("first") for trial in study.get_trials(deepcopy=False))
    return [Earlier(first["drop"], first["cost"]) for first in firsts if first]


def _told_before(optuna: Any, study: Any, key: str) -> Any:
    """The finished trial of the same chain, if there is one."""
    ended = [trial for trial in study.get_trials(deepcopy=False) if "state" in trial.user_attrs]
    return next((trial for trial in ended if trial.user_attrs["key"] == key), None)


def _repeat(optuna: Any, study: Any, trial: Any, same: Any) -> None:
    """The optimiser gets the same answer, and nothing is run."""
    if same.values is not None:
        study.tell(trial, list(same.values))
    else:
        study.tell(trial, state=same.state)


def _trials(optuna: Any, study: Any) -> list[Trial]:
    """Those that were run, each once."""
    found = []
    for trial in study.get_trials(deepcopy=False):
        kept = trial.user_attrs
        if "state" in kept and "same_as" not in kept:
            point = Point(**kept["point"])
            found.append(
                Trial(trial.number, point, kept["state"], _look_of(kept["look"]), kept["why"], kept["seconds"])
            )
    return found


def _seconds(study: Any) -> float:
    return float(sum(trial.user_attrs.get("seconds", 0.0) for trial in study.get_trials(deepcopy=False)))


def _spent(study: Any, place: Workplace) -> bool:
    settings = place.config.search
    done = sum("state" in trial.user_attrs for trial in study.get_trials(deepcopy=False))
    return _seconds(study) >= settings.minutes * 60 or 0 < settings.trials <= done


def _left(study: Any, place: Workplace) -> str:
    settings = place.config.search
    return f"{duration(_seconds(study))} of {duration(settings.minutes * 60)} spent"
