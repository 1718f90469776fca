"""MLflow runs from records: one parent run per execution of the chain, one child run per step and candidate.

Tracking is idempotent: the tag `winnow.digest` identifies the record of a run, and a record that the server has is not
logged again. tracking_store.py caches the digests, so that `is_complete` reads only files. In a flow, the run of a step
is open while it trains (`open_step`) and shows its curves; after `dvc repro` they come from the record. A step that DVC
restored from its cache gets no second run.
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
from tasks.tracking import parent_run_content, run_content, tracking_store
from tasks.tracking.mlflow_client import (
    Curve,
    StoreError,
    active_run,
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
    REASON_TAG,
    RECORD_TAG,
    STEP_TAG,
    TEST_WARNING_TAG,
)
from winnow.config import Config
from winnow.errors import ArtifactError
from winnow.records import record_digest

log = logging.getLogger(__name__)

LOGGED_FILES = (".json", ".png", ".svg")
CURVES = "curves"


def open_execution(paths: ProjectPaths, config: Config, why: str) -> str:
    """Create the parent run of an execution and return its id; first close runs left open by killed processes."""
    with session(paths) as client:
        experiment = experiment_id(paths, config)
        _close_dead(client, experiment)
        tags = origin_tags(paths.root) | {KIND_TAG: "execution", NOTE_TAG: why}
        name = f"run {datetime.now().astimezone():%Y-%m-%d %H:%M:%S}"
        run_id = create_run(client, experiment, tags, name)
        for path in (paths.root / "params.yaml", paths.root / "dvc.yaml"):
            if path.is_file():
                client.log_artifact(run_id, str(path))
    return run_id


def close_orphaned(paths: ProjectPaths, config: Config) -> None:
    """Mark open runs whose process on this machine is gone as failed."""
    with session(paths) as client:
        _close_dead(client, experiment_id(paths, config))


def _close_dead(client: Any, experiment: str) -> None:
    for run in client.search_runs([experiment], "attributes.status = 'RUNNING'"):
        if is_dead(run.data.tags):
            _fail(client, run.info.run_id, "its process was killed")


def open_step(paths: ProjectPaths, parent_run: str, name: str, step: str) -> str:
    """Create the child run of a step that is about to start, and return its id."""
    with session(paths) as client:
        experiment = client.get_run(parent_run).info.experiment_id
        return _open_child(paths, client, experiment, parent_run, name, step)


def log_curves(paths: ProjectPaths, run_id: str, rows: Sequence[Curve], already_sent: int, prefix: str) -> None:
    """Log new rows of a running training. If MLflow does not respond, `close_step` logs them later."""
    try:
        with session(paths) as client:
            log_values(client, run_id, to_curve_metrics(rows[already_sent:], prefix or CURVES))
    except StoreError as error:
        log.warning("curves will be logged when the step has ended: %s", str(error).partition("\n")[0])


def close_step(paths: ProjectPaths, run_id: str, out: Path) -> None:
    """Log the record in `out` to the run of its step; delete the run where the record is tracked already."""
    with session(paths) as client:
        run = client.get_run(run_id)
        query = f"tags.`{RECORD_TAG}` = '{record_digest(out)}'"
        if client.search_runs([run.info.experiment_id], query, max_results=1):
            client.delete_run(run_id)
            return
        content = run_content.read_content(out, run.data.tags[STEP_TAG])
        _fill(paths, client, run_id, content, _unsent(client, run_id, content.curves))


def fail_step(paths: ProjectPaths, run_id: str, message: str) -> None:
    """Mark the run of a step as failed. Errors of MLflow are ignored, so that the step's own error is shown."""
    with contextlib.suppress(StoreError), session(paths) as client:
        _fail(client, run_id, message)


def close_execution(paths: ProjectPaths, parent: str, ok: bool) -> None:
    """End the parent run, and mark its open child runs as failed: of interrupted steps, or of earlier attempts.

    After a failure (`ok` False) errors of MLflow are ignored.
    """
    with contextlib.nullcontext() if ok else contextlib.suppress(StoreError), session(paths) as client:
        experiment = client.get_run(parent).info.experiment_id
        running = f"attributes.status = 'RUNNING' and tags.`{PARENT_RUN_TAG}` = '{parent}'"
        for run in client.search_runs([experiment], running):
            _fail(client, run.info.run_id, "the execution ended before this step did")
        client.set_terminated(parent, "FINISHED" if ok else "FAILED")


def track(paths: ProjectPaths, config: Config, parent: str | None = None) -> str:
    """Log all records in artifacts/ that MLflow lacks, below `parent` or a new parent run; return a line for the user.

    Raises ArtifactError where there are no records.
    """
    contents = run_content.read_contents(paths, config)
    if not contents:
        raise ArtifactError(f"nothing to track in {paths.artifacts}; run `winnow run` or `dvc repro` first")
    address = tracking_store.redact_password(tracking_store.tracking_address(paths))
    digest = parent_run_content.execution_digest(contents)
    with session(paths) as client:
        experiment = experiment_id(paths, config)
        digests = [*(content.digest for content in contents), digest]
        runs = _present(client, experiment, digests, tracking_store.read_runs(paths))
        missing = [content for content in contents if content.digest not in runs]
        if parent is None and not missing and digest in runs:
            tracking_store.write_runs(paths, runs)
            return f"MLflow at {address} has all {len(contents)} records already"
        execution = parent or open_execution(paths, config, why="records created without the flow")
        try:
            for content in missing:
                runs[content.digest] = _log_record(paths, client, experiment, execution, content)
            verdicts = run_content.read_verdict_records(paths)
            note = parent_run_content.execution_note(contents, experiment, runs, verdicts)
            _describe(paths, client, execution, note, digest)
        except BaseException:
            if parent is None:
                close_execution(paths, execution, ok=False)
            raise
        if parent is None:
            close_execution(paths, execution, ok=True)
    tracking_store.write_runs(paths, runs | {digest: execution})
    return f"{len(missing)} of {len(contents)} records were new to MLflow at {address}"


def is_complete(paths: ProjectPaths, config: Config) -> bool:
    """Return whether all records are tracked at this address, from local files alone."""
    store = tracking_store.tracking_address(paths)
    if not (tracking_store.store_exists(store) and run_content.has_all_records(paths, config)):
        return False
    contents = run_content.read_contents(paths, config)
    digests = {parent_run_content.execution_digest(contents), *(content.digest for content in contents)}
    return digests <= tracking_store.read_runs(paths).keys()


def last_execution(paths: ProjectPaths, config: Config) -> tuple[str, str] | None:
    """Return (experiment id, run id) of the execution in artifacts/; None where it is not tracked."""
    run = _tracked_run(paths, parent_run_content.execution_digest(run_content.read_contents(paths, config)))
    return (str(run.info.experiment_id), str(run.info.run_id)) if run else None


def candidate_run(paths: ProjectPaths, config: Config, name: str) -> str | None:
    """Return the id of the run of a candidate's present record; None where MLflow has none."""
    digests = {content.name: content.digest for content in run_content.read_contents(paths, config)}
    run = _tracked_run(paths, digests.get(name, ""))
    return str(run.info.run_id) if run else None


def _tracked_run(paths: ProjectPaths, digest: str) -> Any:
    """Return MLflow's run with this digest; None where it has none."""
    run_id = tracking_store.read_runs(paths).get(digest)
    if run_id is None:
        return None
    with session(paths) as client:
        return active_run(client, run_id)


def log_separate_run(
    paths: ProjectPaths,
    config: Config,
    metrics: Mapping[str, float],
    params: Mapping[str, str],
    tags: Mapping[str, str],
    files: Sequence[Path],
) -> str:
    """Log a run without parent, named after its kind, for results outside the chain, and return its id."""
    with session(paths) as client:
        run_id = create_run(client, experiment_id(paths, config), tags, tags[KIND_TAG])
        for path in files:
            client.log_artifact(run_id, str(path))
        log_values(client, run_id, to_metrics(metrics), params)
        client.set_terminated(run_id, "FINISHED")
    return run_id


def tag_run(paths: ProjectPaths, run_id: str, tags: Mapping[str, str]) -> None:
    """Add tags to a run; it may have ended."""
    with session(paths) as client:
        log_values(client, run_id, tags=tags)


def _present(client: Any, experiment: str, digests: list[str], remembered: dict[str, str]) -> dict[str, str]:
    """Return digest -> run id for the digests that MLflow has."""
    run_by_digest: dict[str, str] = {}
    if run_ids := [remembered[digest] for digest in digests if digest in remembered]:
        quoted_ids = ", ".join(f"'{run_id}'" for run_id in run_ids)
        for run in client.search_runs([experiment], f"attributes.run_id IN ({quoted_ids})"):
            run_by_digest[run.data.tags.get(DIGEST_TAG, "")] = run.info.run_id
    for digest in digests:
        if digest not in run_by_digest:
            for run in client.search_runs([experiment], f"tags.`{DIGEST_TAG}` = '{digest}'", max_results=1):
                run_by_digest[digest] = run.info.run_id
    return {digest: run_by_digest[digest] for digest in digests if digest in run_by_digest}


def _log_record(paths: ProjectPaths, client: Any, experiment: str, parent: str, content: RunContent) -> str:
    """Log one record and return the run id: add the verdict to the record's run, or create a new run."""
    if content.is_judged:
        query = f"tags.`{DIGEST_TAG}` = '{content.record_digest}'"
        for run in client.search_runs([experiment], query, max_results=1):
            tags = content.tags | {NOTE_TAG: content.note, DIGEST_TAG: content.digest}
            log_values(client, run.info.run_id, to_metrics(content.figures), tags=tags)
            return str(run.info.run_id)
    run_id = _open_child(paths, client, experiment, parent, content.name, content.step)
    _fill(paths, client, run_id, content, content.curves)
    return run_id


def _open_child(paths: ProjectPaths, client: Any, experiment: str, parent: str, name: str, step: str) -> str:
    tags = origin_tags(paths.root) | {PARENT_RUN_TAG: parent, STEP_TAG: step, NAME_TAG: name}
    return create_run(client, experiment, tags, name)


def _fill(paths: ProjectPaths, client: Any, run_id: str, content: RunContent, curves: Sequence[Curve]) -> None:
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


def _describe(paths: ProjectPaths, client: Any, run_id: str, note: str, digest: str) -> None:
    """Log to the parent run: table of candidates, lock file, report and plots."""
    cause = client.get_run(run_id).data.tags.get(NOTE_TAG, "")
    for path in parent_run_content.execution_files(paths):
        client.log_artifact(run_id, str(path))
    tags = parent_run_content.execution_tags(paths)
    reason = tags.get(REASON_TAG, "no verdict yet")
    if warning := tags.get(TEST_WARNING_TAG):
        reason = f"**Warning of the test split:** {warning}\n\n{reason}"
    note = f"{reason}\n\n{note}\n\nWhy it ran: {cause}"
    log_values(client, run_id, tags=tags | {NOTE_TAG: note, DIGEST_TAG: digest})


def _fail(client: Any, run_id: str, message: str) -> None:
    log_values(client, run_id, tags={ERROR_TAG: message, NOTE_TAG: f"failed: {message}"})
    client.set_terminated(run_id, "FAILED")


def _unsent(client: Any, run_id: str, rows: Sequence[Curve]) -> Sequence[Curve]:
    """Return the rows that are not logged yet."""
    if not rows:
        return []
    column = next(key for key in rows[0] if key != "epoch")
    sent = {metric.step for metric in client.get_metric_history(run_id, f"{CURVES}/{column}")}
    return [row for row in rows if int(row["epoch"]) not in sent]
