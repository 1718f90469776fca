"""Records onto MLflow: one run per execution, below it one per step and candidate. Idempotent, by the records' digests.

A run's tag `winnow.digest` says what it holds. What an address holds already is not logged again; a new or emptied
server is filled. .winnow/tracked.json remembers (address, digest, run), so that an unchanged `winnow run` asks nobody:
`is_complete` reads files only. Under the flow a step's run is open while it trains (`open_step`) and shows its curves;
after `dvc repro` they come from the record. A step that DVC restored leaves no second run.

Every call names its run (MlflowClient): the active run of mlflow's short functions belongs to one thread, and another
thread's `log_metric` would open a stray run. mlflow is imported inside functions, which costs 2.6 s.
"""

from __future__ import annotations

import contextlib
import functools
import getpass
import logging
import os
import socket
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tasks import projection
from tasks.projection import RunContent
from tasks.settings import Places, registered_model_name
from winnow.config import Config
from winnow.errors import ArtifactError, WinnowError
from winnow.records import read_json, read_record, record_digest, this_machine, write_json

log = logging.getLogger(__name__)

PER_BATCH = 800, 100, 100
"""Metrics, params and tags in one call; MLflow takes 1000 in all."""
LOGGED_FILES = (".json", ".png", ".svg")
PARENT = "mlflow.parentRunId"
NOTE = "mlflow.note.content"
FIRST_STEP = 0

Curve = dict[str, float]


class StoreError(WinnowError):
    """MLflow does not answer, or refuses what it was asked."""


# --- the store -------------------------------------------------------------------------------------------------------


def address(places: Places) -> str:
    """MLFLOW_TRACKING_URI, or the project's own store."""
    return os.environ.get("MLFLOW_TRACKING_URI") or places.mlflow_store


def shown_address(places: Places) -> str:
    """The address without a password, for messages and files."""
    parts = urlsplit(address(places))
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl() if parts.netloc else address(places)


def store_exists(places: Places) -> bool:
    """False where the address is a file of this machine that is not there; a server is not asked."""
    kind, separator, path = address(places).partition("sqlite:///")
    return bool(kind) or not separator or Path(path).is_file()


@contextlib.contextmanager
def answering(places: Places) -> Iterator[None]:
    """Turns what MLflow, its database and the network raise into a StoreError that says what to do."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:
        where, told = shown_address(places), " ".join(str(error).split())[:400]
        own = address(places) == places.mlflow_store
        todo = "see that it can be written" if own else "start it, or unset MLFLOW_TRACKING_URI for the project's own"
        raise StoreError(
            f"MLflow at {where} does not answer as it should: {told}\n"
            f"{todo}; what was computed stays in artifacts/, and then `winnow track` and `winnow promote` go on"
        ) from error


def connect(places: Places) -> Any:
    """The client of this address; its registry is the same place unless MLFLOW_REGISTRY_URI says otherwise."""
    return _client(address(places), os.environ.get("MLFLOW_REGISTRY_URI") or address(places))


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
    own = places.mlflow_artifacts.as_uri() if address(places) == places.mlflow_store else None
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
            "where its files lie; move the project back, or delete that folder and run `winnow track`"
        )
    return str(found.experiment_id)


# --- while an execution goes on --------------------------------------------------------------------------------------


def open_execution(places: Places, config: Config, why: str) -> str:
    """A new parent run. Runs of executions on this machine that were killed are closed first."""
    with answering(places):
        client, experiment = connect(places), experiment_id(places, config)
        _close_dead(client, experiment)
        tags = _origin(places) | {"winnow.kind": "execution", NOTE: why}
        name = f"run {datetime.now().astimezone():%Y-%m-%d %H:%M:%S}"
        run_id = str(client.create_run(experiment, tags=_cut(tags), run_name=name).info.run_id)
        for file in ("params.yaml", "dvc.yaml"):
            if (places.root / file).is_file():
                client.log_artifact(run_id, str(places.root / file))
    return run_id


def open_step(places: Places, parent_run: str, name: str, step: str) -> str:
    """A child run for a step that is about to run."""
    with answering(places):
        client = connect(places)
        experiment = client.get_run(parent_run).info.experiment_id
        tags = {"winnow.step": step, "winnow.name": name}
        return _open_child(places, client, experiment, parent_run, name, tags)


def log_curves(places: Places, run_id: str, rows: Sequence[Curve], already_sent: int, prefix: str) -> None:
    """New rows of a training that goes on; a store that does not answer never stops one."""
    try:
        with answering(places):
            _log(connect(places), run_id, metrics=_curve_metrics(rows[already_sent:], prefix or "curves"))
    except StoreError as error:
        log.warning("curves wait for the end of the step: %s", str(error).partition("\n")[0])


def close_step(places: Places, run_id: str, out: Path) -> None:
    """Fill the run of a step with the record that it left in `out`; drop it where the record is tracked already."""
    with answering(places):
        client = connect(places)
        run = client.get_run(run_id)
        experiment = run.info.experiment_id
        same = f"tags.`winnow.record` = '{record_digest(out)}'"
        if client.search_runs([experiment], same, max_results=1):
            client.delete_run(run_id)
            return
        content = projection.content(out, run.data.tags["winnow.step"])
        sent = {int(m.step) for m in client.get_metric_history(run_id, _first_curve(content))} if content.curves else set()
        _fill(places, client, run_id, content, [row for row in content.curves if int(row["epoch"]) not in sent])


def fail_step(places: Places, run_id: str, message: str) -> None:
    """Close the run of a step that did not end well. Says nothing when the store is gone: the step's error matters."""
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
        _fail(client, parent, "")


def _fail(client: Any, run_id: str, message: str) -> None:
    if message:
        _log(client, run_id, tags={"winnow.error": message, NOTE: f"failed: {message}"})
    client.set_terminated(run_id, "FAILED")


# --- projecting records ----------------------------------------------------------------------------------------------


def track(places: Places, config: Config, parent: str | None = None) -> str:
    """Bring the address up to what lies in artifacts/, below `parent` or a run of its own; returns one line for people."""
    shown = projection.contents(places, config)
    if not shown:
        raise ArtifactError(f"there is nothing to track in {places.artifacts}; winnow run or dvc repro fills it")
    whole = projection.execution_digest(shown)
    with answering(places):
        client, experiment = connect(places), experiment_id(places, config)
        runs = _tracked(client, experiment, [*(content.digest for content in shown), whole], _recall(places))
        missing = [content for content in shown if content.digest not in runs]
        if parent is None and not missing and whole in runs:
            _remember(places, runs)
            return f"MLflow at {shown_address(places)} holds all {len(shown)} records already"
        execution = parent or open_execution(places, config, why="records that were made without the flow")
        try:
            for content in missing:
                runs[content.digest] = _project(places, client, experiment, execution, content)
            _describe_execution(places, client, experiment, execution, shown, runs)
        except BaseException:
            if parent is None:
                close_execution(places, execution, ok=False)
            raise
        if parent is None:
            close_execution(places, execution, ok=True)
    _remember(places, runs | {whole: execution})
    return f"{len(missing)} of {len(shown)} records were new to MLflow at {shown_address(places)}"


def is_complete(places: Places, config: Config) -> bool:
    """Whether everything is tracked at this address, from files alone."""
    if not (store_exists(places) and projection.is_whole(places, config)):
        return False
    shown = projection.contents(places, config)
    wanted = {*(content.digest for content in shown), projection.execution_digest(shown)}
    return wanted <= _recall(places).keys()


def candidate_run(places: Places, config: Config, name: str) -> str | None:
    """The run that holds a candidate as it is now, if it is tracked."""
    found = {content.name: content.digest for content in projection.contents(places, config)}
    return _recall(places).get(found.get(name, ""))


def tag_run(places: Places, run_id: str, tags: dict[str, str]) -> None:
    """Add tags to a run."""
    with answering(places):
        _log(connect(places), run_id, tags=tags)


def _tracked(client: Any, experiment: str, digests: list[str], remembered: dict[str, str]) -> dict[str, str]:
    """Digest -> run, for those that the store really holds."""
    known = [remembered[digest] for digest in digests if digest in remembered]
    found: dict[str, str] = {}
    if known:
        listed = ", ".join(f"'{run_id}'" for run_id in known)
        for run in client.search_runs([experiment], f"attributes.run_id IN ({listed})"):
            found[run.data.tags.get("winnow.digest", "")] = run.info.run_id
    for digest in digests:
        if digest not in found:
            hits = client.search_runs([experiment], f"tags.`winnow.digest` = '{digest}'", max_results=1)
            found |= {digest: run.info.run_id for run in hits}
    return {digest: found[digest] for digest in digests if digest in found}


def _project(places: Places, client: Any, experiment: str, parent: str, content: RunContent) -> str:
    """A run for one record: the one that waits for its verdict where there is one, else a new one."""
    if content.is_judged:
        waiting = f"tags.`winnow.digest` = '{content.record_digest}'"
        for run in client.search_runs([experiment], waiting, max_results=1):
            metrics = _metrics(content.figures)
            tags = content.tags | {NOTE: content.note, "winnow.digest": content.digest}
            _log(client, run.info.run_id, metrics=metrics, tags=tags)
            return str(run.info.run_id)
    run_id = _open_child(places, client, experiment, parent, content.name, {})
    _fill(places, client, run_id, content, content.curves)
    return run_id


def _fill(places: Places, client: Any, run_id: str, content: RunContent, curves: list[Curve]) -> None:
    """Everything of a record; the digest comes last, so that a run that was cut off is not taken for a whole one."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    version = projection.data_version(places)
    context = InputTag("mlflow.data.context", projection.DATASET_CONTEXT.get(content.step, "training"))
    source = '{"uri": "artifacts/data"}'
    client.log_inputs(run_id, datasets=[DatasetInput(Dataset("images", version, "local", source), [context])])
    for path in sorted(content.folder.glob("*")):
        if path.suffix in LOGGED_FILES:
            client.log_artifact(run_id, str(path))
    metrics = _metrics(content.metrics | content.figures) + _curve_metrics(curves, "curves")
    _log(client, run_id, metrics, content.params, content.tags | {NOTE: content.note, "winnow.data_version": version})
    client.set_terminated(run_id, "FINISHED")
    _log(client, run_id, tags={"winnow.digest": content.digest})


def _describe_execution(
    places: Places, client: Any, experiment: str, run_id: str, shown: list[RunContent], runs: dict[str, str]
) -> None:
    """The parent's page: table, lock file, report and plots."""
    pages = {digest: f"#/experiments/{experiment}/runs/{run}" for digest, run in runs.items()}
    why = client.get_run(run_id).data.tags.get(NOTE, "").partition("\n")[0]
    tags = projection.execution_tags(places)
    note = projection.execution_note(shown, pages, f"{tags.get('winnow.reason', '')}\n\nRun because of: {why}")
    if (places.root / "dvc.lock").is_file():
        client.log_artifact(run_id, str(places.root / "dvc.lock"))
    for path in projection.report_files(places):
        client.log_artifact(run_id, str(path))
    version = projection.data_version(places)
    tags |= {NOTE: note, "winnow.data_version": version, "winnow.digest": projection.execution_digest(shown)}
    _log(client, run_id, tags=tags)
