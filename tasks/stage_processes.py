"""Start DVC stages as processes: as forks of a preloaded process where one is ready, else as processes of their own.

    with preloaded(root):
        process = start_stage(root, "candidate@pruned")

WINNOW_PRELOAD=0 switches the preloaded process off.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Protocol

from tasks.project.paths import ProjectPaths
from tasks.step_request import MAX_BYTES
from tasks.versioning import dvc_stages

PRELOAD_VARIABLE = "WINNOW_PRELOAD"
KILLED = -signal.SIGKILL
END_SECONDS = 1.0


class StageProcess(Protocol):
    """A running stage: DVC with the step below it, in a session of its own. `subprocess.Popen` is one."""

    pid: int
    stdout: IO[str] | None

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end; return the exit status, negative for a signal. Raises subprocess.TimeoutExpired."""


class ForkedStage:
    """A stage that the preloaded process runs."""

    def __init__(self, requests: socket.socket, stage: str) -> None:
        """Request the stage. Raises OSError where the preloaded process is gone."""
        reader, writer = os.pipe()
        self.stdout: IO[str] | None = os.fdopen(reader, encoding="utf-8", errors="replace")
        try:
            socket.send_fds(requests, [stage.encode()], [writer])
        finally:
            os.close(writer)
        answer = requests.recv(MAX_BYTES)
        if not answer:
            self.stdout.close()
            raise ConnectionError("the preloaded process has ended")
        self.pid = int(answer)
        self._requests, self._stage = requests, stage
        self._status: int | None = None
        self._waiting = threading.Lock()

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end; return the exit status, negative for a signal. Raises subprocess.TimeoutExpired."""
        if not self._waiting.acquire(timeout=-1 if timeout is None else timeout):
            raise subprocess.TimeoutExpired(self._stage, timeout or 0)
        try:
            if self._status is None:
                if not select.select([self._requests], [], [], timeout)[0]:
                    raise subprocess.TimeoutExpired(self._stage, timeout or 0)
                answer = self._requests.recv(MAX_BYTES)
                self._status = int(answer) if answer else KILLED
            return self._status
        finally:
            self._waiting.release()


class PreloadedProcess:
    """A process that has imported what steps need (tasks/stage_server.py), and runs one stage at a time."""

    def __init__(self, root: Path) -> None:
        """Start it; it is ready some seconds later."""
        self._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        logs = ProjectPaths(root).logs
        logs.mkdir(mode=0o700, parents=True, exist_ok=True)
        with theirs, (logs / "stages.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tasks.stage_server", str(theirs.fileno())],
                cwd=root,
                env=dvc_stages.step_environment(),
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._has_imported = False

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def is_ready(self) -> bool:
        """Return whether it has imported all modules and still runs."""
        if not self._has_imported and select.select([self._requests], [], [], 0)[0]:
            self._has_imported = bool(self._requests.recv(MAX_BYTES))
        return self._has_imported and self._process.poll() is None

    def start_stage(self, stage: str) -> ForkedStage | None:
        """Start a stage; None where this process is not ready yet, or has ended."""
        try:
            return ForkedStage(self._requests, stage) if self.is_ready() else None
        except OSError:
            return None

    def end(self) -> None:
        """End it; its stage has ended."""
        self._requests.close()
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:  # it still imports, or its stage does not end
            self._process.kill()
            self._process.wait()


_preloaded: dict[Path, PreloadedProcess] = {}


@contextlib.contextmanager
def preloaded(root: Path, is_needed: bool = True) -> Iterator[None]:
    """Have stages of this project start from a preloaded process within the block; within another block, do nothing.

    `is_needed`: False where no stage will run, and no process is started.
    """
    if not is_needed or root in _preloaded or sys.platform != "linux" or os.environ.get(PRELOAD_VARIABLE) == "0":
        yield
        return
    _preloaded[root] = PreloadedProcess(root)
    try:
        yield
    finally:
        _preloaded.pop(root).end()


def start_stage(root: Path, stage: str) -> StageProcess:
    """Start one DVC stage; its stdout holds its output."""
    process = _preloaded[root].start_stage(stage) if root in _preloaded else None
    return process or dvc_stages.start_stage(root, stage)
