"""The project's running servers: .winnow/servers.json, written by `winnow ui` and `winnow up`, read by runs.

Imports neither mlflow nor prefect, so that a `winnow run` with nothing to do starts fast.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from tasks.project import passwords
from tasks.project.paths import ProjectPaths
from tasks.project.run_origin import is_alive, process_identity
from tasks.project.state_files import SERVERS, AnnouncedServers
from tasks.tracking import tracking_store
from winnow.errors import WinnowError

ANSWER_SECONDS = 2
MOVE_DATABASE = "move it away: it holds only the history of runs"


def announce(paths: ProjectPaths, mlflow: str, prefect_api: str) -> None:
    """Write servers.json for servers that this process runs."""
    SERVERS.write(paths, AnnouncedServers(mlflow, prefect_api, process_identity(os.getpid())))


def withdraw(paths: ProjectPaths) -> None:
    """Delete servers.json, if this process wrote it."""
    if (announcement := SERVERS.read(paths)) and announcement.owner == process_identity(os.getpid()):
        SERVERS.delete(paths)


def prefect_api(paths: ProjectPaths) -> str:
    """Return the Prefect API that runs report to: PREFECT_API_URL, the project's own server, or "" for neither."""
    if address := os.environ.get("PREFECT_API_URL"):
        return address
    announcement = SERVERS.read(paths)
    is_running = announcement and is_alive(announcement.owner) and is_healthy(f"{announcement.prefect_api}/health")
    return announcement.prefect_api if announcement and is_running else ""


def check_prefect() -> None:
    """Raise WinnowError where PREFECT_API_URL is set and no server responds there: Prefect's own error is long."""
    address = os.environ.get("PREFECT_API_URL", "")
    if address and not is_reachable(f"{address.rstrip('/')}/health"):
        raise WinnowError(
            f"no server responds at {tracking_store.redact_password(address)}: start it, or unset PREFECT_API_URL"
        )


def prefect_database() -> Path:
    """Return the file in which the project's own Prefect server, also a temporary one, keeps its runs."""
    return Path(os.environ["PREFECT_HOME"]) / "prefect.db"


def check_prefect_database() -> None:
    """Raise WinnowError where that file is damaged: Prefect would start its server for two minutes, again and again."""
    if prefect_database().is_file():
        try:
            with contextlib.closing(sqlite3.connect(prefect_database(), timeout=0)) as database:
                database.execute("PRAGMA schema_version")
        except sqlite3.OperationalError:
            pass  # in use, or not readable: Prefect waits, or reports it
        except sqlite3.DatabaseError as error:
            raise WinnowError(f"{prefect_database()} is damaged ({error}); {MOVE_DATABASE}") from error


@contextlib.contextmanager
def temporary_server_errors() -> Iterator[None]:
    """Around a flow: raise WinnowError where Prefect's temporary server does not start."""
    try:
        yield
    except RuntimeError as error:
        if "ephemeral Prefect API server" not in str(error):
            raise
        raise WinnowError(
            f"Prefect's temporary server did not start; its reason is above. If {prefect_database()} is damaged or of "
            f"a newer version of Prefect, {MOVE_DATABASE}"
        ) from error


def report_to_prefect(paths: ProjectPaths) -> bool:
    """Configure this process to report to the running Prefect server; return whether there is one.

    Call before Prefect is imported. Without a server, Prefect starts a temporary one, which gets a password here.
    Raises WinnowError where its database is damaged.
    """
    configured = os.environ.get("PREFECT_API_URL")
    if api := prefect_api(paths):
        os.environ["PREFECT_API_URL"] = api
        if not configured:
            os.environ["PREFECT_API_AUTH_STRING"] = passwords.auth_string(passwords.project_password(paths))
    else:
        check_prefect_database()
        passwords.set_temporary_password()
    return bool(api)


def mlflow_url(paths: ProjectPaths) -> str:
    """Return the URL of MLflow's pages: the team's server, the project's own, or "" where none is running."""
    address = tracking_store.tracking_address(paths)
    if address.startswith("http"):
        return tracking_store.redact_password(address).rstrip("/")
    announcement = SERVERS.read(paths)
    return announcement.mlflow if announcement and is_alive(announcement.owner) else ""


def is_healthy(address: str) -> bool:
    """Return whether a GET of the address returns status 200."""
    try:
        with urllib.request.urlopen(address, timeout=ANSWER_SECONDS) as response:
            return bool(response.status == 200)
    except (OSError, ValueError):
        return False


def is_reachable(address: str) -> bool:
    """Return whether a server responds at all, even with an error status."""
    try:
        urllib.request.urlopen(address, timeout=ANSWER_SECONDS).close()
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError):
        return False
    return True
