"""`winnow ui`: MLflow's and Prefect's pages on this project's own stores, on 127.0.0.1, until Ctrl-C.

While Prefect's server is up, runs report to it (its address lies in .winnow/), so a run can be watched as it goes.
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

from rich.console import Console

from flows.running import SERVER_FILE
from tasks.settings import Places
from tasks.tracked import without_password
from winnow.errors import WinnowError
from winnow.records import write_json

HOST = "127.0.0.1"
START_SECONDS = 120
END_SECONDS = 15


def serve(places: Places, mlflow_port: int, prefect_port: int) -> int:
    """Start both servers, say where they are, and end them together."""
    ports = {"mlflow": mlflow_port, "prefect": prefect_port}
    commands, pages = servers(places, os.environ["MLFLOW_TRACKING_URI"], ports)
    for name in commands:
        _check_free(name, ports[name])
    if len({ports[name] for name in commands}) < len(commands):
        raise WinnowError(f"both pages cannot have port {mlflow_port}; choose two")
    console = Console(highlight=False, soft_wrap=True)
    places.logs.mkdir(parents=True, exist_ok=True)
    running: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for name, command in commands.items():
            with (places.logs / f"{name}.log").open("wb") as log:
                running[name] = subprocess.Popen(
                    [sys.executable, "-m", *command],
                    stdout=log,
                    stderr=log,
                    cwd=places.root,
                    # Prefect's page asks port 4200 unless told where its own server is.
                    env={**os.environ, "PREFECT_SERVER_UI_API_URL": f"{pages['prefect']}/api"},
                )
        for name, process in running.items():
            _wait_until_up(name, process, pages[name], places)
        write_json(places.hidden / SERVER_FILE, {"api": f"{pages['prefect']}/api"})
        console.print(f"MLflow   {pages['mlflow']}\nPrefect  {pages['prefect']}\nCtrl-C ends what was started here.")
        while all(process.poll() is None for process in running.values()):
            time.sleep(0.5)
        ended = next(name for name, process in running.items() if process.poll() is not None)
        raise WinnowError(f"{ended} has stopped; its log is {places.logs / f'{ended}.log'}")
    except KeyboardInterrupt:
        return 0
    finally:
        (places.hidden / SERVER_FILE).unlink(missing_ok=True)
        for process in running.values():
            process.terminate()
        for process in running.values():
            _see_it_end(process)


def servers(places: Places, store: str, ports: Mapping[str, int]) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Commands of the servers to start, and the page of each; a team's MLflow is up already and is only named."""
    pages = {name: f"http://{HOST}:{port}" for name, port in ports.items()}
    commands = {"prefect": ["prefect", "server", "start", "--host", HOST, "--port", str(ports["prefect"])]}
    if store.startswith("http"):
        return commands, pages | {"mlflow": without_password(store)}
    commands["mlflow"] = [
        *("mlflow", "server", "--backend-store-uri", store, "--host", HOST, "--port", str(ports["mlflow"])),
        *("--default-artifact-root", str(places.mlflow_artifacts), "--workers", "1"),
    ]
    return commands, pages


def _see_it_end(process: subprocess.Popen[bytes]) -> None:
    """A server with an open connection may take its time over a polite end."""
    try:
        process.wait(timeout=END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _check_free(name: str, port: int) -> None:
    if not 0 < port < 65536:
        raise WinnowError(f"--{name}-port {port}: a port is a number from 1 to 65535")
    with socket.socket() as probe:
        if probe.connect_ex((HOST, port)) == 0:
            raise WinnowError(f"port {port} is taken; choose another one: winnow ui --{name}-port {port + 1}")


def _wait_until_up(name: str, process: subprocess.Popen[bytes], page: str, places: Places) -> None:
    deadline = time.monotonic() + START_SECONDS
    path = "/api/health" if name == "prefect" else "/health"
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(page + path, timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    raise WinnowError(f"{name} did not start; its log is {places.logs / f'{name}.log'}")
