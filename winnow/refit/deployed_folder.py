"""Which folder holds the file that is deployed for a winner: its own, or that of its refit. No torch here.

    artifacts/refit/model.onnx, card.json          the refitted file; only where the refit was accepted
    artifacts/refit/selected/model.onnx            the file that was selected, measured and judged

A refitted file has learned from validation images, so it is compared with no other on them; the selected file is kept
beside it for that.
"""

from __future__ import annotations

from pathlib import Path

from winnow.deploy.onnx_session import MODEL
from winnow.errors import ArtifactError
from winnow.records import StepRecord, read_record, record_digest

REFIT, SELECTED = "refit", "selected"
WINNER = "winner.json"
"""In select's folder, all of it that `refit` reads: other times with the same winner train nothing anew."""


def refit_record(artifacts: Path, winner: str) -> StepRecord:
    """Return the record of the refit of `winner`. Raises ArtifactError where the step has not run for this very one."""
    record = read_record(artifacts / REFIT)
    if record.inputs.get(winner) != record_digest(artifacts / "candidates" / winner):
        raise ArtifactError(f"{artifacts / REFIT} does not belong to the present {winner}; run winnow again")
    return record


def deployed_folder(artifacts: Path, winner: str) -> Path:
    """Return the folder whose model.onnx and card.json are deployed. Raises ArtifactError as `refit_record`."""
    refitted: bool = refit_record(artifacts, winner).details["is_refitted"]
    return artifacts / REFIT if refitted else artifacts / "candidates" / winner


def selected_folder(folder: Path) -> Path:
    """Return the folder of the file before the refit, which no validation image taught; `folder` itself without one."""
    return folder / SELECTED if (folder / SELECTED / MODEL).is_file() else folder
