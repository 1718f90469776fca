"""The origin of an MLflow run as tags: user, commit, machine and process.

A process is identified by its id and start time, because ids are reused. So an open run whose process was killed can
be recognised.
"""

from __future__ import annotations

import functools
import getpass
import os
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tasks.tracking.tags import GIT_DIRTY_TAG, HOST_TAG, PROCESS_TAG


def origin_tags(root: Path) -> dict[str, str]:
    """Return the tags of an MLflow run that this process creates for the project in `root`."""
    commit, dirty = git_commit(root)
    return {
        "mlflow.user": user_name(),
        "mlflow.source.name": "winnow",
        "mlflow.source.type": "LOCAL",
        HOST_TAG: socket.gethostname(),
        PROCESS_TAG: process_identity(os.getpid()),
    } | ({"mlflow.source.git.commit": commit, GIT_DIRTY_TAG: str(dirty).lower()} if commit else {})


def approver_name() -> str:
    """Return the name recorded with an approval: the MLflow account, which several people may share, and the user."""
    account = os.environ.get("MLFLOW_TRACKING_USERNAME", "")
    return f"{account} ({user_name()})" if account not in ("", user_name()) else user_name()


def is_dead(tags: Mapping[str, str]) -> bool:
    """Return whether a run's process was on this machine and has ended; False for runs of other machines."""
    if tags.get(HOST_TAG) != socket.gethostname() or PROCESS_TAG not in tags:
        return False
    return not is_alive(tags[PROCESS_TAG])


def is_alive(identity: str) -> bool:
    """Return whether the process with this identity still runs on this machine."""
    pid = identity.partition("@")[0]
    return pid.isdigit() and process_identity(int(pid)) == identity


def process_identity(pid: int) -> str:
    """Return "PID@START" of a process; "" for one that does not run, or is a zombie.

    On Linux START is the boot id and the ticks since boot, which do not change when the clock is set.
    """
    import psutil

    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return ""
        return f"{pid}@{_ticks(pid) or f'{process.create_time():.0f}'}"
    except psutil.NoSuchProcess:
        return ""


def _ticks(pid: int) -> str:
    """Return "BOOT-TICKS" of a process; "" on a system without /proc."""
    try:
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        after_name = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2]
    except OSError:
        return ""
    return f"{boot_id[:8]}-{after_name.split()[19]}"


def user_name() -> str:
    """Return the account's name, or its number where it has no name, as in some containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


@functools.cache
def git_commit(root: Path) -> tuple[str, bool]:
    """Return (commit, whether tracked files differ from it); ("", False) outside of a git repository."""
    command = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    try:
        description = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "", False
    return description.removesuffix("-dirty"), description.endswith("-dirty")
