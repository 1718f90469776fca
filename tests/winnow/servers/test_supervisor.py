from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from tasks.project.processes import end_processes
from tests.closure import ROOT
from winnow.errors import WinnowError
from winnow.servers.supervisor import MARK, RESTARTS, Program, is_port_taken, supervise

QUIET_CONSOLE = Console(quiet=True)


def python_command(code: str) -> list[str]:
    return [sys.executable, "-c", code]


@pytest.mark.thorough
def test_a_program_that_dies_is_started_again_but_not_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("winnow.servers.supervisor.PAUSE_SECONDS", 0.05)
    with supervise(tmp_path / "up.mark", tmp_path, tmp_path, QUIET_CONSOLE) as supervisor:
        supervisor.add(Program("short", python_command("import time; print('here', flush=True); time.sleep(0.5)")))
        with pytest.raises(WinnowError, match=r"short keeps stopping; its log is .*short\.log"):
            supervisor.keep_up()
    assert (tmp_path / "short.log").read_text().count("here") == RESTARTS + 1
    assert not (tmp_path / "up.mark").exists()


LIVES_TWICE = """
import time
starts = open("starts", "a+")
starts.write("x")
starts.flush()
if starts.seek(0) or len(starts.read()) <= 2:
    time.sleep(0.6)
"""


def test_restarts_are_reset_after_a_long_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("winnow.servers.supervisor.PAUSE_SECONDS", 0.01)
    monkeypatch.setattr("winnow.servers.supervisor.LIVED_SECONDS", 0.5)
    with supervise(tmp_path / "up.mark", tmp_path, tmp_path, QUIET_CONSOLE) as supervisor:
        supervisor.add(Program("longer", python_command(LIVES_TWICE)))
        monkeypatch.setattr("winnow.servers.supervisor.time.sleep", lambda _seconds, sleep=time.sleep: sleep(0.02))
        with pytest.raises(WinnowError, match="longer keeps stopping"):
            supervisor.keep_up()
    # Two lived long; the end of the second is the first failure in a row.
    assert len((tmp_path / "starts").read_text()) == 2 + RESTARTS


def test_a_program_that_does_not_start_is_an_error(tmp_path: Path) -> None:
    with supervise(tmp_path / "up.mark", tmp_path, tmp_path, QUIET_CONSOLE) as supervisor:  # noqa: SIM117
        with pytest.raises(WinnowError, match=r"broken did not start; its log is .*broken\.log"):
            supervisor.add(Program("broken", python_command("raise SystemExit(3)"), lambda: False))


PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, flush=True)
time.sleep(600)
"""


def test_child_processes_are_ended(tmp_path: Path) -> None:
    log = tmp_path / "parent.log"
    with supervise(tmp_path / "up.mark", tmp_path, tmp_path, QUIET_CONSOLE) as supervisor:
        supervisor.add(Program("parent", python_command(PARENT), lambda: bool(log.read_text())))
        child = psutil.Process(int(log.read_text()))
        assert child.is_running()
    assert supervisor.programs[0].process is not None
    assert supervisor.programs[0].process.returncode is not None
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


HOLDS_A_PORT = """
import socket, subprocess, sys, time
if len(sys.argv) == 1:
    subprocess.Popen([sys.executable, __file__, "child"])
    time.sleep(600)
with socket.create_server(("127.0.0.1", PORT)):
    print("listens", flush=True)
    time.sleep(600)
"""


KEEP_UP = """
import signal, sys
from pathlib import Path
from rich.console import Console
from winnow.servers.supervisor import Program, is_port_taken, supervise
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job is born with Ctrl-C ignored
try:
    with supervise(Path("up.mark"), Path("."), Path("."), Console(quiet=True)) as keeps:
        keeps.add(Program("server", [sys.executable, "server.py"], lambda: is_port_taken(int(sys.argv[1]))))
        print(keeps.programs[0].process.pid, flush=True)
        keeps.keep_up()
except KeyboardInterrupt:
    print("ended", flush=True)
"""


def test_children_of_a_killed_program_do_not_keep_its_port(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    (tmp_path / "server.py").write_text(HOLDS_A_PORT.replace("PORT", str(port)))
    keeper = subprocess.Popen(
        [*python_command(KEEP_UP), str(port)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert keeper.stdout is not None
    os.kill(int(keeper.stdout.readline()), signal.SIGKILL)
    log, deadline = tmp_path / "server.log", time.monotonic() + 30
    while log.read_text().count("listens") < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert log.read_text().count("listens") == 2
    assert is_port_taken(port)
    keeper.send_signal(signal.SIGINT)
    assert keeper.communicate(timeout=30)[0] == "ended\n"
    assert not is_port_taken(port)


def test_a_second_supervisor_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "up.mark"
    with supervise(file, tmp_path, tmp_path, QUIET_CONSOLE) as supervisor:
        supervisor.add(Program("long", python_command("import time; time.sleep(600)")))
        expected_error = pytest.raises(
            WinnowError, match=f"process {os.getpid()} already runs the servers of this project"
        )
        with expected_error, supervise(file, tmp_path, tmp_path, QUIET_CONSOLE):
            pass
    assert not (tmp_path / "up.mark").exists()


LEAVE_CHILD = """
import os, sys
from pathlib import Path
from rich.console import Console
from winnow.servers.supervisor import Program, supervise
with supervise(Path("up.mark"), Path("."), Path("."), Console(quiet=True)) as keeps:
    said = Path("parent.log")
    keeps.add(Program("parent", [sys.executable, "-c", sys.argv[1]], lambda: said.read_text().strip() != ""))
    os.kill(os.getpid(), 9)
"""


def test_processes_left_by_a_killed_supervisor_are_ended(tmp_path: Path) -> None:
    parent = PARENT.replace('time.sleep(600)"])', 'time.sleep(600)"], start_new_session=True)', 1)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([*python_command(LEAVE_CHILD), parent], cwd=tmp_path, env=environment, check=False)
    child = psutil.Process(int((tmp_path / "parent.log").read_text()))
    assert child.is_running()
    assert child.environ()[MARK].startswith((tmp_path / "up.mark").read_text().strip())
    with supervise(tmp_path / "up.mark", tmp_path, tmp_path, QUIET_CONSOLE):
        assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
    assert not (tmp_path / "up.mark").exists()


def test_a_process_that_ignores_sigterm_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.project.processes.END_SECONDS", 0.5)
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
    stubborn = subprocess.Popen(python_command(code), stdout=subprocess.PIPE, text=True)
    assert stubborn.stdout is not None
    assert stubborn.stdout.readline() == "up\n"
    end_processes([stubborn.pid])
    assert stubborn.wait(timeout=1) == -9


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::1", "::"])
def test_a_listening_port_is_taken_at_every_address_of_its_host(host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        server = socket.create_server((host, 0), family=family)
    except OSError:
        pytest.skip("this machine has no IPv6")
    port = server.getsockname()[1]
    with server:
        assert is_port_taken(port, host)
    assert not is_port_taken(port, host)
