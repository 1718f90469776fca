"""Passwords of the project's own servers: made up once, kept where their owner alone can read them.

Without one, any account of the machine and any page in its browser could start runs, answer approvals and move
aliases, which servers on 127.0.0.1 do for whoever reaches them.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from tasks.project.paths import ProjectPaths
from winnow.errors import WinnowError
from winnow.records import renamed

USER = "winnow"
SHORTEST = 12
"""Characters; MLflow takes no fewer."""


def write_private(path: Path, text: str) -> None:
    """Write a file for its owner alone, from the first byte on; whole or not at all."""
    with renamed(path) as temporary:
        temporary.unlink(missing_ok=True)
        number = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(number, "w", encoding="utf-8") as opened:
            opened.write(text)


def file_of(places: ProjectPaths) -> Path:
    """Where the password of this project's servers lies."""
    return places.state_dir / "password"


def own_password(places: ProjectPaths) -> str:
    """Return the password of this project's servers, made up where there is none yet.

    Raises WinnowError where the file holds no password that MLflow would take.
    """
    path = file_of(places)
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_private(path, f"{secrets.token_urlsafe(18)}\n")
    try:
        password = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise WinnowError(f"{path} cannot be read ({error}); delete it, and a new password is made up") from error
    if len(password) < SHORTEST:
        raise WinnowError(f"{path} holds fewer than {SHORTEST} characters; delete it, and a new password is made up")
    return password


def auth_of(password: str) -> str:
    """Return what Prefect's server is started with and asked with: `user:password`."""
    return f"{USER}:{password}"


def guard_temporary_server() -> None:
    """Give the server that Prefect starts for this process alone a password of its own, which ends with it.

    Call before Prefect is imported, where no PREFECT_API_URL is set.
    """
    auth = os.environ.get("PREFECT_API_AUTH_STRING") or auth_of(secrets.token_urlsafe(18))
    os.environ.update(PREFECT_API_AUTH_STRING=auth, PREFECT_SERVER_API_AUTH_STRING=auth)
