"""dvc.yaml against the code and the flow: code deps are import closures, and both graphs are the same."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from tasks.versioning import stages
from tests.closure import ROOT, closure
from winnow.config import load_config

STEP_FILES = {
    "ingest": "ingest",
    "pretrain": "pretrain",
    "finetune": "finetune",
    "candidate": "compress",
    "benchmark": "benchmark",
    "select": "select",
    "report": "report",
}
METHODS = {"prune", "sparsify", "quantize", "distill"}


def _stage(name: str) -> dict:
    stage = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"][name]
    return stage.get("do", stage)


def code_deps(name: str) -> set[str]:
    methods = {ROOT / f"winnow/compression/{method}.py" for method in METHODS} if name == "candidate" else set()
    files = closure(ROOT / f"winnow/steps/{STEP_FILES[name]}.py", skip=methods)
    for method in methods:
        files |= closure(method, skip=methods - {method}) - {method}
    relative = {file.relative_to(ROOT).as_posix() for file in files}
    left_out = re.compile(
        r"winnow/(config/.*|records\.py|errors\.py|__init__\.py|(steps|data|models|reporting)/__init__\.py)"
    )
    return {file for file in relative if not left_out.fullmatch(file)}


@pytest.mark.parametrize("name", list(STEP_FILES))
def test_code_deps_are_the_import_closure(name: str) -> None:
    listed = {dep for dep in _stage(name)["deps"] if dep.startswith("winnow/") and "$" not in dep}
    assert sorted(listed) == sorted(code_deps(name))


def test_flow_and_dvc_draw_the_same_graph() -> None:
    from dvc.repo import Repo

    with Repo(str(ROOT)) as repo:
        graph = repo.index.graph
        dvc_edges = {(a.addressing, b.addressing) for a, b in graph.edges}
        dvc_nodes = {stage.addressing for stage in graph.nodes}
    ours = stages(load_config(ROOT / "params.yaml"))
    assert {stage.name for stage in ours} == dvc_nodes
    assert {(stage.name, need) for stage in ours for need in stage.needs} == dvc_edges


def test_outputs_agree() -> None:
    for stage in stages(load_config(ROOT / "params.yaml")):
        kind, _, key = stage.name.partition("@")
        outs = [out.replace("${key}", key) for out in _stage(kind)["outs"]]
        assert outs == [f"artifacts/{stage.out}"]


def test_every_method_has_its_file() -> None:
    assert {path.stem for path in Path(ROOT / "winnow/compression").glob("*.py")} >= METHODS
