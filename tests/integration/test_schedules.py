"""Test `winnow up`: deployments, a scheduled run with its artifacts, new images, and notifications."""

from __future__ import annotations

import json
import sys
from typing import Any

import httpx
import numpy as np
import pytest
import yaml
from PIL import Image

from tasks.project import gpu_slots
from tests.conftest import draw
from tests.integration.conftest import NEVER_DUE, Project
from tests.integration.running import RunningProject, assert_notified, send_notifications_to, webhook

pytestmark = pytest.mark.services


REMOVE_CHAMPION = """
from pathlib import Path
from tasks.project.environment import apply
from tasks.project.paths import ProjectPaths
apply(Path.cwd())
from tasks.registry import registered_models
registered_models.set_alias(ProjectPaths(Path.cwd()), "photos", "champion", None)
"""


def change_params(project: Project, section: str, **values: Any) -> None:
    params = yaml.safe_load((project.root / "params.yaml").read_text())
    params[section] = {**params.get(section, {}), **values}
    project.set_params(params)


def test_schedules_are_those_of_prefect_yaml(running: RunningProject) -> None:
    nightly, hourly = running.get("deployments/name/winnow/photos"), running.get("deployments/name/promote/photos")
    crons = [row["schedule"]["cron"] for row in nightly["schedules"] + hourly["schedules"]]
    assert crons == [NEVER_DUE] * 2
    assert nightly["global_concurrency_limit"]["limit"] == 1
    assert nightly["concurrency_options"]["collision_strategy"] == "CANCEL_NEW"
    assert str(running.project.root) not in json.dumps([nightly, hourly])
    assert running.get(f"v2/concurrency_limits/{gpu_slots.GPU}")["limit"] == 1
    names = {row["name"] for row in running.post("automations/filter")}
    assert len({name for name in names if name.startswith("winnow photos: ")}) == 3


def test_unchanged_automations_are_not_updated(running: RunningProject) -> None:
    """An update would discard the runs that an automation waits for."""
    updated_before = {row["name"]: row["updated"] for row in running.post("automations/filter")}
    send_notifications_to(
        running, "http://127.0.0.1:1"
    )  # sets up deployments as `winnow up` does, with two more automations
    updated_after = {row["name"]: row["updated"] for row in running.post("automations/filter")}
    assert len(updated_after) == len(updated_before) + 2
    assert updated_before.items() <= updated_after.items()


def test_a_scheduled_run_finishes_with_its_page(running: RunningProject) -> None:
    change_params(running.project, "promotion", min_gain=0.2)
    run = running.schedule("winnow/photos", seconds=5)
    flow_run = running.wait(run, "Completed")
    assert flow_run["start_time"] > flow_run["expected_start_time"]
    retry_request = {"state": {"type": "SCHEDULED", "name": "AwaitingRetry"}, "force": False}
    assert running.post(f"flow_runs/{run}/set_state", retry_request)["status"] == "REJECT"
    artifacts = running.artifacts(run)
    assert {"candidates", "front", "front-picture", "promotion", "links"} <= set(artifacts)
    assert {row["candidate"] for row in json.loads(artifacts["candidates"])} >= {"dense", "pruned-int8"}
    assert "report.html" in artifacts["links"]
    response = httpx.get(artifacts["front-picture"], auth=running.auth, timeout=30)
    assert response.content.startswith(b"\x89PNG")
    tasks = running.post("task_runs/filter", {"flow_runs": {"id": {"any_": [run]}}})
    assert {task["name"].partition("@")[0] for task in tasks} >= {"select", "report", "pretrain"}


def test_new_images_start_steps_and_an_unchanged_source_does_not(running: RunningProject) -> None:
    running.wait(running.schedule("winnow/photos"), "Completed")
    run = running.schedule("winnow/photos")
    running.wait(run, "Completed")
    assert running.post("task_runs/filter", {"flow_runs": {"id": {"any_": [run]}}}) == []
    digest_before = yaml.safe_load((running.project.root / "dvc.lock").read_text())["stages"]["ingest"]["outs"][0][
        "md5"
    ]
    source = running.project.root / "photos" / "wedge" / "00.png"
    source.with_name("new.png").write_bytes((running.project.root / "photos" / "disc" / "00.png").read_bytes() + b"new")
    run = running.schedule("winnow/photos")
    running.wait(run, "Completed")
    digest_after = yaml.safe_load((running.project.root / "dvc.lock").read_text())["stages"]["ingest"]["outs"][0]["md5"]
    assert digest_before != digest_after


def test_failures_are_notified(running: RunningProject) -> None:
    params_before = (running.project.root / "params.yaml").read_text()
    with webhook() as (address, received):
        send_notifications_to(running, address)
        change_params(running.project, "pretrain", epochs=-1)
        try:
            running.wait(running.schedule("winnow/photos"), "Failed")
        finally:
            (running.project.root / "params.yaml").write_text(params_before)
        assert_notified(received, "Failed", "pretrain.epochs")


def test_a_new_champion_and_drift_are_notified(running: RunningProject) -> None:
    rng = np.random.default_rng(5)
    folder = running.project.root / "incoming"
    folder.mkdir()
    for index in range(60):
        Image.fromarray(255 - draw(0, (20, 24), rng)).save(folder / f"{index}.png")
    change_params(running.project, "drift", path="incoming", min_images=20)
    with webhook() as (address, received):
        send_notifications_to(running, address)
        assert running.project.winnow("promote").returncode == 0
        run = running.schedule("drift/photos")
        running.wait(run, "Completed")
        assert "**Drift**" in running.artifacts(run)["drift"]
        assert_notified(received, "images drift", "Advice")
        assert running.project.call(sys.executable, "-c", REMOVE_CHAMPION).returncode == 0
        result = running.project.winnow("promote")
        assert "is the new champion" in result.stdout, result.stdout + result.stderr
        assert_notified(received, "is the champion of photos", "it is the first champion")
