"""What every flow does first: enter the checkout, work there alone, give up where its process was gone too often."""

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

from flows import STOPPED
from tasks import ENDINGS
from tasks.project import run_lock, watchdog
from tasks.project.paths import OWNER, ProjectPaths
from tasks.project.state_files import read_memory
from winnow.errors import WinnowError
from winnow.records import write_json

TAKEN_UP = 5
"""A run whose process was gone is taken up again (flows/automations.yaml), but not for ever."""

_under_way = threading.Event()
"""Whether a flow works in this process."""

ENDED = "winnow.flow-run.ended"
"""The event that a scheduled run came to its own end, well or not, or a person's. Killed or stopped, it emits none."""
HEED_SECONDS = 0.5
"""On SQLite, Prefect's server loses an event that comes while it writes a state down: this run's last one is next."""
STDOUT, STDERR = 1, 2


def enter_checkout() -> dict[str, str]:
    """The pull step of every deployment: a run works in the checkout of the worker that took it.

    From here on it writes to a log of its own. The worker's pipe would break when the worker dies, and what writes to a
    broken pipe ends (rich leaves the process).
    """
    if OWNER not in os.environ:
        raise WinnowError("this worker does not know its checkout; start it there by `winnow up`")
    places = ProjectPaths(Path(os.environ[OWNER]))
    os.chdir(places.root)
    places.logs.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (places.logs / "flows.log").open("ab") as log:
        for stream in (STDOUT, STDERR):
            os.dup2(log.fileno(), stream)
    return {"directory": str(places.root)}


def _is_cancelled() -> bool:
    """Whether it was a person who stopped this run. Where the server does not answer it is taken up again."""
    with get_client(sync_client=True) as client, contextlib.suppress(HTTPError):
        state = client.read_flow_run(UUID(runtime.flow_run.id)).state
        return state is not None and (state.is_cancelling() or state.is_cancelled())
    return False


@contextlib.contextmanager
def _noted(places: ProjectPaths) -> Iterator[None]:
    """Note this run in the project while it works there alone. One that was noted before was ended: close it."""
    note = places.state_dir / "prefect-run.json"
    if former := read_memory(note, UUID | None, None):
        with get_client(sync_client=True) as client, contextlib.suppress(HTTPError, PrefectException):
            if not client.read_flow_run(former).state.is_final():
                client.set_flow_run_state(
                    former, Crashed(message="The process of this run was stopped or killed."), force=True
                )
    write_json(note, runtime.flow_run.id)
    try:
        yield
    except (Exception, Pause):  # Prefect hears of these; of one that a person stops it does not
        note.unlink(missing_ok=True)
        raise
    note.unlink(missing_ok=True)


@contextlib.contextmanager
def working(root: str) -> Iterator[ProjectPaths]:
    """The folders of the project. A scheduled run waits for one that works there; a person's raises Occupied."""
    places = ProjectPaths(Path(root).resolve())
    was_stopped = True
    if not runtime.deployment.id:  # flows/automations.yaml looks after the others
        with get_client(sync_client=True) as client:
            watchdog.note_run(runtime.flow_run.id, str(client.api_url))
    try:
        if (runtime.flow_run.run_count or 0) > TAKEN_UP:
            raise WinnowError(
                f"this run's process was gone {TAKEN_UP} times; see .winnow/logs/flows.log and the memory it takes"
            )
        with run_lock.run_alone(places, wait=get_run_logger().warning if runtime.deployment.id else None):
            _under_way.set()
            with contextlib.nullcontext() if runtime.deployment.id else _noted(places):
                yield places
        was_stopped = False
    except (Exception, Pause):
        was_stopped = False
        raise
    finally:
        _under_way.clear()
        if was_stopped and not os.environ.get("PREFECT_API_URL"):
            leave_at_once()
        if runtime.deployment.id and not (was_stopped and not _is_cancelled()):
            emit_event(ENDED, {"prefect.resource.id": f"prefect.flow-run.{runtime.flow_run.id}"})
            time.sleep(HEED_SECONDS)


def without_tracebacks() -> None:
    """Drop Prefect's copies of an error that is the user's to mend: the command line says it once, in full."""
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(name).addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    if os.environ.get("WINNOW_TRACEBACK"):
        return True
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, WinnowError) and "NotReady(" not in record.getMessage()


@contextlib.contextmanager
def leaving() -> Iterator[None]:
    """Around a flow on Prefect's temporary server: beyond the flow's own work a stop leaves at once.

    Ctrl-C in a terminal ends that server too, and Prefect would try for minutes to tell it. Until the
    flow works, SIGTERM is handled by Prefect.
    """
    if os.environ.get("PREFECT_API_URL"):
        yield
        return

    def stop(_signal: int, _frame: FrameType | None) -> None:
        if _under_way.is_set():
            raise KeyboardInterrupt
        leave_at_once()

    before = {ending: signal.getsignal(ending) for ending in ENDINGS}
    for ending, handler in before.items():
        if handler != signal.SIG_IGN:
            signal.signal(ending, stop)
    try:
        yield
    finally:
        for ending, handler in before.items():
            signal.signal(ending, handler)


def leave_at_once() -> None:
    """Exit without a report to Prefect's temporary server: Ctrl-C ended it too, and the report would wait for it."""
    watchdog.dismiss()
    try:
        children = psutil.Process().children(recursive=True)
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.terminate()
        psutil.wait_procs(children, timeout=5)
        with contextlib.suppress(OSError, RuntimeError):  # the terminal is gone; or a write was interrupted by this one
            sys.stdout.flush()
            sys.stderr.write(f"{STOPPED}\n")
            sys.stderr.flush()
    finally:
        os._exit(130)
