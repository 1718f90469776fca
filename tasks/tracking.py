"""Records onto MLflow: one run per execution, below it one per step and candidate. Idempotent, by the records' digests.

A run's tag `winnow.digest` says what it holds. What an address holds already is not logged again; a new or emptied
server is filled. tasks/tracked.py remembers, so that an unchanged `winnow run` asks nobody: `is_complete` reads files
only. Under the flow a step's run is open while it trains (`open_step`) and shows its curves; after `dvc repro` they
come from the record. A step that DVC restored leaves no second run.

Every call names its run (MlflowClient): the active run of mlflow's short functions belongs to one thread, and another
thread's `log_metric` would open a stray run. mlflow is imported inside functions: it takes 2.6 s.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from tasks import projection, tracked
from tasks.origin import is_dead, origin_tags
from tasks.projection import RunContent
from tasks.settings import Places, registered_model_name
from winnow.config import Config
from winnow.errors import ArtifactError, WinnowError
from winnow.records import record_digest

log = logging.getLogger(__name__)

METRICS_AT_ONCE, OTHERS_AT_ONCE = 800, 100
"""MLflow takes 1000 entities in one call, 100 of them params and 100 tags."""
LOGGED_FILES = (".json", ".png", ".svg")
CURVES = "curves"
PARENT, NOTE = "mlflow.parentRunId", "mlflow.note.content"
DIGEST, RECORD = "winnow.digest", "winnow.record"
Curve = Mapping[str, float]
"""One epoch: epoch, loss, ..."""


class StoreError(WinnowError):
    """MLflow does not answer, or refuses what it was asked."""


@contextlib.contextmanager
def answering(places: Places) -> Iterator[None]:
    """Turns what MLflow, its database and the network raise into a StoreError that says what to do."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:
        where = tracked.without_password(tracked.address(places))
        told = tracked.without_password(" ".join(str(error).split()))[:400]
        if any(word in told for word in ("Permission denied", "error code 401", "Forbidden", "not authenticated")):
            todo = (
                "Your account may not do that: see MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or ask "
                "whoever runs the server for the role engineer"
            )
        else:
            todo = "See that it can be written" if tracked.is_own(places) else "Start it, or unset MLFLOW_TRACKING_URI"
        raise StoreError(
            f"MLflow at {where} does not answer as it should: {told}\n"
            f"{todo}; what was computed stays, and `winnow track` and `winnow promote` go on from there"
        ) from error


def connect(places: Places) -> Any:
    """The client of the project's address."""
    return _client(tracked.address(places), tracked.registry_address(places))


@functools.lru_cache(maxsize=4)
def _client(tracking: str, registry: str) -> Any:
    from mlflow import MlflowClient

    # Retries are told once, by the error at their end.
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    return MlflowClient(tracking_uri=tracking, registry_uri=registry)


def experiment_id(places: Places, config: Config) -> str:
    """The project's experiment, made on first use, brought back where it was deleted."""
    from mlflow.exceptions import MlflowException

    name, client = f"winnow/{registered_model_name(config)}", connect(places)
    own = places.mlflow_artifacts.as_uri() if tracked.is_own(places) else None
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
            f"the MLflow store in {places.hidden / 'mlflow'} was made in another folder ({found.artifact_location}), "
            "where its files lie; move the project back, or delete that store and run `winnow track`"
        )
    return str(found.experiment_id)


def open_execution(places: Places, config: Config, why: str) -> str:
    """A new parent run. Runs that killed executions on this machine left open are closed first."""
    with answering(places):
        client, experiment = connect(places), experiment_id(places, config)
        for run in client.search_runs([experiment], "attributes.status = 'RUNNING'"):
            if is_dead(run.data.tags):
                _fail(client, run.info.run_id, "its process was killed")
        tags = origin_tags(places.root) | {"winnow.kind": "execution", NOTE: why}
        name = f"run {datetime.now().astimezone():%Y-%m-%d %H:%M:%S}"
        run_id = str(client.create_run(experiment, tags=_cut(tags), run_name=name).info.run_id)
        for path in (places.root / "params.yaml", places.root / "dvc.yaml"):
            if path.is_file():
                client.log_artifact(run_id, str(path))
    return run_id


def open_step(places: Places, parent_run: str, name: str, step: str) -> str:
    """A child run for a step that is about to run."""
    with answering(places):
        client = connect(places)
        experiment = client.get_run(parent_run).info.experiment_id
        return _open_child(places, client, experiment, parent_run, name, step)


def log_curves(places: Places, run_id: str, rows: Sequence[Curve], already_sent: int, prefix: str) -> None:
    """New rows of a training that goes on. A store that does not answer stops no training: `close_step` fills in."""
    try:
        with answering(places):
            _log(connect(places), run_id, metrics=_curves(rows[already_sent:], prefix or CURVES))
    except StoreError as error:
        log.warning("curves are sent when the step has ended: %s", str(error).partition("\n")[0])


def close_step(places: Places, run_id: str, out: Path) -> None:
    """Fill a step's run with the record that it left in `out`; drop the run where that record is tracked already."""
    with answering(places):
        client = connect(places)
        run = client.get_run(run_id)
        known = f"tags.`{RECORD}` = '{record_digest(out)}'"
        if client.search_runs([run.info.experiment_id], known, max_results=1):
            client.delete_run(run_id)
            return
        content = projection.content(out, run.data.tags["winnow.step"])
        _fill(places, client, run_id, content, _unsent(client, run_id, content.curves))


def fail_step(places: Places, run_id: str, message: str) -> None:
    """Close the run of a step that did not end well. Quiet when the store is gone: the step's own error matters."""
    with contextlib.suppress(StoreError), answering(places):
        _fail(connect(places), run_id, message)


def close_execution(places: Places, parent: str, ok: bool) -> None:
    """Close the parent run, and after a failure every child that is still open."""
    if ok:
        with answering(places):
            connect(places).set_terminated(parent, "FINISHED")
        return
    with contextlib.suppress(StoreError), answering(places):
        client = connect(places)
        experiment = client.get_run(parent).info.experiment_id
        running = f"attributes.status = 'RUNNING' and tags.`{PARENT}` = '{parent}'"
        for run in client.search_runs([experiment], running):
            _fail(client, run.info.run_id, "the execution ended before this step did")
        client.set_terminated(parent, "FAILED")


def track(places: Places, config: Config, parent: str | None = None) -> str:
    """Bring MLflow up to what lies in artifacts/, below `parent` or a run of its own; returns a line for people."""
    shown = projection.contents(places, config)
    if not shown:
        raise ArtifactError(f"there is nothing to track in {places.artifacts}; winnow run or dvc repro fills it")
    where, whole = tracked.without_password(tracked.address(places)), projection.execution_digest(shown)
    with answering(places):
        client, experiment = connect(places), experiment_id(places, config)
        runs = _present(client, experiment, [*(content.digest for content in shown), whole], tracked.recall(places))
        missing = [content for content in shown if content.digest not in runs]
        if parent is None and not missing and whole in runs:
            tracked.remember(places, runs)
            return f"MLflow at {where} holds all {len(shown)} records already"
        execution = parent or open_execution(places, config, why="records made without the flow")
        try:
            for content in missing:
                runs[content.digest] = _project(places, client, experiment, execution, content)
            _describe(places, client, execution, projection.execution_note(shown, experiment, runs), whole)
        except BaseException:
            if parent is None:
                close_execution(places, execution, ok=False)
            raise
        if parent is None:
            close_execution(places, execution, ok=True)
    tracked.remember(places, runs | {whole: execution})
    return f"{len(missing)} of {len(shown)} records were new to MLflow at {where}"


def is_complete(places: Places, config: Config) -> bool:
    """Whether everything is tracked at this address, from files alone."""
    if not (tracked.store_exists(tracked.address(places)) and projection.is_whole(places, config)):
        return False
    shown = projection.contents(places, config)
    return {projection.execution_digest(shown), *(content.digest for content in shown)} <= tracked.recall(places).keys()


def last_execution(places: Places, config: Config) -> tuple[str, str] | None:
    """(experiment, run) of what lies in artifacts/, if it was tracked."""
    run_id = tracked.recall(places).get(projection.execution_digest(projection.contents(places, config)))
    if run_id is None:
        return None
    with answering(places):
        return str(connect(places).get_run(run_id).info.experiment_id), run_id


def candidate_run(places: Places, config: Config, name: str) -> str | None:
    """The run that holds a candidate as it is now, if it was tracked."""
    digests = {content.name: content.digest for content in projection.contents(places, config)}
    return tracked.recall(places).get(digests.get(name, ""))


def log_finding(
    places: Places,
    config: Config,
    name: str,
    metrics: Mapping[str, float],
    params: Mapping[str, str],
    tags: Mapping[str, str],
    files: Sequence[Path],
) -> str:
    """A run of its own, for what is found beside the steps; returns its number."""
    with answering(places):
        client, experiment = connect(places), experiment_id(places, config)
        run_id = str(client.create_run(experiment, tags=_cut(tags), run_name=name).info.run_id)
        for path in files:
            client.log_artifact(run_id, str(path))
        _log(client, run_id, _metrics(metrics), params)
        client.set_terminated(run_id, "FINISHED")
    return run_id


def tag_run(places: Places, run_id: str, tags: Mapping[str, str]) -> None:
    """Add tags to a run, an ended one too."""
    with answering(places):
        _log(connect(places), run_id, tags=tags)


def _present(client: Any, experiment: str, digests: list[str], remembered: dict[str, str]) -> dict[str, str]:
    """Digest -> run, for those that the store really holds."""
    found: dict[str, str] = {}
    if known := [remembered[digest] for digest in digests if digest in remembered]:
        listed = ", ".join(f"'{run_id}'" for run_id in known)
        for run in client.search_runs([experiment], f"attributes.run_id IN ({listed})"):
            found[run.data.tags.get(DIGEST, "")] = run.info.run_id
    for digest in digests:
        if digest not in found:
            for run in client.search_runs([experiment], f"tags.`{DIGEST}` = '{digest}'", max_results=1):
                found[digest] = run.info.run_id
    return {digest: found[digest] for digest in digests if digest in found}


def _project(places: Places, client: Any, experiment: str, parent: str, content: RunContent) -> str:
    """A run for one record: the one that waits for its verdict, where there is one, else a new one."""
    if content.is_judged:
        waiting = f"tags.`{DIGEST}` = '{content.record_digest}'"
        for run in client.search_runs([experiment], waiting, max_results=1):
            tags = content.tags | {NOTE: content.note, DIGEST: content.digest}
            _log(client, run.info.run_id, _metrics(content.figures), tags=tags)
            return str(run.info.run_id)
    run_id = _open_child(places, client, experiment, parent, content.name, content.step)
    _fill(places, client, run_id, content, content.curves)
    return run_id


def _open_child(places: Places, client: Any, experiment: str, parent: str, name: str, step: str) -> str:
    tags = origin_tags(places.root) | {PARENT: parent, "winnow.step": step, "winnow.name": name}
    return str(client.create_run(experiment, tags=_cut(tags), run_name=name).info.run_id)


def _fill(places: Places, client: Any, run_id: str, content: RunContent, curves: Sequence[Curve]) -> None:
    """Everything of a record; the digest comes last, so that a run that was cut off is not taken for a whole one."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    version = projection.data_version(places)
    context = InputTag("mlflow.data.context", projection.DATASET_CONTEXT.get(content.step, "training"))
    images = Dataset(projection.DATASET, version, "local", '{"uri": "artifacts/data"}')
    client.log_inputs(run_id, datasets=[DatasetInput(images, [context])])
    for path in sorted(content.folder.glob("*")):
        if path.suffix in LOGGED_FILES:
            client.log_artifact(run_id, str(path))
    metrics = _metrics(content.metrics | content.figures) + _curves(curves, CURVES)
    _log(client, run_id, metrics, content.params, content.tags | {NOTE: content.note, "winnow.data_version": version})
    client.set_terminated(run_id, "FINISHED")
    _log(client, run_id, tags={RECORD: content.record_digest, DIGEST: content.digest})


def _describe(places: Places, client: Any, run_id: str, note: str, digest: str) -> None:
    """The parent's page: table, lock file, report and plots."""
    why = client.get_run(run_id).data.tags.get(NOTE, "")
    for path in projection.execution_files(places):
        client.log_artifact(run_id, str(path))
    tags = projection.execution_tags(places)
    reason = tags.get("winnow.reason", "no verdict yet")
    _log(client, run_id, tags=tags | {NOTE: f"{reason}\n\n{note}\n\nWhy it ran: {why}", DIGEST: digest})


def _fail(client: Any, run_id: str, message: str) -> None:
    _log(client, run_id, tags={"winnow.error": message, NOTE: f"failed: {message}"})
    client.set_terminated(run_id, "FAILED")


def _log(
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
    labels = [RunTag(key, value) for key, value in _cut(tags or {}).items()]
    while left or settings or labels:
        client.log_batch(
            run_id, left[:METRICS_AT_ONCE], settings[:OTHERS_AT_ONCE], labels[:OTHERS_AT_ONCE], synchronous=True
        )
        left, settings, labels = left[METRICS_AT_ONCE:], settings[OTHERS_AT_ONCE:], labels[OTHERS_AT_ONCE:]


def _cut(tags: Mapping[str, str]) -> dict[str, str]:
    return {key: value[: projection.TAG_LENGTH] for key, value in tags.items()}


def _metrics(values: Mapping[str, float], step: int = 0) -> list[Any]:
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    return [Metric(re.sub(r"[^\w\-. :/]", "_", key), float(value), now, step) for key, value in values.items()]


def _curves(rows: Sequence[Curve], prefix: str) -> list[Any]:
    """One metric per column, at step = epoch."""
    found = []
    for row in rows:
        values = {f"{prefix}/{key}": value for key, value in row.items() if key != "epoch"}
        found += _metrics(values, step=int(row["epoch"]))
    return found


def _unsent(client: Any, run_id: str, rows: Sequence[Curve]) -> Sequence[Curve]:
    """The rows that did not arrive while the step ran."""
    if not rows:
        return []
    column = next(key for key in rows[0] if key != "epoch")
    sent = {metric.step for metric in client.get_metric_history(run_id, f"{CURVES}/{column}")}
    return [row for row in rows if int(row["epoch"]) not in sent]
