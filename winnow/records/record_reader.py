"""Read the record of any step: the model of its details follows from the step that it names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from winnow.errors import ArtifactError
from winnow.records.benchmark import BenchmarkRecord
from winnow.records.candidate import CandidateRecord
from winnow.records.embed import EmbedRecord
from winnow.records.ingest import IngestRecord
from winnow.records.pretrain import PretrainRecord
from winnow.records.refit import RefitRecord
from winnow.records.report import ReportRecord
from winnow.records.selection import SelectionRecord
from winnow.records.step_record import RECORD, AnyRecord, read_raw_record

RECORDS: dict[str, Any] = {
    "ingest": IngestRecord,
    "embed": EmbedRecord,
    "pretrain": PretrainRecord,
    "finetune": CandidateRecord,
    "compress": CandidateRecord,
    "benchmark": BenchmarkRecord,
    "select": SelectionRecord,
    "refit": RefitRecord,
    "report": ReportRecord,
}
"""Step -> type of its record."""


def read_record(folder: Path) -> AnyRecord:
    """Return the record in a step's folder. Raises ArtifactError as StepRecord.read, and for an unknown step."""
    raw = read_raw_record(folder)
    step = raw.get("step") if isinstance(raw, dict) else None
    if isinstance(step, str) and step not in RECORDS:
        raise ArtifactError(
            f"{folder / RECORD} is damaged, or of another version of winnow (at step: there is no step {step!r}); "
            "delete its folder and run winnow again"
        )
    record_type = RECORDS.get(step, AnyRecord) if isinstance(step, str) else AnyRecord
    record: AnyRecord = record_type.parse(raw, folder)
    return record
