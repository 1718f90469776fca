from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.versioning.dvc_stages import (
    Stage,
    command,
    environment,
    is_noise,
    parse_outcome,
    stages,
    stale_stages,
    start_stage,
)
from tests.closure import ROOT
from winnow.config import Config, load_config
from winnow.errors import ConfigError, DataError, WinnowError


def test_every_stage_comes_after_those_it_needs(tiny_config: Config) -> None:
    ordered = stages(tiny_config)
    names = [stage.name for stage in ordered]
    steps = {"ingest", "embed", "pretrain", "finetune", "benchmark", "select", "refit", "report"}
    assert sorted(names) == sorted(steps | {f"candidate@{name}" for name in tiny_config.candidates})
    for index, stage in enumerate(ordered):
        assert set(stage.needs) <= set(names[:index])
        assert len(stage.needs) == len(set(stage.needs))
    by_name = {stage.name: stage for stage in ordered}
    assert by_name["candidate@pruned-int8"].needs == ("ingest", "embed", "pretrain", "finetune", "candidate@pruned")
    assert by_name["candidate@pruned"].needs == ("ingest", "embed", "pretrain", "finetune")


@pytest.mark.parametrize(
    ("name", "label", "out"),
    [
        ("ingest", "ingest", "data"),
        ("finetune", "finetune", "candidates/dense"),
        ("candidate@pruned-int8", "pruned-int8", "candidates/pruned-int8"),
        ("report", "report", "report"),
    ],
)
def test_labels_and_folders(name: str, label: str, out: str) -> None:
    stage = Stage(name, ())
    assert (stage.label, stage.out) == (label, out)


def test_the_same_python_runs_dvc_and_its_stages() -> None:
    assert command("status") == [sys.executable, "-m", "dvc", "status"]
    assert environment()["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)
    version = subprocess.run(command("--version"), env=environment(), capture_output=True, text=True, check=True)
    assert version.stdout[0].isdigit()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Return a DVC project with the shipped params.yaml and dvc.yaml, without data or code."""
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    subprocess.run(command("init", "--no-scm", "-q"), cwd=tmp_path, env=environment(), check=True)
    return tmp_path


@pytest.mark.thorough
def test_in_an_empty_project_every_stage_is_stale_with_a_reason(project: Path) -> None:
    config = load_config(project / "params.yaml")
    stale = stale_stages(project, config)
    assert list(stale) == [stage.name for stage in stages(config)]
    assert all(reasons[0] == "it has not run yet" for reasons in stale.values())
    assert "data/cifar10-jpeg-sample.tar.xz: deleted" in stale["ingest"]
    assert not any("artifacts/" in reason for reasons in stale.values() for reason in reasons)
    assert all(isinstance(reason, str) and reason for reasons in stale.values() for reason in reasons)


TWO_STAGES = """
stages:
  ingest:
    cmd: mkdir -p artifacts/data && cp params.yaml artifacts/data/
    params: [data.image_size]
    outs: [artifacts/data]
  pretrain:
    cmd: test ! -f fail && mkdir -p artifacts/pretrain && echo hello from the stage && touch artifacts/pretrain/x
    deps: [artifacts/data]
    outs: [artifacts/pretrain]
"""


def run_stage(project: Path, stage: str) -> tuple[int, list[str]]:
    with start_stage(project, stage) as child:
        assert child.stdout is not None
        lines = child.stdout.read().splitlines()
    return child.returncode, lines


@pytest.mark.thorough
def test_a_stage_is_run_skipped_or_restored_and_its_children_follow(project: Path) -> None:
    (project / "dvc.yaml").write_text(TWO_STAGES)
    config = load_config(project / "params.yaml")
    outputs = [run_stage(project, stage)[1] for stage in ("ingest", "pretrain")]
    assert [parse_outcome(lines) for lines in outputs] == ["ran", "ran"]
    assert [line for lines in outputs for line in lines if not is_noise(line) and line[:2] != "> "] == [
        "hello from the stage"
    ]
    assert stale_stages(project, config) == {}
    assert parse_outcome(run_stage(project, "ingest")[1]) == "unchanged"
    text = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(text.replace("image_size: 32", "image_size: 64"))
    stale = stale_stages(project, config)
    assert stale["ingest"] == ["data.image_size: modified"]
    assert "ingest has to run" in stale["pretrain"]  # DVC itself does not report it yet
    assert parse_outcome(run_stage(project, "ingest")[1]) == "ran"
    (project / "params.yaml").write_text(text)
    assert parse_outcome(run_stage(project, "ingest")[1]) == "restored"
    (project / "fail").touch()
    shutil.rmtree(project / "artifacts" / "pretrain")
    shutil.rmtree(project / ".dvc" / "cache")
    status, lines = run_stage(project, "pretrain")
    assert status != 0
    assert any("failed to run" in line for line in lines)


def test_keys_that_an_earlier_version_did_not_have_are_named_before_anything_runs(project: Path) -> None:
    file = project / "params.yaml"
    lines = [line for line in file.read_text().splitlines() if not line.startswith(("  timed_ms:", "  warm_up_ms:"))]
    file.write_text("\n".join(lines))
    with pytest.raises(ConfigError, match=r"-S benchmark\.warm_up_ms=100\.0 -S benchmark\.timed_ms=50\.0` adds them"):
        stale_stages(project, load_config(file))


@pytest.mark.thorough
def test_a_broken_project_raises_the_message_of_dvc(project: Path) -> None:
    config = load_config(project / "params.yaml")
    (project / "dvc.yaml").write_text("stages: [")
    with pytest.raises(WinnowError, match=r"dvc status failed in .*:\n(.*\n)*.*dvc\.yaml"):
        stale_stages(project, config)


@pytest.mark.thorough
@pytest.mark.timeout(60)
def test_pipes_and_linked_folders_are_errors_before_dvc_runs(project: Path) -> None:
    for name in ("cat", "dog"):
        (project / "photos" / name).mkdir(parents=True)
        (project / "photos" / name / "1.jpg").touch()
    params = (project / "params.yaml").read_text(encoding="utf-8")
    params = params.replace("source: sample ", "source: folder ").replace("data/cifar10-jpeg-sample.tar.xz", "photos")
    (project / "params.yaml").write_text(params, encoding="utf-8")
    config = load_config(project / "params.yaml")
    os.mkfifo(project / "photos" / "cat" / "pipe.jpg")
    with pytest.raises(DataError, match=r"pipe\.jpg: a named pipe, not a file; move it elsewhere"):
        stale_stages(project, config)
    (project / "photos" / "cat" / "pipe.jpg").unlink()
    assert "ingest" in stale_stages(project, config)
    (project / "photos" / "dog").rename(project / "behind")
    (project / "photos" / "dog").symlink_to(project / "behind")
    with pytest.raises(DataError, match=r"dog is a link to a folder: images that are added to it would go unnoticed"):
        stale_stages(project, config)
