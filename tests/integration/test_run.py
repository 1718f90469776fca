"""Run the whole chain on tiny images once with `winnow run`, then check everything that must hold."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml

from tasks.project.paths import ProjectPaths
from tasks.project.state_files import PROMOTED, PromotionState
from tests.conftest import CLASSES, SIZE
from tests.integration.conftest import Project, run_params
from tests.integration.running import free_ports, own_auth
from winnow.config import check_config
from winnow.data.dataset import decode
from winnow.records import CandidateRecord, RefitRecord, SelectionRecord, read_json, read_record, sha256_of
from winnow.refit.deployed_folder import deployed_folder

Finished = tuple[Project, subprocess.CompletedProcess[str]]
TREE = ("dense", *check_config(run_params()).candidates)


pytestmark = pytest.mark.thorough


def read_promotion(project: Project) -> PromotionState:
    state = PROMOTED.read(ProjectPaths(project.root))
    assert state is not None
    return state


def test_a_run_ends_with_table_verdict_and_addresses(finished: Finished) -> None:
    project, result = finished
    assert result.returncode == 0, result.stdout + result.stderr
    for text in (*TREE, "top-1", "PyTorch", "verdict", "Time of each step", "report.html", "make ui"):
        assert text in result.stdout
    promoted = read_promotion(project)
    assert promoted["reasons"][-1] in result.stdout
    assert "Traceback" not in result.stdout + result.stderr


def test_the_home_folder_stays_empty(finished: Finished) -> None:
    assert list(finished[0].home.iterdir()) == []


def test_a_run_writes_to_two_folders_only(finished: Finished) -> None:
    status = finished[0].call("git", "status", "--porcelain", "--ignored")
    assert status.returncode == 0, status.stderr
    folders = {line[3:].split("/")[0] for line in status.stdout.splitlines() if "__pycache__" not in line}
    assert {"artifacts", ".winnow"} <= folders <= {"artifacts", ".winnow", ".dvc", "dvc.lock"}


def test_records_and_files_of_every_step(finished: Finished) -> None:
    artifacts = finished[0].root / "artifacts"
    for name in TREE:
        folder = artifacts / "candidates" / name
        record = CandidateRecord.read(folder)
        assert record.details.lineage[0] == "dense"
        assert record.details.lineage[-1] == name
        assert {artifact.name for artifact in record.artifacts} >= {"model.onnx", "card.json", "validation_logits.npy"}
        assert str(finished[0].root).encode() not in (folder / "model.onnx").read_bytes()
    assert (artifacts / "report" / "report.html").stat().st_size > 10_000
    assert not list(artifacts.rglob("*.tmp"))


RUN_AND_LIST_IMPORTS = """
import atexit, sys
atexit.register(lambda: print("HEAVY", [name for name in ("torch", "prefect", "mlflow") if name in sys.modules]))
from winnow.cli.main import main
main(["run"])
"""


def test_an_unchanged_run_runs_no_step_and_imports_no_large_library(finished: Finished) -> None:
    project, _ = finished
    times_before = {path: path.stat().st_mtime_ns for path in (project.root / "artifacts").rglob("record.json")}
    result = project.call(sys.executable, "-c", RUN_AND_LIST_IMPORTS)
    assert result.returncode == 0, result.stderr
    assert "Nothing has changed" in result.stdout
    assert "HEAVY []" in result.stdout
    assert times_before == {path: path.stat().st_mtime_ns for path in (project.root / "artifacts").rglob("record.json")}
    assert json.loads(project.dvc("status", "--json").stdout) == {}
    assert "up to date" in project.winnow("status").stdout


def test_artifacts_are_on_disk_once(finished: Finished) -> None:
    project, _ = finished
    cached = {path.stat().st_ino for path in (project.root / ".dvc" / "cache" / "files").rglob("*") if path.is_file()}
    files = [path for path in (project.root / "artifacts").rglob("*") if path.is_file() and path.name != ".gitignore"]
    shared = [path for path in files if path.stat().st_ino in cached]
    assert project.root / "artifacts" / "data" / "images.npy" in shared
    assert all(path.stat().st_mode & 0o222 == 0 for path in shared)
    # DVC does not link a second file with the same content.
    assert sum(path.stat().st_size for path in shared) > 0.9 * sum(path.stat().st_size for path in files)


@pytest.mark.slow
def test_a_changed_byte_is_noticed_and_restored(project: Project) -> None:
    damaged = project.root / "artifacts" / "candidates" / "pruned" / "model.onnx"
    content = damaged.read_bytes()
    damaged.chmod(0o644)
    damaged.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    status = project.winnow("status").stdout
    assert "pruned" in status
    assert "modified" in status
    result = project.winnow("run")
    assert result.returncode == 0, result.stdout + result.stderr
    assert damaged.read_bytes() == content
    assert json.loads(project.dvc("status", "--json").stdout) == {}


def test_a_changed_number_makes_that_candidate_and_its_descendants_stale(project: Project) -> None:
    params = yaml.safe_load((project.root / "params.yaml").read_text())
    params["candidates"]["pruned"]["remove"]["channels"] = 0.4
    project.set_params(params)
    status = project.winnow("status").stdout
    stale = {line.split()[0] for line in status.splitlines()[1:] if line and not line.startswith(" ")}
    assert stale == {"pruned", "pruned-int8", "benchmark", "select", "refit", "report"}


def test_a_changed_method_makes_its_candidates_stale(project: Project) -> None:
    path = project.root / "winnow" / "compression" / "sparsify.py"
    path.write_text(path.read_text() + "\n# another comment\n")
    changed = json.loads(project.dvc("status", "--json").stdout)
    assert set(changed) == {"candidate@sparse", "refit"}


def test_with_few_labels_the_winner_is_refitted(finished: Finished) -> None:
    project, result = finished
    artifacts = project.root / "artifacts"
    refit, test = RefitRecord.read(artifacts / "refit"), read_record(artifacts / "report").metrics
    labels = refit.details.labels
    assert refit.details.is_refitted, refit.details.why
    assert labels.deployed == labels.training + labels.choosing
    output = " ".join(result.stdout.split())
    assert f"{labels.deployed} trained the model that is deployed" in output
    assert f"was refitted on {labels.deployed} labels" in output
    assert {"test/winner_top1", "test/selected_top1"} <= set(test)
    promoted = read_promotion(project)
    assert promoted["sha256"] == sha256_of(artifacts / "refit" / "model.onnx")
    page = (artifacts / "report" / "report.html").read_text(encoding="utf-8")
    assert "before the refit" in page


def test_predict_names_the_class_of_a_file(finished: Finished) -> None:
    from winnow.deploy.batch_inference import predict_file
    from winnow.evaluation.metrics import softmax

    project, _ = finished
    files = [project.root / "photos" / "disc" / "00.png", project.root / "photos" / "wedge" / "01.png"]
    artifacts = project.root / "artifacts"
    winner = SelectionRecord.read(artifacts / "select").details.winner
    assert winner is not None
    pixels = np.stack([decode(file.read_bytes(), SIZE)[0] for file in files])
    folder = deployed_folder(artifacts, winner)
    scale = read_json(folder / "card.json")["temperature"]
    expected = softmax(predict_file(folder / "model.onnx", pixels, np.arange(len(files))), scale)
    result = project.winnow("predict", *map(str, files), str(project.root / "dvc.yaml"))
    assert result.returncode == 2  # one of the three is not an image
    assert "dvc.yaml" in result.stderr
    rows = [line.split() for line in result.stdout.splitlines() if ".png" in line]
    assert [Path(row[0]) for row in rows] == files
    # The network may be wrong; the output must be the prediction of its file, in any runtime.
    for row, probabilities in zip(rows, expected, strict=True):
        second_largest, largest = np.sort(probabilities)[-2:]
        assert row[-2] == CLASSES[probabilities.argmax()] or largest - second_largest < 0.05
        assert float(row[-1]) == pytest.approx(largest, abs=0.1)


def test_all_runs_are_finished_with_common_metric_names(finished: Finished) -> None:
    code = (
        "import json, os; from pathlib import Path; from tasks.project.environment import apply; apply(Path.cwd())\n"
        "from mlflow import MlflowClient\n"
        "client = MlflowClient()\n"
        "ids = [e.experiment_id for e in client.search_experiments()]\n"
        "runs = client.search_runs(ids, max_results=1000)\n"
        "rows = [[r.info.run_name, r.info.status, sorted(r.data.metrics), r.data.tags] for r in runs]\n"
        "print('RUNS', json.dumps(rows))"
    )
    result = finished[0].call(sys.executable, "-c", code)
    line = next(line for line in result.stdout.splitlines() if line.startswith("RUNS"))
    runs = json.loads(line.removeprefix("RUNS"))
    assert {status for _, status, _, _ in runs} == {"FINISHED"}
    by_name = {name: metrics for name, _, metrics, _ in runs}
    assert set(by_name) >= set(TREE)
    for name in TREE:
        assert {"quality/top1", "size/mb", "latency/ort_b1_p50_ms"} <= set(by_name[name])
    assert any("mlflow.parentRunId" in tags for *_, tags in runs)


@pytest.mark.slow
def test_a_failed_step_leaves_nothing_half_written_says_why_and_is_mended(project: Project) -> None:
    """More files are damaged than allowed, which is found while images are stored, not before."""
    artifacts = project.root / "artifacts"
    record_before = (artifacts / "data" / "record.json").read_bytes()
    max_rejected = check_config(run_params()).data.max_rejected
    damaged_files = [project.root / "photos" / "wedge" / f"broken{index:02d}.jpg" for index in range(max_rejected + 1)]
    for path in damaged_files:
        path.write_bytes(b"no image")
    result = project.winnow("run")
    assert result.returncode == 2
    assert f"data.max_rejected allows {max_rejected}" in result.stderr
    assert "broken00.jpg" in result.stderr
    assert "Traceback" not in result.stdout + result.stderr
    assert not list(artifacts.rglob("*.tmp"))
    assert not (artifacts / "data").exists() or (artifacts / "data" / "record.json").read_bytes() == record_before
    store = project.root / ".winnow" / "mlflow" / "mlflow.db"
    with closing(sqlite3.connect(store)) as database:
        status = dict(database.execute("select status, count(*) from runs group by status").fetchall())
    assert "RUNNING" not in status
    assert status["FAILED"] > 0
    for path in damaged_files:
        path.unlink()
    result = project.winnow("run")
    assert result.returncode == 0, result.stdout + result.stderr
    assert (artifacts / "data" / "record.json").read_bytes() == record_before


def test_all_mistakes_in_params_at_once(project: Project) -> None:
    params = yaml.safe_load((project.root / "params.yaml").read_text())
    params["pretrain"]["epochs"] = "1e-1"
    params["benchmark"]["grids"] = "quick"
    project.set_params(params)
    for command in ("run", "status"):
        result = project.winnow(command)
        assert result.returncode == 2
        assert "pretrain.epochs" in result.stderr
        assert "benchmark.grids" in result.stderr
        assert "Traceback" not in result.stderr


@contextmanager
def endless_run(project: Project) -> Iterator[subprocess.Popen[str]]:
    """Start a run that pretrains for hours, in its own process group; kill it at the end in any case."""
    params = yaml.safe_load((project.root / "params.yaml").read_text())
    params["pretrain"]["epochs"] = 5000
    project.set_params(params)
    command = [sys.executable, "-m", "winnow.cli.main", "run"]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    run = subprocess.Popen(command, cwd=project.root, env=project.environment(), **streams)
    try:
        yield run
    finally:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)


def stop_run(run: subprocess.Popen[str], stop_signal: signal.Signals, timeout: float) -> str:
    """Send a signal to the whole group, as a terminal does, and return the error output."""
    os.killpg(run.pid, stop_signal)
    _, stderr = run.communicate(timeout=timeout)
    assert run.returncode == 130
    assert "winnow: stopped; run it again" in stderr
    return stderr


@pytest.mark.slow
@pytest.mark.parametrize("stop_signal", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "kill"])
def test_a_run_that_is_stopped_leaves_nothing_running_and_goes_on(
    project: Project, stop_signal: signal.Signals
) -> None:
    with endless_run(project) as run:
        deadline = time.monotonic() + 120
        while not list(project.root.glob(".winnow/checkpoints/pretrain-*/*.jsonl")) and time.monotonic() < deadline:
            time.sleep(0.3)
        stop_run(run, stop_signal, timeout=60)
    deadline = time.monotonic() + 20
    while (remaining := _processes_in(project.root)) and time.monotonic() < deadline:
        time.sleep(0.3)
    assert remaining == []
    with closing(sqlite3.connect(project.root / ".winnow" / "mlflow" / "mlflow.db")) as database:
        assert database.execute("select count(*) from runs where status = 'RUNNING'").fetchone() == (0,)
    assert project.dvc("status", "--json").returncode == 0  # the lock is free


@pytest.mark.slow
def test_a_run_stopped_at_its_start_ends_at_once(project: Project) -> None:
    with endless_run(project) as run:
        assert run.stderr is not None
        next(line for line in run.stderr if "Beginning flow run" in line)
        stderr = stop_run(run, signal.SIGINT, timeout=20)
    assert "Traceback" not in stderr


def _processes_in(folder: Path) -> list[str]:
    return [
        " ".join(p.info["cmdline"]) for p in psutil.process_iter(["cwd", "cmdline"]) if p.info["cwd"] == str(folder)
    ]


KILLED_PRETRAIN = """
import os, signal
import winnow.training.loop as training

training.CHECKPOINT_SECONDS = 0.0  # weights after every step
steps = 0
save = training.save_checkpoint

def counted(*arguments, **named):
    global steps
    save(*arguments, **named)
    steps += 1
    if steps == 5:
        os.kill(os.getpid(), signal.SIGKILL)

training.save_checkpoint = counted
from tasks.step_process import main
main(["pretrain"])
"""


@pytest.mark.slow
def test_dvc_alone_and_a_killed_step_end_with_the_same_bytes(finished: Finished, clean_project: Project) -> None:
    result = clean_project.dvc("repro", "ingest")
    assert result.returncode == 0, result.stdout + result.stderr
    killed = clean_project.call(sys.executable, "-c", KILLED_PRETRAIN)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (clean_project.root / "artifacts" / "pretrain").exists()
    result = clean_project.dvc("repro", "candidate@pruned")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "resuming from step 5" in result.stdout
    for name in ("data", "pretrain", "candidates/dense", "candidates/pruned"):
        dvc_record, winnow_record = (p.root / "artifacts" / name / "record.json" for p in (clean_project, finished[0]))
        assert dvc_record.read_bytes() == winnow_record.read_bytes(), name


def test_rollback_without_a_previous_champion_is_an_error(finished: Finished) -> None:
    result = finished[0].winnow("rollback")
    assert result.returncode == 2
    assert "previous" in result.stderr


def test_settings_on_the_command_line_are_checked_and_shown(project: Project) -> None:
    params_before = (project.root / "params.yaml").read_text()
    result = project.winnow("run", "-S", "data.pathh=/x")
    assert result.returncode == 2
    assert "pathh" in result.stderr
    assert (project.root / "params.yaml").read_text() == params_before


def test_validation_logits_are_those_of_the_file(finished: Finished) -> None:
    from winnow.data.dataset import VALIDATION, load_images
    from winnow.deploy.batch_inference import predict_file

    artifacts = finished[0].root / "artifacts"
    images = load_images(artifacts / "data")
    for name in ("dense", "pruned-int8"):
        folder = artifacts / "candidates" / name
        saved_logits = np.load(folder / "validation_logits.npy")
        logits = predict_file(folder / "model.onnx", images.images_NHWC, images.indices(VALIDATION))
        np.testing.assert_allclose(saved_logits, logits, atol=1e-5)


@pytest.mark.slow
def test_the_ui_starts_and_a_run_reports_to_its_server(project: Project) -> None:
    mlflow_port, prefect_port = free_ports(2)
    ports = ["--mlflow-port", str(mlflow_port), "--prefect-port", str(prefect_port)]
    ui = subprocess.Popen(
        [sys.executable, "-m", "winnow.cli.main", "ui", *ports],
        cwd=project.root,
        env=project.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        address = project.root / ".winnow" / "servers.json"
        deadline = time.monotonic() + 150
        while not address.exists() and ui.poll() is None and time.monotonic() < deadline:
            time.sleep(0.5)
        assert address.exists(), ui.communicate(timeout=5)[0] if ui.poll() is not None else "servers not up"
        params = yaml.safe_load((project.root / "params.yaml").read_text())
        params["promotion"]["gates"]["min_agreement"] = 0.4
        project.set_params(params)
        result = project.winnow("run")
        assert result.returncode == 0, result.stdout + result.stderr
        code = (
            "import httpx; print('NAMES', [r['state']['type'] for r in"
            f" httpx.post('http://127.0.0.1:{prefect_port}/api/flow_runs/filter', json={{}},"
            f" auth={tuple(own_auth(project).split(':'))}).json()])"
        )
        assert "COMPLETED" in project.call(sys.executable, "-c", code).stdout
        with urllib.request.urlopen(f"http://127.0.0.1:{prefect_port}/ui-settings", timeout=10) as response:
            assert (
                json.load(response)["api_url"] == f"http://127.0.0.1:{prefect_port}/api"
            )  # the page uses its own server
    finally:
        ui.send_signal(signal.SIGINT)
        try:
            ui.wait(timeout=60)
        except subprocess.TimeoutExpired:
            os.killpg(ui.pid, signal.SIGKILL)  # and its servers
            ui.wait()
            raise
    assert not address.exists()
