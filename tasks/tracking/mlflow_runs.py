"""Records onto MLflow: one run per execution, below it one per step and candidate. Idempotent, by the records' digests.

A run's tag `winnow.digest` says what it holds. What an address holds already is not logged again; a new or emptied
server is filled. tasks/tracking/tracked_runs.py remembers, so that an unchanged `winnow run` asks nobody: `is_complete`
reads files only. Under the flow a step's run is open while it trains (`open_step`) and shows its curves; after `dvc
repro` they come from the record. A step that DVC restored leaves no second run.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from tasks.project.paths import ProjectPaths
from tasks.project.run_origin import is_dead, origin_tags
from tasks.tracking import mlflow_client, run_content, tracked_runs
from tasks.tracking.mlflow_client import Curve
from tasks.tracking.run_content import RunContent
from winnow.config import Config
from winnow.errors import ArtifactError
from winnow.records import record_digest

log = logging.getLogger(__name__)

LOGGED_FILES = (".json", ".png", ".svg")
CURVES = "curves"
PARENT, NOTE = "mlflow.parentRunId", "mlflow.note.content"
DIGEST, RECORD = "winnow.digest", "winnow.record"


def open_execution(places: ProjectPaths, config: Config, why: str) -> str:
    """A new parent run. Runs that killed executions on this machine left open are closed first."""
    with mlflow_client.answering(places):
        client, experiment = mlflow_client.connect(places), mlflow_client.experiment_id(places, config)
        _close_dead(client, experiment)
        tags = origin_tags(places.root) | {"winnow.kind": "execution", NOTE: why}
        name = f"run {datetime.now().astimezone():%Y-%m-%d %H:%M:%S}"
        run_id = str(client.create_run(experiment, tags=mlflow_client.cut(tags), run_name=name).info.run_id)
        for path in (places.root / "params.yaml", places.root / "dvc.yaml"):
            if path.is_file():
                client.log_artifact(run_id, str(path))
    return run_id


def close_dead(places: ProjectPaths, config: Config) -> None:
    """Close the runs whose process on this machine is gone."""
    with mlflow_client.answering(places):
        _close_dead(mlflow_client.connect(places), mlflow_client.experiment_id(places, config))


def _close_dead(client: Any, experiment: str) -> None:
    for run in client.search_runs([experiment], "attributes.status = 'RUNNING'"):
        if is_dead(run.data.tags):
            _fail(client, run.info.run_id, "its process was killed")


def open_step(places: ProjectPaths, parent_run: str, name: str, step: str) -> str:
    """A child run for a step that is about to run."""
    with mlflow_client.answering(places):
        client = mlflow_client.connect(places)
        experiment = client.get_run(parent_run).info.experiment_id
        return _open_child(places, client, experiment, parent_run, name, step)


def log_curves(places: ProjectPaths, run_id: str, rows: Sequence[Curve], already_sent: int, prefix: str) -> None:
    """New rows of a training that goes on. A store that does not answer stops no training: `close_step` fills in."""
    try:
        with mlflow_client.answering(places):
            mlflow_client.log(
                mlflow_client.connect(places),
                run_id,
                metrics=mlflow_client.curves(rows[already_sent:], prefix or CURVES),
            )
    except mlflow_client.StoreError as error:
        log.warning("curves are sent when the step has ended: %s", str(error).partition("\n")[0])


def close_step(places: ProjectPaths, run_id: str, out: Path) -> None:
    """Fill a step's run with the record that it left in `out`; drop the run where that record is tracked already."""
    with mlflow_client.answering(places):
        client = mlflow_client.connect(places)
        run = client.get_run(run_id)
        known = f"tags.`{RECORD}` = '{record_digest(out)}'"
        if client.search_runs([run.info.experiment_id], known, max_results=1):
            client.delete_run(run_id)
            return
        content = run_content.content(out, run.data.tags["winnow.step"])
        _fill(places, client, run_id, content, _unsent(client, run_id, content.curves))


def fail_step(places: ProjectPaths, run_id: str, message: str) -> None:
    """Close the run of a step that did not end well. Quiet when the store is gone: the step's own error matters."""
    with contextlib.suppress(mlflow_client.StoreError), mlflow_client.answering(places):
        _fail(mlflow_client.connect(places), run_id, message)


def close_execution(places: ProjectPaths, parent: str, ok: bool) -> None:
    """Close the parent run, and every child that is still open: of a step that did not end, or of a try that MLflow,
    gone just then, did not hear the end of. After a failure quiet when the store is gone."""
    gone = contextlib.nullcontext() if ok else contextlib.suppress(mlflow_client.StoreError)
    with gone, mlflow_client.answering(places):
        client = mlflow_client.connect(places)
        experiment = client.get_run(parent).info.experiment_id
        running = f"attributes.status = 'RUNNING' and tags.`{PARENT}` = '{parent}'"
        for run in client.search_runs([experiment], running):
            _fail(client, run.info.run_id, "the execution ended before this step did")
        client.set_terminated(parent, "FINISHED" if ok else "FAILED")


def track(places: ProjectPaths, config: Config, parent: str | None = None) -> str:
    """Bring MLflow up to what lies in artifacts/, below `parent` or a run of its own; returns a line for people."""
    shown = run_content.contents(places, config)
    if not shown:
        raise ArtifactError(f"there is nothing to track in {places.artifacts}; winnow run or dvc repro fills it")
    where, whole = tracked_runs.without_password(tracked_runs.address(places)), run_content.execution_digest(shown)
    with mlflow_client.answering(places):
        client, experiment = mlflow_client.connect(places), mlflow_client.experiment_id(places, config)
        runs = _present(
            client, experiment, [*(content.digest for content in shown), whole], tracked_runs.recall(places)
        )
        missing = [content for content in shown if content.digest not in runs]
        if parent is None and not missing and whole in runs:
            tracked_runs.save(places, runs)
            return f"MLflow at {where} holds all {len(shown)} records already"
        execution = parent or open_execution(places, config, why="records made without the flow")
        try:
            for content in missing:
                runs[content.digest] = _project(places, client, experiment, execution, content)
            _describe(
                places,
                client,
                execution,
                run_content.execution_note(shown, experiment, runs, run_content.read_judging(places)),
                whole,
            )
        except BaseException:
            if parent is None:
                close_execution(places, execution, ok=False)
            raise
        if parent is None:
            close_execution(places, execution, ok=True)
    tracked_runs.save(places, runs | {whole: execution})
    return f"{len(missing)} of {len(shown)} records were new to MLflow at {where}"


def is_complete(places: ProjectPaths, config: Config) -> bool:
    """Whether everything is tracked at this address, from files alone."""
    if not (tracked_runs.store_exists(tracked_runs.address(places)) and run_content.is_whole(places, config)):
        return False
    shown = run_content.contents(places, config)
    return {run_content.execution_digest(shown), *(content.digest for content in shown)} <= tracked_runs.recall(
        places
    ).keys()


def last_execution(places: ProjectPaths, config: Config) -> tuple[str, str] | None:
    """(experiment, run) of what lies in artifacts/, if it was tracked."""
    run_id = tracked_runs.recall(places).get(run_content.execution_digest(run_content.contents(places, config)))
    if run_id is None:
        return None
    with mlflow_client.answering(places):
        run = mlflow_client.living_run(mlflow_client.connect(places), run_id)
    return (str(run.info.experiment_id), run_id) if run else None


def candidate_run(places: ProjectPaths, config: Config, name: str) -> str | None:
    """The run that holds a candidate as it is now, if it was tracked and MLflow still has it."""
    digests = {content.name: content.digest for content in run_content.contents(places, config)}
    run_id = tracked_runs.recall(places).get(digests.get(name, ""))
    if run_id is None:
        return None
    with mlflow_client.answering(places):
        return run_id if mlflow_client.living_run(mlflow_client.connect(places), run_id) else None


@dataclass(frozen=True)
class Details:
    """What a run of its own is to hold."""

    metrics: Mapping[str, float]
    params: Mapping[str, str]
    tags: Mapping[str, str]
    files: Sequence[Path] = ()


def log_apart(places: ProjectPaths, config: Config, name: str, details: Details) -> str:
    """A run of its own, for what is found beside the steps; returns its number."""
    with mlflow_client.answering(places):
        client, experiment = mlflow_client.connect(places), mlflow_client.experiment_id(places, config)
        run_id = str(client.create_run(experiment, tags=mlflow_client.cut(details.tags), run_name=name).info.run_id)
        for path in details.files:
            client.log_artifact(run_id, str(path))
        mlflow_client.log(client, run_id, mlflow_client.metrics(details.metrics), details.params)
        client.set_terminated(run_id, "FINISHED")
    return run_id


def tag_run(places: ProjectPaths, run_id: str, tags: Mapping[str, str]) -> None:
    """Add tags to a run, an ended one too."""
    with mlflow_client.answering(places):
        mlflow_client.log(mlflow_client.connect(places), run_id, tags=tags)


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


def _project(places: ProjectPaths, client: Any, experiment: str, parent: str, content: RunContent) -> str:
    """A run for one record: the one that waits for its verdict, where there is one, else a new one."""
    if content.is_judged:
        waiting = f"tags.`{DIGEST}` = '{content.record_digest}'"
        for run in client.search_runs([experiment], waiting, max_results=1):
            tags = content.tags | {NOTE: content.note, DIGEST: content.digest}
            mlflow_client.log(client, run.info.run_id, mlflow_client.metrics(content.figures), tags=tags)
            return str(run.info.run_id)
    run_id = _open_child(places, client, experiment, parent, content.name, content.step)
    _fill(places, client, run_id, content, content.curves)
    return run_id


def _open_child(places: ProjectPaths, client: Any, experiment: str, parent: str, name: str, step: str) -> str:
    tags = origin_tags(places.root) | {PARENT: parent, "winnow.step": step, "winnow.name": name}
    return str(client.create_run(experiment, tags=mlflow_client.cut(tags), run_name=name).info.run_id)


def _fill(places: ProjectPaths, client: Any, run_id: str, content: RunContent, curves: Sequence[Curve]) -> None:
    """Everything of a record; the digest comes last, so that a run that was cut off is not taken for a whole one."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    version = run_content.data_version(places)
    context = InputTag("mlflow.data.context", run_content.DATASET_CONTEXT.get(content.step, "training"))
    images = Dataset(run_content.DATASET, version, "local", '{"uri": "artifacts/data"}')
    client.log_inputs(run_id, datasets=[DatasetInput(images, [context])])
    for path in sorted(content.folder.glob("*")):
        if path.suffix in LOGGED_FILES:
            client.log_artifact(run_id, str(path))
    metrics = mlflow_client.metrics(content.metrics | content.figures) + mlflow_client.curves(curves, CURVES)
    mlflow_client.log(
        client, run_id, metrics, content.params, content.tags | {NOTE: content.note, "winnow.data_version": version}
    )
    client.set_terminated(run_id, "FINISHED")
    mlflow_client.log(client, run_id, tags={RECORD: content.record_digest, DIGEST: content.digest})


def _describe(places: ProjectPaths, client: Any, run_id: str, note: str, digest: str) -> None:
    """The parent's page: table, lock file, report and plots."""
    why = client.get_run(run_id).data.tags.get(NOTE, "")
    for path in run_content.execution_files(places):
        client.log_artifact(run_id, str(path))
    tags = run_content.execution_tags(places)
    reason = tags.get("winnow.reason", "no verdict yet")
    if warning := tags.get("winnow.test.warning"):
        reason = f"**Warning of the test split:** {warning}\n\n{reason}"
    mlflow_client.log(client, run_id, tags=tags | {NOTE: f"{reason}\n\n{note}\n\nWhy it ran: {why}", DIGEST: digest})


def _fail(client: Any, run_id: str, message: str) -> None:
    mlflow_client.log(client, run_id, tags={"winnow.error": message, NOTE: f"failed: {message}"})
    client.set_terminated(run_id, "FAILED")


def _unsent(client: Any, run_id: str, rows: Sequence[Curve]) -> Sequence[Curve]:
    """The rows that did not arrive while the step ran."""
    if not rows:
        return []
    column = next(key for key in rows[0] if key != "epoch")
    sent = {metric.step for metric in client.get_metric_history(run_id, f"{CURVES}/{column}")}
    return [row for row in rows if int(row["epoch"]) not in sent]
