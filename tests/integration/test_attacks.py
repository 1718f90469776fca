"""Test what is refused: pages of other origins, other accounts of the machine, and runs of other projects."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integration.conftest import Project
from tests.integration.running import RunningProject

pytestmark = pytest.mark.services

FOREIGN_ORIGIN = {"Origin": "http://evil.example"}


def mlflow_page(running: RunningProject) -> str:
    lines = (running.project.root / ".winnow" / "logs" / "winnow-up.log").read_text().splitlines()
    return next(line.split()[-1] for line in lines if line.startswith("MLflow "))


@pytest.mark.parametrize("auth", [None, ("winnow", "guessed password"), ("admin", "password1234")])
def test_writing_needs_the_password(running: RunningProject, auth: tuple[str, str] | None) -> None:
    body = {"name": "evil"}
    assert (
        httpx.post(f"{running.api}/flows/", json=body, headers=FOREIGN_ORIGIN, auth=auth, timeout=30).status_code == 401
    )
    assert httpx.post(f"{running.api}/flows/filter", json={}, auth=auth, timeout=30).status_code == 401
    page = mlflow_page(running)
    for path in ("/", "/api/2.0/mlflow/experiments/search", "/ajax-api/2.0/mlflow/registered-models/search"):
        assert httpx.get(f"{page}{path}", headers=FOREIGN_ORIGIN, auth=auth, timeout=30).status_code in (401, 403)
    assert httpx.get(f"{page}/", auth=running.auth, timeout=30).status_code == 200


def test_a_page_of_another_origin_cannot_read(running: RunningProject) -> None:
    response = httpx.get(f"{running.api}/health", headers=FOREIGN_ORIGIN, timeout=30)
    assert "access-control-allow-origin" not in response.headers
    preflight_headers = {
        **FOREIGN_ORIGIN,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization",
    }
    preflight = httpx.options(f"{running.api}/flows/", headers=preflight_headers, timeout=30)
    assert "access-control-allow-origin" not in preflight.headers
    own_origin = running.api.removesuffix("/api")
    assert httpx.get(f"{running.api}/health", headers={"Origin": own_origin}, timeout=30).headers[
        "access-control-allow-origin"
    ] in (own_origin, "*")


@pytest.mark.parametrize("host", ["evil.example", "evil.example:4200", "127.0.0.1.evil.example"])
def test_a_foreign_host_name_is_refused(running: RunningProject, host: str) -> None:
    assert httpx.get(f"{running.api}/health", headers={"Host": host}, auth=running.auth, timeout=30).status_code == 400
    assert httpx.get(mlflow_page(running), headers={"Host": host}, auth=running.auth, timeout=30).status_code == 403


def create_deployment(running: RunningProject, **changes: Any) -> str:
    """Create a deployment in the project's work pool, as in prefect.yaml but for `changes`, and return its id."""
    flow = running.post("flows/", {"name": "winnow"})["id"]
    deployment = {
        "name": f"evil-{time.monotonic_ns()}",
        "flow_id": flow,
        "work_pool_name": "winnow-photos",
        "entrypoint": "flows/pipeline.py:pipeline",
        "path": ".",
        "pull_steps": [{"flows.runtime.enter_checkout": {}}],
    }
    return str(running.post("deployments/", deployment | changes)["id"])


def run_deployment(running: RunningProject, deployment: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """Run a deployment and return the run once it has ended."""
    scheduled = {"state": {"type": "SCHEDULED"}, **body}
    run = running.post(f"deployments/{deployment}/create_flow_run", scheduled)["id"]
    return running.wait(run, "Crashed", seconds=120)


@pytest.mark.parametrize(
    ("changes", "body", "message"),
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
def test_the_password_allows_only_flows_of_the_project(
    running: RunningProject, tmp_path: Path, changes: dict[str, Any], body: dict[str, Any], message: str
) -> None:
    mark = tmp_path / "mark"

    def fill(value: Any) -> Any:
        if isinstance(value, str):
            return value.replace("{mark}", str(mark))
        if isinstance(value, list):
            return [fill(item) for item in value]
        return {key: fill(item) for key, item in value.items()} if isinstance(value, dict) else value

    flow_run = run_deployment(running, create_deployment(running, **fill(changes)), fill(body))
    assert message in flow_run["state"]["message"]
    assert "runs only what prefect.yaml of its checkout deploys" in flow_run["state"]["message"]
    assert not mark.exists()


QUERY_TEMPORARY_SERVER = """
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


def test_the_temporary_server_needs_a_password(finished: tuple[Project, object]) -> None:
    result = finished[0].call(sys.executable, "-c", QUERY_TEMPORARY_SERVER)
    assert "STATUS 401" in result.stdout, result.stdout + result.stderr
