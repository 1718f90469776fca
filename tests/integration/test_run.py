"""The whole chain on tiny images: `winnow run` once, then everything that must hold after it."""

from __future__ import annotations

import json
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import yaml

from tests.conftest import CLASSES
from tests.integration.conftest import Project, run_params
from winnow.config import check_config
from winnow.records import read_record

Finished = tuple[Project, subprocess.CompletedProcess[str]]
TREE = ("dense", *check_config(run_params()).candidates)


def test_run_ends_with_the_table_the_verdict_and_where_to_look(finished: Finished) -> None:
    project, result = finished
    assert result.returncode == 0, result.stdout + result.stderr
    for wanted in (*TREE, "top-1", "PyTorch", "verdict", "Where the time went", "report.html", "make ui"):
        assert wanted in result.stdout
    promoted = json.loads((project.root / ".winnow" / "promoted.json").read_text())
    assert f"version {promoted['version']}" in result.stdout
    assert "Traceback" not in result.stdout + result.stderr


def test_home_stays_empty(finished: Finished) -> None:
    assert list(finished[0].home.iterdir()) == []


def test_everything_left_behind_lies_in_two_folders(finished: Finished) -> None:
    status = finished[0].call("git", "status", "--porcelain", "--ignored").stdout.splitlines()
    left = {line[3:].split("/")[0] for line in status if "__pycache__" not in line}
    assert left <= {"artifacts", ".winnow", ".dvc", "dvc.lock"}


def test_records_and_files_of_every_step(finished: Finished) -> None:
    artifacts = finished[0].root / "artifacts"
    for name in TREE:
        folder = artifacts / "candidates" / name
        record = read_record(folder)
        assert record.details["lineage"][0] == "dense"
        assert record.details["lineage"][-1] == name
        assert {artifact.name for artifact in record.artifacts} >= {"model.onnx", "card.json", "validation_logits.npy"}
        assert str(finished[0].root).encode() not in (folder / "model.onnx").read_bytes()
    assert (artifacts / "report" / "report.html").stat().st_size > 10_000
    assert not list(artifacts.rglob("*.tmp"))


def test_unchanged_run_runs_no_step_and_dvc_agrees(finished: Finished) -> None:
    project, _ = finished
    before = {path: path.stat().st_mtime_ns for path in (project.root / "artifacts").rglob("record.json")}
    result = project.winnow("run")
    assert result.returncode == 0, result.stderr
    assert "Nothing has changed" in result.stdout
    assert before == {path: path.stat().st_mtime_ns for path in (project.root / "artifacts").rglob("record.json")}
    assert json.loads(project.dvc("status", "--json").stdout) == {}
    assert "up to date" in project.winnow("status").stdout


def test_an_unchanged_run_imports_neither_torch_nor_prefect_nor_mlflow(finished: Finished) -> None:
    code = (
        "import sys, atexit\n"
        "atexit.register(lambda: print('HEAVY', [n for n in ('torch', 'prefect', 'mlflow') if n in sys.modules]))\n"
        "from flows.cli import main\nmain(['run'])"
    )
    result = finished[0].call(sys.executable, "-c", code)
    assert "HEAVY []" in result.stdout, result.stdout + result.stderr


def test_a_changed_byte_is_noticed_and_restored(project: Project) -> None:
    damaged = project.root / "artifacts" / "candidates" / "pruned" / "model.onnx"
    good = damaged.read_bytes()
    damaged.chmod(0o644)
    damaged.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    status = project.winnow("status").stdout
    assert "pruned" in status
    assert "modified" in status
    result = project.winnow("run")
    assert result.returncode == 0, result.stdout + result.stderr
    assert damaged.read_bytes() == good
    assert json.loads(project.dvc("status", "--json").stdout) == {}


def test_a_changed_number_makes_that_candidate_and_its_descendants_stale(project: Project) -> None:
    params = yaml.safe_load((project.root / "params.yaml").read_text())
    params["candidates"]["pruned"]["channels"] = 0.4
    project.set_params(params)
    status = project.winnow("status").stdout
    stale = {line.split()[0] for line in status.splitlines()[1:] if line and not line.startswith(" ")}
    assert stale == {"pruned", "pruned-int8", "benchmark", "select", "report"}


def test_a_changed_method_makes_its_candidates_stale(project: Project) -> None:
    path = project.root / "winnow" / "compression" / "sparsify.py"
    path.write_text(path.read_text() + "\n# another comment\n")
    changed = json.loads(project.dvc("status", "--json").stdout)
    assert set(changed) == {"candidate@sparse"}


def test_predict_names_the_class_of_a_persons_file(finished: Finished) -> None:
    project, _ = finished
    files = [project.root / "photos" / "disc" / "00.png", project.root / "photos" / "wedge" / "01.png"]
    result = project.winnow("predict", *map(str, files), str(project.root / "dvc.yaml"))
    assert result.returncode == 2  # one of the three is no image, and that is said
    assert "dvc.yaml" in result.stderr
    rows = [line.split() for line in result.stdout.splitlines() if ".png" in line]
    assert [Path(row[0]) for row in rows] == files
    assert {row[-2] for row in rows} <= set(CLASSES)  # a toy that may err; what counts is that its answer is shown
    assert all(0 < float(row[-1]) <= 1 for row in rows)


def test_no_run_is_left_running_and_metric_names_are_the_same(finished: Finished) -> None:
    code = (
        "import json, os; from pathlib import Path; from tasks.settings import apply; apply(Path.cwd())\n"
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


def test_same_bytes_from_dvc_alone(finished: Finished, fresh: Project) -> None:
    result = fresh.dvc("repro", "candidate@pruned")
    assert result.returncode == 0, result.stdout + result.stderr
    for name in ("data", "pretrain", "candidates/dense", "candidates/pruned"):
        here, there = (p.root / "artifacts" / name / "record.json" for p in (fresh, finished[0]))
        assert here.read_bytes() == there.read_bytes(), name


def test_a_failed_step_leaves_nothing_half_written_and_says_why(project: Project) -> None:
    shutil.rmtree(project.root / "photos" / "disc")
    shutil.rmtree(project.root / "photos" / "wedge")
    result = project.winnow("run")
    assert result.returncode == 2
    assert "only one class (stripes)" in result.stderr
    assert "Traceback" not in result.stdout + result.stderr
    assert not list((project.root / "artifacts").rglob("*.tmp"))
    store = project.root / ".winnow" / "mlflow" / "mlflow.db"
    with closing(sqlite3.connect(store)) as database:
        running = database.execute("select count(*) from runs where status = 'RUNNING'").fetchone()
    assert running == (0,)


@pytest.mark.parametrize("command", [["run"], ["status"]])
def test_all_mistakes_in_params_at_once(project: Project, command: list[str]) -> None:
    params = yaml.safe_load((project.root / "params.yaml").read_text())
    params["pretrain"]["epochs"] = "1e-1"
    params["benchmark"]["grids"] = "quick"
    project.set_params(params)
    result = project.winnow(*command)
    assert result.returncode == 2
    assert "pretrain.epochs" in result.stderr
    assert "benchmark.grids" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_killed_step_goes_on_and_ends_bit_identical(finished: Finished, fresh: Project) -> None:
    params = run_params()
    params["pretrain"] |= {"epochs": 15}
    fresh.set_params(params)
    whole = fresh.copy(fresh.root.parent / "whole")
    assert fresh.dvc("repro", "ingest").returncode == 0
    assert whole.dvc("repro", "pretrain").returncode == 0
    command = [sys.executable, "-c", KILLED]
    killed = subprocess.run(command, cwd=fresh.root, env=fresh.environment(), capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (fresh.root / "artifacts" / "pretrain").exists()
    result = fresh.dvc("repro", "pretrain")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "going on from step" in result.stdout
    one, other = ((p.root / "artifacts" / "pretrain" / "weights.safetensors").read_bytes() for p in (fresh, whole))
    assert one == other


KILLED = """
import os, signal
import winnow.training as training

training.CHECKPOINT_SECONDS = 0.0  # weights after every step
steps = 0
save = training._save

def counted(*arguments, **named):
    global steps
    save(*arguments, **named)
    steps += 1
    if steps == 37:
        os.kill(os.getpid(), signal.SIGKILL)

training._save = counted
from tasks.__main__ import main
main(["pretrain"])
"""


def test_rollback_without_a_previous_champion_says_so(finished: Finished) -> None:
    result = finished[0].winnow("rollback")
    assert result.returncode == 2
    assert "previous" in result.stderr


def test_settings_on_the_command_line_are_checked_and_shown(project: Project) -> None:
    before = (project.root / "params.yaml").read_text()
    result = project.winnow("run", "-S", "data.pathh=/x")
    assert result.returncode == 2
    assert "pathh" in result.stderr
    assert (project.root / "params.yaml").read_text() == before


def test_validation_logits_are_those_of_the_file(finished: Finished) -> None:
    from winnow.data.images import VALIDATION, load_images
    from winnow.inference import predict_file

    artifacts = finished[0].root / "artifacts"
    images = load_images(artifacts / "data")
    for name in ("dense", "pruned-int8"):
        folder = artifacts / "candidates" / name
        stored = np.load(folder / "validation_logits.npy")
        given = predict_file(folder / "model.onnx", images.images_NHWC, images.indices(VALIDATION))
        np.testing.assert_allclose(stored, given, atol=1e-5)


def test_the_interfaces_start_and_a_run_reports_to_the_server(project: Project, tmp_path: Path) -> None:
    ports = ["--mlflow-port", "5093", "--prefect-port", "4293"]
    ui = subprocess.Popen(
        [sys.executable, "-m", "flows.cli", "ui", *ports],
        cwd=project.root,
        env=project.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        address = project.root / ".winnow" / "prefect-server.json"
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
            " httpx.post('http://127.0.0.1:4293/api/flow_runs/filter', json={}).json()])"
        )
        assert "COMPLETED" in project.call(sys.executable, "-c", code).stdout
    finally:
        ui.send_signal(signal.SIGINT)
        ui.wait(timeout=60)
    assert not address.exists()
