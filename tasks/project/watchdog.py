"""The watchdog: a process beside a run that cleans up if the run is killed. Started by `start`.

A run that is killed (kill -9, out of memory) cannot clean up: Prefect's temporary server would stay, and its runs would
stay Running in MLflow and Prefect. The watchdog reads from a pipe that the system closes when the run ends in any way.
Steps end by themselves (tasks/step_process.py).

    python -m tasks.project.watchdog ROOT
"""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import psutil

from tasks.project.environment import apply
from tasks.project.paths import ProjectPaths
from tasks.project.processes import end_processes, find_marked

MARK = "WINNOW_TEMPORARY_SERVER"
"""The variable that Prefect's temporary server inherits and by which the watchdog finds it."""
SERVER = "prefect.server.api.server:create_app"
"""A part of the command line of that server."""
STEPS_END_WITHIN = 30.0
"""Seconds to wait for the steps of a killed run to end by themselves."""
DONE = "done"

_pipes: list[int] = []
"""The write end of the pipe, once a watchdog runs beside this process."""


def start(paths: ProjectPaths) -> None:
    """Start a watchdog for this process, unless it has one. Call before Prefect is imported."""
    if _pipes:
        return
    os.environ[MARK] = secrets.token_hex(8)
    reader, writer = os.pipe()
    paths.logs.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (paths.logs / "watchdog.log").open("ab") as log:
        subprocess.Popen(
            [sys.executable, "-m", "tasks.project.watchdog", str(paths.root)],
            stdin=reader,
            stdout=log,
            stderr=log,
            start_new_session=True,  # so that Ctrl-C in a terminal does not reach it
        )
    os.close(reader)
    _pipes.append(writer)
    atexit.register(dismiss)


def set_flow_run(run: str, api: str) -> None:
    """Send the watchdog, if there is one, the Prefect flow run that has crashed if this process dies."""
    _write(json.dumps({"run": run, "api": api}))


def dismiss() -> None:
    """Tell the watchdog that this process ends regularly."""
    _write(DONE)


def _write(line: str) -> None:
    with contextlib.suppress(OSError):  # the watchdog has ended
        for pipe in _pipes:
            os.write(pipe, f"{line}\n".encode())


def _clean_up(paths: ProjectPaths, flow_run: Mapping[str, str]) -> None:
    """Mark the flow run as crashed, end Prefect's temporary server, wait for the steps, close the runs in MLflow."""
    run_mark = os.environ[MARK]
    if flow_run:
        _mark_crashed(flow_run["run"], flow_run["api"])
    end_processes([pid for pid in find_marked(MARK, run_mark) if _is_server(pid)])
    deadline = time.monotonic() + STEPS_END_WITHIN
    while find_marked(MARK, run_mark) and time.monotonic() < deadline:
        time.sleep(0.5)
    _close_mlflow_runs(paths)


def _is_server(pid: int) -> bool:
    """Return whether a process is Prefect's temporary server. Steps are left to end at a checkpoint."""
    try:
        return any(SERVER in argument for argument in psutil.Process(pid).cmdline())
    except psutil.Error:
        return False


def _mark_crashed(run: str, api: str) -> None:
    """Set the flow run's state to Crashed. Prefect itself would notice a missing heartbeat late, or never."""
    import httpx

    user, _, password = os.environ.get("PREFECT_API_AUTH_STRING", "").partition(":")
    state = {"type": "CRASHED", "message": "The process of this run was killed."}
    address = f"{api.rstrip('/')}/flow_runs/{run}/set_state"
    try:
        httpx.post(address, json={"state": state, "force": True}, auth=(user, password), timeout=30).raise_for_status()
    except httpx.HTTPError as error:  # the server may be gone as well
        logging.warning("the flow run could not be marked as crashed: %s", error)


def _close_mlflow_runs(paths: ProjectPaths) -> None:
    """Mark the MLflow runs whose process is gone as failed."""
    from tasks.tracking import mlflow_runs
    from winnow.config import load_config

    mlflow_runs.close_orphaned(paths, load_config(paths.root / "params.yaml"))


def main(root: str) -> int:
    """Wait for the end of the run that started this process, and clean up if it was killed."""
    flow_run: dict[str, str] = {}
    for line in sys.stdin:
        if line.strip() == DONE:
            return 0
        flow_run = json.loads(line)
    paths = ProjectPaths(Path(root))
    apply(paths.root)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.info("the run of this watchdog was killed")
    _clean_up(paths, flow_run)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
