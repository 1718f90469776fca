"""Check that every benchmark can be imported, and that settings derived from params.yaml are valid."""

from __future__ import annotations

import importlib

import pytest

from benchmarks import search_or_tree
from tests.closure import ROOT

SCRIPTS = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py") if path.stem != "__init__")


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_can_be_imported(name: str) -> None:
    importlib.import_module(f"benchmarks.{name}")


def test_the_tree_without_controls_is_valid() -> None:
    config = search_or_tree.tree_config(seed=1, minutes=5)
    assert {"pruned", "student"} <= config.candidates.keys()
    assert not {"dense-kd", "dense-kd-int8", "student-alone"} & config.candidates.keys()
