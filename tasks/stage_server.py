"""Run DVC stages as forks of one process that has imported torch, DVC and the steps: `python -m tasks.stage_server FD`.

    this process: imports once, then waits for the names of stages
      fork: the rough forecast of the run (tasks/forecast/rough_forecast.py)
      fork: `dvc repro` of one stage, in a session of its own
        fork: the step, which waits until DVC has found that it has to run
        `python -m tasks STEP`, DVC's command: asks the waiting step to begin (tasks/step_request.py)

A fork takes milliseconds, where a process that imports everything takes seconds. DVC decides as ever, and each step
still is a process that dies alone. tasks/stage_processes.py starts this process and talks to it. Linux only: elsewhere
a fork of a process with these libraries is not safe. Only modules that start no thread may be imported here, since a
fork has none of its parent's threads; ONNX Runtime and OpenVINO start some.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import secrets
import select
import shutil
import signal
import socket
import struct
import sys
import threading
import traceback
from pathlib import Path
from typing import NoReturn

from tasks.project import environment
from tasks.project.deadlines import CallTimeout, time_limit
from tasks.project.paths import ProjectPaths
from tasks.step_request import MAX_BYTES, STEP_SOCKET_VARIABLE

MODULES = (
    *(f"winnow.steps.{step}" for step in ("ingest", "embed", "pretrain", "finetune", "compress", "benchmark")),
    *(f"winnow.steps.{step}" for step in ("select", "refit", "report")),
    *("tasks.forecast.rough_forecast", "tasks.step_process", "dvc.cli", "dvc.commands.repro", "dvc.repo.reproduce"),
    *("onnx", "torch._inductor.compile_fx", "torch.onnx", "torch_pruning", "scipy.stats"),
)
"""The modules that most steps use and whose import takes long."""
READY = b"ready"
INGEST = b"ingest"
FORECAST_SECONDS = 30
"""The longest time that the rough forecast may take."""


def main(arguments: list[str]) -> int:
    """Serve requests from the socket with this file descriptor until its other end is closed."""
    with socket.socket(fileno=int(arguments[0])) as requests:
        try:
            request = _serve(requests)
        except (BrokenPipeError, ConnectionResetError):  # the flow was killed; its stage ends by itself
            return 0
    return _run_stage(*request) if request else 0


def _serve(requests: socket.socket) -> tuple[str, int] | None:
    """Import the modules and fork for each request. Return the stage and its output in a fork, None at the end."""
    for module in MODULES:
        importlib.import_module(module)
    gc.freeze()  # or a garbage collection in a fork would copy all objects
    imported = _file_times()
    requests.send(READY)
    ended, used = os.pipe()  # closes with this process, however it ends
    has_forecast = False
    while True:
        message, outputs, _, _ = socket.recv_fds(requests, MAX_BYTES, 1)
        if not message or any(_modified(file) != time for file, time in imported.items()):
            return None  # the flow has ended, or code was edited: a fork would compute with the former code
        if message != INGEST and not has_forecast:  # the images are ingested
            has_forecast = True
            if _fork_detached():
                os.close(used)
                os.close(outputs[0])
                requests.close()
                _forecast(ended)
                return None
        if not (child := os.fork()):
            return message.decode(), outputs[0]
        os.close(outputs[0])
        requests.send(str(child).encode())
        requests.send(str(_wait_for(child)).encode())


def _fork_detached() -> bool:
    """Return True in a new process that is no child of this one, and False in this one."""
    if not (child := os.fork()):
        if os.fork():
            os._exit(0)
        return True
    _wait_for(child)
    return False


def _forecast(ended: int) -> None:
    """Write the rough forecast. It ends without one after FORECAST_SECONDS, or with the preloaded process."""
    from tasks.forecast.rough_forecast import write_rough_forecast

    paths = ProjectPaths(Path.cwd())
    folder = paths.state_dir / "forecast"

    def end_with_the_preloaded_process() -> None:
        os.read(ended, 1)
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(0)

    threading.Thread(target=end_with_the_preloaded_process, daemon=True).start()
    with contextlib.suppress(CallTimeout), time_limit(FORECAST_SECONDS):
        write_rough_forecast(paths, folder)


def _file_times() -> dict[str, int]:
    """Return file -> time of its last change in ns, of all imported modules."""
    files = (getattr(module, "__file__", None) for module in list(sys.modules.values()))
    return {file: _modified(file) for file in files if file}


def _modified(file: str) -> int:
    try:
        return Path(file).stat().st_mtime_ns
    except OSError:
        return 0


def _wait_for(child: int) -> int:
    """Wait for the end of a fork and return its exit status; negative: the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _run_stage(stage: str, output: int) -> int:
    """In a fork: be the process that brings one DVC stage up to date, with its output to this file descriptor."""
    os.setsid()
    for stream in (sys.stdout, sys.stderr):
        os.dup2(output, stream.fileno())
    os.close(output)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    name = f"winnow-{secrets.token_hex(16)}"
    listener.bind(f"\0{name}")
    listener.listen(1)
    unused, used = os.pipe()  # closes with this process, however it ends
    if not (step := os.fork()):
        os.close(used)
        return _wait_as_step(listener, unused)
    os.close(unused)
    listener.close()
    os.environ[STEP_SOCKET_VARIABLE] = name
    from tasks.versioning.dvc_stages import reproduce_here

    try:
        return reproduce_here(stage)
    finally:
        os.close(used)
        os.waitpid(step, 0)


def _wait_as_step(listener: socket.socket, unused: int) -> int:
    """In a fork: wait for DVC's command, and run its step in a further fork whose exit status is the answer."""
    if listener.fileno() not in select.select([listener.fileno(), unused], [], [])[0]:
        os._exit(0)  # DVC has ended: the stage is up to date, or comes from its cache
    connection, _ = listener.accept()
    while not _is_own(connection):
        connection.close()
        connection, _ = listener.accept()
    listener.close()
    os.close(unused)
    arguments: list[str] = json.loads(connection.recv(MAX_BYTES))
    if not (step := os.fork()):
        threading.Thread(target=_end_with, args=(connection,), daemon=True).start()
        from tasks.step_process import main as run_step

        return run_step(arguments)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # for the step, which is in the same group
    status = _wait_for(step)
    with contextlib.suppress(OSError):  # DVC's command was killed
        connection.send(str(status).encode())
    os._exit(0)  # nothing was begun here that would have to end


def _is_own(connection: socket.socket) -> bool:
    """Return whether a process of this user has connected: abstract sockets have no file permissions."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return bool(struct.unpack("3i", credentials)[1] == os.getuid())


def _end_with(connection: socket.socket) -> None:
    """End this step once DVC's command is gone."""
    if not connection.recv(1):
        os.kill(os.getpid(), signal.SIGTERM)


def _run_and_exit() -> NoReturn:
    """Run `main` and exit without deleting all objects, which would copy the memory that forks share."""
    try:
        status = main(sys.argv[1:])
    except SystemExit as ending:
        status = ending.code if isinstance(ending.code, int) else 1
    except BaseException:  # noqa: BLE001  # the end of a process: the interpreter would print it, too
        traceback.print_exc()
        status = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    environment.apply(Path.cwd())
    _run_and_exit()
