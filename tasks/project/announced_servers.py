"""Which servers of the project are up: .winnow/servers.json, written by whoever starts them, read by runs and links.

No mlflow and no prefect here: an unchanged `winnow run` reads this.
"""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from dataclasses import asdict, dataclass
from pathlib import Path

from tasks.project import passwords
from tasks.project.paths import ProjectPaths
from tasks.project.run_origin import is_alive, process_identity
from tasks.project.state_files import read_memory
from tasks.tracking import tracked_runs
from winnow.errors import WinnowError
from winnow.records import write_json

ANSWER_SECONDS = 2


@dataclass(frozen=True)
class Announced:
    """What `winnow ui` or `winnow up` keeps up; "" for what is a team's, which a shell has to name, and may lack."""

    mlflow: str
    """Page."""
    prefect_api: str
    owner: str
    """The process that keeps them up, as tasks/project/run_origin.py names it."""


def file_of(places: ProjectPaths) -> Path:
    """Where they are written down."""
    return places.state_dir / "servers.json"


def announce(places: ProjectPaths, mlflow: str, prefect_api: str) -> None:
    """They are up now, and this process keeps them so."""
    write_json(file_of(places), asdict(Announced(mlflow, prefect_api, process_identity(os.getpid()))))


def withdraw(places: ProjectPaths) -> None:
    """They are down, if they were this process's."""
    if (found := announced(places)) and found.owner == process_identity(os.getpid()):
        file_of(places).unlink(missing_ok=True)


def announced(places: ProjectPaths) -> Announced | None:
    """What was written down last, by a process that may be gone; None where the file is missing or damaged."""
    return read_memory(file_of(places), Announced | None, None)


def prefect_api(places: ProjectPaths) -> str:
    """Address of the API that runs report to: the one in the environment, the project's own, or "" for neither."""
    if told := os.environ.get("PREFECT_API_URL"):
        return told
    found = announced(places)
    is_up = found and is_alive(found.owner) and answers(f"{found.prefect_api}/health")
    return found.prefect_api if found and is_up else ""


def check_prefect() -> None:
    """Raise WinnowError where the shell names a Prefect server and nobody is there: Prefect's own error is long."""
    told = os.environ.get("PREFECT_API_URL", "")
    if told and not is_there(f"{told.rstrip('/')}/health"):
        raise WinnowError(
            f"nobody answers at {tracked_runs.without_password(told)}: start that server, or unset PREFECT_API_URL"
        )


def report_to_prefect(places: ProjectPaths) -> bool:
    """Have this process report to the server that is up, if one is; before Prefect is imported.

    Else Prefect starts one for this process alone, which is given a password here.
    """
    told = os.environ.get("PREFECT_API_URL")
    if api := prefect_api(places):
        os.environ["PREFECT_API_URL"] = api
        if not told:
            os.environ["PREFECT_API_AUTH_STRING"] = passwords.auth_of(passwords.own_password(places))
    else:
        passwords.guard_temporary_server()
    return bool(api)


def mlflow_page(places: ProjectPaths) -> str:
    """Address of MLflow's pages for a browser: the team's server, the project's own, or "" where none is up."""
    told = tracked_runs.address(places)
    if told.startswith("http"):
        return tracked_runs.without_password(told).rstrip("/")
    found = announced(places)
    return found.mlflow if found and is_alive(found.owner) else ""


def answers(address: str) -> bool:
    """Whether a server answers well."""
    try:
        with urllib.request.urlopen(address, timeout=ANSWER_SECONDS) as answer:
            return bool(answer.status == 200)
    except (OSError, ValueError, urllib.error.URLError):
        return False


def is_there(address: str) -> bool:
    """Whether somebody answers, be it with a refusal."""
    try:
        urllib.request.urlopen(address, timeout=ANSWER_SECONDS).close()
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError):
        return False
    return True
