"""`winnow up` for real: deployments, a scheduled run with its page, new images, and whom it tells."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest
import yaml

from tests.integration.conftest import Project
from tests.integration.running import Up

pytestmark = pytest.mark.services


def change(project: Project, section: str, **values: Any) -> None:
    params = yaml.safe_load((project.root / "params.yaml").read_text())
    params[section] |= values
    project.set_params(params)


def test_what_is_scheduled_is_what_prefect_yaml_says(up: Up) -> None:
    nightly, hourly = up.get("deployments/name/winnow/nightly"), up.get("deployments/name/promote/hourly")
    crons = [row["schedule"]["cron"] for row in nightly["schedules"] + hourly["schedules"]]
    assert crons == ["0 2 * * *", "15 * * * *"]
    assert nightly["global_concurrency_limit"]["limit"] == 1
    assert nightly["concurrency_options"]["collision_strategy"] == "CANCEL_NEW"
    assert str(up.project.root) not in json.dumps([nightly, hourly])
    assert up.get("v2/concurrency_limits/gpu")["limit"] == 1
    names = {row["name"] for row in up.post("automations/filter")}
    assert len({name for name in names if name.startswith("winnow: ")}) == 2


def test_a_scheduled_run_finishes_with_its_page(up: Up) -> None:
    change(up.project, "promotion", min_gain=0.2)
    run = up.schedule("winnow/nightly", seconds=5)
    found = up.wait(run, "Completed")
    assert found["start_time"] > found["expected_start_time"]
    shown = up.artifacts(run)
    assert {"candidates", "front", "front-picture", "promotion", "links"} <= set(shown)
    assert {row["candidate"] for row in json.loads(shown["candidates"])} >= {"dense", "pruned-int8"}
    assert "report.html" in shown["links"]
    picture = httpx.get(shown["front-picture"], timeout=30)
    assert picture.content.startswith(b"\x89PNG")
    tasks = up.post("task_runs/filter", {"flow_runs": {"id": {"any_": [run]}}})
    assert {task["name"].partition("@")[0] for task in tasks} >= {"select", "report", "pretrain"}


def test_new_images_are_seen_and_an_unchanged_source_runs_nothing(up: Up) -> None:
    run = up.schedule("winnow/nightly")
    up.wait(run, "Completed")
    assert up.post("task_runs/filter", {"flow_runs": {"id": {"any_": [run]}}}) == []
    before = yaml.safe_load((up.project.root / "dvc.lock").read_text())["stages"]["ingest"]["outs"][0]["md5"]
    source = up.project.root / "photos" / "wedge" / "00.png"
    source.with_name("new.png").write_bytes((up.project.root / "photos" / "disc" / "00.png").read_bytes() + b"new")
    run = up.schedule("winnow/nightly")
    up.wait(run, "Completed", seconds=300)
    after = yaml.safe_load((up.project.root / "dvc.lock").read_text())["stages"]["ingest"]["outs"][0]["md5"]
    assert before != after


class _Inbox(BaseHTTPRequestHandler):
    received: list[str]

    def do_POST(self) -> None:
        self.received.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_arguments: Any) -> None:
        """Quiet."""


@pytest.fixture
def inbox() -> Iterator[tuple[str, list[str]]]:
    """Address of a web hook, and what was sent to it."""
    received: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Inbox", (_Inbox,), {"received": received}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", received
    server.shutdown()


TELL = """
import sys
from pathlib import Path
from tasks.settings import Places, apply
apply(Path.cwd())
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from flows import deploying
body = {"text": "{{subject}} {{body}}"}
CustomWebhookNotificationBlock(name="inbox", url=sys.argv[1], json_data=body).save("winnow-notify", overwrite=True)
deploying.set_up(Places(Path.cwd()))
"""


def test_a_person_is_told_of_failures(up: Up, inbox: tuple[str, list[str]]) -> None:
    url, received = inbox
    command = [sys.executable, "-c", TELL, url]
    environment = {**up.project.environment(), "PREFECT_API_URL": up.api}
    done = subprocess.run(command, cwd=up.project.root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    before = (up.project.root / "params.yaml").read_text()
    change(up.project, "pretrain", epochs=-1)
    try:
        up.wait(up.schedule("winnow/nightly"), "Failed")
    finally:
        (up.project.root / "params.yaml").write_text(before)
    deadline = time.monotonic() + 60
    while not received and time.monotonic() < deadline:
        time.sleep(0.5)
    assert any("Failed" in text and "pretrain.epochs" in text for text in received), received
