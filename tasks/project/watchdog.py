"""A process beside a run that tidies up after it where it is killed: `python -m tasks.project.watchdog`, started by
`start`.

A run that is killed (kill -9, or for want of memory) can end nothing itself: the server that Prefect started for it
would stay, and its runs would be Running in MLflow and Prefect until somebody looks. This process holds the other end
of a pipe: the system closes it when the run is gone, however that came about. Steps end by themselves (tasks/__main__).
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

from tasks.project.paths import ProjectPaths, apply
from tasks.project.processes import end, marked

MARK = "WINNOW_TEMPORARY_SERVER"
"""Variable that Prefect's temporary server inherits, and this process knows it by."""
SERVER = "prefect.server.api.server:create_app"
"""Part of the command of that server."""
STEPS_END_WITHIN = 30.0
"""Seconds that the steps of a killed run have to end by themselves."""
DONE = "done"

_pipes: list[int] = []
"""The writing end, where a watchdog runs beside this process."""


def start(places: ProjectPaths) -> None:
    """Have a watchdog beside this process, before Prefect is imported; within itself it changes nothing."""
    if _pipes:
        return
    os.environ[MARK] = secrets.token_hex(8)
    reader, writer = os.pipe()
    places.logs.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (places.logs / "watchdog.log").open("ab") as log:
        subprocess.Popen(
            [sys.executable, "-m", "tasks.project.watchdog", str(places.root)],
            stdin=reader,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C in a terminal is for the run
        )
    os.close(reader)
    _pipes.append(writer)
    atexit.register(dismiss)


def note_run(run: str, api: str) -> None:
    """Tell the watchdog, if there is one, which run of Prefect's at which address has crashed if this process dies."""
    _write(json.dumps({"run": run, "api": api}))


def dismiss() -> None:
    """Tell the watchdog that this process ends by itself."""
    _write(DONE)


def _write(line: str) -> None:
    with contextlib.suppress(OSError):  # somebody ended the watchdog
        for pipe in _pipes:
            os.write(pipe, f"{line}\n".encode())


def _tidy(places: ProjectPaths, known: Mapping[str, str]) -> None:
    """What a killed run leaves behind, one after the other; none keeps the next from being done."""
    mark = os.environ[MARK]
    if known:
        _tell_prefect(known["run"], known["api"])
    end([number for number in marked(MARK, mark) if _is_server(number)])
    deadline = time.monotonic() + STEPS_END_WITHIN
    while marked(MARK, mark) and time.monotonic() < deadline:
        time.sleep(0.5)
    _tell_mlflow(places)


def _is_server(number: int) -> bool:
    """Return whether a process is Prefect's temporary server. Steps end by themselves, and leave checkpoints."""
    try:
        return any(SERVER in word for word in psutil.Process(number).cmdline())
    except psutil.Error:
        return False


def _tell_prefect(run: str, api: str) -> None:
    """Write down that the run crashed: nobody else can know before its heartbeat is missed, and some have none."""
    import httpx

    user, _, password = os.environ.get("PREFECT_API_AUTH_STRING", "").partition(":")
    state = {"type": "CRASHED", "message": "The process of this run was killed."}
    address = f"{api.rstrip('/')}/flow_runs/{run}/set_state"
    try:
        httpx.post(address, json={"state": state, "force": True}, auth=(user, password), timeout=30).raise_for_status()
    except httpx.HTTPError as error:  # the server may be gone, too
        logging.warning("Prefect was not told: %s", error)


def _tell_mlflow(places: ProjectPaths) -> None:
    """Close the runs whose process is gone."""
    from tasks.tracking import mlflow_runs
    from winnow.config import load_config

    mlflow_runs.close_dead(places, load_config(places.root / "params.yaml"))


def main(root: str) -> int:
    """Wait for the end of the run that started this process; tidy up where it was killed."""
    known: dict[str, str] = {}
    for line in sys.stdin:
        if line.strip() == DONE:
            return 0
        known = json.loads(line)
    places = ProjectPaths(Path(root))
    apply(places.root)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.info("the run beside this process was killed")
    _tidy(places, known)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
