"""Access to MLflow: one client with a time limit, errors with a remedy, few calls.

Every call passes its run id to MlflowClient. The active run of `mlflow.log_metric` and the like belongs to one thread,
and a call from another thread would create a new run. mlflow is imported inside functions: the import takes 2.6 s.
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

from tasks.project.deadlines import CallTimeout, time_limit
from tasks.project.disk_errors import is_disk_full
from tasks.project.paths import ProjectPaths, registered_model_name
from tasks.tracking import tracking_store
from tasks.tracking.moved_store import relocate
from tasks.tracking.run_tags import TAG_LENGTH
from winnow.config import Config
from winnow.errors import WinnowError

METRICS_AT_ONCE, OTHERS_AT_ONCE = 800, 100
"""Entities per call: MLflow accepts 1000, of them 100 params and 100 tags."""
Curve = Mapping[str, float]
"""The values of one epoch: epoch, loss, ..."""
CALL_SECONDS = 60.0
"""Time limit of a call that transfers no files, including retries."""
FILE_CALLS = ("log_artifact", "log_artifacts", "log_model_artifacts", "download_artifacts", "list_artifacts")
DAMAGED_TEXTS = ("file is not a database", "malformed", "Can't locate revision", "no such table", "no such column")
"""Parts of the messages of SQLite and MLflow about a damaged database."""
AGAIN_HINT = "; then run the same command again"
RESUME_HINT = "; all results are kept: continue with `winnow track` and `winnow promote`"
"""The hint where the results of steps were to be logged or promoted."""


class StoreError(WinnowError):
    """Raised where MLflow does not respond, or rejects a request."""


@contextlib.contextmanager
def session(paths: ProjectPaths, takes: str = "the role engineer", hint: str = AGAIN_HINT) -> Iterator[Any]:
    """Yield the project's client; exceptions of MLflow, its database and the network become a StoreError with a remedy.

    `takes`: the role that the account needs. `hint`: the end of the message, on how to continue.
    """
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield connect(paths)
    except (MlflowException, SQLAlchemyError, OSError, CallTimeout) as error:
        address = tracking_store.redact_password(tracking_store.tracking_address(paths))
        full_text = tracking_store.redact_password(" ".join(str(error).split()))
        reason = full_text[:400]
        if isinstance(error, CallTimeout):
            reason = f"a call took longer than {CALL_SECONDS:.0f} s"
        remedy = _remedy(error, full_text, takes, tracking_store.is_local_store(paths))
        raise StoreError(f"MLflow at {address} does not respond as expected: {reason}\n{remedy}{hint}") from error


def _remedy(error: BaseException, text: str, takes: str, is_local: bool) -> str:
    """Return what the user can do about an error of MLflow. `is_local`: the project's own SQLite store."""
    account = os.environ.get("MLFLOW_TRACKING_USERNAME", "")
    if is_disk_full(error):
        return "Free space on its disk" if is_local else "Free space on this machine's disk, or on that of the server"
    if is_local and any(word in text for word in DAMAGED_TEXTS):
        return (
            "The file is damaged. Move it away and keep it (`sqlite3 FILE .recover` may restore former runs); "
            "`winnow track` and `winnow promote` log the present run again from artifacts"
        )
    if is_local and "out-of-date database schema" in text:
        return "Another version of MLflow created that file; copy it, then upgrade it as MLflow says"
    if is_local or isinstance(error, PermissionError):
        return "Check that it is writable"
    if any(word in text[:400] for word in ("error code 401", "401 Client Error", "not authenticated")):
        return f"It has no account {account!r} with this password: check MLFLOW_TRACKING_USERNAME and ..._PASSWORD"
    if any(word in text[:400] for word in ("Permission denied", "error code 403", "Forbidden")):
        return f"The account {account!r} may not do that; it needs {takes}"
    return "Check that it is running, and that MLFLOW_TRACKING_URI is its address"


def connect(paths: ProjectPaths) -> Any:
    """Return the client for the project's tracking and registry addresses."""
    if tracking_store.is_local_store(paths):
        _relocate_once(paths)
    return _client(tracking_store.tracking_address(paths), tracking_store.registry_address(paths))


@functools.lru_cache(maxsize=4)
def _relocate_once(paths: ProjectPaths) -> None:
    relocate(paths)


@functools.lru_cache(maxsize=4)
def _client(tracking: str, registry: str) -> Any:
    from mlflow import MlflowClient

    # Retries are reported once, by the final error.
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    return TimeLimitedClient(MlflowClient(tracking_uri=tracking, registry_uri=registry))


class TimeLimitedClient:
    """An MlflowClient whose calls take at most CALL_SECONDS, except for those that transfer files."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        """Return the client's method of this name with a time limit."""
        attribute = getattr(self._client, name)
        if name in FILE_CALLS or not callable(attribute):
            return attribute

        @functools.wraps(attribute)
        def limited(*arguments: Any, **keywords: Any) -> Any:
            with time_limit(CALL_SECONDS):
                return attribute(*arguments, **keywords)

        return limited


def active_run(client: Any, run_id: str | None) -> Any:
    """Return the run; None where it is deleted or not in this store."""
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


def experiment_id(paths: ProjectPaths, config: Config) -> str:
    """Return the id of the project's experiment, created on first use and restored where it was deleted."""
    from mlflow.exceptions import MlflowException

    name, client = f"winnow/{registered_model_name(config)}", connect(paths)
    artifact_location = paths.mlflow_artifacts.as_uri() if tracking_store.is_local_store(paths) else None
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            # Without the kind, MLflow's page asks the user for it.
            tags = {"mlflow.experimentKind": "custom_model_development"}
            return str(client.create_experiment(name, artifact_location=artifact_location, tags=tags))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            experiment = client.get_experiment_by_name(name)  # created by another process meanwhile
    if experiment.lifecycle_stage == "deleted":
        client.restore_experiment(experiment.experiment_id)
    if artifact_location and experiment.artifact_location.rstrip("/") != artifact_location:
        raise StoreError(
            f"the experiment {name} in {paths.state_dir / 'mlflow'} keeps its files outside of the project, in "
            f"{experiment.artifact_location}; rename it in MLflow, or delete that store, and run `winnow track`"
        )
    return str(experiment.experiment_id)


def log_values(
    client: Any,
    run_id: str,
    metrics: Sequence[Any] = (),
    params: Mapping[str, str] | None = None,
    tags: Mapping[str, str] | None = None,
) -> None:
    """Log metrics, params and tags in as few calls as MLflow's limits allow."""
    from mlflow.entities import Param, RunTag

    pending: list[tuple[list[Any], int]] = [
        (list(metrics), METRICS_AT_ONCE),
        ([Param(key, value) for key, value in (params or {}).items()], OTHERS_AT_ONCE),
        ([RunTag(key, value) for key, value in _truncate_tags(tags or {}).items()], OTHERS_AT_ONCE),
    ]
    while any(entities for entities, _ in pending):
        client.log_batch(run_id, *(entities[:limit] for entities, limit in pending), synchronous=True)
        pending = [(entities[limit:], limit) for entities, limit in pending]


def create_run(client: Any, experiment: str, tags: Mapping[str, str], name: str) -> str:
    """Create a run and return its id."""
    return str(client.create_run(experiment, tags=_truncate_tags(tags), run_name=name).info.run_id)


def _truncate_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """Return the tags with values cut to MLflow's limit."""
    return {key: value[:TAG_LENGTH] for key, value in tags.items()}


def to_metrics(values: Mapping[str, float], step: int = 0) -> list[Any]:
    """Return MLflow metrics with the current time and only characters that MLflow allows in names."""
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    return [Metric(re.sub(r"[^\w\-. :/]", "_", key), float(value), now, step) for key, value in values.items()]


def to_curve_metrics(rows: Sequence[Curve], prefix: str) -> list[Any]:
    """Return one MLflow metric per row and column, with the epoch as its step."""
    entities = []
    for row in rows:
        values = {f"{prefix}/{key}": value for key, value in row.items() if key != "epoch"}
        entities += to_metrics(values, step=int(row["epoch"]))
    return entities
