"""The way to another machine and back, as a person goes it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.integration.conftest import Project
from winnow.records import SelectionRecord, read_json

pytestmark = pytest.mark.slow


def test_gates_go_by_the_machine_that_will_serve(project: Project, tmp_path: Path) -> None:
    root = project.root
    project.winnow("run")  # a copy has no registry yet
    exported = project.winnow("export", str(tmp_path / "taken"), "--candidates")
    assert exported.returncode == 0, exported.stderr
    assert "On the serving machine: python check_host.py" in exported.stdout
    script = [sys.executable, "-I", str(tmp_path / "taken" / "check_host.py")]
    subprocess.run(script, cwd=tmp_path, check=True, capture_output=True)
    told = read_json(tmp_path / "host.json")
    told["machine"] |= {"cpu": "Cortex-A76", "flags": ["asimd", "asimddp"]}
    (tmp_path / "host.json").write_text(json.dumps(told))
    taken = project.winnow("check-host", str(tmp_path / "host.json"))
    assert taken.returncode == 0, taken.stderr
    assert "Gates use Cortex-A76" in taken.stdout
    assert yaml.safe_load((root / "params.yaml").read_text())["benchmark"]["target"] == "data/target.json"
    assert set(json.loads(project.dvc("status", "--json").stdout)) == {"select"}  # and report, which reads it
    result = project.winnow("run")
    assert result.returncode == 0, result.stdout + result.stderr
    record = SelectionRecord.read(root / "artifacts" / "select")
    assert record.details.speeds.machine.cpu == "Cortex-A76"
    assert "on Cortex-A76" in (root / "artifacts" / "report" / "report.html").read_text()


def test_for_a_processor_that_saturates_int8_is_made_anew(project: Project, tmp_path: Path) -> None:
    exported = project.winnow("export", str(tmp_path / "taken"), "--candidates")
    assert exported.returncode == 0, exported.stderr
    script = [sys.executable, "-I", str(tmp_path / "taken" / "check_host.py")]
    subprocess.run(script, cwd=tmp_path, check=True, capture_output=True)
    told = read_json(tmp_path / "host.json")
    told["machine"] |= {"cpu": "Xeon E5-2690", "flags": ["avx2"]}
    (tmp_path / "host.json").write_text(json.dumps(told))
    taken = project.winnow("check-host", str(tmp_path / "host.json"))
    assert taken.returncode == 0, taken.stderr
    assert "Xeon E5-2690 has no VNNI" in taken.stdout
    params = yaml.safe_load((project.root / "params.yaml").read_text())["candidates"]
    quantized = {name for name, each in params.items() if each["method"] == "quantize"}
    assert quantized == {name for name, each in params.items() if each.get("overflow_safe")}
    stale = set(json.loads(project.dvc("status", "--json").stdout))
    assert {f"candidate@{name}" for name in quantized} <= stale
    assert "candidate@pruned" not in stale


def test_what_is_no_report_changes_nothing(project: Project, tmp_path: Path) -> None:
    (tmp_path / "host.json").write_text("{}")
    before = (project.root / "params.yaml").read_text()
    result = project.winnow("check-host", str(tmp_path / "host.json"))
    assert result.returncode == 2
    assert "is not a file of check_host.py" in result.stderr
    assert (project.root / "params.yaml").read_text() == before
    assert not (project.root / "data" / "target.json").exists()
