"""What a search remembers: Optuna's study, which proposes points and is told what became of them.

Two things are minimised at once, the points of accuracy lost and the cost, by Optuna's TPE (Bergstra et al. 2011; Ozaki
et al. 2020 for several objectives). Its storage is a file that one process writes, so a search that was stopped goes
on: a trial that was under way is taken up in its own folder, and a chain that is proposed again is not run again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from winnow.config import CONTROL, ROOT, Search
from winnow.errors import ConfigError, MissingExtra
from winnow.eta import duration
from winnow.random_streams import stream_seed
from winnow.records import record_digest, write_json
from winnow.search.cost import batch_of
from winnow.search.pareto import TrialPoint
from winnow.search.space import Point, first_points, hints_of, propose
from winnow.search.trial import Earlier, Result, SearchContext, TrialEvaluation, meter_of

NAME = "winnow"
RESULT = "result"
"""What became of a trial, as one attribute: a stop leaves all of it or nothing."""
STARTUP_TRIALS = 8
"""Drawn at random before the optimiser has something to go by."""
SETTINGS = Search.model_fields.keys() - {"minutes", "trials", "max_drop_points"}
"""Of a search, what has to be the same for it to go on; the others say when it ends and what is chosen."""


@dataclass(frozen=True)
class RunningTrial:
    """A trial under way."""

    number: int
    folder: int
    """What its folder is called after; of one that was taken up after a kill, the number that it had then."""
    point: Point
    ended_within: int
    """Times that its process ended within it, as for want of memory; a stop by a person is none."""


@dataclass(frozen=True)
class Trial:
    """One that was run: to its end, given up at its first look, or impossible."""

    number: int
    folder: int
    """As of the one that was begun."""
    point: Point
    state: str
    """finished, given up, impossible."""
    look: TrialEvaluation | None
    why: str
    seconds: float

    @property
    def found(self) -> TrialPoint | None:
        """Where it lies, if it was finished."""
        if self.state != "finished" or self.look is None:
            return None
        return TrialPoint(self.number, self.look.drop, self.look.cost)


class Memory:
    """Of one search, over all its calls. `slots`: trials at once.

    Raises ConfigError where `storage` holds a search of other settings or other data.
    """

    def __init__(self, place: SearchContext, storage: Path, slots: int) -> None:
        self.place, self.settings = place, place.config.search
        self._optuna = _library()
        self._study = self._open(storage, slots)
        self._under_way: dict[int, Any] = {}
        self._take_up()

    @property
    def dense_cost(self) -> float:
        """As it was measured when the search began."""
        return float(self._study.user_attrs["dense_cost"])

    @property
    def peaks(self) -> dict[str, float]:
        """Precision -> what the processor did at its best then, multiply-adds a second; none where cost is no time."""
        return dict(self._study.user_attrs.get("peaks", {}))

    @property
    def under_way(self) -> int:
        """Trials that were begun and have not ended."""
        return len(self._under_way)

    @property
    def trials(self) -> list[Trial]:
        """Those that ended, each once."""
        return [_trial_of(trial.number, trial.user_attrs) for trial in self._ended()]

    @property
    def first_looks(self) -> list[Earlier]:
        """Of the trials that had one."""
        ended = (trial.user_attrs for trial in self._ended())
        firsts = ((each["point"]["structure"], each[RESULT]["first"]) for each in ended)
        return [Earlier(structure, first["drop"], first["cost"]) for structure, first in firsts if first]

    @property
    def seconds(self) -> float:
        """Of work, in the trials that ended."""
        return float(sum(trial.user_attrs[RESULT]["seconds"] for trial in self._ended()))

    @property
    def is_spent(self) -> bool:
        """Whether the budget is; trials under way count as ones that will end."""
        most = self.settings.trials
        return self.seconds >= self.settings.minutes * 60 or 0 < most <= len(self._ended()) + self.under_way

    @property
    def spent(self) -> str:
        """How much of the budget is, for people."""
        return f"{duration(self.seconds)} of {duration(self.settings.minutes * 60)} spent"

    def begin(self, at_random: bool) -> RunningTrial | None:
        """The next trial; None in its place where the same chain was run, or runs, already."""
        study, optimiser = self._study, self._study.sampler
        every = study.get_trials(deepcopy=False)
        if at_random:
            study.sampler = self._optuna.samplers.RandomSampler(
                seed=stream_seed(self.settings.seed, "random proposals", len(every))
            )
        trial = study.ask()
        point = propose(trial, self.settings, hints_of(self.place.config))
        study.sampler = optimiser
        key = json.dumps(self.place.candidates_of(point, self.settings.epochs), sort_keys=True)
        same = next((each for each in every if each.user_attrs.get("key") == key and self._stands(each)), None)
        if same is not None:
            self._answer_alike(trial, same)
            return None
        known = trial.user_attrs
        folder = known.get("folder", trial.number)
        for name, value in {"folder": folder, "point": asdict(point), "key": key}.items():
            trial.set_user_attr(name, value)
        self._under_way[folder] = trial
        return RunningTrial(trial.number, folder, point, known.get("ended_within", 0))

    def end(self, folder: int, result: Result) -> Trial:
        """Tell the optimiser what became of the trial of that folder, and keep all of it."""
        trial = self._under_way.pop(folder)
        kept = {"seconds": result.seconds, "state": result.state, "why": result.why}
        kept |= {"look": _kept(result.look), "first": _kept(result.first)}
        trial.set_user_attr(RESULT, kept)
        self._tell(trial, trial.user_attrs)
        return _trial_of(trial.number, trial.user_attrs)

    @contextmanager
    def marking_stops(self) -> Iterator[None]:
        """Trials that a person stops are not to blame for it."""
        try:
            yield
        except BaseException as error:
            if not isinstance(error, Exception):
                for trial in self._under_way.values():
                    trial.set_user_attr("stopped", True)
            raise

    def _open(self, storage: Path, slots: int) -> Any:
        storage.parent.mkdir(parents=True, exist_ok=True)
        settings, samplers = self.settings, self._optuna.samplers
        # Constant liar: of several trials at once no two look for the same thing.
        sampler = samplers.TPESampler(
            seed=stream_seed(settings.seed, "proposals"), n_startup_trials=STARTUP_TRIALS, constant_liar=slots > 1
        )
        study = self._optuna.create_study(
            study_name=NAME,
            storage=f"sqlite:///{storage}",
            sampler=sampler,
            directions=["minimize", "minimize"],
            load_if_exists=True,
        )
        asked, before = self._asked(), study.user_attrs.get("asked")
        if before is None:
            meter = meter_of(self.place)
            study.set_user_attr("dense_cost", meter.dense_cost)
            study.set_user_attr("peaks", meter.peaks())
            for params in first_points(settings):
                study.enqueue_trial(params, skip_if_exists=True)
            study.set_user_attr("asked", asked)  # last: what was stopped before is begun anew
        elif before != asked:
            changed = [key for key in sorted(asked) if before.get(key) != asked[key]]
            told = (f"{key} ({before.get(key)}, now {asked[key]})" if key in SETTINGS else key for key in changed)
            raise ConfigError(
                f"{storage.parent} holds a search with another {', '.join(told)}: give this one a name of its own "
                "(--name), delete that folder, or set back what changed to go on with it"
            )
        return study

    def _asked(self) -> dict[str, Any]:
        """What has to be the same for a search to go on."""
        place, references = self.place, self.place.references
        return {
            **self.settings.model_dump(mode="json", include=SETTINGS),
            "machine": place.machine,
            "data": record_digest(place.folders.data),
            ROOT: record_digest(references[ROOT]),
            CONTROL: record_digest(references[CONTROL]) if CONTROL in references else "",
            "overflow_safe": place.overflow_safe,
            "batch": batch_of(place.config),
            "accuracy": "where cost is measured, on the half of validation that chooses",
        }

    def _take_up(self) -> None:
        """What a process that was killed left under way waits for its turn again, in its own folder."""
        states = self._optuna.trial.TrialState
        for trial in self._study.get_trials(deepcopy=False, states=(states.RUNNING,)):
            known = trial.user_attrs
            if RESULT in known:
                self._tell(trial.number, known)
                continue
            if trial.params:
                ended = known.get("ended_within", 0) + (0 if known.get("stopped") else 1)
                again = {"folder": known.get("folder", trial.number), "ended_within": ended}
                self._study.enqueue_trial(trial.params, user_attrs=again)
            self._study.tell(trial.number, state=states.FAIL)

    def _ended(self) -> list[Any]:
        return [trial for trial in self._study.get_trials(deepcopy=False) if RESULT in trial.user_attrs]

    def _stands(self, trial: Any) -> bool:
        """Whether a trial ended, or is under way: not one that was killed and taken up again."""
        return RESULT in trial.user_attrs or trial.state == self._optuna.trial.TrialState.RUNNING

    def _answer_alike(self, trial: Any, same: Any) -> None:
        """The optimiser gets the answer that it had, and nothing is run."""
        states = self._optuna.trial.TrialState
        trial.set_user_attr("same_as", same.number)
        if same.values is not None:
            self._study.tell(trial, list(same.values))
        else:
            self._study.tell(trial, state=states.PRUNED if same.state == states.PRUNED else states.FAIL)

    def _tell(self, trial: Any, known: Mapping[str, Any]) -> None:
        """The optimiser, and who looks into its folder, learn what became of a trial, or of the one of that number."""
        states, kept = self._optuna.trial.TrialState, known[RESULT]
        home = self.place.trials / f"{known['folder']:04d}"
        home.mkdir(parents=True, exist_ok=True)
        write_json(home / "trial.json", {"point": known["point"], "state": kept["state"], "why": kept["why"]})
        if kept["state"] == "finished":
            self._study.tell(trial, [kept["look"]["drop"], kept["look"]["cost"]])
        else:
            self._study.tell(trial, state=states.PRUNED if kept["state"] == "given up" else states.FAIL)


def _library() -> Any:
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise MissingExtra("optuna", "search") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def _trial_of(number: int, known: Mapping[str, Any]) -> Trial:
    kept, point = known[RESULT], Point(**known["point"])
    raw = kept["look"]
    look = None if raw is None else TrialEvaluation(**{**raw, "names": tuple(raw["names"])})
    return Trial(number, known["folder"], point, kept["state"], look, kept["why"], kept["seconds"])


def _kept(look: TrialEvaluation | None) -> dict[str, Any] | None:
    return None if look is None else {**asdict(look), "metrics": dict(look.metrics), "names": list(look.names)}
