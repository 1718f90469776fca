"""Test measurements on another machine, from the export to the imported file."""

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


def test_gates_use_the_target_machine(project: Project, tmp_path: Path) -> None:
    root = project.root
    project.winnow("run")  # a copy has no registry yet
    export = project.winnow("export", str(tmp_path / "taken"), "--candidates")
    assert export.returncode == 0, export.stderr
    assert "On the serving machine: python check_host.py" in export.stdout
    script = [sys.executable, "-I", str(tmp_path / "taken" / "check_host.py")]
    subprocess.run(script, cwd=tmp_path, check=True, capture_output=True)
    measurements = read_json(tmp_path / "host.json")
    measurements["machine"] |= {"cpu": "Cortex-A76", "flags": ["asimd", "asimddp"]}
    (tmp_path / "host.json").write_text(json.dumps(measurements))
    import_result = project.winnow("check-host", str(tmp_path / "host.json"))
    assert import_result.returncode == 0, import_result.stderr
    assert "Gates use Cortex-A76" in import_result.stdout
    assert yaml.safe_load((root / "params.yaml").read_text())["benchmark"]["target"] == "data/target.json"
    assert set(json.loads(project.dvc("status", "--json").stdout)) == {"select"}  # report depends on select
    result = project.winnow("run")
    assert result.returncode == 0, result.stdout + result.stderr
    record = SelectionRecord.read(root / "artifacts" / "select")
    assert record.details.speeds.machine.cpu == "Cortex-A76"
    assert "on Cortex-A76" in (root / "artifacts" / "report" / "report.html").read_text()


def test_int8_is_computed_again_for_a_saturating_processor(project: Project, tmp_path: Path) -> None:
    export = project.winnow("export", str(tmp_path / "taken"), "--candidates")
    assert export.returncode == 0, export.stderr
    script = [sys.executable, "-I", str(tmp_path / "taken" / "check_host.py")]
    subprocess.run(script, cwd=tmp_path, check=True, capture_output=True)
    measurements = read_json(tmp_path / "host.json")
    measurements["machine"] |= {"cpu": "Xeon E5-2690", "flags": ["avx2"]}
    (tmp_path / "host.json").write_text(json.dumps(measurements))
    import_result = project.winnow("check-host", str(tmp_path / "host.json"))
    assert import_result.returncode == 0, import_result.stderr
    assert "Xeon E5-2690 has no VNNI" in import_result.stdout
    params = yaml.safe_load((project.root / "params.yaml").read_text())["candidates"]
    quantized = {name for name, settings in params.items() if settings["method"] == "quantize"}
    assert quantized == {name for name, settings in params.items() if settings.get("overflow_safe")}
    stale = set(json.loads(project.dvc("status", "--json").stdout))
    assert {f"candidate@{name}" for name in quantized} <= stale
    assert "candidate@pruned" not in stale


def test_an_invalid_file_changes_nothing(project: Project, tmp_path: Path) -> None:
    (tmp_path / "host.json").write_text("{}")
    params_before = (project.root / "params.yaml").read_text()
    result = project.winnow("check-host", str(tmp_path / "host.json"))
    assert result.returncode == 2
    assert "is not a file of check_host.py" in result.stderr
    assert (project.root / "params.yaml").read_text() == params_before
    assert not (project.root / "data" / "target.json").exists()
