"""Set-up shared by all flows: enter the checkout, lock it, and fail a run whose process died too often."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from uuid import UUID

import psutil
from httpx import HTTPError
from prefect import runtime
from prefect.client.orchestration import get_client
from prefect.events import emit_event
from prefect.exceptions import Pause, PrefectException
from prefect.logging import get_run_logger
from prefect.states import Crashed

from flows import STOPPED_MESSAGE
from tasks import STOP_SIGNALS
from tasks.project import run_lock, watchdog
from tasks.project.environment import ROOT_VARIABLE
from tasks.project.paths import ProjectPaths
from tasks.project.state_files import PREFECT_RUN
from winnow.errors import WinnowError

MAX_RESTARTS = 5
"""The number of restarts of a run whose process died (flows/automations.yaml) before it fails."""

_under_way = threading.Event()
"""Set while a flow works in this process."""

ENDED_EVENT = "winnow.flow-run.ended"
"""The event of a scheduled run that completed, failed or was cancelled. A killed or stopped run emits none."""
EVENT_SECONDS = 0.5
"""Pause after the event: on SQLite, Prefect's server loses an event that arrives while it writes the last state."""
STDOUT, STDERR = 1, 2


def enter_checkout() -> dict[str, str]:
    """Change to the worker's checkout: the pull step of every deployment. Return {directory}.

    Output goes to .winnow/logs/flows.log from here on. The worker's pipe breaks when the worker dies, and writing to a
    broken pipe would end the process (rich exits).
    """
    if ROOT_VARIABLE not in os.environ:
        raise WinnowError("this worker has no checkout; start it in one with `winnow up`")
    paths = ProjectPaths(Path(os.environ[ROOT_VARIABLE]))
    os.chdir(paths.root)
    paths.logs.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (paths.logs / "flows.log").open("ab") as log:
        for stream in (STDOUT, STDERR):
            os.dup2(log.fileno(), stream)
    return {"directory": str(paths.root)}


def _is_cancelled() -> bool:
    """Return whether a user cancelled this run; False where the server does not answer: then the run is restarted."""
    with get_client(sync_client=True) as client, contextlib.suppress(HTTPError):
        state = client.read_flow_run(UUID(runtime.flow_run.id)).state
        return state is not None and (state.is_cancelling() or state.is_cancelled())
    return False


@contextlib.contextmanager
def _recorded(paths: ProjectPaths) -> Iterator[None]:
    """Record this run in the project while it works there, and mark one left over from a killed process as crashed."""
    if note := PREFECT_RUN.read(paths):
        previous = UUID(note)
        with get_client(sync_client=True) as client, contextlib.suppress(HTTPError, PrefectException):
            state = client.read_flow_run(previous).state
            if state is not None and not state.is_final():
                client.set_flow_run_state(
                    previous, Crashed(message="The process of this run was stopped or killed."), force=True
                )
    PREFECT_RUN.write(paths, runtime.flow_run.id)
    try:
        yield
    except (Exception, Pause):  # Prefect reports these itself, but not a run that a user stops
        PREFECT_RUN.delete(paths)
        raise
    PREFECT_RUN.delete(paths)


@contextlib.contextmanager
def locked_project(root: str) -> Iterator[ProjectPaths]:
    """Lock the project and yield its paths. A scheduled run waits for the lock; a manual one raises ProjectLocked."""
    paths = ProjectPaths(Path(root).resolve())
    was_stopped = True
    if not runtime.deployment.id:  # flows/automations.yaml restarts the scheduled ones
        with get_client(sync_client=True) as client:
            watchdog.set_flow_run(runtime.flow_run.id, str(client.api_url))
    try:
        if (runtime.flow_run.run_count or 0) > MAX_RESTARTS:
            raise WinnowError(
                f"the process of this run died {MAX_RESTARTS} times; see .winnow/logs/flows.log and its use of memory"
            )
        with run_lock.lock_run(paths, wait=get_run_logger().warning if runtime.deployment.id else None):
            _under_way.set()
            with contextlib.nullcontext() if runtime.deployment.id else _recorded(paths):
                yield paths
        was_stopped = False
    except (Exception, Pause):
        was_stopped = False
        raise
    finally:
        _under_way.clear()
        if was_stopped and not os.environ.get("PREFECT_API_URL"):
            exit_now()
        if runtime.deployment.id and not (was_stopped and not _is_cancelled()):
            emit_event(ENDED_EVENT, {"prefect.resource.id": f"prefect.flow-run.{runtime.flow_run.id}"})
            time.sleep(EVENT_SECONDS)


def hide_tracebacks() -> None:
    """Filter Prefect's tracebacks of WinnowErrors from the log: the command line prints the message once."""
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(name).addFilter(_is_unexpected)


def _is_unexpected(record: logging.LogRecord) -> bool:
    if os.environ.get("WINNOW_TRACEBACK"):
        return True
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, WinnowError) and "NotReady(" not in record.getMessage()


@contextlib.contextmanager
def exit_on_stop() -> Iterator[None]:
    """Around a flow on Prefect's temporary server: exit at once on a signal outside the flow's own work.

    Ctrl-C in a terminal ends that server too, and Prefect would retry for minutes to report to it.
    """
    if os.environ.get("PREFECT_API_URL"):
        yield
        return

    def stop(_signal: int, _frame: FrameType | None) -> None:
        if _under_way.is_set():
            raise KeyboardInterrupt
        exit_now()

    handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    for number, handler in handlers.items():
        if handler != signal.SIG_IGN:
            signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def exit_now() -> None:
    """End all child processes and exit, without reporting to Prefect's temporary server, which Ctrl-C has ended too."""
    watchdog.dismiss()
    try:
        children = psutil.Process().children(recursive=True)
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.terminate()
        psutil.wait_procs(children, timeout=5)
        with contextlib.suppress(OSError, RuntimeError):  # the terminal is gone, or this interrupted a write
            sys.stdout.flush()
            sys.stderr.write(f"{STOPPED_MESSAGE}\n")
            sys.stderr.flush()
    finally:
        os._exit(130)
