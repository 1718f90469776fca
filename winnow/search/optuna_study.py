"""The trials of a search, kept in an Optuna study, which also proposes the next points.

Two things are minimised at once, the points of accuracy lost and the cost, by Optuna's TPE (Bergstra et al. 2011; Ozaki
et al. 2020 for several objectives). The study is a file that one process writes, so a search that was stopped resumes:
a trial that was running is started again in its own folder, and a chain that is proposed again is not run again.
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
from winnow.eta import format_duration
from winnow.random_streams import stream_seed
from winnow.records import record_digest, write_json
from winnow.records.benchmark import Precision
from winnow.search.cost import objective_batch_size
from winnow.search.space import Point, available_hints, initial_points, propose_point
from winnow.search.trial import EarlierTrial, SearchContext, TrialEvaluation, TrialResult, make_cost_measurer
from winnow.search.trial_front import TrialPoint

STUDY_NAME = "winnow"
RESULT_ATTRIBUTE = "result"
"""The user attribute that holds a trial's whole result: a stop leaves all of it or nothing."""
STARTUP_TRIALS = 8
"""Trials drawn at random before the optimiser starts to model."""
IDENTITY_SETTINGS = Search.model_fields.keys() - {"minutes", "trials", "max_drop_points"}
"""Settings that must be equal for a search to resume; the others say when it ends and what is chosen."""


@dataclass(frozen=True)
class RunningTrial:
    """A trial that has started and not ended."""

    number: int
    folder: int
    """The number in its folder's name; a trial that was requeued after a kill keeps its first number."""
    point: Point
    process_deaths: int
    """Times that its process died during it, as for lack of memory; a stop by the user does not count."""


@dataclass(frozen=True)
class EndedTrial:
    """A trial that has ended: finished, given up after its short evaluation, or impossible."""

    number: int
    folder: int
    """As `RunningTrial.folder`."""
    point: Point
    state: str
    """"finished", "given up" or "impossible"."""
    evaluation: TrialEvaluation | None
    why: str
    seconds: float

    @property
    def finished_point(self) -> TrialPoint | None:
        """Return its drop and cost, or None if it was not finished."""
        if self.state != "finished" or self.evaluation is None:
            return None
        return TrialPoint(self.number, self.evaluation.drop, self.evaluation.cost)


class SearchStudy:
    """The trials of one search, over all its calls. `slots`: trials at once.

    Raises ConfigError where `storage` holds a search with other settings or other data.
    """

    def __init__(self, context: SearchContext, storage: Path, slots: int) -> None:
        self.context, self.settings = context, context.config.search
        self._optuna = _import_optuna()
        self._study = self._open(storage, slots)
        self._under_way: dict[int, Any] = {}
        self._requeue()

    @property
    def dense_cost(self) -> float:
        """Return dense's cost as it was measured at the start of the search."""
        return float(self._study.user_attrs["dense_cost"])

    @property
    def peaks(self) -> dict[Precision, float]:
        """Return precision -> peak multiply-adds per second at the search's start; empty where cost is not a time."""
        return dict(self._study.user_attrs.get("peaks", {}))

    @property
    def under_way(self) -> int:
        """Return the number of trials that are running."""
        return len(self._under_way)

    @property
    def trials(self) -> list[EndedTrial]:
        """Return the trials that have ended, each once."""
        return [_trial_of(trial.number, trial.user_attrs) for trial in self._ended()]

    @property
    def short_evaluations(self) -> list[EarlierTrial]:
        """Return the short evaluations of all trials that had one."""
        ended = (trial.user_attrs for trial in self._ended())
        firsts = ((attributes["point"]["structure"], attributes[RESULT_ATTRIBUTE]["first"]) for attributes in ended)
        return [EarlierTrial(structure, first["drop"], first["cost"]) for structure, first in firsts if first]

    @property
    def seconds(self) -> float:
        """Return the seconds spent in the trials that have ended."""
        return float(sum(trial.user_attrs[RESULT_ATTRIBUTE]["seconds"] for trial in self._ended()))

    @property
    def is_spent(self) -> bool:
        """Return whether the budget is spent; running trials count as ended."""
        limit = self.settings.trials
        return self.seconds >= self.settings.minutes * 60 or 0 < limit <= len(self._ended()) + self.under_way

    @property
    def spent(self) -> str:
        """Return how much of the budget is spent, for people."""
        return f"{format_duration(self.seconds)} of {format_duration(self.settings.minutes * 60)} spent"

    def begin(self, at_random: bool) -> RunningTrial | None:
        """Start the next trial; None instead where the same chain was run, or is running, already."""
        study, optimiser = self._study, self._study.sampler
        trials = study.get_trials(deepcopy=False)
        if at_random:
            study.sampler = self._optuna.samplers.RandomSampler(
                seed=stream_seed(self.settings.seed, "random proposals", len(trials))
            )
        trial = study.ask()
        point = propose_point(trial, self.settings, available_hints(self.context.config))
        study.sampler = optimiser
        key = json.dumps(self.context.candidates_of(point, self.settings.epochs), sort_keys=True)
        previous = next((old for old in trials if old.user_attrs.get("key") == key and self._is_valid(old)), None)
        if previous is not None:
            self._repeat_result(trial, previous)
            return None
        attributes = trial.user_attrs
        folder = attributes.get("folder", trial.number)
        for name, value in {"folder": folder, "point": asdict(point), "key": key}.items():
            trial.set_user_attr(name, value)
        self._under_way[folder] = trial
        return RunningTrial(trial.number, folder, point, attributes.get("ended_within", 0))

    def end(self, folder: int, result: TrialResult) -> EndedTrial:
        """Store the result of the trial in that folder, report it to the optimiser, and return the ended trial."""
        trial = self._under_way.pop(folder)
        outcome = {"seconds": result.seconds, "state": result.state, "why": result.why}
        outcome |= {"look": _dump(result.evaluation), "first": _dump(result.first)}
        trial.set_user_attr(RESULT_ATTRIBUTE, outcome)
        self._record_result(trial, trial.user_attrs)
        return _trial_of(trial.number, trial.user_attrs)

    @contextmanager
    def marking_stops(self) -> Iterator[None]:
        """Mark the running trials where the user stops the block, so that the stop does not count as a death."""
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
        # Constant liar keeps trials that run at once from proposing the same point.
        sampler = samplers.TPESampler(
            seed=stream_seed(settings.seed, "proposals"), n_startup_trials=STARTUP_TRIALS, constant_liar=slots > 1
        )
        study = self._optuna.create_study(
            study_name=STUDY_NAME,
            storage=f"sqlite:///{storage}",
            sampler=sampler,
            directions=["minimize", "minimize"],
            load_if_exists=True,
        )
        identity, stored = self._identity(), study.user_attrs.get("asked")
        if stored is None:
            measurer = make_cost_measurer(self.context)
            study.set_user_attr("dense_cost", measurer.dense_cost)
            study.set_user_attr("peaks", measurer.peaks())
            for params in initial_points(settings, available_hints(self.context.config)):
                study.enqueue_trial(params, skip_if_exists=True)
            study.set_user_attr("asked", identity)  # last: a search stopped before this is set up again
        elif stored != identity:
            changed = [key for key in sorted(identity | stored) if stored.get(key) != identity.get(key)]
            changes = (
                f"{key} ({stored.get(key)}, now {identity[key]})" if key in IDENTITY_SETTINGS else key
                for key in changed
            )
            raise ConfigError(
                f"{storage.parent} holds a search with another {', '.join(changes)}: give this search another name "
                "(--name), delete that folder, or restore the changed settings to resume it"
            )
        return study

    def _identity(self) -> dict[str, Any]:
        """Return what must be equal for a search to resume."""
        context, references = self.context, self.context.references
        return {
            **self.settings.model_dump(mode="json", include=IDENTITY_SETTINGS),
            "machine": context.machine,
            "data": record_digest(context.folders.data),
            ROOT: record_digest(references[ROOT]),
            CONTROL: record_digest(references[CONTROL]) if CONTROL in references else "",
            **self._teacher_identity(),
            "overflow_safe": context.overflow_safe,
            "batch": objective_batch_size(context.config),
            "accuracy": "where cost is measured, on the half of validation that chooses",
        }

    def _teacher_identity(self) -> dict[str, Any]:
        """Return the embeddings that trials learn from; {} without a large network."""
        hints, embedded = available_hints(self.context.config), self.context.folders.embedded
        if "embeddings" not in hints or embedded is None:
            return {}
        return {"embed": record_digest(embedded)}

    def _requeue(self) -> None:
        """Enqueue again, in their own folders, the trials that a killed process left running."""
        states = self._optuna.trial.TrialState
        for trial in self._study.get_trials(deepcopy=False, states=(states.RUNNING,)):
            attributes = trial.user_attrs
            if RESULT_ATTRIBUTE in attributes:
                self._record_result(trial.number, attributes)
                continue
            if trial.params:
                deaths = attributes.get("ended_within", 0) + (0 if attributes.get("stopped") else 1)
                inherited = {"folder": attributes.get("folder", trial.number), "ended_within": deaths}
                self._study.enqueue_trial(trial.params, user_attrs=inherited)
            self._study.tell(trial.number, state=states.FAIL)

    def _ended(self) -> list[Any]:
        return [trial for trial in self._study.get_trials(deepcopy=False) if RESULT_ATTRIBUTE in trial.user_attrs]

    def _is_valid(self, trial: Any) -> bool:
        """Return whether a trial has ended or is running, rather than killed and requeued."""
        return RESULT_ATTRIBUTE in trial.user_attrs or trial.state == self._optuna.trial.TrialState.RUNNING

    def _repeat_result(self, trial: Any, previous: Any) -> None:
        """Report the earlier result of the same chain to the optimiser; nothing is run."""
        states = self._optuna.trial.TrialState
        trial.set_user_attr("same_as", previous.number)
        if previous.values is not None:
            self._study.tell(trial, list(previous.values))
        else:
            self._study.tell(trial, state=states.PRUNED if previous.state == states.PRUNED else states.FAIL)

    def _record_result(self, trial: Any, attributes: Mapping[str, Any]) -> None:
        """Report a trial's result to the optimiser and write it to trial.json. `trial`: Optuna's trial, or a number."""
        states, result = self._optuna.trial.TrialState, attributes[RESULT_ATTRIBUTE]
        folder = self.context.trials / f"{attributes['folder']:04d}"
        folder.mkdir(parents=True, exist_ok=True)
        write_json(
            folder / "trial.json", {"point": attributes["point"], "state": result["state"], "why": result["why"]}
        )
        if result["state"] == "finished":
            self._study.tell(trial, [result["look"]["drop"], result["look"]["cost"]])
        else:
            self._study.tell(trial, state=states.PRUNED if result["state"] == "given up" else states.FAIL)


def _import_optuna() -> Any:
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise MissingExtra("optuna", "search") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def _trial_of(number: int, attributes: Mapping[str, Any]) -> EndedTrial:
    result, point = attributes[RESULT_ATTRIBUTE], Point(**attributes["point"])
    stored = result["look"]
    evaluation = None if stored is None else TrialEvaluation(**{**stored, "names": tuple(stored["names"])})
    return EndedTrial(
        number, attributes["folder"], point, result["state"], evaluation, result["why"], result["seconds"]
    )


def _dump(evaluation: TrialEvaluation | None) -> dict[str, Any] | None:
    if evaluation is None:
        return None
    return {**asdict(evaluation), "metrics": dict(evaluation.metrics), "names": list(evaluation.names)}
