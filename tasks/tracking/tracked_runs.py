"""Log all records that MLflow lacks, and find the runs of those that it has.

Tracking is idempotent: the tag `winnow.digest` identifies the record of a run, and a record that the server has is not
logged again. tracking_store.py caches the digests, so that `is_complete` reads only files.
"""

from __future__ import annotations

from typing import Any

from tasks.project.paths import ProjectPaths
from tasks.tracking import parent_run_content, run_content, tracking_store
from tasks.tracking.mlflow_client import RESUME_HINT, active_run, experiment_id, log_values, session, to_metrics
from tasks.tracking.mlflow_runs import close_execution, fill_run, open_child, open_execution
from tasks.tracking.run_content import RunContent
from tasks.tracking.tags import DIGEST_TAG, NOTE_TAG, REASON_TAG, TEST_WARNING_TAG
from winnow.config import Config
from winnow.errors import ArtifactError
from winnow.printable import markdown


def track(paths: ProjectPaths, config: Config, parent: str | None = None) -> str:
    """Log all records in artifacts/ that MLflow lacks, below `parent` or a new parent run; return a line for the user.

    Raises ArtifactError where there are no records.
    """
    contents = run_content.read_contents(paths, config)
    if not contents:
        raise ArtifactError(f"nothing to track in {paths.artifacts}; run `winnow run` or `dvc repro` first")
    address = tracking_store.redact_password(tracking_store.tracking_address(paths))
    digest = parent_run_content.execution_digest(contents)
    with session(paths, hint=RESUME_HINT) as client:
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
    with session(paths, hint=RESUME_HINT) as client:
        return active_run(client, run_id)


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
    run_id = open_child(paths, client, experiment, parent, content.name, content.step)
    fill_run(paths, client, run_id, content, content.curves)
    return run_id


def _describe(paths: ProjectPaths, client: Any, run_id: str, note: str, digest: str) -> None:
    """Log to the parent run: table of candidates, lock file, report and plots."""
    cause = client.get_run(run_id).data.tags.get(NOTE_TAG, "")
    for path in parent_run_content.execution_files(paths):
        client.log_artifact(run_id, str(path))
    tags = parent_run_content.execution_tags(paths)
    reason = markdown(tags.get(REASON_TAG, "no verdict yet"))
    if warning := tags.get(TEST_WARNING_TAG):
        reason = f"**Warning of the test split:** {markdown(warning)}\n\n{reason}"
    note = f"{reason}\n\n{note}\n\nWhy it ran: {cause}"
    log_values(client, run_id, tags=tags | {NOTE_TAG: note, DIGEST_TAG: digest})
