"""Test DVC's own commands on a project that commits dvc.lock, as docs/dvc.md shows them."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.integration.conftest import Project

pytestmark = pytest.mark.slow


def git(project: Project, *arguments: str) -> str:
    identity = ("-c", "user.name=Tests", "-c", "user.email=tests@localhost")
    result = subprocess.run(
        ["git", *identity, *arguments], cwd=project.root, env=project.environment(), capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def run_dvc(project: Project, *arguments: str) -> str:
    result = project.dvc(*arguments)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def committed_project(finished: tuple[Project, object], tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Return the finished project with dvc.lock in git and an experiment that prunes more."""
    project = finished[0].copy(tmp_path_factory.mktemp("dvc") / "copy")
    git(project, "config", "user.name", "Tests")
    git(project, "config", "user.email", "tests@localhost")
    git(project, "add", "dvc.lock")
    git(project, "commit", "-qm", "the first run")
    run_dvc(project, "exp", "run", "-S", "candidates.pruned.remove.channels=0.5", "--name", "slimmer")
    return project


def test_an_experiment_changes_one_number_and_runs_its_dependents(committed_project: Project) -> None:
    params = yaml.safe_load((committed_project.root / "params.yaml").read_text())
    assert params["candidates"]["pruned"]["remove"]["channels"] == 0.5
    diff = json.loads(run_dvc(committed_project, "params", "diff", "--json"))
    assert diff == {
        "params.yaml": {"candidates.pruned.remove.channels": {"old": 0.3, "new": 0.5, "diff": pytest.approx(0.2)}}
    }


def test_metrics_diff_shows_quality_and_size_of_changed_candidates(committed_project: Project) -> None:
    diff = json.loads(run_dvc(committed_project, "metrics", "diff", "--json"))["artifacts/select/metrics.json"]
    assert {name.partition(".")[0] for name in diff} == {"pruned", "pruned-int8"}
    size = diff["pruned.size.parameters"]
    assert size["new"] < size["old"]
    assert not any("latency" in name or "throughput" in name for name in diff)


def test_plots_diff_needs_no_network(committed_project: Project, tmp_path: Path) -> None:
    run_dvc(committed_project, "plots", "diff", "HEAD", "workspace", "-o", str(tmp_path / "page"))
    page = (tmp_path / "page" / "index.html").read_text()
    sources = re.findall(r'src="([^"]+)"', page)
    assert "http" not in page
    assert len(sources) == 4
    assert all((tmp_path / "page" / name).is_file() for name in sources)


def test_queued_experiments_run_in_another_folder(committed_project: Project) -> None:
    params_before = (committed_project.root / "params.yaml").read_bytes()
    run_dvc(committed_project, "exp", "run", "--queue", "-S", "candidates.sparse.sparsity=0.7", "--name", "denser")
    run_dvc(committed_project, "exp", "run", "--run-all")
    assert (committed_project.root / "params.yaml").read_bytes() == params_before
    rows = json.loads(run_dvc(committed_project, "exp", "show", "--json"))
    names = {row["name"] for branch in rows for row in experiments(branch)}
    assert names >= {"slimmer", "denser"}
    diff = json.loads(run_dvc(committed_project, "metrics", "diff", "HEAD", "denser", "--json"))
    # A queued experiment includes the changes of the workspace.
    changed = {name.partition(".")[0] for name in diff["artifacts/select/metrics.json"]}
    assert changed == {"pruned", "pruned-int8", "sparse"}


def experiments(branch: dict) -> list[dict]:
    return [revision for experiment in branch["experiments"] or [] for revision in experiment["revs"]]


def test_another_clone_pulls_and_runs_nothing(committed_project: Project, tmp_path: Path) -> None:
    git(committed_project, "stash", "-q")
    run_dvc(committed_project, "checkout")
    run_dvc(committed_project, "remote", "add", "-d", "store", str(tmp_path / "store"))
    git(committed_project, "add", ".dvc/config")
    git(committed_project, "commit", "-qm", "a remote")
    run_dvc(committed_project, "push")
    git(committed_project, "clone", "-q", ".", str(tmp_path / "clone"))
    clone = Project(tmp_path / "clone", committed_project.home)
    run_dvc(clone, "pull")
    assert json.loads(run_dvc(clone, "status", "--json")) == {}
    for record in (committed_project.root / "artifacts").rglob("record.json"):
        assert (clone.root / record.relative_to(committed_project.root)).read_bytes() == record.read_bytes()
