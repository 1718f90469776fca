"""Which servers of the project are up: .winnow/servers.json, written by whoever starts them, read by runs and links.

No mlflow and no prefect here: an unchanged `winnow run` reads this.
"""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from tasks import tracked
from tasks.settings import Places
from winnow.records import write_json

ANSWER_SECONDS = 2


def file_of(places: Places) -> Path:
    """Where the pages are written down."""
    return places.hidden / "servers.json"


def announce(places: Places, pages: Mapping[str, str]) -> None:
    """Name -> page of what is up now: mlflow, prefect."""
    write_json(file_of(places), dict(pages))


def withdraw(places: Places) -> None:
    """They are down."""
    file_of(places).unlink(missing_ok=True)


def prefect_api(places: Places) -> str:
    """Address of the API that runs report to: the one in the environment, the project's own, or "" for neither."""
    if told := os.environ.get("PREFECT_API_URL"):
        return told
    page = _read(places).get("prefect", "")
    return f"{page}/api" if page and _answers(f"{page}/api/health") else ""


def mlflow_page(places: Places) -> str:
    """Address of MLflow's pages for a browser: the team's server, the project's own, or "" where none is up."""
    told = tracked.address(places)
    return tracked.without_password(told).rstrip("/") if told.startswith("http") else _read(places).get("mlflow", "")


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=ANSWER_SECONDS) as answer:
            return bool(answer.status == 200)
    except (OSError, ValueError, urllib.error.URLError):
        return False


def _read(places: Places) -> dict[str, str]:
    """Nothing where the file is missing or damaged."""
    try:
        found = json.loads(file_of(places).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
