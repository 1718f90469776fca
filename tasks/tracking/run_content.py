"""The content of MLflow runs from the records in artifacts/: one `RunContent` per step and candidate.

Reads only files and imports no mlflow, so that checking whether everything is tracked takes milliseconds. The run of a
candidate holds its record, its benchmark results and its verdict. The digest covers all three; until benchmark and
verdict of this record exist, it is the digest of the record alone. Metric names are those of the records, and so equal
for all candidates.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tasks.project.paths import ProjectPaths
from tasks.tracking.run_tags import lineage_tags, machine_tags, test_tags, weights_tags
from tasks.tracking.tags import NAME_TAG, REASON_TAG, STEP_TAG, VERDICT_TAG
from tasks.versioning import dvc_stages
from tasks.versioning.integrity import read_lock
from winnow.config import ROOT, Config
from winnow.evaluation.effective_sample_size import in_groups
from winnow.printable import markdown
from winnow.records import (
    RECORD,
    BenchmarkRecord,
    RecordModel,
    RefitDetails,
    ReportDetails,
    SelectionDetails,
    SelectionRecord,
    read_record,
    record_digest,
)
from winnow.records.candidate_file import CandidateFile
from winnow.selection.gates import GATES

CANDIDATE_STEPS = ("finetune", "candidate")
DATASET = "images"
DATASET_CONTEXT = {"benchmark": "validation", "select": "validation", "report": "test"}
"""The dataset context of a step; `training` for all others."""
PARAM_LENGTH, KEY_LENGTH = 6000, 250
"""MLflow's limits in characters."""


@dataclass(frozen=True)
class RunContent:
    """The content of one MLflow run."""

    name: str
    step: str
    folder: Path
    record_digest: str
    digest: str
    """The digest of record, benchmark results and verdict; `record_digest` until the last two exist."""
    params: dict[str, str]
    metrics: dict[str, float]
    figures: dict[str, float]
    """Metrics from the benchmark of this record."""
    tags: dict[str, str]
    note: str
    curves: list[dict[str, float]]

    @property
    def is_candidate(self) -> bool:
        """True for dense and all candidates."""
        return self.step in CANDIDATE_STEPS

    @property
    def is_judged(self) -> bool:
        """True for a candidate with benchmark results and a verdict."""
        return self.digest != self.record_digest


@dataclass(frozen=True)
class VerdictRecords:
    """The records of benchmark and select, where they belong together."""

    benchmark: BenchmarkRecord
    selection: SelectionRecord


def read_contents(paths: ProjectPaths, config: Config) -> list[RunContent]:
    """Return the content of each step that has a record, in the order of the DVC graph."""
    verdicts = read_verdict_records(paths)
    run_contents = []
    for stage in dvc_stages.stages(config):
        folder = paths.artifacts / stage.out
        if (folder / RECORD).is_file():
            run_contents.append(read_content(folder, stage.name.partition("@")[0], verdicts))
    return run_contents


def has_all_records(paths: ProjectPaths, config: Config) -> bool:
    """Return whether every step has a record."""
    return all((paths.artifacts / stage.out / RECORD).is_file() for stage in dvc_stages.stages(config))


def read_verdict_records(paths: ProjectPaths) -> VerdictRecords | None:
    """Return the records of benchmark and select; None unless the selection is of this benchmark."""
    benchmark, selection = paths.artifacts / "benchmark", paths.artifacts / "select"
    if not ((benchmark / RECORD).is_file() and (selection / RECORD).is_file()):
        return None
    verdicts = VerdictRecords(BenchmarkRecord.read(benchmark), SelectionRecord.read(selection))
    return verdicts if verdicts.selection.inputs.get("benchmark") == record_digest(benchmark) else None


def read_content(folder: Path, step: str, verdicts: VerdictRecords | None = None) -> RunContent:
    """Return the content of a step's run. Without `verdicts` a candidate has no speed metrics and no verdict."""
    record, digest, name = read_record(folder), record_digest(folder), folder.name
    details, params = record.details, flatten_params(record.parameters)
    tags = {STEP_TAG: step, NAME_TAG: name} | machine_tags(record.machine) | weights_tags(details)
    if isinstance(details, ReportDetails):
        tags |= test_tags(details, record.warnings)
    if isinstance(details, CandidateFile):
        params = {"method": details.method} | params
        tags |= lineage_tags(details)
    content = RunContent(
        name=name,
        step=step,
        folder=folder,
        record_digest=digest,
        digest=digest,
        params=params,
        metrics=record.metrics,
        figures={},
        tags=tags,
        note="\n".join([*_details_lines(details), *(f"- warning: {markdown(text)}" for text in record.warnings)]),
        curves=getattr(details, "curves", []),
    )
    if verdicts is None or not isinstance(details, CandidateFile):
        return content
    is_judged = verdicts.benchmark.inputs.get(name) == verdicts.selection.inputs.get(name) == digest
    return _judged(content, verdicts) if is_judged else content


def _judged(base: RunContent, verdicts: VerdictRecords) -> RunContent:
    selection = verdicts.selection.details
    figures = verdicts.benchmark.details.candidates[base.name] | selection.quality[base.name]
    verdict, reason = _verdict(base.name, selection)
    parts = [base.record_digest, figures, verdict, reason]
    return replace(
        base,
        digest=hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest(),
        figures=figures,
        tags=base.tags | {VERDICT_TAG: verdict, REASON_TAG: reason} | machine_tags(verdicts.benchmark.machine),
        note=f"**{verdict}**: {markdown(reason)}\n\n{base.note}",
    )


def _verdict(name: str, selection: SelectionDetails) -> tuple[str, str]:
    """Return (verdict, reasons with their numbers)."""
    if name == ROOT:
        return "reference", "every other candidate is compared with it"
    verdict = selection.verdict(name)
    assert verdict is not None
    reasons = [gate.reason for gate in verdict.gates if gate.passed == verdict.passed and gate.checked]
    reasons += [f"{GATES[gate.name]}: {gate.reason}" for gate in verdict.gates if not gate.checked]
    if selection.winner == name:
        return "winner", "; ".join([selection.why, *reasons])
    is_unshown = all(not gate.shown for gate in verdict.failed)
    return "passed" if verdict.passed else "not shown" if is_unshown else "failed", "; ".join(reasons)


def _details_lines(details: RecordModel) -> list[str]:
    if isinstance(details, SelectionDetails | RefitDetails):
        return [f"- {markdown(details.why)}"]
    if not isinstance(details, CandidateFile):
        return []
    labels = details.labels
    return [
        f"- {' > '.join(details.lineage)}, {details.method}, {details.precision}",
        f"- labels used: {labels.training} for training, {labels.choosing}{in_groups(labels.choosing_groups)} "
        "for selection",
    ]


def flatten_params(parameters: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return nested settings as params of MLflow: dotted keys, values as text (lists as JSON), cut to its limits."""
    flat: dict[str, str] = {}
    for key, value in parameters.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= flatten_params(value, f"{path}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            flat[path[:KEY_LENGTH]] = text[:PARAM_LENGTH]
    return flat


def data_version(paths: ProjectPaths) -> str:
    """Return DVC's hash of artifacts/data, at most 36 characters for MLflow; the record's digest before DVC has one."""
    locked, folder = read_lock(paths.root).get("ingest"), paths.artifacts / "data"
    if locked and locked.outs and locked.outs[0].md5:
        return locked.outs[0].md5
    return record_digest(folder)[:36] if (folder / RECORD).is_file() else "unknown"
