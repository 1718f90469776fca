"""`winnow up` in a project of a test, and questions to the Prefect server that it started."""

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
    """Ports that nobody listens on, all different."""
    with ExitStack() as held:
        probes = [held.enter_context(closing(socket.socket())) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


@dataclass(frozen=True)
class Up:
    """A project whose servers and worker run."""

    project: Project
    process: subprocess.Popen[str]
    api: str
    auth: tuple[str, str]

    @property
    def variables(self) -> dict[str, str]:
        """What a shell needs to talk to Prefect here."""
        return {"PREFECT_API_URL": self.api, "PREFECT_API_AUTH_STRING": ":".join(self.auth)}

    def post(self, path: str, body: dict[str, Any] | None = None) -> Any:
        for _ in range(5):
            answer = httpx.post(f"{self.api}/{path}", json=body or {}, timeout=30, auth=self.auth)
            if answer.status_code != 503:  # a SQLite that is busy: Prefect's own client asks again, too
                break
            time.sleep(1)
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def get(self, path: str) -> Any:
        answer = httpx.get(f"{self.api}/{path}", timeout=30, auth=self.auth)
        answer.raise_for_status()
        return answer.json()

    def schedule(self, deployment: str, seconds: float = 0) -> str:
        """Ask for a run in some seconds; its number."""
        made = self.get(f"deployments/name/{deployment}")
        at = (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()
        state = {"type": "SCHEDULED", "state_details": {"scheduled_time": at}}
        body = {"state": state, "parameters": made["parameters"]}
        return str(self.post(f"deployments/{made['id']}/create_flow_run", body)["id"])

    def wait(self, run: str, *states: str, seconds: float = 900, through: Sequence[str] = ()) -> dict[str, Any]:
        """The run, once its state is one of these; a type of state in `through` is not its end.

        It has long: a machine may be slow, and a run that ends otherwise is told at once.
        """
        deadline = time.monotonic() + seconds
        found: dict[str, Any] = {"state": "no answer"}
        while time.monotonic() < deadline:
            try:
                found = self.get(f"flow_runs/{run}")
            except (httpx.TransportError, httpx.HTTPStatusError) as error:  # it, or its database, is on its way back
                if isinstance(error, httpx.HTTPStatusError) and not error.response.is_server_error:
                    raise
                time.sleep(0.5)
                continue
            if found["state"]["name"] in states:
                return found
            if found["state"]["type"] in {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"} - set(through):
                break
            time.sleep(0.5)
        raise AssertionError(f"{found['state']} instead of {states}\n{self.logs()}")

    def artifacts(self, run: str) -> dict[str, Any]:
        wanted = {"artifacts": {"flow_run_id": {"any_": [run]}}}
        return {found["key"]: found["data"] for found in self.post("artifacts/filter", wanted)}

    def logs(self) -> str:
        files = sorted((self.project.root / ".winnow" / "logs").glob("*.log"))
        return "\n".join(f"--- {path.name}\n{path.read_text()[-3000:]}" for path in files)


def start(project: Project) -> Up:
    """`winnow up` on free ports, or at the servers that the project's shell names, ready to work."""
    mlflow_port, prefect_port = free_ports(2)
    process = ready(project, "up", f"--mlflow-port={mlflow_port}", f"--prefect-port={prefect_port}")
    auth = project.variables.get("PREFECT_API_AUTH_STRING") or own_auth(project)
    name, _, password = auth.partition(":")
    api = project.variables.get("PREFECT_API_URL", f"http://127.0.0.1:{prefect_port}/api")
    return Up(project, process, api, (name, password))


def own_auth(project: Project) -> str:
    """`user:password` of the servers that the project itself starts."""
    return f"winnow:{(project.root / '.winnow' / 'password').read_text().strip()}"


def ready(project: Project, command: str, *options: str) -> subprocess.Popen[str]:
    """`winnow COMMAND` that stays up, once it says that it is. What it says stands beside the servers' logs."""
    said = project.root / ".winnow" / "logs" / f"winnow-{command}.log"
    said.parent.mkdir(parents=True, exist_ok=True)
    with said.open("w") as output:
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
        if "Ctrl-C" in said.read_text():
            return process
        time.sleep(0.1)
    raise AssertionError(said.read_text())


def run_log(project: Project) -> Path:
    """What `begun_by_hand` writes to."""
    return project.root.parent / "run.log"


def begun_by_hand(project: Project) -> subprocess.Popen[bytes]:
    """`winnow run`, in a session of its own, whose output goes to a file."""
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
    """Ctrl-C as a terminal sends it, to the whole group and twice; after it nothing may run."""
    family = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)
    time.sleep(1)
    os.killpg(process.pid, signal.SIGINT)
    try:
        assert process.wait(timeout=60) == 0, "it ended before"
        assert [member for member in family if member.is_running() and member.status() != "zombie"] == []
    finally:
        for member in family:
            if member.is_running():
                member.kill()
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


class _Inbox(BaseHTTPRequestHandler):
    received: list[str]

    def do_POST(self) -> None:
        self.received.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_arguments: Any) -> None:
        """Quiet."""


@contextmanager
def web_hook() -> Iterator[tuple[str, list[str]]]:
    """Address of a web hook, and what was sent to it."""
    received: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Inbox", (_Inbox,), {"received": received}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", received
    server.shutdown()


TELL = """
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


def told_to(up: Up, address: str) -> None:
    """Have the project's notifications sent to a web hook."""
    command = [sys.executable, "-c", TELL, address]
    environment = {**up.project.environment(), **up.variables}
    done = subprocess.run(command, cwd=up.project.root, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def assert_told(received: list[str], *words: str) -> None:
    """A message with all of these words arrives."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if any(all(word in text for word in words) for text in received):
            return
        time.sleep(0.5)
    raise AssertionError(received)
