"""The content of an execution's parent run: digest, tags, the table of candidates and files."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tasks.project.paths import ProjectPaths
from tasks.tracking.run_content import RunContent, VerdictRecords, read_verdict_records
from tasks.tracking.run_tags import TAG_LENGTH, test_tags
from tasks.tracking.tags import REASON_TAG, WINNER_TAG
from winnow.benchmark.measurement_error import describe_errors
from winnow.records import RECORD, CandidateRecord, ReportRecord
from winnow.reporting.candidate_rows import CandidateRow, Share, candidate_row

REPORT_FILES = (".html", ".png", ".svg", ".csv")
COLUMNS: tuple[tuple[str, Callable[[CandidateRow], float | None], str], ...] = (
    ("top-1 %", lambda row: _percent(row.top1), ".1f"),
    ("test top-1 %", lambda row: _percent(row.test_top1), ".1f"),
    ("agreement %", lambda row: row.agreement * 100, ".1f"),
    ("MB", lambda row: row.size_mb, ".2f"),
    ("p50 ms (b1)", lambda row: row.latency_ms, ".2f"),
    ("images/s", lambda row: row.throughput_ips, ",.0f"),
    ("x eager f32", lambda row: _speedup(row, "eager"), ".1f"),
    ("x best float PyTorch", lambda row: _speedup(row, "pytorch"), ".1f"),
    ("x best float", lambda row: _speedup(row, "float"), ".1f"),
    ("at least", lambda row: _least_speedup(row), ".1f"),
)
"""The columns of the table on an execution's page: (title, value, format)."""


def _percent(share: Share | None) -> float | None:
    return None if share is None else share.value * 100


def _speedup(row: CandidateRow, baseline: str) -> float | None:
    """Return the speed-up for one image."""
    ratio = row.speedups[baseline][0]
    return ratio.value if ratio else None


def _least_speedup(row: CandidateRow) -> float | None:
    """Return the lower end of the speed-up over the best float for one image; None where it is not known."""
    ratio = row.speedups["float"][0]
    return ratio.low if ratio and math.isfinite(ratio.high) else None


def execution_digest(contents: Sequence[RunContent]) -> str:
    """Return a digest of the digests of all runs."""
    return hashlib.sha256("\n".join(content.digest for content in contents).encode()).hexdigest()


def execution_tags(paths: ProjectPaths) -> dict[str, str]:
    """Return the tags of the parent run: winner, reason, and test accuracy context."""
    verdicts = read_verdict_records(paths)
    if verdicts is None:
        return {}
    details = verdicts.selection.details
    tags = {WINNER_TAG: details.winner or "nobody", REASON_TAG: details.why[:TAG_LENGTH]}
    folder = paths.artifacts / "report"
    if not (folder / RECORD).is_file():
        return tags
    report = ReportRecord.read(folder)
    return tags | test_tags(report.details, report.warnings)


def execution_note(
    contents: Sequence[RunContent],
    experiment: str,
    runs: Mapping[str, str],
    verdicts: VerdictRecords | None = None,
) -> str:
    """Return the table of candidates as Markdown. `runs`: digest -> run id, for links."""
    error_line = describe_errors(verdicts.benchmark.details.measurement_error) if verdicts else ""
    header = " | ".join(["candidate", *(title for title, *_ in COLUMNS), "verdict"])
    rows = [f"| {header} |", "|" + " --- |" * (len(COLUMNS) + 2)]
    step_links = []
    report = next((ReportRecord.read(content.folder) for content in contents if content.step == "report"), None)
    for content in contents:
        link = f"[{content.name}](#/experiments/{experiment}/runs/{runs[content.digest]})"
        if not content.is_candidate:
            step_links.append(link)
            continue
        later = (verdicts.benchmark, verdicts.selection, report) if verdicts and content.is_judged else ()
        row = candidate_row(CandidateRecord.read(content.folder), *later)
        values = ((value(row), form) for _, value, form in COLUMNS)
        cells = ["-" if value is None else format(value, form) for value, form in values]
        rows.append(f"| {' | '.join([link, *cells, row.outcome])} |")
    return "\n".join([*rows, "", *([error_line] if error_line else []), f"Steps: {', '.join(step_links)}"])


def execution_files(paths: ProjectPaths) -> list[Path]:
    """Return the files of the parent run: dvc.lock, the report and the plots."""
    lock = paths.root / "dvc.lock"
    pages = [path for path in sorted((paths.artifacts / "report").glob("*")) if path.suffix in REPORT_FILES]
    return [lock, *pages] if lock.is_file() else pages
