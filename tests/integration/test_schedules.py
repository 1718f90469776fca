"""`winnow up` for real: deployments, a scheduled run with its page, new images, and whom it tells."""

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
from tests.integration.running import Up, assert_told, told_to, web_hook

pytestmark = pytest.mark.services


FORGET_CHAMPION = """
from pathlib import Path
from tasks.project.environment import apply
from tasks.project.paths import ProjectPaths
apply(Path.cwd())
from tasks.registry import registered_models
registered_models.set_alias(ProjectPaths(Path.cwd()), "photos", "champion", None)
"""


def change(project: Project, section: str, **values: Any) -> None:
    params = yaml.safe_load((project.root / "params.yaml").read_text())
    params[section] = {**params.get(section, {}), **values}
    project.set_params(params)


def test_what_is_scheduled_is_what_prefect_yaml_says(up: Up) -> None:
    nightly, hourly = up.get("deployments/name/winnow/photos"), up.get("deployments/name/promote/photos")
    crons = [row["schedule"]["cron"] for row in nightly["schedules"] + hourly["schedules"]]
    assert crons == [NEVER_DUE] * 2
    assert nightly["global_concurrency_limit"]["limit"] == 1
    assert nightly["concurrency_options"]["collision_strategy"] == "CANCEL_NEW"
    assert str(up.project.root) not in json.dumps([nightly, hourly])
    assert up.get(f"v2/concurrency_limits/{gpu_slots.GPU}")["limit"] == 1
    names = {row["name"] for row in up.post("automations/filter")}
    assert len({name for name in names if name.startswith("winnow photos: ")}) == 3


def test_automations_that_are_as_wanted_are_left_alone(up: Up) -> None:
    """An update would make them forget the runs that they are waiting for."""
    before = {row["name"]: row["updated"] for row in up.post("automations/filter")}
    told_to(up, "http://127.0.0.1:1")  # does what every start of `winnow up` does, with two automations more
    after = {row["name"]: row["updated"] for row in up.post("automations/filter")}
    assert len(after) == len(before) + 2
    assert before.items() <= after.items()


def test_a_scheduled_run_finishes_with_its_page(up: Up) -> None:
    change(up.project, "promotion", min_gain=0.2)
    run = up.schedule("winnow/photos", seconds=5)
    found = up.wait(run, "Completed")
    assert found["start_time"] > found["expected_start_time"]
    again = {"state": {"type": "SCHEDULED", "name": "AwaitingRetry"}, "force": False}
    assert up.post(f"flow_runs/{run}/set_state", again)["status"] == "REJECT"
    shown = up.artifacts(run)
    assert {"candidates", "front", "front-picture", "promotion", "links"} <= set(shown)
    assert {row["candidate"] for row in json.loads(shown["candidates"])} >= {"dense", "pruned-int8"}
    assert "report.html" in shown["links"]
    picture = httpx.get(shown["front-picture"], auth=up.auth, timeout=30)
    assert picture.content.startswith(b"\x89PNG")
    tasks = up.post("task_runs/filter", {"flow_runs": {"id": {"any_": [run]}}})
    assert {task["name"].partition("@")[0] for task in tasks} >= {"select", "report", "pretrain"}


def test_new_images_are_seen_and_an_unchanged_source_runs_nothing(up: Up) -> None:
    up.wait(up.schedule("winnow/photos"), "Completed")
    run = up.schedule("winnow/photos")
    up.wait(run, "Completed")
    assert up.post("task_runs/filter", {"flow_runs": {"id": {"any_": [run]}}}) == []
    before = yaml.safe_load((up.project.root / "dvc.lock").read_text())["stages"]["ingest"]["outs"][0]["md5"]
    source = up.project.root / "photos" / "wedge" / "00.png"
    source.with_name("new.png").write_bytes((up.project.root / "photos" / "disc" / "00.png").read_bytes() + b"new")
    run = up.schedule("winnow/photos")
    up.wait(run, "Completed")
    after = yaml.safe_load((up.project.root / "dvc.lock").read_text())["stages"]["ingest"]["outs"][0]["md5"]
    assert before != after


def test_a_person_is_told_of_failures(up: Up) -> None:
    before = (up.project.root / "params.yaml").read_text()
    with web_hook() as (address, received):
        told_to(up, address)
        change(up.project, "pretrain", epochs=-1)
        try:
            up.wait(up.schedule("winnow/photos"), "Failed")
        finally:
            (up.project.root / "params.yaml").write_text(before)
        assert_told(received, "Failed", "pretrain.epochs")


def test_a_person_is_told_of_another_champion_and_of_drift(up: Up) -> None:
    rng = np.random.default_rng(5)
    folder = up.project.root / "incoming"
    folder.mkdir()
    for index in range(60):
        Image.fromarray(255 - draw(0, (20, 24), rng)).save(folder / f"{index}.png")
    change(up.project, "drift", path="incoming", min_images=20)
    with web_hook() as (address, received):
        told_to(up, address)
        assert up.project.winnow("promote").returncode == 0
        run = up.schedule("drift/photos")
        up.wait(run, "Completed")
        assert "**Drift**" in up.artifacts(run)["drift"]
        assert_told(received, "images drift", "Advice")
        assert up.project.call(sys.executable, "-c", FORGET_CHAMPION).returncode == 0
        result = up.project.winnow("promote")
        assert "is the new champion" in result.stdout, result.stdout + result.stderr
        assert_told(received, "is the champion of photos", "it is the first champion")
