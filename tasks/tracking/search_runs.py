"""A search in MLflow: a parent run, and a child run per trial. A resumed search continues its parent run."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tasks import STOP_SIGNALS
from tasks.project.paths import ProjectPaths
from tasks.project.run_origin import origin_tags
from tasks.project.state_files import SEARCH_RUN
from tasks.tracking import mlflow_client
from tasks.tracking.tags import KIND_TAG, NOTE_TAG, PARENT_RUN_TAG, SEARCH_TAG, STATE_TAG, TRIAL_TAG
from winnow.config import Config
from winnow.printable import markdown
from winnow.search.loop import SearchProgress, describe_trial
from winnow.search.optuna_study import EndedTrial

log = logging.getLogger(__name__)
RESUME_HINT = "; all trials are kept, and `winnow search` resumes"


@contextmanager
def defer_signals() -> Iterator[None]:
    """Defer Ctrl-C and SIGTERM to the end of the block: an interrupted write would leave MLflow's database locked."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []
    handlers = {ending: signal.getsignal(ending) for ending in STOP_SIGNALS}
    for ending in handlers:
        signal.signal(ending, lambda number, _frame: received.append(number))
    try:
        yield
    finally:
        for ending, handler in handlers.items():
            signal.signal(ending, handler)
        if received:
            raise KeyboardInterrupt


class SearchRun:
    """Logs the trials of one search to MLflow."""

    def __init__(self, paths: ProjectPaths, config: Config, name: str) -> None:
        self.paths, self.config, self.name = paths, config, name
        self.logged: list[int] = []
        """Numbers of the trials that MLflow has."""
        self.run_id = self._open()

    def _open(self) -> str:
        paths = self.paths
        with defer_signals(), mlflow_client.session(paths, hint=RESUME_HINT) as client:
            experiment = mlflow_client.experiment_id(paths, self.config)
            state = SEARCH_RUN.read(paths, self.name)
            if state and client.search_runs([experiment], f"attributes.run_id = '{state['run']}'"):
                mlflow_client.log_values(client, state["run"], tags=origin_tags(paths.root))  # first: its process lives
                client.update_run(state["run"], status="RUNNING")
                self.logged = state["trials"]
                return str(state["run"])
            tags = origin_tags(paths.root) | {KIND_TAG: "search", SEARCH_TAG: self.name}
            run_id = mlflow_client.create_run(client, experiment, tags, f"search {self.name}")
            self._save_state(run_id)
            settings = self.config.search.model_dump(mode="json")
            params = {f"search.{key}": str(value) for key, value in settings.items()}
            mlflow_client.log_values(client, run_id, params=params)
        return run_id

    def _save_state(self, run_id: str) -> None:
        SEARCH_RUN.write(self.paths, {"run": run_id, "trials": self.logged}, self.name)

    def trial(self, trial: EndedTrial) -> None:
        """Log a trial as a child run. If MLflow does not respond, the search continues and logs it at the end."""
        try:
            self._log_trial(trial)
        except mlflow_client.StoreError as error:
            log.warning("trial %d is not in MLflow yet: %s", trial.number, error)

    def _log_trial(self, trial: EndedTrial) -> None:
        with defer_signals():
            with mlflow_client.session(self.paths, hint=RESUME_HINT) as client:
                self._write(client, trial)
            self.logged.append(trial.number)
            self._save_state(self.run_id)

    def _write(self, client: Any, trial: EndedTrial) -> None:
        experiment = mlflow_client.experiment_id(self.paths, self.config)
        tags = origin_tags(self.paths.root) | {PARENT_RUN_TAG: self.run_id, KIND_TAG: "trial", STATE_TAG: trial.state}
        tags |= {NOTE_TAG: markdown(describe_trial(trial, self.config.search)), TRIAL_TAG: str(trial.number)}
        query = f"tags.`{PARENT_RUN_TAG}` = '{self.run_id}' and tags.`{TRIAL_TAG}` = '{trial.number}'"
        runs = client.search_runs([experiment], query, max_results=1)  # left by an attempt that MLflow interrupted
        name = f"trial {trial.number}"
        run_id = runs[0].info.run_id if runs else mlflow_client.create_run(client, experiment, tags, name)
        metrics = {"search/seconds": trial.seconds}
        if trial.evaluation is not None:
            metrics |= {
                "search/drop_points": trial.evaluation.drop,
                "search/cost": trial.evaluation.cost,
                **trial.evaluation.metrics,
            }
        params = {key: str(value) for key, value in asdict(trial.point).items()}
        mlflow_client.log_values(client, run_id, mlflow_client.to_metrics(metrics), params)
        client.set_terminated(run_id, "FAILED" if trial.state == "impossible" else "FINISHED")

    def pause(self) -> None:
        """End the parent run of a search that was stopped and can be resumed."""
        try:
            with defer_signals(), mlflow_client.session(self.paths, hint=RESUME_HINT) as client:
                client.set_terminated(self.run_id, "FINISHED")
        except mlflow_client.StoreError as error:
            log.warning("the run of the search in MLflow stays open: %s", error)

    def close(self, progress: SearchProgress, chosen: EndedTrial | None, files: Sequence[Path]) -> None:
        """Log the result of the search, its files, and the trials that could not be logged before."""
        for trial in progress.trials:
            if trial.number not in self.logged:
                self._log_trial(trial)
        states = [trial.state for trial in progress.trials]
        metrics = {
            "search/trials": float(len(states)),
            "search/finished": float(states.count("finished")),
            "search/given_up": float(states.count("given up")),
            "search/dense_cost": progress.dense_cost,
        }
        if chosen is not None and chosen.evaluation is not None:
            metrics |= {
                "search/chosen_drop_points": chosen.evaluation.drop,
                "search/chosen_cost": chosen.evaluation.cost,
            }
        with defer_signals(), mlflow_client.session(self.paths, hint=RESUME_HINT) as client:
            mlflow_client.log_values(client, self.run_id, mlflow_client.to_metrics(metrics))
            for file in files:
                client.log_artifact(self.run_id, str(file))
