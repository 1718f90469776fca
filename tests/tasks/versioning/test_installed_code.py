from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tasks.versioning.dvc_stages import propagate_changes
from tasks.versioning.installed_code import (
    FOLDER,
    changed_code,
    check,
    installed_digests,
    is_separate_project,
    project_stages,
    write_digests,
)
from tests.closure import ROOT
from winnow.config import load_config
from winnow.errors import WinnowError
from winnow.records import sha256_of


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Return a folder whose dvc.yaml is that of a separate project."""
    (tmp_path / "dvc.yaml").write_text(project_stages(), encoding="utf-8")
    return tmp_path


CONFIG = load_config(ROOT / "params.yaml")


def test_a_project_s_stages_depend_on_digests_in_place_of_code() -> None:
    own = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))
    stages = yaml.safe_load(project_stages())
    assert stages.keys() == own.keys()
    assert stages["stages"].keys() == own["stages"].keys()
    for name, stage in stages["stages"].items():
        settings, former = stage.get("do", stage), own["stages"][name].get("do", own["stages"][name])
        code = {f"{FOLDER}/{name}.yaml"} | ({f"{FOLDER}/${{item.method}}.yaml"} if name == "candidate" else set())
        assert set(settings["deps"]) == {dep for dep in former["deps"] if not dep.startswith("winnow/")} | code
        assert {**settings, "deps": []} == {**former, "deps": []}


def test_digests_are_those_of_the_code_files() -> None:
    digests = installed_digests()
    assert digests["prune"] == {"winnow/compression/prune.py": sha256_of(ROOT / "winnow/compression/prune.py")}
    assert "winnow/training/loop.py" in digests["pretrain"]
    assert "winnow/training/loop.py" not in digests["ingest"]
    assert "winnow/reporting/templates/page.html" in digests["report"]


def test_changed_code_makes_its_stages_stale_with_the_reason(project: Path) -> None:
    write_digests(project)
    assert changed_code(project, CONFIG) == {}
    check(project, CONFIG, "pretrain")
    path = project / FOLDER / "pretrain.yaml"
    digests = yaml.safe_load(path.read_text(encoding="utf-8"))
    path.write_text(yaml.safe_dump({**digests, "winnow/training/loop.py": "0", "winnow/former.py": "0"}))
    changed = changed_code(project, CONFIG)
    assert changed == {"pretrain": ["winnow/former.py", "winnow/training/loop.py"]}
    with pytest.raises(WinnowError, match=r"other code for pretrain .*winnow/former\.py, winnow/training/loop\.py"):
        check(project, CONFIG, "pretrain")
    check(project, CONFIG, "ingest")
    stale = propagate_changes({"pretrain": ["winnow's code has changed: winnow/former.py"]}, CONFIG)
    assert stale["pretrain"] == ["winnow's code has changed: winnow/former.py"]


@pytest.mark.parametrize("damage", [b"\xff", b"- a list", b"{", None])
def test_a_damaged_file_is_written_again(project: Path, damage: bytes | None) -> None:
    write_digests(project)
    path = project / FOLDER / "prune.yaml"
    text = path.read_bytes()
    path.unlink() if damage is None else path.write_bytes(damage)
    assert list(changed_code(project, CONFIG)) == ["candidate@pruned"]
    write_digests(project)
    assert path.read_bytes() == text


def test_the_repository_itself_needs_no_digests() -> None:
    assert not is_separate_project(ROOT)
    assert changed_code(ROOT, CONFIG) == {}
    write_digests(ROOT)
    assert not (ROOT / FOLDER).exists()
