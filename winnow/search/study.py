"""The search: Optuna proposes points, each is made and measured, and the front of what was found grows.

Two things are minimised at once, the points of accuracy lost and the cost, by Optuna's TPE (Bergstra et al. 2011; Ozaki
et al. 2020 for several objectives). Its storage is a file, so a search that was stopped goes on: a trial that was under
way is taken up in its own folder, what it had trained included; one that is proposed again is not run again, and counts
once.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from winnow.config import CONTROL, ROOT
from winnow.config.search import Structure
from winnow.errors import ConfigError, MissingExtra
from winnow.progress import duration
from winnow.records import record_digest, write_json
from winnow.search.front import Found
from winnow.search.meter import batch_of, describe_cost
from winnow.search.space import Point, first_points, hints_of, propose
from winnow.search.trial import Earlier, Look, Result, Workplace, meter_of, run_point

log = logging.getLogger(__name__)

NAME = "winnow"
RESULT = "result"
"""What became of a trial, as one attribute: a stop leaves all of it or nothing."""
FEW_REPEATS = 3
"""Proposals in a row that were all tried already: the optimiser goes in circles, and the next are drawn at random."""
MANY_REPEATS = 50
"""As many of them, those at random included: nothing new is left."""
MANY_BEGINNINGS = 3
"""Times that a trial is begun whose process ends within it, as for want of memory; a stop by a person is none."""
MANY_IMPOSSIBLE = 8
"""Trials in a row that cannot be made: something is wrong with the settings."""


@dataclass(frozen=True)
class Trial:
    """One that was run: to its end, given up at its first look, or impossible."""

    number: int
    folder: int
    """What its folder is called after; of one that was taken up after a kill, the number that it had then."""
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

    @property
    def found(self) -> list[Found]:
        """Where the finished ones lie."""
        return [trial.found for trial in self.trials if trial.found]


class Runner(Protocol):
    """Where trials run: in this process, or in several at once."""

    slots: int
    """How many at once."""

    def submit(self, place: Workplace, number: int, point: Point, earlier: Sequence[Earlier], dense: float) -> None:
        """Begin with a trial; `number` names its folder, `dense` is what dense costs."""

    def next(self) -> tuple[int, Result]:
        """(number, what became of it) of one that has ended; waits for it."""


class InTurn:
    """One trial after another, in this process."""

    slots = 1

    def __init__(self) -> None:
        self._ended: list[tuple[int, Result]] = []

    def submit(self, place: Workplace, number: int, point: Point, earlier: Sequence[Earlier], dense: float) -> None:
        """Run it."""
        self._ended.append((number, run_point(place, number, point, earlier, dense)))

    def next(self) -> tuple[int, Result]:
        """What was just run."""
        return self._ended.pop()


def search(place: Workplace, storage: Path, tell: Callable[[Trial], None], runner: Runner | None = None) -> Progress:
    """Search until the budget is spent or nothing new is left; `tell` is called for every trial that was run now.

    Raises ConfigError where `storage` holds a search of other settings or other data, or where nothing can be made.
    """
    optuna, runner = _library(), runner or InTurn()
    study = _open(optuna, storage, place, runner.slots)
    dense_cost = float(study.user_attrs["dense_cost"])
    _take_up(optuna, study, place)
    _tell_what_is_there(study, place)
    under_way: dict[int, Any] = {}
    repeats = impossible = 0
    with _marked_if_stopped(under_way):
        while True:
            while len(under_way) < runner.slots and repeats < MANY_REPEATS and not _spent(study, place, len(under_way)):
                trial, point = _new(optuna, study, place, at_random=repeats >= FEW_REPEATS)
                if trial is None:
                    repeats += 1
                    continue
                repeats = 0
                folder = trial.user_attrs["folder"]
                under_way[folder] = trial
                log.info("trial %d begins: %s", trial.number, what_of(point))
                if (times := trial.user_attrs.get("ended_within", 0)) >= MANY_BEGINNINGS:
                    why = f"its process ended {times} times within it, for want of memory perhaps"
                    tell(_note(optuna, study, under_way.pop(folder), place, Result("impossible", why, None, None, 0.0)))
                    continue
                runner.submit(place, folder, point, _earlier(study), dense_cost)
            if not under_way:
                if repeats == MANY_REPEATS:
                    log.info("the last %d proposals were all tried already: the search ends here", repeats)
                break
            folder, result = runner.next()
            repeats = 0  # the optimiser knows more now
            done = _note(optuna, study, under_way.pop(folder), place, result)
            log.info("trial %d: %s; %s", done.number, told(done, place.config.search), _left(study, place))
            tell(done)
            impossible = impossible + 1 if done.state == "impossible" else 0
            if impossible == MANY_IMPOSSIBLE:
                raise ConfigError(f"{impossible} trials in a row were impossible, the last because: {done.why}")
    return Progress(_trials(study), _seconds(study), dense_cost)


def _tell_what_is_there(study: Any, place: Workplace) -> None:
    """Of a search that goes on: how far it is, and how to end it here."""
    if (done := len(_results(study))) and not _spent(study, place, 0):
        log.info(
            "%d trials are there, %s: the search goes on; -S search.trials=%d ends it with these",
            done,
            _left(study, place),
            done,
        )


@contextmanager
def _marked_if_stopped(under_way: Mapping[int, Any]) -> Iterator[None]:
    """Trials that a person stops are not to blame for it."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception):
            for trial in under_way.values():
                trial.set_user_attr("stopped", True)
        raise


def _new(optuna: Any, study: Any, place: Workplace, at_random: bool) -> tuple[Any, Point]:
    """The next trial with its point; None in its place where the same chain was run, or runs, already."""
    settings, optimiser = place.config.search, study.sampler
    every = study.get_trials(deepcopy=False)
    if at_random:
        study.sampler = optuna.samplers.RandomSampler(seed=settings.seed + len(every))
    trial = study.ask()
    point = propose(trial, settings, hints_of(place.config))
    study.sampler = optimiser
    key = json.dumps(place.candidates_of(point, settings.epochs), sort_keys=True)
    same = next((each for each in every if each.user_attrs.get("key") == key and _stands(optuna, each)), None)
    if same is None:
        values = {"folder": trial.user_attrs.get("folder", trial.number), "point": asdict(point), "key": key}
        for name, value in values.items():
            trial.set_user_attr(name, value)
        return trial, point
    trial.set_user_attr("same_as", same.number)
    if same.values is not None:
        study.tell(trial, list(same.values))  # the optimiser gets the same answer, and nothing is run
    else:
        states = optuna.trial.TrialState
        study.tell(trial, state=states.PRUNED if same.state == states.PRUNED else states.FAIL)
    return None, point


def _stands(optuna: Any, trial: Any) -> bool:
    """Whether a trial ended, or is under way: not one that was killed and taken up again."""
    return RESULT in trial.user_attrs or trial.state == optuna.trial.TrialState.RUNNING


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


def told(trial: Trial, settings: Any) -> str:
    """One line for people."""
    what = what_of(trial.point)
    if trial.look is None:
        return f"{what}: {trial.state} ({trial.why})"
    at = f"{trial.look.drop:.1f} points lost, {describe_cost(settings, trial.look.cost)}"
    if trial.state == "given up":
        return f"{what}: given up at its first look, after a quarter of its epochs ({at})"
    return f"{what}: {at}, {trial.state}"


def _library() -> Any:
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise MissingExtra("optuna", "search") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def _open(optuna: Any, storage: Path, place: Workplace, slots: int) -> Any:
    storage.parent.mkdir(parents=True, exist_ok=True)
    settings = place.config.search
    study = optuna.create_study(
        study_name=NAME,
        storage=f"sqlite:///{storage}",
        # Constant liar: of several trials at once no two look for the same thing.
        sampler=optuna.samplers.TPESampler(seed=settings.seed, n_startup_trials=8, constant_liar=slots > 1),
        directions=["minimize", "minimize"],
        load_if_exists=True,
    )
    asked = settings.model_dump(mode="json", exclude={"minutes", "trials", "max_drop_points"})
    dense = place.folders.candidates / ROOT
    asked |= {"machine": place.machine, "data": record_digest(place.folders.data), "dense": record_digest(dense)}
    references = place.references
    asked["overflow_safe"] = place.overflow_safe
    control = record_digest(references[CONTROL]) if CONTROL in references else ""
    asked |= {CONTROL: control, "batch": batch_of(place.config)}
    before = study.user_attrs.get("asked")
    if before is None:
        study.set_user_attr("dense_cost", meter_of(place).dense_cost)
        for params in first_points(settings):
            study.enqueue_trial(params, skip_if_exists=True)
        study.set_user_attr("asked", asked)  # last: what was stopped before is begun anew
    elif before != asked:
        changed = ", ".join(sorted(key for key in asked if before.get(key) != asked[key]))
        raise ConfigError(
            f"{storage.parent} holds a search with another {changed}: give this one a name of its own (--name), or "
            "delete that folder"
        )
    return study


def _take_up(optuna: Any, study: Any, place: Workplace) -> None:
    """What a process that was killed left under way waits for its turn again, in its own folder."""
    for trial in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
        if RESULT in trial.user_attrs:
            _tell(optuna, study, trial.number, trial.user_attrs, place)
            continue
        if trial.params:
            known = trial.user_attrs
            ended = known.get("ended_within", 0) + (0 if known.get("stopped") else 1)
            again = {"folder": known.get("folder", trial.number), "ended_within": ended}
            study.enqueue_trial(trial.params, user_attrs=again)
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)


def _note(optuna: Any, study: Any, trial: Any, place: Workplace, result: Result) -> Trial:
    """Tell the optimiser, and keep all of it with the trial."""
    kept = {"seconds": result.seconds, "state": result.state, "why": result.why}
    kept |= {"look": _kept(result.look), "first": _kept(result.first)}
    trial.set_user_attr(RESULT, kept)
    told_of = trial.user_attrs
    _tell(optuna, study, trial, told_of, place)
    return Trial(
        trial.number,
        told_of["folder"],
        Point(**told_of["point"]),
        result.state,
        result.look,
        result.why,
        result.seconds,
    )


def _tell(optuna: Any, study: Any, trial: Any, told_of: Mapping[str, Any], place: Workplace) -> None:
    """The optimiser, and who looks into its folder, learn what became of a trial, or of the one of that number."""
    states, kept = optuna.trial.TrialState, told_of[RESULT]
    home = place.trials / f"{told_of['folder']:04d}"
    home.mkdir(parents=True, exist_ok=True)
    write_json(home / "trial.json", {"point": told_of["point"], "state": kept["state"], "why": kept["why"]})
    if kept["state"] == "finished":
        study.tell(trial, [kept["look"]["drop"], kept["look"]["cost"]])
    else:
        study.tell(trial, state=states.PRUNED if kept["state"] == "given up" else states.FAIL)


def _kept(look: Look | None) -> dict[str, Any] | None:
    return None if look is None else {**asdict(look), "metrics": dict(look.metrics), "names": list(look.names)}


def _look_of(raw: Mapping[str, Any] | None) -> Look | None:
    return None if raw is None else Look(**{**raw, "names": tuple(raw["names"])})


def _earlier(study: Any) -> list[Earlier]:
    firsts = ((trial.user_attrs["point"]["structure"], kept["first"]) for trial, kept in _results(study))
    return [Earlier(structure, first["drop"], first["cost"]) for structure, first in firsts if first]


def _trials(study: Any) -> list[Trial]:
    """Those that were run, each once."""
    found = []
    for trial, kept in _results(study):
        look, point = _look_of(kept["look"]), Point(**trial.user_attrs["point"])
        folder = trial.user_attrs["folder"]
        found.append(Trial(trial.number, folder, point, kept["state"], look, kept["why"], kept["seconds"]))
    return found


def _results(study: Any) -> list[tuple[Any, dict[str, Any]]]:
    """(trial, what became of it) of those that ended."""
    every = study.get_trials(deepcopy=False)
    return [(trial, trial.user_attrs[RESULT]) for trial in every if RESULT in trial.user_attrs]


def _seconds(study: Any) -> float:
    return float(sum(kept["seconds"] for _, kept in _results(study)))


def _spent(study: Any, place: Workplace, under_way: int) -> bool:
    settings = place.config.search
    done = len(_results(study))
    return _seconds(study) >= settings.minutes * 60 or 0 < settings.trials <= done + under_way


def _left(study: Any, place: Workplace) -> str:
    settings = place.config.search
    return f"{duration(_seconds(study))} of {duration(settings.minutes * 60)} spent"
