"""MLflow runs of an execution: one parent run, and one child run per step and candidate.

In a flow, the run of a step is open while it trains (`open_step`) and shows its curves; after `dvc repro` they come
from the record (tracked_runs.py). A step that DVC restored from its cache gets no second run.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from tasks.project.paths import ProjectPaths
from tasks.project.run_origin import is_dead, origin_tags
from tasks.tracking import run_content
from tasks.tracking.mlflow_client import (
    RESUME_HINT,
    Curve,
    StoreError,
    create_run,
    experiment_id,
    log_values,
    session,
    to_curve_metrics,
    to_metrics,
)
from tasks.tracking.run_content import RunContent
from tasks.tracking.tags import (
    DATA_VERSION_TAG,
    DIGEST_TAG,
    ERROR_TAG,
    KIND_TAG,
    NAME_TAG,
    NOTE_TAG,
    PARENT_RUN_TAG,
    RECORD_TAG,
    STEP_TAG,
)
from winnow.config import Config
from winnow.printable import markdown
from winnow.records import record_digest

log = logging.getLogger(__name__)

LOGGED_FILES = (".json", ".png", ".svg")
CURVES = "curves"


def open_execution(paths: ProjectPaths, config: Config, why: str) -> str:
    """Create the parent run of an execution and return its id; first close runs left open by killed processes."""
    with session(paths, hint=RESUME_HINT) as client:
        experiment = experiment_id(paths, config)
        _close_dead(client, experiment)
        tags = origin_tags(paths.root) | {KIND_TAG: "execution", NOTE_TAG: markdown(why)}
        name = f"run {datetime.now().astimezone():%Y-%m-%d %H:%M:%S}"
        run_id = create_run(client, experiment, tags, name)
        for path in (paths.root / "params.yaml", paths.root / "dvc.yaml"):
            if path.is_file():
                client.log_artifact(run_id, str(path))
    return run_id


def close_orphaned(paths: ProjectPaths, config: Config) -> None:
    """Mark open runs whose process on this machine is gone as failed."""
    with session(paths, hint=RESUME_HINT) as client:
        _close_dead(client, experiment_id(paths, config))


def _close_dead(client: Any, experiment: str) -> None:
    for run in client.search_runs([experiment], "attributes.status = 'RUNNING'"):
        if is_dead(run.data.tags):
            _fail(client, run.info.run_id, "its process was killed")


def open_step(paths: ProjectPaths, parent_run: str, name: str, step: str) -> str:
    """Create the child run of a step that is about to start, and return its id."""
    with session(paths, hint=RESUME_HINT) as client:
        experiment = client.get_run(parent_run).info.experiment_id
        return open_child(paths, client, experiment, parent_run, name, step)


def log_curves(paths: ProjectPaths, run_id: str, rows: Sequence[Curve], already_sent: int, prefix: str) -> None:
    """Log new rows of a running training. If MLflow does not respond, `close_step` logs them later."""
    try:
        with session(paths, hint=RESUME_HINT) as client:
            log_values(client, run_id, to_curve_metrics(rows[already_sent:], prefix or CURVES))
    except StoreError as error:
        log.warning("curves will be logged when the step has ended: %s", str(error).partition("\n")[0])


def close_step(paths: ProjectPaths, run_id: str, out: Path) -> None:
    """Log the record in `out` to the run of its step; delete the run where the record is tracked already."""
    with session(paths, hint=RESUME_HINT) as client:
        run = client.get_run(run_id)
        query = f"tags.`{RECORD_TAG}` = '{record_digest(out)}'"
        if client.search_runs([run.info.experiment_id], query, max_results=1):
            client.delete_run(run_id)
            return
        content = run_content.read_content(out, run.data.tags[STEP_TAG])
        fill_run(paths, client, run_id, content, _unsent(client, run_id, content.curves))


def fail_step(paths: ProjectPaths, run_id: str, message: str) -> None:
    """Mark the run of a step as failed. Errors of MLflow are ignored, so that the step's own error is shown."""
    with contextlib.suppress(StoreError), session(paths, hint=RESUME_HINT) as client:
        _fail(client, run_id, message)


def close_execution(paths: ProjectPaths, parent: str, ok: bool) -> None:
    """End the parent run, and mark its open child runs as failed: of interrupted steps, or of earlier attempts.

    After a failure (`ok` False) errors of MLflow are ignored.
    """
    with (
        contextlib.nullcontext() if ok else contextlib.suppress(StoreError),
        session(paths, hint=RESUME_HINT) as client,
    ):
        experiment = client.get_run(parent).info.experiment_id
        running = f"attributes.status = 'RUNNING' and tags.`{PARENT_RUN_TAG}` = '{parent}'"
        for run in client.search_runs([experiment], running):
            _fail(client, run.info.run_id, "the execution ended before this step did")
        client.set_terminated(parent, "FINISHED" if ok else "FAILED")


def log_separate_run(
    paths: ProjectPaths,
    config: Config,
    metrics: Mapping[str, float],
    params: Mapping[str, str],
    tags: Mapping[str, str],
    files: Sequence[Path],
) -> str:
    """Log a run without parent, named after its kind, for results outside the chain, and return its id."""
    with session(paths, hint="; the result is shown, but not in MLflow") as client:
        run_id = create_run(client, experiment_id(paths, config), tags, tags[KIND_TAG])
        for path in files:
            client.log_artifact(run_id, str(path))
        log_values(client, run_id, to_metrics(metrics), params)
        client.set_terminated(run_id, "FINISHED")
    return run_id


def tag_run(paths: ProjectPaths, run_id: str, tags: Mapping[str, str]) -> None:
    """Add tags to a run; it may have ended."""
    with session(paths, hint=RESUME_HINT) as client:
        log_values(client, run_id, tags=tags)


def open_child(paths: ProjectPaths, client: Any, experiment: str, parent: str, name: str, step: str) -> str:
    """Create the run of a step or candidate below its parent run, and return its id."""
    tags = origin_tags(paths.root) | {PARENT_RUN_TAG: parent, STEP_TAG: step, NAME_TAG: name}
    return create_run(client, experiment, tags, name)


def fill_run(paths: ProjectPaths, client: Any, run_id: str, content: RunContent, curves: Sequence[Curve]) -> None:
    """Log the content of a record. The digest comes last, so that an interrupted run never counts as complete."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    version = run_content.data_version(paths)
    context = InputTag("mlflow.data.context", run_content.DATASET_CONTEXT.get(content.step, "training"))
    images = Dataset(run_content.DATASET, version, "local", '{"uri": "artifacts/data"}')
    client.log_inputs(run_id, datasets=[DatasetInput(images, [context])])
    for path in sorted(content.folder.glob("*")):
        if path.suffix in LOGGED_FILES:
            client.log_artifact(run_id, str(path))
    metrics = to_metrics(content.metrics | content.figures) + to_curve_metrics(curves, CURVES)
    tags = content.tags | {NOTE_TAG: content.note, DATA_VERSION_TAG: version}
    log_values(client, run_id, metrics, content.params, tags)
    client.set_terminated(run_id, "FINISHED")
    log_values(client, run_id, tags={RECORD_TAG: content.record_digest, DIGEST_TAG: content.digest})


def _fail(client: Any, run_id: str, message: str) -> None:
    log_values(client, run_id, tags={ERROR_TAG: message, NOTE_TAG: f"failed: {markdown(message)}"})
    client.set_terminated(run_id, "FAILED")


def _unsent(client: Any, run_id: str, rows: Sequence[Curve]) -> Sequence[Curve]:
    """Return the rows that are not logged yet."""
    if not rows:
        return []
    column = next(key for key in rows[0] if key != "epoch")
    sent = {metric.step for metric in client.get_metric_history(run_id, f"{CURVES}/{column}")}
    return [row for row in rows if int(row["epoch"]) not in sent]
