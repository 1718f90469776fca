from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from tasks.project import passwords
from tasks.project.paths import ProjectPaths
from winnow.errors import WinnowError


def test_the_password_is_generated_once_and_readable_by_its_owner_only(tmp_path: Path) -> None:
    previous_mask = os.umask(0)
    try:
        password = passwords.project_password(ProjectPaths(tmp_path))
    finally:
        os.umask(previous_mask)
    assert len(password) >= passwords.MIN_LENGTH
    assert passwords.project_password(ProjectPaths(tmp_path)) == password
    assert passwords.project_password(ProjectPaths(tmp_path / "another")) != password
    assert stat.S_IMODE(passwords.password_file(ProjectPaths(tmp_path)).stat().st_mode) == 0o600


def test_a_short_password_is_refused(tmp_path: Path) -> None:
    passwords.project_password(ProjectPaths(tmp_path))
    passwords.password_file(ProjectPaths(tmp_path)).write_text("short\n")
    with pytest.raises(WinnowError, match="fewer than 12 characters; delete it"):
        passwords.project_password(ProjectPaths(tmp_path))


def test_the_temporary_server_gets_the_password_of_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_SERVER_API_AUTH_STRING", "")
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "")
    passwords.set_temporary_password()
    password = os.environ["PREFECT_SERVER_API_AUTH_STRING"]
    assert password == os.environ["PREFECT_API_AUTH_STRING"]
    assert len(password) > passwords.MIN_LENGTH
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "ann:her own password")
    passwords.set_temporary_password()
    assert os.environ["PREFECT_SERVER_API_AUTH_STRING"] == "ann:her own password"
