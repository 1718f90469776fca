"""DVC's own commands on a project that commits dvc.lock, as docs/dvc.md shows them."""

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


def done(project: Project, *arguments: str) -> str:
    result = project.dvc(*arguments)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def committed(finished: tuple[Project, object], tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The finished project with dvc.lock in git, and an experiment that prunes more."""
    project = finished[0].copy(tmp_path_factory.mktemp("dvc") / "copy")
    git(project, "config", "user.name", "Tests")
    git(project, "config", "user.email", "tests@localhost")
    git(project, "add", "dvc.lock")
    git(project, "commit", "-qm", "the first run")
    done(project, "exp", "run", "-S", "candidates.pruned.remove.channels=0.5", "--name", "slimmer")
    return project


def test_an_experiment_changes_one_number_and_runs_what_hangs_on_it(committed: Project) -> None:
    params = yaml.safe_load((committed.root / "params.yaml").read_text())
    assert params["candidates"]["pruned"]["remove"]["channels"] == 0.5
    told = json.loads(done(committed, "params", "diff", "--json"))
    assert told == {
        "params.yaml": {"candidates.pruned.remove.channels": {"old": 0.3, "new": 0.5, "diff": pytest.approx(0.2)}}
    }


def test_metrics_diff_tells_quality_and_size_of_what_changed(committed: Project) -> None:
    told = json.loads(done(committed, "metrics", "diff", "--json"))["artifacts/select/metrics.json"]
    assert {name.partition(".")[0] for name in told} == {"pruned", "pruned-int8"}
    size = told["pruned.size.parameters"]
    assert size["new"] < size["old"]
    assert not any("latency" in name or "throughput" in name for name in told)


def test_plots_diff_needs_no_network(committed: Project, tmp_path: Path) -> None:
    done(committed, "plots", "diff", "HEAD", "workspace", "-o", str(tmp_path / "page"))
    page = (tmp_path / "page" / "index.html").read_text()
    shown = re.findall(r'src="([^"]+)"', page)
    assert "http" not in page
    assert len(shown) == 4
    assert all((tmp_path / "page" / name).is_file() for name in shown)


def test_experiments_are_queued_and_run_elsewhere(committed: Project) -> None:
    before = (committed.root / "params.yaml").read_bytes()
    done(committed, "exp", "run", "--queue", "-S", "candidates.sparse.sparsity=0.7", "--name", "denser")
    done(committed, "exp", "run", "--run-all")
    assert (committed.root / "params.yaml").read_bytes() == before
    rows = json.loads(done(committed, "exp", "show", "--json"))
    names = {row["name"] for branch in rows for row in experiments(branch)}
    assert names >= {"slimmer", "denser"}
    told = json.loads(done(committed, "metrics", "diff", "HEAD", "denser", "--json"))
    # What was changed in the workspace is part of an experiment that is queued from there.
    changed = {name.partition(".")[0] for name in told["artifacts/select/metrics.json"]}
    assert changed == {"pruned", "pruned-int8", "sparse"}


def experiments(branch: dict) -> list[dict]:
    return [revision for experiment in branch["experiments"] or [] for revision in experiment["revs"]]


def test_another_clone_pulls_what_was_pushed_and_runs_nothing(committed: Project, tmp_path: Path) -> None:
    git(committed, "stash", "-q")
    done(committed, "checkout")
    done(committed, "remote", "add", "-d", "store", str(tmp_path / "store"))
    git(committed, "add", ".dvc/config")
    git(committed, "commit", "-qm", "a remote")
    done(committed, "push")
    git(committed, "clone", "-q", ".", str(tmp_path / "clone"))
    clone = Project(tmp_path / "clone", committed.home)
    done(clone, "pull")
    assert json.loads(done(clone, "status", "--json")) == {}
    for record in (committed.root / "artifacts").rglob("record.json"):
        assert (clone.root / record.relative_to(committed.root)).read_bytes() == record.read_bytes()
