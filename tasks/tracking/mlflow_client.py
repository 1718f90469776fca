"""MLflow's store as everything here speaks to it: one client, errors that say what to do, few calls.

Every call names its run (MlflowClient): the active run of mlflow's short functions belongs to one thread, and another
thread's `log_metric` would open a stray run. mlflow is imported inside functions: it takes 2.6 s.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tasks.project.deadlines import TookTooLong, deadline
from tasks.project.disk_errors import is_full
from tasks.project.paths import ProjectPaths, registered_model_name
from tasks.tracking import run_content, tracked_runs
from winnow.config import Config
from winnow.errors import WinnowError

METRICS_AT_ONCE, OTHERS_AT_ONCE = 800, 100
"""MLflow takes 1000 entities in one call, 100 of them params and 100 tags."""
Curve = Mapping[str, float]
"""One epoch: epoch, loss, ..."""
CALL_SECONDS = 60.0
"""A call that moves no files takes no longer, its retries included."""
MOVES_FILES = ("log_artifact", "log_artifacts", "log_model_artifacts", "download_artifacts", "list_artifacts")


DAMAGED = ("file is not a database", "malformed", "Can't locate revision", "no such table", "no such column")
"""What SQLite and MLflow say of a damaged database."""
KEPT = "; what was computed stays, and `winnow track` and `winnow promote` go on from there"


class StoreError(WinnowError):
    """MLflow does not answer, or refuses what it was asked."""


@contextlib.contextmanager
def answering(
    places: ProjectPaths,
    takes: str = "the role engineer",
    kept: str = KEPT,
) -> Iterator[None]:
    """Turns what MLflow, its database and the network raise into a StoreError that says what to do.

    `takes`: what an account has to have for this. `kept`: what an error leaves as it is, and how to go on.
    """
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError, TookTooLong) as error:
        account = os.environ.get("MLFLOW_TRACKING_USERNAME", "")
        where = tracked_runs.without_password(tracked_runs.address(places))
        whole = tracked_runs.without_password(" ".join(str(error).split()))
        told = whole[:400]
        if isinstance(error, TookTooLong):
            told = f"a call took longer than {CALL_SECONDS:.0f} s"
        if tracked_runs.is_own(places) and is_full(error):
            todo = "Make room on its disk"
        elif tracked_runs.is_own(places) and any(word in whole for word in DAMAGED):
            todo = (
                "The file is damaged. Move it away and keep it (sqlite3 FILE .recover may read what it holds of former "
                "runs); `winnow track` and `winnow promote` write the present run anew from artifacts"
            )
        elif tracked_runs.is_own(places) and "out-of-date database schema" in whole:
            todo = "Another version of MLflow made that file; copy it away, then upgrade it as MLflow says"
        elif tracked_runs.is_own(places) or isinstance(error, PermissionError):
            todo = "See that it can be written"
        elif any(word in told for word in ("error code 401", "401 Client Error", "not authenticated")):
            todo = f"It knows no account {account!r} with this password: see MLFLOW_TRACKING_USERNAME and ..._PASSWORD"
        elif any(word in told for word in ("Permission denied", "error code 403", "Forbidden")):
            todo = f"The account {account!r} may not do that; it takes {takes}"
        else:
            todo = "See that it is up, and that MLFLOW_TRACKING_URI is its address"
        raise StoreError(f"MLflow at {where} does not answer as it should: {told}\n{todo}{kept}") from error


def connect(places: ProjectPaths) -> Any:
    """The client of the project's address."""
    return _client(tracked_runs.address(places), tracked_runs.registry_address(places))


@functools.lru_cache(maxsize=4)
def _client(tracking: str, registry: str) -> Any:
    from mlflow import MlflowClient

    # Retries are told once, by the error at their end.
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    return Patient(MlflowClient(tracking_uri=tracking, registry_uri=registry))


class Patient:
    """MLflow's client, none of whose calls takes longer than CALL_SECONDS, but for those that move files."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        """Return the client's method of this name, with a limit on its time."""
        act = getattr(self._client, name)
        if name in MOVES_FILES or not callable(act):
            return act

        @functools.wraps(act)
        def limited(*arguments: Any, **named: Any) -> Any:
            with deadline(CALL_SECONDS):
                return act(*arguments, **named)

        return limited


def living_run(client: Any, run_id: str | None) -> Any:
    """Return the run, unless it was deleted or belongs to a store that is no more; None then."""
    from mlflow.exceptions import MlflowException

    if run_id is None:
        return None
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise
    return run if run.info.lifecycle_stage == "active" else None


def experiment_id(places: ProjectPaths, config: Config) -> str:
    """The project's experiment, made on first use, brought back where it was deleted."""
    from mlflow.exceptions import MlflowException

    name, client = f"winnow/{registered_model_name(config)}", connect(places)
    own = places.mlflow_artifacts.as_uri() if tracked_runs.is_own(places) else None
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            # The kind keeps MLflow's pages on training; without it they ask.
            tags = {"mlflow.experimentKind": "custom_model_development"}
            return str(client.create_experiment(name, artifact_location=own, tags=tags))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(name)  # somebody else was quicker
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    if own and found.artifact_location.rstrip("/") != own:
        raise StoreError(
            f"the MLflow store in {places.state_dir / 'mlflow'} was made in another folder "
            f"({found.artifact_location}), where its files lie; move the project back, or delete that store and run "
            "`winnow track`"
        )
    return str(found.experiment_id)


def log(
    client: Any,
    run_id: str,
    metrics: Sequence[Any] = (),
    params: Mapping[str, str] | None = None,
    tags: Mapping[str, str] | None = None,
) -> None:
    """In as few calls as MLflow's limits allow."""
    from mlflow.entities import Param, RunTag

    left = list(metrics)
    settings = [Param(key, value) for key, value in (params or {}).items()]
    labels = [RunTag(key, value) for key, value in cut(tags or {}).items()]
    while left or settings or labels:
        client.log_batch(
            run_id, left[:METRICS_AT_ONCE], settings[:OTHERS_AT_ONCE], labels[:OTHERS_AT_ONCE], synchronous=True
        )
        left, settings, labels = left[METRICS_AT_ONCE:], settings[OTHERS_AT_ONCE:], labels[OTHERS_AT_ONCE:]


def cut(tags: Mapping[str, str]) -> dict[str, str]:
    """Tags, short enough for MLflow."""
    return {key: value[: run_content.TAG_LENGTH] for key, value in tags.items()}


def metrics(values: Mapping[str, float], step: int = 0) -> list[Any]:
    """MLflow's metrics of now, with the characters that it takes in names."""
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    return [Metric(re.sub(r"[^\w\-. :/]", "_", key), float(value), now, step) for key, value in values.items()]


def curves(rows: Sequence[Curve], prefix: str) -> list[Any]:
    """One metric per column, at step = epoch."""
    found = []
    for row in rows:
        values = {f"{prefix}/{key}": value for key, value in row.items() if key != "epoch"}
        found += metrics(values, step=int(row["epoch"]))
    return found
