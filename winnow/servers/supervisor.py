"""Keep programs running: start them in order, restart them when they die, end them together and in reverse order.

Each has its own session, so that Ctrl-C in a terminal reaches only the supervisor, which ends them. All processes that
they start, directly or not, carry a mark in their environment: so a killed program's children are found wherever they
are. A lock refuses a second supervisor; what a killed one left running is ended by the next.
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

from tasks import STOP_SIGNALS
from tasks.project.processes import end_processes, find_marked
from winnow.errors import WinnowError

HOST = "127.0.0.1"
START_SECONDS = 120
RESTARTS, LIVED_SECONDS = 5, 60.0
"""A program that died this many times in a row before this many seconds is not restarted."""
PAUSE_SECONDS = 0.5
"""Before the first restart; twice as long before each further one in a row."""
MARK = "WINNOW_STARTED"
"""Environment variable that marks a process with supervisor/program."""


@dataclass
class Program:
    """A process that is kept running."""

    name: str
    command: list[str]
    is_up: Callable[[], bool] = lambda: True
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables in addition to this process's own."""
    stop_signal: signal.Signals | None = None
    """A signal to the program alone, which ends its children; None: SIGTERM to all of them."""
    ends_children: bool = True
    """Whether its children end with it: a server's own processes hold its port, a worker's run may continue."""
    account: pwd.struct_passwd | None = None
    """The account that it runs as, where that is not ours; it then gets none of our variables."""
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    deaths: int = 0
    """Deaths in a row, each soon after a start."""


@dataclass(frozen=True)
class Supervisor:
    """Programs that are kept running together."""

    mark: str
    """Every process that it starts carries it."""
    root: Path
    """The working directory of the programs."""
    logs: Path
    console: Console
    programs: list[Program] = field(default_factory=list)

    def add(self, *programs: Program) -> None:
        """Start the programs side by side and wait until all are up."""
        for program in programs:
            self.programs.append(program)
            self._start(program)
        for program in programs:
            self._wait_until_up(program)

    def keep_up(self) -> None:
        """Restart what dies, until Ctrl-C. Raises WinnowError when a program dies too often."""
        while True:
            for program in self.programs:
                self._restart_if_dead(program)
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
                **account_arguments(account),
            )

    def _wait_until_up(self, program: Program) -> None:
        deadline = time.monotonic() + START_SECONDS
        assert program.process is not None
        while time.monotonic() < deadline and program.process.poll() is None:
            if program.is_up():
                return
            time.sleep(0.3)
        raise WinnowError(f"{program.name} did not start; its log is {self.logs / f'{program.name}.log'}")

    def _restart_if_dead(self, program: Program) -> None:
        assert program.process is not None
        if program.process.poll() is None:
            return
        has_lived = time.monotonic() - program.started > LIVED_SECONDS
        program.deaths = 1 if has_lived else program.deaths + 1
        if program.deaths > RESTARTS:
            log = self.logs / f"{program.name}.log"
            raise WinnowError(f"{program.name} keeps stopping; its log is {log}")
        self.console.print(f"{program.name} has stopped (status {program.process.returncode}) and is restarted")
        if program.ends_children:
            end_processes(find_marked(MARK, f"{self.mark}/{program.name}"))
        time.sleep(PAUSE_SECONDS * 2 ** (program.deaths - 1))
        self._start(program)

    def _end(self) -> None:
        # A second Ctrl-C would leave some of them running.
        before = {ending: signal.signal(ending, signal.SIG_IGN) for ending in STOP_SIGNALS}
        for program in reversed(self.programs):
            if program.process is not None:
                end_processes([program.process.pid], program.stop_signal)
                end_processes(find_marked(MARK, f"{self.mark}/{program.name}"))
                program.process.wait()
        for ending, handler in before.items():
            signal.signal(ending, handler)


@contextlib.contextmanager
def supervise(file: Path, root: Path, logs: Path, console: Console) -> Iterator[Supervisor]:
    """Yield a supervisor without programs; everything that it starts is ended at the end of the block.

    `file` stores its mark, and a lock beside it. Raises WinnowError where another process holds the lock.
    """
    logs.mkdir(mode=0o700, parents=True, exist_ok=True)
    with file.with_suffix(".lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            pid = lock.read() or "?"
            raise WinnowError(
                f"process {pid} already runs the servers of this project; stop it by Ctrl-C there, or by kill {pid}"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        if file.is_file() and (previous_mark := file.read_bytes().decode("ascii", "replace").strip()):
            end_processes(find_marked(MARK, f"{previous_mark}/"))
        mark = secrets.token_hex(8)
        file.write_text(mark + "\n", encoding="utf-8")
        supervised = Supervisor(mark, root, logs, console)
        try:
            yield supervised
        finally:
            supervised._end()
            file.unlink(missing_ok=True)


def account_arguments(account: pwd.struct_passwd | None) -> dict[str, Any]:
    """Return subprocess's arguments for a process of this account, with its own group alone; empty for None."""
    return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []} if account else {}


def module_command(*command: str) -> list[str]:
    """Return the command that runs a Python module of this environment."""
    return [sys.executable, "-m", *command]


def is_port_taken(port: int, host: str = HOST) -> bool:
    """Return whether a process listens on this port of a host: a name, or an address of IPv4 or IPv6."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        return probe.connect_ex((host, port)) == 0


def check_ports(ports: Mapping[str, int], hosts: Mapping[str, str] | None = None) -> None:
    """Raise WinnowError for a port that is invalid, taken, or used twice.

    `ports`: program -> port. `hosts`: program -> address where that is not HOST.
    """
    for name, port in ports.items():
        if not 0 < port < 65536:
            raise WinnowError(f"--{name}-port {port}: a port is a number from 1 to 65535")
        if is_port_taken(port, (hosts or {}).get(name, HOST)):
            raise WinnowError(
                f"port {port} is taken (is it running already?); choose another one: --{name}-port {port + 1}"
            )
    if len(set(ports.values())) < len(ports):
        raise WinnowError(f"two servers cannot have one port: {', '.join(f'{n} {p}' for n, p in ports.items())}")
