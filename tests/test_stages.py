"""Check dvc.yaml against the code and the flow: code dependencies are import closures, params are the config keys that
the code reads, and both graphs are the same.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from typing import Any, get_args

import pytest
import yaml

from tasks import compress
from tasks.versioning.dvc_stages import stages
from tests.closure import ROOT, closure
from winnow.compression import METHODS
from winnow.config import Benchmark, load_config

STEP_FILES = {
    "ingest": "ingest",
    "embed": "embed",
    "pretrain": "pretrain",
    "finetune": "finetune",
    "candidate": "compress",
    "benchmark": "benchmark",
    "select": "select",
    "refit": "refit",
    "report": "report",
}
DERIVED = {
    # A property of two keys: `auto` means one number for the sample, all labels for any other source.
    "data.label_budget": {"data.source", "data.labels_per_class"},
    # All of it but the target, which `select` alone looks at: figures from there make no time here stale.
    "benchmark": {f"benchmark.{key}" for key in Benchmark.model_fields if key != "target"},
}
BY_NAME = {
    # `compress` looks up its own candidate; the names of the others only stand in an error message.
    ("candidate", "candidates"): "candidates.${key}",
    # `pretrain` refuses students that cannot take the images, which changes no result.
    ("pretrain", "candidates"): "pretrain",
}


def _file_of(method: Callable) -> str:
    return method.__module__.rpartition(".")[2]


def _stage(name: str) -> dict:
    stage = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"][name]
    return stage.get("do", stage)


def code_deps(name: str) -> set[str]:
    methods = (
        {ROOT / f"winnow/compression/{_file_of(method)}.py" for method in METHODS.values()}
        if name == "candidate"
        else set()
    )
    files = closure(ROOT / f"winnow/steps/{STEP_FILES[name]}.py", skip=methods)
    for method in methods:
        files |= closure(method, skip=methods - {method}) - {method}
    relative = {file.relative_to(ROOT).as_posix() for file in files}
    left_out = re.compile(
        r"winnow/((config|records)/.*|(errors|eta|printable|__init__)\.py|(steps|data|models|reporting|evaluation|deploy|benchmark|training|refit|selection)/__init__\.py)"
    )
    return {file for file in relative if not left_out.fullmatch(file)}


@pytest.mark.thorough
@pytest.mark.parametrize("name", list(STEP_FILES))
def test_code_deps_are_the_import_closure(name: str) -> None:
    listed = {dep for dep in _stage(name)["deps"] if dep.startswith("winnow/") and "$" not in dep}
    templates = {"winnow/reporting/templates"} if "winnow/reporting/html.py" in code_deps(name) else set()
    assert sorted(listed) == sorted(code_deps(name) | templates)


def config_reads(node: ast.AST) -> set[str]:
    """Return the dotted keys that code reads from a variable `config`, as far as the attribute chain goes."""
    names: list[str] = []
    value = node
    while isinstance(value, ast.Attribute):
        names.insert(0, value.attr)
        value = value.value
    if names and isinstance(value, ast.Name) and value.id == "config":
        return {".".join(names)}
    return set().union(*(config_reads(child) for child in ast.iter_child_nodes(node)))


def test_config_reads_follow_attribute_chains() -> None:
    code = "a = config.data.label_budget, config.data\nb = f(config.finetune.seeds[0], config.candidates[a].parent)"
    assert config_reads(ast.parse(code)) == {"data.label_budget", "data", "finetune.seeds", "candidates"}


@pytest.mark.thorough
@pytest.mark.parametrize("name", list(STEP_FILES))
def test_params_hold_what_the_code_reads(name: str) -> None:
    heads = set(_stage(name)["params"])
    reads = set().union(*(config_reads(ast.parse((ROOT / file).read_text())) for file in code_deps(name)))
    assert reads
    missing = set()
    for read in reads:
        for key in DERIVED.get(read, {BY_NAME.get((name, read), read)}):
            if not any(key == head or key.startswith(f"{head}.") for head in heads):
                missing.add(key)
    assert missing == set()


def test_flow_and_dvc_draw_the_same_graph() -> None:
    from dvc.repo import Repo

    with Repo(str(ROOT)) as repo:
        graph = repo.index.graph
        dvc_edges = {(a.addressing, b.addressing) for a, b in graph.edges}
        dvc_nodes = {stage.addressing for stage in graph.nodes}
    planned = stages(load_config(ROOT / "params.yaml"))
    assert {stage.name for stage in planned} == dvc_nodes
    assert {(stage.name, need) for stage in planned for need in stage.needs} == dvc_edges


def test_outputs_agree() -> None:
    for stage in stages(load_config(ROOT / "params.yaml")):
        kind, _, key = stage.name.partition("@")
        outs = [out.replace("${key}", key) for entry in _stage(kind)["outs"] for out in _paths(entry)]
        assert outs == [f"artifacts/{stage.out}"]


def _paths(entry: str | dict[str, Any]) -> list[str]:
    """Return the path of an output, with or without options."""
    return [entry] if isinstance(entry, str) else list(entry)


def test_every_method_has_its_file() -> None:
    """dvc.yaml derives a candidate's code file from its `method`."""
    for settings, method in METHODS.items():
        assert get_args(settings.model_fields["method"].annotation) == (_file_of(method),)
        assert (ROOT / f"winnow/compression/{_file_of(method)}.py").is_file()


def test_every_method_has_its_prefect_task() -> None:
    assert set(compress.METHODS) == {_file_of(method) for method in METHODS.values()}
    assert {method: (task.name, task.task_run_name) for method, task in compress.METHODS.items()} == {
        method: (method, f"{method} {{candidate}}") for method in compress.METHODS
    }
