from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.conftest import tiny_params
from winnow.cli.main import main


@pytest.mark.parametrize(
    "options", [["--name", ""], ["--name", "x" * 61], ["--name", "../x"], ["--add", "x" * 300], ["--add", "x" * 57]]
)
def test_a_refused_name_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(tiny_params()), encoding="utf-8")
    (tmp_path / "dvc.yaml").write_text("stages: {}", encoding="utf-8")
    before = (tmp_path / "params.yaml").read_bytes()
    with pytest.raises(SystemExit) as exc_info:
        main(["search", *options, "-S", "search.minutes=3"])
    assert exc_info.value.code == 2
    assert f"winnow: {options[0]} '{options[1]}': not a valid name" in capsys.readouterr().err
    assert (tmp_path / "params.yaml").read_bytes() == before
    assert not list(tmp_path.glob(".winnow/search/*"))
