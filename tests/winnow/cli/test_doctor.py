from __future__ import annotations

import shutil
import socket
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tasks.project.paths import ProjectPaths
from tests.closure import ROOT
from winnow.cli import doctor
from winnow.cli.doctor import Check, check_machine, check_network, check_packages, check_project, print_checks


def by_topic(checks: list[Check]) -> dict[str, Check]:
    return {check.topic: check for check in checks}


def test_every_extra_but_collections_has_a_feature() -> None:
    extras = {
        str(Requirement(text).marker).split('"')[1]
        for text in doctor.importlib.metadata.requires(doctor.PACKAGE) or ()
        if Requirement(text).marker
    }
    assert extras - set(doctor.FEATURES) <= {"all", "cuda", "dev", "docs"}


def test_packages_that_are_missing_or_old_are_named_with_their_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {check.state for check in check_packages()} == {"ok"}
    version = doctor.importlib.metadata.version

    def without_optuna(name: str) -> str:
        if name == "optuna":
            raise doctor.importlib.metadata.PackageNotFoundError(name)
        return "1.0" if name in ("openvino", "prefect") else version(name)

    monkeypatch.setattr(doctor.importlib.metadata, "version", without_optuna)
    checks = by_topic(list(check_packages()))
    search, runtimes, runs = (checks[f"packages: {extra}"] for extra in ("search", "runtimes", "orchestrate"))
    assert (search.state, search.found) == ("note", "optuna is not installed")
    assert search.remedy.endswith("pip install 'winnow-vision[search]'")
    assert runtimes.found.startswith("openvino 1.0 is installed, >=")
    assert runs.state == "missing"


def test_a_machine_without_compiler_disk_and_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.shutil, "which", lambda _name: None)
    monkeypatch.setattr(doctor, "memory_gb", lambda: 2.0)
    monkeypatch.setattr(doctor, "cpu_flags", lambda: frozenset({"avx2"}))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _path: usage._replace(free=1_000_000))
    checks = by_topic(list(check_machine(tmp_path)))
    assert [checks[topic].state for topic in ("processor", "memory", "disk", "compiler")] == [
        "note",
        "note",
        "missing",
        "note",
    ]
    assert "overflow_safe" in checks["processor"].remedy
    assert "apt install g++" in checks["compiler"].remedy


def test_servers_and_proxies_are_shown_without_passwords(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://ann:secret@127.0.0.1:{unused.getsockname()[1]}")
        monkeypatch.setenv("HTTPS_PROXY", "http://ann:secret@proxy:3128")
        checks = by_topic(list(check_network()))
    assert checks["MLflow"].state == "missing"
    assert checks["proxy"].state == "ok"
    assert not any("secret" in check.found + check.remedy for check in checks.values())


def test_mistakes_in_params_are_shown_and_end_with_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    params = (ROOT / "params.yaml").read_text()
    (tmp_path / "params.yaml").write_text(params.replace("image_size: 32", "image_size: 3"))
    (check,) = check_project(ProjectPaths(tmp_path))
    assert check.state == "missing"
    assert "data.image_size" in check.found
    assert print_checks(ProjectPaths(tmp_path)) == 2
    assert "A run cannot start: params.yaml." in " ".join(capsys.readouterr().out.split())


def test_outside_of_a_project_the_machine_is_checked(capsys: pytest.CaptureFixture[str]) -> None:
    assert print_checks(None) == 0
    assert "processor" in capsys.readouterr().out
