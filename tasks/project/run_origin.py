"""Who made a run of MLflow: the person, the commit, the machine and the process, as tags.

A process is told by its number and its start, because numbers are given out again; so a run that is still open can be
recognised as left behind by one that was killed.
"""

from __future__ import annotations

import functools
import getpass
import os
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path

HOST, PROCESS = "winnow.host", "winnow.pid"


def origin_tags(root: Path) -> dict[str, str]:
    """Tags of a run that this process opens for the project in `root`."""
    commit, dirty = git_commit(root)
    return {
        "mlflow.user": user(),
        "mlflow.source.name": "winnow",
        "mlflow.source.type": "LOCAL",
        HOST: socket.gethostname(),
        PROCESS: process_identity(os.getpid()),
    } | ({"mlflow.source.git.commit": commit, "winnow.git_dirty": str(dirty).lower()} if commit else {})


def person() -> str:
    """Who gives a word that stays with a model: the account of MLflow, which several may share, and the system's."""
    account = os.environ.get("MLFLOW_TRACKING_USERNAME", "")
    return f"{account} ({user()})" if account not in ("", user()) else user()


def is_dead(tags: Mapping[str, str]) -> bool:
    """Whether a run's process was on this machine and is no more; another machine's is not asked."""
    if tags.get(HOST) != socket.gethostname() or PROCESS not in tags:
        return False
    return not is_alive(tags[PROCESS])


def is_alive(identity: str) -> bool:
    """Whether this very process still runs on this machine."""
    number = identity.partition("@")[0]
    return number.isdigit() and process_identity(int(number)) == identity


def process_identity(number: int) -> str:
    """Number and start of a process; "" for one that is not running, or has ended and was not waited for.

    On Linux the start is counted in ticks since the boot, and the boot is named: a clock that is set changes neither.
    """
    import psutil

    try:
        process = psutil.Process(number)
        if process.status() == psutil.STATUS_ZOMBIE:
            return ""
        return f"{number}@{_ticks(number) or f'{process.create_time():.0f}'}"
    except psutil.NoSuchProcess:
        return ""


def _ticks(number: int) -> str:
    """Boot and start of a process, "" where there is no /proc."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        after_name = Path(f"/proc/{number}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2]
    except OSError:
        return ""
    return f"{boot[:8]}-{after_name.split()[19]}"


def user() -> str:
    """The account's name; containers may run under a number that has none."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


@functools.cache
def git_commit(root: Path) -> tuple[str, bool]:
    """The project's commit and whether files differ from it; ("", False) outside of git."""
    command = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    try:
        found = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "", False
    return found.removesuffix("-dirty"), found.endswith("-dirty")
