"""Run the notebook of the documentation as a reader would, in a kernel of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from tests.closure import ROOT

NOTEBOOK = ROOT / "docs" / "library.ipynb"


def run_notebook(content: Any, folder: Path) -> Any:
    """Return the notebook after all its cells have run in `folder`."""
    NotebookClient(content, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(folder)}}).execute()
    return content


def printed(cell: Any) -> str:
    return "".join(output.text for output in cell.outputs if output.output_type == "stream" and output.name == "stdout")


@pytest.mark.thorough
def test_the_notebook_runs_and_prints_what_it_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    stored = nbformat.read(NOTEBOOK, 4)
    nbformat.validate(stored)
    executed = run_notebook(nbformat.read(NOTEBOOK, 4), ROOT / "docs")
    code = [cell for cell in executed.cells if cell.cell_type == "code"]
    assert all(cell.outputs for cell in stored.cells if cell.cell_type == "code" and "print(" in cell.source)
    for cell, shown in zip(code, [cell for cell in stored.cells if cell.cell_type == "code"], strict=True):
        assert len(printed(cell).splitlines()) == len(printed(shown).splitlines())
    accuracies = {line[:18].strip(): float(line[18:].split()[0]) for line in printed(code[3]).splitlines()}
    assert accuracies["and pseudo-labels"] > accuracies["random weights"] + 5
