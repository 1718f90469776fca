"""Passwords of the project's own servers: generated once, in files that only their owner can read.

Without a password, every account of the machine and every page in its browser could start runs, answer approvals and
move aliases, since a server on 127.0.0.1 serves every local process.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from tasks.project.paths import ProjectPaths
from winnow.errors import WinnowError
from winnow.records import atomic_path

USER = "winnow"
MIN_LENGTH = 12
"""The shortest password that MLflow accepts, in characters."""


def write_private_file(path: Path, text: str) -> None:
    """Write a file atomically with permissions 0600 from the start."""
    with atomic_path(path) as temporary:
        temporary.unlink(missing_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)


def password_file(paths: ProjectPaths) -> Path:
    """Return the path of the file with the project's password."""
    return paths.state_dir / "password"


def project_password(paths: ProjectPaths) -> str:
    """Return the password of this project's servers, generated where there is none yet.

    Raises WinnowError where the file holds no password that MLflow accepts.
    """
    path = password_file(paths)
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_private_file(path, f"{secrets.token_urlsafe(18)}\n")
    try:
        password = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise WinnowError(f"{path} cannot be read ({error}); delete it, and a new password is generated") from error
    if len(password) < MIN_LENGTH:
        raise WinnowError(
            f"{path} holds fewer than {MIN_LENGTH} characters; delete it, and a new password is generated"
        )
    return password


def auth_string(password: str) -> str:
    """Return the value of Prefect's AUTH_STRING settings: `user:password`."""
    return f"{USER}:{password}"


def set_temporary_password() -> None:
    """Set a random password for the temporary server that Prefect starts for this process.

    Call before Prefect is imported, where no PREFECT_API_URL is set.
    """
    auth = os.environ.get("PREFECT_API_AUTH_STRING") or auth_string(secrets.token_urlsafe(18))
    os.environ.update(PREFECT_API_AUTH_STRING=auth, PREFECT_SERVER_API_AUTH_STRING=auth)
