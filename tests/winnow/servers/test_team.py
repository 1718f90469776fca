from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from winnow.errors import WinnowError
from winnow.servers.team import _secrets


def test_passwords_are_made_up_once_and_for_their_owner(tmp_path: Path) -> None:
    path = tmp_path / "secrets.json"
    made = _secrets(path)
    assert len(set(made.values())) == len(made)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert _secrets(path) == made


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "no JSON object of strings"),
        ("short", "engineer: MLflow requires at least 12"),
        ("missing", "flask"),
        ("[1]", "no JSON object of strings"),
    ],
)
def test_a_file_that_was_edited_wrongly_is_named(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "secrets.json"
    made = _secrets(path)
    if text == "short":
        text = json.dumps(made | {"engineer": "secret"})
    elif text == "missing":
        text = json.dumps({name: word for name, word in made.items() if name != "flask"})
    path.write_text(text)
    with pytest.raises(WinnowError, match=said) as raised:
        _secrets(path)
    assert str(path) in str(raised.value)
