"""A search in MLflow: one run for it, one below it for each trial; a search that goes on goes on in the same run."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from typing_extensions import TypedDict

from tasks import ENDINGS
from tasks.project.paths import ProjectPaths
from tasks.project.run_origin import origin_tags
from tasks.project.state_files import read_memory
from tasks.tracking import mlflow_client
from tasks.tracking.mlflow_runs import NOTE, PARENT
from winnow.config import Config
from winnow.records import write_json
from winnow.search.loop import Progress, told
from winnow.search.optuna_study import Trial

log = logging.getLogger(__name__)
KIND, NUMBER = "winnow.kind", "winnow.trial"
KEPT = "; what was tried stays, and `winnow search` goes on from there"


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Who ends winnow waits for the end of this: within a write MLflow's database would stay locked."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = {ending: signal.getsignal(ending) for ending in ENDINGS}
    for ending in before:
        signal.signal(ending, lambda number, _frame: came.append(number))
    try:
        yield
    finally:
        for ending, handler in before.items():
            signal.signal(ending, handler)
        if came:
            raise KeyboardInterrupt


class Kept(TypedDict):
    """What is remembered of a search's run in MLflow."""

    run: str
    trials: list[int]


class Log:
    """Of one search."""

    def __init__(self, places: ProjectPaths, config: Config, name: str) -> None:
        self.places, self.config, self.name = places, config, name
        self.remembered = places.state_dir / "search" / name / "mlflow.json"
        self.told: list[int] = []
        """Numbers of the trials that are there."""
        self.run_id = self._open()

    def _open(self) -> str:
        places = self.places
        with uninterrupted(), mlflow_client.answering(places, kept=KEPT):
            client, experiment = mlflow_client.connect(places), mlflow_client.experiment_id(places, self.config)
            kept = read_memory(self.remembered, Kept | None, None)
            if kept and client.search_runs([experiment], f"attributes.run_id = '{kept['run']}'"):
                client.update_run(kept["run"], status="RUNNING")
                self.told = kept["trials"]
                return str(kept["run"])
            tags = origin_tags(places.root) | {KIND: "search", "winnow.search": self.name}
            run = client.create_run(experiment, tags=mlflow_client.cut(tags), run_name=f"search {self.name}")
            self._remember(str(run.info.run_id))
            settings = self.config.search.model_dump(mode="json")
            params = {f"search.{key}": str(value) for key, value in settings.items()}
            mlflow_client.log(client, run.info.run_id, params=params)
        return str(run.info.run_id)

    def _remember(self, run_id: str) -> None:
        self.remembered.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.remembered, {"run": run_id, "trials": self.told})

    def trial(self, trial: Trial) -> None:
        """A run below the search's; where MLflow does not take it, the search goes on, and it is told at the end."""
        try:
            self._tell(trial)
        except mlflow_client.StoreError as error:
            log.warning("trial %d is not in MLflow yet: %s", trial.number, error)

    def _tell(self, trial: Trial) -> None:
        with uninterrupted():
            with mlflow_client.answering(self.places, kept=KEPT):
                self._write(trial)
            self.told.append(trial.number)
            self._remember(self.run_id)

    def _write(self, trial: Trial) -> None:
        client, experiment = mlflow_client.connect(self.places), mlflow_client.experiment_id(self.places, self.config)
        tags = origin_tags(self.places.root) | {PARENT: self.run_id, KIND: "trial", "winnow.state": trial.state}
        tags |= {NOTE: told(trial, self.config.search), NUMBER: str(trial.number)}
        begun = f"tags.`{PARENT}` = '{self.run_id}' and tags.`{NUMBER}` = '{trial.number}'"
        runs = client.search_runs([experiment], begun, max_results=1)  # MLflow went down within the last try
        run = (
            runs[0]
            if runs
            else client.create_run(experiment, tags=mlflow_client.cut(tags), run_name=f"trial {trial.number}")
        )
        figures = {"search/seconds": trial.seconds}
        if trial.look is not None:
            figures |= {"search/drop_points": trial.look.drop, "search/cost": trial.look.cost, **trial.look.metrics}
        params = {key: str(value) for key, value in asdict(trial.point).items()}
        mlflow_client.log(client, run.info.run_id, mlflow_client.metrics(figures), params)
        client.set_terminated(run.info.run_id, "FAILED" if trial.state == "impossible" else "FINISHED")

    def pause(self) -> None:
        """The search stops here, for now."""
        try:
            with uninterrupted(), mlflow_client.answering(self.places, kept=KEPT):
                mlflow_client.connect(self.places).set_terminated(self.run_id, "FINISHED")
        except mlflow_client.StoreError as error:
            log.warning("the search's run in MLflow stays open: %s", error)

    def close(self, progress: Progress, chosen: Trial | None, files: Sequence[Path]) -> None:
        """What came of it; trials that were not told, as a store was down or a process was killed, are told now."""
        for trial in progress.trials:
            if trial.number not in self.told:
                self._tell(trial)
        states = [trial.state for trial in progress.trials]
        figures = {
            "search/trials": float(len(states)),
            "search/finished": float(states.count("finished")),
            "search/given_up": float(states.count("given up")),
            "search/dense_cost": progress.dense_cost,
        }
        if chosen is not None and chosen.look is not None:
            figures |= {"search/chosen_drop_points": chosen.look.drop, "search/chosen_cost": chosen.look.cost}
        with uninterrupted(), mlflow_client.answering(self.places, kept=KEPT):
            client = mlflow_client.connect(self.places)
            mlflow_client.log(client, self.run_id, mlflow_client.metrics(figures))
            for file in files:
                client.log_artifact(self.run_id, str(file))
