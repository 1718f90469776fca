"""Start `winnow up` in a test project and query its Prefect server."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.integration.conftest import Project


def free_ports(count: int) -> list[int]:
    """Return different ports that are free."""
    with ExitStack() as stack:
        probes = [stack.enter_context(closing(socket.socket())) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


@dataclass(frozen=True)
class RunningProject:
    """A project with running servers and worker."""

    project: Project
    process: subprocess.Popen[str]
    api: str
    auth: tuple[str, str]

    @property
    def variables(self) -> dict[str, str]:
        """Return the variables that a shell needs for this Prefect server."""
        return {"PREFECT_API_URL": self.api, "PREFECT_API_AUTH_STRING": ":".join(self.auth)}

    def post(self, path: str, body: dict[str, Any] | None = None) -> Any:
        for _ in range(5):
            response = httpx.post(f"{self.api}/{path}", json=body or {}, timeout=30, auth=self.auth)
            if response.status_code != 503:  # SQLite is busy: Prefect's own client retries, too
                break
            time.sleep(1)
        response.raise_for_status()
        return response.json() if response.content else None

    def get(self, path: str) -> Any:
        response = httpx.get(f"{self.api}/{path}", timeout=30, auth=self.auth)
        response.raise_for_status()
        return response.json()

    def schedule(self, deployment: str, seconds: float = 0) -> str:
        """Schedule a run in some seconds and return its id."""
        deployment_info = self.get(f"deployments/name/{deployment}")
        scheduled_time = (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()
        state = {"type": "SCHEDULED", "state_details": {"scheduled_time": scheduled_time}}
        body = {"state": state, "parameters": deployment_info["parameters"]}
        return str(self.post(f"deployments/{deployment_info['id']}/create_flow_run", body)["id"])

    def wait(self, run: str, *states: str, seconds: float = 900, through: Sequence[str] = ()) -> dict[str, Any]:
        """Return the run once its state is one of these; a type of state in `through` does not end the wait.

        The limit is long, for slow machines; a run that ends in another state fails at once.
        """
        deadline = time.monotonic() + seconds
        flow_run: dict[str, Any] = {"state": "no answer"}
        while time.monotonic() < deadline:
            try:
                flow_run = self.get(f"flow_runs/{run}")
            except (httpx.TransportError, httpx.HTTPStatusError) as error:  # the server or its database is restarting
                if isinstance(error, httpx.HTTPStatusError) and not error.response.is_server_error:
                    raise
                time.sleep(0.5)
                continue
            if flow_run["state"]["name"] in states:
                return flow_run
            if flow_run["state"]["type"] in {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"} - set(through):
                break
            time.sleep(0.5)
        raise AssertionError(f"{flow_run['state']} instead of {states}\n{self.logs()}")

    def artifacts(self, run: str) -> dict[str, Any]:
        query = {"artifacts": {"flow_run_id": {"any_": [run]}}}
        return {artifact["key"]: artifact["data"] for artifact in self.post("artifacts/filter", query)}

    def logs(self) -> str:
        files = sorted((self.project.root / ".winnow" / "logs").glob("*.log"))
        return "\n".join(f"--- {path.name}\n{path.read_text()[-3000:]}" for path in files)


def start(project: Project) -> RunningProject:
    """Start `winnow up` on free ports, or at the servers of the project's shell, and wait until it is ready."""
    mlflow_port, prefect_port = free_ports(2)
    process = start_command(project, "up", f"--mlflow-port={mlflow_port}", f"--prefect-port={prefect_port}")
    auth = project.variables.get("PREFECT_API_AUTH_STRING") or own_auth(project)
    name, _, password = auth.partition(":")
    api = project.variables.get("PREFECT_API_URL", f"http://127.0.0.1:{prefect_port}/api")
    return RunningProject(project, process, api, (name, password))


def own_auth(project: Project) -> str:
    """Return `user:password` of the servers that the project itself starts."""
    return f"winnow:{(project.root / '.winnow' / 'password').read_text().strip()}"


def start_command(project: Project, command: str, *options: str) -> subprocess.Popen[str]:
    """Start `winnow COMMAND` and wait until it is ready; its output is a file beside the servers' logs."""
    output_file = project.root / ".winnow" / "logs" / f"winnow-{command}.log"
    output_file.parent.mkdir(parents=True, exist_ok=True)
    with output_file.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "winnow.cli.main", command, *options],
            cwd=project.root,
            env={**project.environment(), "PYTHONUNBUFFERED": "1"},
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
    while process.poll() is None:
        if "Ctrl-C" in output_file.read_text():
            return process
        time.sleep(0.1)
    raise AssertionError(output_file.read_text())


def run_log(project: Project) -> Path:
    """Return the log file of `start_run`."""
    return project.root.parent / "run.log"


def start_run(project: Project) -> subprocess.Popen[bytes]:
    """Start `winnow run` in its own session, with its output in a file."""
    with run_log(project).open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "winnow.cli.main", "run"],
            cwd=project.root,
            env=project.environment(),
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def stop(process: subprocess.Popen[str]) -> None:
    """Send Ctrl-C twice to the whole group, as a terminal does, and check that no process remains."""
    children = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)
    time.sleep(1)
    os.killpg(process.pid, signal.SIGINT)
    try:
        assert process.wait(timeout=60) == 0, "it ended before"
        assert [child for child in children if child.is_running() and child.status() != "zombie"] == []
    finally:
        for child in children:
            if child.is_running():
                child.kill()
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


class _Inbox(BaseHTTPRequestHandler):
    received: list[str]

    def do_POST(self) -> None:
        self.received.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_arguments: Any) -> None:
        """Log nothing."""


@contextmanager
def webhook() -> Iterator[tuple[str, list[str]]]:
    """Yield the address of a webhook and the list of messages that it receives."""
    received: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Inbox", (_Inbox,), {"received": received}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", received
    server.shutdown()


SET_WEBHOOK = """
import sys
from pathlib import Path
from tasks.project.environment import apply
from tasks.project.paths import ProjectPaths
apply(Path.cwd())
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from flows import deployments
body = {"text": "{{subject}} {{body}}"}
CustomWebhookNotificationBlock(name="inbox", url=sys.argv[1], json_data=body).save("winnow-notify", overwrite=True)
deployments.set_up(ProjectPaths(Path.cwd()))
"""


def send_notifications_to(running: RunningProject, address: str) -> None:
    """Send the project's notifications to a webhook."""
    command = [sys.executable, "-c", SET_WEBHOOK, address]
    environment = {**running.project.environment(), **running.variables}
    result = subprocess.run(
        command, cwd=running.project.root, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


def assert_notified(received: list[str], *words: str) -> None:
    """Wait for a message with all of these words."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if any(all(part in text for part in words) for text in received):
            return
        time.sleep(0.5)
    raise AssertionError(received)
