from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from winnow.errors import WinnowError
from winnow.servers.team import _secrets


def test_passwords_are_generated_once_and_readable_by_their_owner(tmp_path: Path) -> None:
    path = tmp_path / "secrets.json"
    passwords = _secrets(path)
    assert len(set(passwords.values())) == len(passwords)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert _secrets(path) == passwords


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "no JSON object of strings"),
        ("short", "engineer: MLflow requires at least 12"),
        ("missing", "flask"),
        ("[1]", "no JSON object of strings"),
    ],
)
def test_an_invalid_secrets_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "secrets.json"
    passwords = _secrets(path)
    if text == "short":
        text = json.dumps(passwords | {"engineer": "secret"})
    elif text == "missing":
        text = json.dumps({name: password for name, password in passwords.items() if name != "flask"})
    path.write_text(text)
    with pytest.raises(WinnowError, match=message) as exc_info:
        _secrets(path)
    assert str(path) in str(exc_info.value)
