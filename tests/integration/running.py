"""`winnow up` in a project of a test, and questions to the Prefect server that it started."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
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

    def post(self, path: str, body: dict[str, Any] | None = None) -> Any:
        answer = httpx.post(f"{self.api}/{path}", json=body or {}, timeout=30)
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def get(self, path: str) -> Any:
        answer = httpx.get(f"{self.api}/{path}", timeout=30)
        answer.raise_for_status()
        return answer.json()

    def schedule(self, deployment: str, seconds: float = 0) -> str:
        """Ask for a run in some seconds; its number."""
        made = self.get(f"deployments/name/{deployment}")
        at = (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()
        state = {"type": "SCHEDULED", "state_details": {"scheduled_time": at}}
        body = {"state": state, "parameters": made["parameters"]}
        return str(self.post(f"deployments/{made['id']}/create_flow_run", body)["id"])

    def wait(self, run: str, *states: str, seconds: float = 180) -> dict[str, Any]:
        """The run, once its state is one of these."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            found: dict[str, Any] = self.get(f"flow_runs/{run}")
            if found["state"]["name"] in states:
                return found
            if found["state"]["type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED"):
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
    """`winnow up` on free ports, ready to work."""
    mlflow_port, prefect_port = free_ports(2)
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "flows.cli",
            "up",
            "--mlflow-port",
            str(mlflow_port),
            "--prefect-port",
            str(prefect_port),
        ],
        cwd=project.root,
        env={**project.environment(), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    told = []
    for line in process.stdout:
        told.append(line)
        if line.startswith("Ctrl-C"):
            threading.Thread(target=process.stdout.read, daemon=True).start()
            return Up(project, process, f"http://127.0.0.1:{prefect_port}/api")
    raise AssertionError("".join(told))


def stop(up: Up) -> None:
    """Ctrl-C, after which nothing of it may run."""
    family = psutil.Process(up.process.pid).children(recursive=True)
    up.process.send_signal(signal.SIGINT)
    try:
        assert up.process.wait(timeout=60) == 0
        assert [member for member in family if member.is_running() and member.status() != "zombie"] == []
    finally:
        for member in family:
            if member.is_running():
                member.kill()
        if up.process.poll() is None:
            os.killpg(up.process.pid, signal.SIGKILL)
