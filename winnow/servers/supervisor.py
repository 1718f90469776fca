"""Programs that are to stay up: started in order, started again when they die, ended together and in order.

Each is in a session of its own, so that Ctrl-C in a terminal reaches only the process that keeps them up, which ends
them. All that they start, and what that starts, carries a mark in its environment: so a killed program's children are
found wherever they are. A lock refuses a second supervisor; what a killed one left running is ended by the next.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pwd
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from tasks import ENDINGS
from tasks.project.processes import end, marked
from winnow.errors import WinnowError

HOST = "127.0.0.1"
START_SECONDS = 120
RESTARTS, LIVED_SECONDS = 5, 60.0
"""A program that so many times in a row did not live so long is not started again."""
PAUSE_SECONDS = 0.5
"""Before the first restart; twice as long before each further one in a row."""
MARK = "WINNOW_STARTED"
"""Variable that names who started a process: supervisor/program."""


@dataclass
class Program:
    """A process that is to stay up."""

    name: str
    command: list[str]
    is_up: Callable[[], bool] = lambda: True
    environment: Mapping[str, str] = field(default_factory=dict)
    """Beside this process's own."""
    end_with: signal.Signals | None = None
    """Asks the program alone, which ends its children; None: SIGTERM to all of them."""
    takes_along: bool = True
    """Whether what it started has to end with it: a server's own processes hold its port, a worker's run may go on."""
    account: pwd.struct_passwd | None = None
    """Account that it runs as, where that is not ours; it then gets none of our variables."""
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    deaths: int = 0
    """In a row, soon after a start."""


@dataclass(frozen=True)
class Supervisor:
    """Programs that are kept up together."""

    mark: str
    """Every process below carries it."""
    root: Path
    """Where they run."""
    logs: Path
    console: Console
    programs: list[Program] = field(default_factory=list)

    def add(self, *programs: Program) -> None:
        """Start them side by side and wait until all are up."""
        for program in programs:
            self.programs.append(program)
            self._start(program)
        for program in programs:
            self._wait_until_up(program)

    def keep_up(self) -> None:
        """Until Ctrl-C; raises WinnowError when one of them dies too often."""
        while True:
            for program in self.programs:
                self._look_after(program)
            time.sleep(0.5)

    def _start(self, program: Program) -> None:
        account = program.account
        ours = {"PATH": os.environ.get("PATH", "")} if account else os.environ
        program.started = time.monotonic()
        with (self.logs / f"{program.name}.log").open("ab") as log:
            program.process = subprocess.Popen(
                program.command,
                env={**ours, **program.environment, MARK: f"{self.mark}/{program.name}"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/" if account else self.root,
                start_new_session=True,
                **identity(account),
            )

    def _wait_until_up(self, program: Program) -> None:
        deadline = time.monotonic() + START_SECONDS
        assert program.process is not None
        while time.monotonic() < deadline and program.process.poll() is None:
            if program.is_up():
                return
            time.sleep(0.3)
        raise WinnowError(f"{program.name} did not start; its log is {self.logs / f'{program.name}.log'}")

    def _look_after(self, program: Program) -> None:
        assert program.process is not None
        if program.process.poll() is None:
            return
        has_lived = time.monotonic() - program.started > LIVED_SECONDS
        program.deaths = 1 if has_lived else program.deaths + 1
        if program.deaths > RESTARTS:
            log = self.logs / f"{program.name}.log"
            raise WinnowError(f"{program.name} stops again and again; its log is {log}")
        self.console.print(f"{program.name} has stopped (status {program.process.returncode}); it is started again")
        if program.takes_along:
            end(marked(MARK, f"{self.mark}/{program.name}"))
        time.sleep(PAUSE_SECONDS * 2 ** (program.deaths - 1))
        self._start(program)

    def _end(self) -> None:
        # A second Ctrl-C would leave half of them behind.
        before = {one: signal.signal(one, signal.SIG_IGN) for one in ENDINGS}
        for program in reversed(self.programs):
            if program.process is not None:
                end([program.process.pid], program.end_with)
                end(marked(MARK, f"{self.mark}/{program.name}"))
                program.process.wait()
        for one, handler in before.items():
            signal.signal(one, handler)


@contextlib.contextmanager
def supervisor(file: Path, root: Path, logs: Path, console: Console) -> Iterator[Supervisor]:
    """A supervisor of nothing yet; all that it starts is ended when this is left.

    `file` keeps its mark; beside it lies a lock. Raises WinnowError where another process has it.
    """
    logs.mkdir(mode=0o700, parents=True, exist_ok=True)
    with file.with_suffix(".lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            pid = lock.read() or "?"
            raise WinnowError(
                f"process {pid} keeps servers up here already; end it by Ctrl-C there, or by kill {pid}"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        if file.is_file() and (left := file.read_bytes().decode("ascii", "replace").strip()):
            end(marked(MARK, f"{left}/"))
        mark = secrets.token_hex(8)
        file.write_text(mark + "\n", encoding="utf-8")
        keeps = Supervisor(mark, root, logs, console)
        try:
            yield keeps
        finally:
            keeps._end()
            file.unlink(missing_ok=True)


def identity(account: pwd.struct_passwd | None) -> dict[str, Any]:
    """What subprocess wants for a process of this account, with its own group and no other; nothing for None."""
    return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []} if account else {}


def module(*command: str) -> list[str]:
    """A Python module of this environment, as a command."""
    return [sys.executable, "-m", *command]


def listens(port: int, host: str = HOST) -> bool:
    """Whether somebody has this port of ours."""
    with socket.socket() as probe:
        return probe.connect_ex((host, port)) == 0


def check_ports(ports: Mapping[str, int], hosts: Mapping[str, str] | None = None) -> None:
    """Program -> port, and -> address where that is not HOST.

    Raises WinnowError for a port that cannot be, is taken, or is meant for two.
    """
    for name, port in ports.items():
        if not 0 < port < 65536:
            raise WinnowError(f"--{name}-port {port}: a port is a number from 1 to 65535")
        if listens(port, (hosts or {}).get(name, HOST)):
            raise WinnowError(f"port {port} is taken (is it up already?); choose another one: --{name}-port {port + 1}")
    if len(set(ports.values())) < len(ports):
        raise WinnowError(f"two servers cannot have one port: {', '.join(f'{n} {p}' for n, p in ports.items())}")
