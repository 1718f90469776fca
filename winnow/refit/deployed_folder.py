"""The folder whose file is deployed for a winner: its own, or that of its refit. Imports no torch.

    artifacts/refit/model.onnx, card.json          the refitted file; only if the refit was accepted
    artifacts/refit/selected/model.onnx            the file that was selected and measured

A refitted file was trained on validation images, so it must not be compared with others on them. The selected file is
kept beside it for that purpose.
"""

from __future__ import annotations

from pathlib import Path

from winnow.deploy.onnx_session import MODEL
from winnow.errors import ArtifactError
from winnow.records import RefitRecord, read_json, record_digest, write_json

REFIT, SELECTED = "refit", "selected"
WINNER = "winner.json"
"""The only file of select's folder that `refit` reads, so that other timings with the same winner do not retrain."""


def write_winner(folder: Path, winner: str | None) -> None:
    """Write the name of the selected candidate, None for no candidate, to the folder of select."""
    write_json(folder / WINNER, {"winner": winner})


def read_winner(folder: Path) -> str | None:
    """Return the name of the selected candidate from the folder of select. Raises ArtifactError for a damaged file."""
    content = read_json(folder / WINNER)
    if not isinstance(content, dict) or not isinstance(content.get("winner"), str | None):
        raise ArtifactError(f"{folder / WINNER} is damaged; delete the folder and run winnow again")
    winner: str | None = content.get("winner")
    return winner


def refit_record(artifacts: Path, winner: str) -> RefitRecord:
    """Return the record of the refit of `winner`. Raises ArtifactError if the refit was of another file."""
    record = RefitRecord.read(artifacts / REFIT)
    if record.inputs.get(winner) != record_digest(artifacts / "candidates" / winner):
        raise ArtifactError(f"{artifacts / REFIT} does not belong to the current {winner}; run winnow again")
    return record


def deployed_folder(artifacts: Path, winner: str) -> Path:
    """Return the folder whose model.onnx and card.json are deployed. Raises ArtifactError as `refit_record`."""
    return (
        artifacts / REFIT if refit_record(artifacts, winner).details.is_refitted else artifacts / "candidates" / winner
    )


def selected_folder(folder: Path) -> Path:
    """Return the folder of the file before the refit, not trained on validation images; `folder` without a refit."""
    return folder / SELECTED if (folder / SELECTED / MODEL).is_file() else folder
