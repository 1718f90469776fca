"""Who may not, cannot: pages of other origins, accounts of the same machine, and runs that are not this project's."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integration.conftest import Project
from tests.integration.running import Up

pytestmark = pytest.mark.services

EVIL = {"Origin": "http://evil.example"}


def mlflow_page(up: Up) -> str:
    lines = (up.project.root / ".winnow" / "logs" / "winnow-up.log").read_text().splitlines()
    return next(line.split()[-1] for line in lines if line.startswith("MLflow "))


@pytest.mark.parametrize("auth", [None, ("winnow", "guessed password"), ("admin", "password1234")])
def test_nobody_writes_without_the_password(up: Up, auth: tuple[str, str] | None) -> None:
    wanted = {"name": "evil"}
    assert httpx.post(f"{up.api}/flows/", json=wanted, headers=EVIL, auth=auth, timeout=30).status_code == 401
    assert httpx.post(f"{up.api}/flows/filter", json={}, auth=auth, timeout=30).status_code == 401
    page = mlflow_page(up)
    for path in ("/", "/api/2.0/mlflow/experiments/search", "/ajax-api/2.0/mlflow/registered-models/search"):
        assert httpx.get(f"{page}{path}", headers=EVIL, auth=auth, timeout=30).status_code in (401, 403)
    assert httpx.get(f"{page}/", auth=up.auth, timeout=30).status_code == 200


def test_a_page_of_another_origin_reads_nothing(up: Up) -> None:
    answer = httpx.get(f"{up.api}/health", headers=EVIL, timeout=30)
    assert "access-control-allow-origin" not in answer.headers
    asked = {**EVIL, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    before = httpx.options(f"{up.api}/flows/", headers=asked, timeout=30)
    assert "access-control-allow-origin" not in before.headers
    own = up.api.removesuffix("/api")
    assert httpx.get(f"{up.api}/health", headers={"Origin": own}, timeout=30).headers[
        "access-control-allow-origin"
    ] in (own, "*")


@pytest.mark.parametrize("host", ["evil.example", "evil.example:4200", "127.0.0.1.evil.example"])
def test_a_name_that_was_turned_to_this_machine_reaches_nothing(up: Up, host: str) -> None:
    assert httpx.get(f"{up.api}/health", headers={"Host": host}, auth=up.auth, timeout=30).status_code == 400
    assert httpx.get(mlflow_page(up), headers={"Host": host}, auth=up.auth, timeout=30).status_code == 403


def deployed(up: Up, **changes: Any) -> str:
    """A deployment in the project's work pool -> its number. As prefect.yaml has it, but for `changes`."""
    flow = up.post("flows/", {"name": "winnow"})["id"]
    made = {
        "name": f"evil-{time.monotonic_ns()}",
        "flow_id": flow,
        "work_pool_name": "winnow-photos",
        "entrypoint": "flows/pipeline.py:pipeline",
        "path": ".",
        "pull_steps": [{"flows.runtime.enter_checkout": {}}],
    }
    return str(up.post("deployments/", made | changes)["id"])


def started(up: Up, deployment: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """The run once its end is known."""
    scheduled = {"state": {"type": "SCHEDULED"}, **body}
    run = up.post(f"deployments/{deployment}/create_flow_run", scheduled)["id"]
    return up.wait(run, "Crashed", seconds=120)


@pytest.mark.parametrize(
    ("changes", "body", "told"),
    [
        (
            {"pull_steps": [{"prefect.deployments.steps.run_shell_script": {"script": "touch {mark}"}}]},
            {},
            "pull steps",
        ),
        ({"entrypoint": "{mark}.py:evil"}, {}, "entrypoint"),
        ({"job_variables": {"command": "touch {mark}"}}, {}, "variables of the process"),
        ({}, {"job_variables": {"command": "touch {mark}"}}, "variables of the process"),
        ({}, {"parameters": {"root": "{mark}"}}, "parameter root"),
    ],
)
def test_whoever_has_the_password_starts_only_the_projects_own_flows(
    up: Up, tmp_path: Path, changes: dict[str, Any], body: dict[str, Any], told: str
) -> None:
    mark = tmp_path / "mark"

    def filled(value: Any) -> Any:
        if isinstance(value, str):
            return value.replace("{mark}", str(mark))
        if isinstance(value, list):
            return [filled(each) for each in value]
        return {key: filled(each) for key, each in value.items()} if isinstance(value, dict) else value

    found = started(up, deployed(up, **filled(changes)), filled(body))
    assert told in found["state"]["message"]
    assert "runs only what prefect.yaml of its checkout deploys" in found["state"]["message"]
    assert not mark.exists()


ASK_TEMPORARY = """
from pathlib import Path
from tasks.project import running_servers, environment
from tasks.project.paths import ProjectPaths

environment.apply(Path.cwd())
assert not running_servers.report_to_prefect(ProjectPaths(Path.cwd()))
import httpx
from prefect.client.orchestration import get_client

with get_client(sync_client=True) as client:
    client.create_flow_from_name("own")
    address = str(client.api_url)
    asked = httpx.post(f"{address}/flows/filter", json={}, headers={"Origin": "http://evil.example"}, timeout=30)
    print("STATUS", asked.status_code)
"""


def test_the_server_of_a_single_run_asks_for_a_password_too(finished: tuple[Project, object]) -> None:
    told = finished[0].call(sys.executable, "-c", ASK_TEMPORARY)
    assert "STATUS 401" in told.stdout, told.stdout + told.stderr
