"""Test records on a real MLflow store: content of runs, no duplicates, and no run that stays open."""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from tasks.project import run_origin
from tasks.project.deadlines import CallTimeout, time_limit
from tasks.project.paths import ProjectPaths, registered_model_name
from tasks.project.state_files import TRACKED_RUNS
from tasks.tracking import mlflow_client, mlflow_runs, run_content, search_runs, tracked_runs
from tasks.tracking.tags import PROCESS_TAG
from tests.handmade import CURVES, DATA_VERSION, clear_local_state, write_candidate, write_verdicts
from tests.records import ingest_details, make_record
from winnow.config import Config
from winnow.errors import ArtifactError
from winnow.records import write_record
from winnow.search.loop import SearchProgress
from winnow.search.optuna_study import EndedTrial
from winnow.search.space import Point
from winnow.search.trial import TrialEvaluation

pytest_plugins = "tests.stores"
CANDIDATES = ("dense", "quick", "wrong")
ALL_NAMES = ("data", "embed", "pretrain", *CANDIDATES, "benchmark", "select", "refit", "report")


def _runs(paths: ProjectPaths, config: Config, condition: str = "") -> list:
    return list(mlflow_client.connect(paths).search_runs([mlflow_client.experiment_id(paths, config)], condition))


def _children_by_name(paths: ProjectPaths, config: Config) -> dict:
    """Return child runs by name; fail if a name occurs twice."""
    children = [run for run in _runs(paths, config) if "winnow.name" in run.data.tags]
    names = [run.data.tags["winnow.name"] for run in children]
    assert len(set(names)) == len(names), names
    return dict(zip(names, children, strict=True))


PREAMBLE = (
    "import os, signal, sys; from pathlib import Path; from tasks.project import environment;"
    "from tasks.project.paths import ProjectPaths;"
    "from tasks.tracking import mlflow_runs, tracked_runs;"
    "from winnow.config import load_config; paths = ProjectPaths(Path.cwd()); environment.apply(paths.root);"
    "config = load_config('params.yaml');"
)


def _run_python(code: str, paths: ProjectPaths) -> subprocess.CompletedProcess[str]:
    """Run code in another process of the same project."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=paths.root, env=environment, capture_output=True, text=True, check=False)


def _parents(paths: ProjectPaths, config: Config) -> list:
    return _runs(paths, config, "tags.`winnow.kind` = 'execution'")


def test_every_record_is_a_child_run_of_one_parent(paths: ProjectPaths, config: Config) -> None:
    (paths.artifacts / "report" / "label_check.csv").write_text("path,label,suggested,reason,score\n")
    (paths.artifacts / "report" / "pareto.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    line = tracked_runs.track(paths, config)
    assert line.startswith(f"{len(ALL_NAMES)} of {len(ALL_NAMES)} records were new")
    (parent,) = _parents(paths, config)
    children = _children_by_name(paths, config)
    assert set(children) == set(ALL_NAMES)
    assert {run.data.tags["mlflow.parentRunId"] for run in children.values()} == {parent.info.run_id}
    assert {run.info.status for run in (parent, *children.values())} == {"FINISHED"}
    assert {run.inputs.dataset_inputs[0].dataset.digest for run in children.values()} == {DATA_VERSION}
    client = mlflow_client.connect(paths)
    files = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert files == {"params.yaml", "dvc.yaml", "dvc.lock", "report.html", "label_check.csv", "pareto.png"}
    note = parent.data.tags["mlflow.note.content"]
    assert note.startswith("quick is the fastest")
    assert f"[wrong](#/experiments/{parent.info.experiment_id}/runs/{children['wrong'].info.run_id})" in note


@pytest.mark.thorough
def test_candidates_have_the_same_metrics_verdict_and_parameters(paths: ProjectPaths, config: Config) -> None:
    tracked_runs.track(paths, config)
    runs = {name: _children_by_name(paths, config)[name] for name in CANDIDATES}
    curves = {"curves/loss"}
    metrics = {name: set(run.data.metrics) - curves for name, run in runs.items()}
    assert metrics["dense"] == metrics["quick"] == metrics["wrong"]
    assert {"quality/top1", "size/mb", "best/latency_ms", "speedup/float_b1"} <= metrics["quick"]
    assert runs["wrong"].data.metrics["quality/top1"] == pytest.approx(2 / 3)
    verdicts = {name: run.data.tags["winnow.verdict"] for name, run in runs.items()}
    assert verdicts == {"dense": "reference", "quick": "winner", "wrong": "failed"}
    assert "drop 33.3 points exceeds 1" in runs["wrong"].data.tags["mlflow.note.content"]
    params = runs["quick"].data.params
    assert (params["method"], params["optimiser.learning_rate"], params["seeds"]) == ("quantize", "0.05", "[0, 1]")
    assert runs["quick"].data.tags["winnow.parent"] == "dense"
    assert "threads" in runs["quick"].data.tags["winnow.machine"]
    history = mlflow_client.connect(paths).get_metric_history(runs["dense"].info.run_id, "curves/loss")
    assert [(point.step, point.value) for point in history] == [(row["epoch"], row["loss"]) for row in CURVES]


@pytest.mark.thorough
def test_a_second_track_logs_nothing(paths: ProjectPaths, config: Config) -> None:
    assert not tracked_runs.is_complete(paths, config)
    tracked_runs.track(paths, config)
    assert tracked_runs.is_complete(paths, config)
    run_ids_before = {run.info.run_id for run in _runs(paths, config)}
    assert "has all" in tracked_runs.track(paths, config)
    clear_local_state(paths)
    assert not tracked_runs.is_complete(paths, config)
    assert "has all" in tracked_runs.track(paths, config)
    assert {run.info.run_id for run in _runs(paths, config)} == run_ids_before
    assert tracked_runs.is_complete(paths, config)


@pytest.mark.thorough
def test_runs_that_the_store_lost_are_logged_again(paths: ProjectPaths, config: Config) -> None:
    tracked_runs.track(paths, config)
    deleted_run_id = _children_by_name(paths, config)["quick"].info.run_id
    mlflow_client.connect(paths).delete_run(deleted_run_id)
    assert tracked_runs.track(paths, config).startswith(f"1 of {len(ALL_NAMES)} ")
    assert _children_by_name(paths, config)["quick"].info.run_id != deleted_run_id


@pytest.mark.thorough
def test_another_address_gets_all_runs_and_the_first_stays_complete(
    paths: ProjectPaths, config: Config, empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracked_runs.track(paths, config)
    other_database = paths.root / "team.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{other_database}")
    assert not tracked_runs.is_complete(paths, config)
    other_database.write_bytes(empty_store.read_bytes())
    assert not tracked_runs.is_complete(paths, config)
    monkeypatch.chdir(paths.root)  # a foreign store puts its files where it likes, a bare database into ./mlruns
    assert tracked_runs.track(paths, config).startswith(f"{len(ALL_NAMES)} of {len(ALL_NAMES)} ")
    assert tracked_runs.is_complete(paths, config)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", paths.mlflow_store)
    assert tracked_runs.is_complete(paths, config)


@pytest.mark.thorough
def test_new_metrics_create_new_runs_and_keep_the_old(paths: ProjectPaths, config: Config) -> None:
    tracked_runs.track(paths, config)
    runs_before = _children_by_name(paths, config)
    write_verdicts(paths.artifacts, config, list(CANDIDATES), "quick", latency_ms=0.4)
    assert not tracked_runs.is_complete(paths, config)
    changed_count = len(CANDIDATES) + 2
    assert tracked_runs.track(paths, config).startswith(f"{changed_count} of {len(ALL_NAMES)} ")
    runs = _runs(paths, config, "tags.`winnow.name` = 'quick'")
    assert {run.data.metrics["best/latency_ms"] for run in runs} == {0.4, 0.5}
    assert runs_before["quick"].info.run_id in {run.info.run_id for run in runs}
    assert len(_runs(paths, config, "tags.`winnow.name` = 'pretrain'")) == 1


@pytest.mark.thorough
def test_metrics_of_another_candidate_of_the_same_name_are_not_logged(paths: ProjectPaths, config: Config) -> None:
    write_candidate(paths.artifacts, "quick", {"salt": 2.0})
    tracked_runs.track(paths, config)
    runs = _children_by_name(paths, config)
    assert "best/latency_ms" not in runs["quick"].data.metrics
    assert "winnow.verdict" not in runs["quick"].data.tags
    assert "best/latency_ms" in runs["wrong"].data.metrics


def test_a_running_step_logs_its_curves(paths: ProjectPaths, config: Config) -> None:
    parent = mlflow_runs.open_execution(paths, config, "pretrain: params.yaml")
    run_id = mlflow_runs.open_step(paths, parent, "pretrain", "pretrain")
    mlflow_runs.log_curves(paths, run_id, CURVES[:1], 0, "")
    mlflow_runs.log_curves(paths, run_id, CURVES[:2], 1, "")
    client = mlflow_client.connect(paths)
    flow_run = client.get_run(run_id)
    assert (flow_run.info.status, flow_run.data.metrics["curves/loss"]) == ("RUNNING", CURVES[1]["loss"])
    mlflow_runs.close_step(paths, run_id, paths.artifacts / "pretrain")
    history = client.get_metric_history(run_id, "curves/loss")
    assert [point.step for point in history] == [row["epoch"] for row in CURVES]
    assert client.get_run(run_id).info.status == "FINISHED"
    assert "pretrain/loss" in client.get_run(run_id).data.metrics


@pytest.mark.thorough
def test_track_completes_the_run_opened_for_training(paths: ProjectPaths, config: Config) -> None:
    parent = mlflow_runs.open_execution(paths, config, "all")
    run_id = mlflow_runs.open_step(paths, parent, "quick", "candidate")
    mlflow_runs.log_curves(paths, run_id, CURVES, 0, "scratch-seed0-rate0.1")
    mlflow_runs.close_step(paths, run_id, paths.artifacts / "candidates" / "quick")
    assert "best/latency_ms" not in mlflow_client.connect(paths).get_run(run_id).data.metrics
    tracked_runs.track(paths, config, parent)
    mlflow_runs.close_execution(paths, parent, ok=True)
    quick = _children_by_name(paths, config)["quick"]
    assert quick.info.run_id == run_id == tracked_runs.candidate_run(paths, config, "quick")
    assert quick.data.metrics["best/latency_ms"] == 0.5
    assert quick.data.tags["winnow.verdict"] == "winner"
    assert "scratch-seed0-rate0.1/loss" in quick.data.metrics
    (execution,) = _parents(paths, config)
    assert (execution.info.run_id, execution.info.status) == (parent, "FINISHED")
    assert tracked_runs.is_complete(paths, config)


@pytest.mark.thorough
def test_a_restored_step_leaves_no_second_run(paths: ProjectPaths, config: Config) -> None:
    tracked_runs.track(paths, config)
    parent = mlflow_runs.open_execution(paths, config, "a parameter was set back")
    for name, step in (("pretrain", "pretrain"), ("quick", "candidate")):
        run_id = mlflow_runs.open_step(paths, parent, name, step)
        out = paths.artifacts / (name if step == "pretrain" else f"candidates/{name}")
        mlflow_runs.close_step(paths, run_id, out)
    tracked_runs.track(paths, config, parent)
    assert set(_children_by_name(paths, config)) == set(ALL_NAMES)


def test_failed_runs_are_closed_with_a_reason(paths: ProjectPaths, config: Config) -> None:
    parent = mlflow_runs.open_execution(paths, config, "all")
    failed = mlflow_runs.open_step(paths, parent, "pretrain", "pretrain")
    open_step = mlflow_runs.open_step(paths, parent, "dense", "finetune")
    mlflow_runs.fail_step(paths, failed, "step pretrain failed: the loss is not a number")
    mlflow_runs.close_execution(paths, parent, ok=False)
    runs = {run.info.run_id: run for run in _runs(paths, config)}
    assert {run.info.status for run in runs.values()} == {"FAILED"}
    assert "not a number" in runs[failed].data.tags["mlflow.note.content"]
    assert set(runs) == {parent, failed, open_step}


@pytest.mark.thorough
def test_a_step_whose_end_was_not_reported_is_closed(
    paths: ProjectPaths, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = mlflow_runs.open_execution(paths, config, why="first run")
    unreported_step = mlflow_runs.open_step(paths, parent, "pretrain", "pretrain")
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        mlflow_runs.fail_step(paths, unreported_step, "MLflow does not answer")  # raises nothing
    mlflow_runs.close_execution(paths, parent, ok=True)  # a later attempt succeeded
    client = mlflow_client.connect(paths)
    assert client.get_run(unreported_step).info.status == "FAILED"
    assert client.get_run(parent).info.status == "FINISHED"


@pytest.mark.thorough
def test_runs_of_a_killed_execution_are_closed_by_the_next(paths: ProjectPaths, config: Config) -> None:
    code = PREAMBLE + (
        "parent = mlflow_runs.open_execution(paths, config, 'all');"
        "mlflow_runs.open_step(paths, parent, 'pretrain', 'pretrain'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    _run_python(code, paths)
    assert [run.info.status for run in _runs(paths, config)] == ["RUNNING", "RUNNING"]
    open_execution = mlflow_runs.open_execution(paths, config, "again")
    mlflow_runs.open_execution(paths, config, "at the same time")
    status = {run.info.run_id: run.info.status for run in _runs(paths, config)}
    assert sorted(status.values()) == ["FAILED", "FAILED", "RUNNING", "RUNNING"]
    assert status[open_execution] == "RUNNING"


def test_a_server_that_does_not_answer_is_one_message(
    paths: ProjectPaths, config: Config, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://someone:secret@127.0.0.1:1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    for call in (
        lambda: tracked_runs.track(paths, config),
        lambda: mlflow_runs.open_execution(paths, config, "all"),
        lambda: mlflow_runs.open_step(paths, "0" * 32, "dense", "finetune"),
    ):
        with pytest.raises(mlflow_client.StoreError, match=r"http://127\.0\.0\.1:1 does not respond") as exc_info:
            call()
        assert "winnow track" in str(exc_info.value)
        assert "secret" not in str(exc_info.value)
    with caplog.at_level(logging.WARNING, logger="tasks.tracking.mlflow_runs"):
        mlflow_runs.log_curves(paths, "0" * 32, CURVES, 0, "")
    assert "curves will be logged when the step has ended" in caplog.text
    mlflow_runs.fail_step(paths, "0" * 32, "the step's own error must be seen, not this one")
    mlflow_runs.close_execution(paths, "0" * 32, ok=False)


class DrippingServer(BaseHTTPRequestHandler):
    """A server that sends one byte every 0.2 seconds, so that no read times out."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "100000")
        self.end_headers()
        with contextlib.suppress(OSError):
            while True:
                self.wfile.write(b" ")
                self.wfile.flush()
                time.sleep(0.2)

    do_POST = do_GET

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.mark.thorough
@pytest.mark.parametrize("in_thread", [False, True])
def test_a_server_that_drips_is_given_up(
    paths: ProjectPaths, config: Config, monkeypatch: pytest.MonkeyPatch, in_thread: bool
) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), DrippingServer) as server:
        server.daemon_threads = True
        Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setattr(mlflow_client, "CALL_SECONDS", 2.0)
        errors: list[BaseException] = []

        def track_and_record() -> None:
            try:
                tracked_runs.track(paths, config)
            except mlflow_client.StoreError as error:
                errors.append(error)

        start = time.monotonic()
        if in_thread:  # as Prefect's tasks do
            worker = Thread(target=track_and_record)
            worker.start()
            worker.join(60)
        else:
            track_and_record()
        assert time.monotonic() - start < 30
        assert "a call took longer than 2 s" in str(errors[0])
        assert "winnow track" in str(errors[0])
        server.shutdown()


def test_a_call_within_its_limit_is_not_interrupted_later() -> None:
    for _ in range(20):
        with contextlib.suppress(CallTimeout), time_limit(0.01):
            time.sleep(0.01)
        sum(range(1000))  # must not raise


@pytest.mark.parametrize(
    ("address", "error", "message"),
    [
        ("", PermissionError(13, "Permission denied", "mlflow/artifacts"), "Check that it is writable"),
        ("http://127.0.0.1:1", PermissionError(13, "Permission denied", "models"), "Check that it is writable"),
        ("http://127.0.0.1:1", OSError(28, "No space left on device"), "Free space on this machine's disk"),
        ("", OSError(28, "No space left on device"), "Free space on its disk"),
        ("http://127.0.0.1:1", OSError("failed with error code 401 != 200"), "has no account ''"),
        ("http://127.0.0.1:1", OSError("failed with error code 403 != 200"), "it needs the role engineer"),
        ("http://127.0.0.1:1", ConnectionError("refused"), "Check that it is running"),
    ],
)
def test_errors_name_their_cause(
    paths: ProjectPaths, monkeypatch: pytest.MonkeyPatch, address: str, error: Exception, message: str
) -> None:
    if address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    with pytest.raises(mlflow_client.StoreError, match=message), mlflow_client.session(paths):
        raise error


LINK = "![x](https://evil.example)"
ESCAPED = r"\!\[x\]\(https://evil.example\)"


def test_foreign_names_are_no_markdown_in_notes(paths: ProjectPaths, config: Config) -> None:
    data = paths.artifacts / "data"
    write_record(data, make_record("ingest", ingest_details(("a", "b")), warnings=[f"1 file was rejected: {LINK}"]))
    assert run_content.read_content(data, "ingest").note == f"- warning: 1 file was rejected: {ESCAPED}"
    parent = mlflow_runs.open_execution(paths, config, f"{LINK} has changed")
    failed = mlflow_runs.open_step(paths, parent, "data", "ingest")
    mlflow_runs.fail_step(paths, failed, f"step ingest failed: {LINK}")
    notes = {run.info.run_id: run.data.tags["mlflow.note.content"] for run in _runs(paths, config)}
    assert notes == {parent: f"{ESCAPED} has changed", failed: f"failed: step ingest failed: {ESCAPED}"}


@pytest.mark.thorough
def test_a_lost_database_is_made_and_filled_without_noise(paths: ProjectPaths, config: Config) -> None:
    tracked_runs.track(paths, config)
    (paths.state_dir / "mlflow" / "mlflow.db").unlink()
    assert not tracked_runs.is_complete(paths, config)
    result = _run_python(PREAMBLE + "print(tracked_runs.track(paths, config))", paths)
    assert result.stderr == ""
    assert result.stdout.startswith(f"{len(ALL_NAMES)} of {len(ALL_NAMES)} records were new to MLflow at sqlite:///")
    assert result.stdout.count("\n") == 1
    assert tracked_runs.is_complete(paths, config)


def test_an_experiment_with_files_elsewhere_is_refused(paths: ProjectPaths, config: Config) -> None:
    client = mlflow_client.connect(paths)
    name = f"winnow/{registered_model_name(config)}"
    client.create_experiment(name, artifact_location=(paths.root / "elsewhere").as_uri())
    with pytest.raises(mlflow_client.StoreError, match="keeps its files outside of the project"):
        tracked_runs.track(paths, config)


@pytest.mark.thorough
def test_a_deleted_experiment_is_restored(paths: ProjectPaths, config: Config) -> None:
    tracked_runs.track(paths, config)
    mlflow_client.connect(paths).delete_experiment(mlflow_client.experiment_id(paths, config))
    tracked_runs.track(paths, config)
    assert set(_children_by_name(paths, config)) == set(ALL_NAMES)


def test_without_artifacts_there_is_nothing_to_track(paths: ProjectPaths, config: Config) -> None:
    paths.artifacts.rename(paths.root / "gone")
    assert not tracked_runs.is_complete(paths, config)
    with pytest.raises(ArtifactError, match="nothing to track"):
        tracked_runs.track(paths, config)


def test_a_trial_that_was_not_logged_is_reported_once_and_logged_at_the_end(
    paths: ProjectPaths, config: Config, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    log = search_runs.SearchRun(paths, config, "mine")
    evaluation = TrialEvaluation(1.0, 2.0, 0.5, {"quality/top1": 0.9}, ("found",))
    trials = [
        EndedTrial(number, number, Point("prune", 0.5, "none"), "finished", evaluation, "", 3.0) for number in (0, 1)
    ]
    log.trial(trials[0])
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING, logger="tasks.tracking.search_runs"):
        patch.setattr(
            "tasks.tracking.mlflow_client.log_values",
            lambda *_: (_ for _ in ()).throw(mlflow_client.StoreError("MLflow is down")),
        )
        log.trial(trials[1])  # its run was created, but its values could not be logged
        log.trial(trials[1])
    assert "trial 1 is not in MLflow yet: MLflow is down" in caplog.text
    resumed_log = search_runs.SearchRun(paths, config, "mine")
    assert resumed_log.logged == [0]
    resumed_log.close(SearchProgress(trials, 6.0, 1.0, {}), trials[1], [])
    trial_runs = _runs(paths, config, "tags.`winnow.kind` = 'trial'")
    assert sorted((run.info.run_name, run.info.status) for run in trial_runs) == [
        ("trial 0", "FINISHED"),
        ("trial 1", "FINISHED"),
    ]
    assert {run.data.metrics["search/cost"] for run in trial_runs} == {0.5}


def test_a_resumed_search_is_not_taken_for_a_killed_one(
    paths: ProjectPaths, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(run_origin, "process_identity", lambda _: "1@ended")
        log = search_runs.SearchRun(paths, config, "mine")
    resumed_log = search_runs.SearchRun(paths, config, "mine")
    assert resumed_log.run_id == log.run_id
    mlflow_runs.close_orphaned(paths, config)
    (run,) = _runs(paths, config)
    assert run.info.status == "RUNNING"
    assert run.data.tags[PROCESS_TAG] == run_origin.process_identity(os.getpid())


@pytest.mark.thorough
def test_completeness_is_checked_without_mlflow(paths: ProjectPaths, config: Config) -> None:
    tracked_runs.track(paths, config)
    code = PREAMBLE + (
        "import tasks.registry.promotion_state;"
        "print(tracked_runs.is_complete(paths, config), tasks.registry.promotion_state.is_up_to_date(paths, config));"
        "print('mlflow' in sys.modules)"
    )
    assert _run_python(code, paths).stdout.split() == ["True", "False", "False"]


def test_more_values_than_a_call_may_hold_are_all_logged(paths: ProjectPaths, config: Config) -> None:
    run_id = mlflow_runs.open_execution(paths, config, "much to say")
    metrics = {f"m/{index}": float(index) for index in range(1700)}
    params = {f"p.{index}": str(index) for index in range(150)}
    client = mlflow_client.connect(paths)
    mlflow_client.log_values(
        client, run_id, mlflow_client.to_metrics(metrics), params, {f"t.{name}": name for name in params}
    )
    data = client.get_run(run_id).data
    assert data.metrics == metrics
    assert data.params == params
    assert {name: data.tags.get(f"t.{name}") for name in params} == {name: name for name in params}


def test_flattened_params_keep_the_limits_of_mlflow() -> None:
    flat = run_content.flatten_params(
        {"a": {"b": 1e-3, "c": None}, "list": [0.03, 0.1], "text": "x" * 7000, "on": True}
    )
    assert flat == {"a.b": "0.001", "a.c": "null", "list": "[0.03, 0.1]", "text": "x" * 6000, "on": "true"}


@pytest.mark.thorough
def test_a_damaged_state_file_is_ignored(paths: ProjectPaths, config: Config) -> None:
    tracked_runs.track(paths, config)
    TRACKED_RUNS.path(paths).write_text("{ not json")
    assert not tracked_runs.is_complete(paths, config)
    assert "has all" in tracked_runs.track(paths, config)
    assert TRACKED_RUNS.read(paths).keys() == {paths.mlflow_store}
