"""`winnow ui` and `winnow up`: MLflow's and Prefect's servers on this project's own stores, on 127.0.0.1, until Ctrl-C.

`ui` shows pages. `up` also registers what prefect.yaml schedules and starts a worker that runs it; a process that dies
is started again. A team's servers (MLFLOW_TRACKING_URI, PREFECT_API_URL) are up already: they are named, not started.

While Prefect's server is up, runs report to it (its address lies in .winnow/servers.json), so a run can be watched as
it goes.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field

import psutil
from rich.console import Console

from tasks import servers
from tasks.settings import Places
from tasks.tracked import without_password
from winnow.errors import WinnowError

HOST = "127.0.0.1"
START_SECONDS = 120
END_SECONDS = 30
RESTARTS, WITHIN_SECONDS = 3, 60.0
"""A process that dies more often than this is not started again."""


@dataclass
class Program:
    """A process that is to stay up."""

    name: str
    command: list[str]
    health: str = ""
    """Address that answers once it is up."""
    process: subprocess.Popen[bytes] | None = None
    deaths: list[float] = field(default_factory=list)


def serve(places: Places, mlflow_port: int, prefect_port: int, work: bool = False) -> int:
    """Start the servers, with `work` a worker too; say where they are, keep them up, and end them together."""
    ports = {"mlflow": mlflow_port, "prefect": prefect_port}
    store, api = os.environ["MLFLOW_TRACKING_URI"], os.environ.get("PREFECT_API_URL", "")
    programs, pages = planned(places, store, api, ports)
    for program in programs:
        _check_free(program.name, ports[program.name])
    if len({ports[program.name] for program in programs}) < len(programs):
        raise WinnowError(f"both pages cannot have port {mlflow_port}; choose two")
    # The page asks port 4200 unless told where its own server is; the worker and `deploy` report there.
    os.environ.update(PREFECT_SERVER_UI_API_URL=f"{pages['prefect']}/api", PREFECT_API_URL=f"{pages['prefect']}/api")
    console = Console(highlight=False, soft_wrap=True)
    places.logs.mkdir(parents=True, exist_ok=True)
    try:
        for program in programs:
            _start(program, places)
        for program in programs:
            _wait_until_up(program, places)
        servers.announce(places, pages)
        console.print(f"MLflow   {pages['mlflow']}\nPrefect  {pages['prefect']}")
        if work:
            programs.append(_start_worker(places))
            console.print("Worker   waits for what prefect.yaml schedules")
        console.print("Ctrl-C ends what was started here.")
        while True:
            for program in programs:
                _keep_up(program, places, console)
            time.sleep(0.5)
    except KeyboardInterrupt:
        return 0
    finally:
        servers.withdraw(places)
        for program in reversed(programs):
            _end(program)


def planned(places: Places, store: str, api: str, ports: Mapping[str, int]) -> tuple[list[Program], dict[str, str]]:
    """Servers to start, and the page of each; a team's are up already and are only named."""
    pages = {name: f"http://{HOST}:{port}" for name, port in ports.items()}
    programs = []
    if store.startswith("http"):
        pages["mlflow"] = without_password(store)
    else:
        command = [
            *("mlflow", "server", "--backend-store-uri", store, "--host", HOST, "--port", str(ports["mlflow"])),
            *("--default-artifact-root", str(places.mlflow_artifacts), "--workers", "1"),
        ]
        programs.append(Program("mlflow", command, f"{pages['mlflow']}/health"))
    if api:
        pages["prefect"] = api.rstrip("/").removesuffix("/api")
    else:
        command = ["prefect", "server", "start", "--host", HOST, "--port", str(ports["prefect"])]
        programs.append(Program("prefect", command, f"{pages['prefect']}/api/health"))
    return programs, pages


def _start_worker(places: Places) -> Program:
    """Register what is to run, then start the one who runs it: one run at a time, as DVC wants it."""
    from flows import deploying

    deploying.set_up(places)
    command = ["prefect", "worker", "start", "--pool", deploying.POOL, "--type", "process", "--limit", "1"]
    worker = Program("worker", command)
    _start(worker, places)
    return worker


def _start(program: Program, places: Places) -> None:
    with (places.logs / f"{program.name}.log").open("ab") as log:
        program.process = subprocess.Popen(
            [sys.executable, "-m", *program.command], stdout=log, stderr=log, cwd=places.root
        )


def _keep_up(program: Program, places: Places, console: Console) -> None:
    """Start a process that died again; raises WinnowError when it dies too often."""
    assert program.process is not None
    if program.process.poll() is None:
        return
    now = time.monotonic()
    program.deaths = [then for then in program.deaths if now - then < WITHIN_SECONDS] + [now]
    if len(program.deaths) > RESTARTS:
        raise WinnowError(f"{program.name} stops again and again; its log is {places.logs / f'{program.name}.log'}")
    console.print(f"{program.name} has stopped (status {program.process.returncode}); it is started again")
    _start(program, places)


def _end(program: Program) -> None:
    """Politely, then not: a server with an open connection may take its time, a worker waits for its run to end."""
    if program.process is None:
        return
    try:
        family = [psutil.Process(program.process.pid), *psutil.Process(program.process.pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for ending in (psutil.Process.terminate, psutil.Process.kill):
        for member in family:
            try:
                ending(member)
            except psutil.NoSuchProcess:
                continue
        _, family = psutil.wait_procs(family, timeout=END_SECONDS)
    program.process.wait()


def _check_free(name: str, port: int) -> None:
    if not 0 < port < 65536:
        raise WinnowError(f"--{name}-port {port}: a port is a number from 1 to 65535")
    with socket.socket() as probe:
        if probe.connect_ex((HOST, port)) == 0:
            raise WinnowError(f"port {port} is taken; choose another one: --{name}-port {port + 1}")


def _wait_until_up(program: Program, places: Places) -> None:
    deadline = time.monotonic() + START_SECONDS
    assert program.process is not None
    while time.monotonic() < deadline:
        if program.process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(program.health, timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    raise WinnowError(f"{program.name} did not start; its log is {places.logs / f'{program.name}.log'}")
