"""The content of an execution's parent run: digest, tags, the table of candidates and files."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from tasks.project.paths import ProjectPaths
from tasks.tracking.run_content import TAG_LENGTH, RunContent, VerdictRecords, read_verdict_records, test_tags
from winnow.benchmark.measurement_error import describe_errors
from winnow.config import CONTROL, ROOT
from winnow.records import RECORD, read_record

REPORT_FILES = (".html", ".png", ".svg")
COLUMNS: tuple[tuple[str, str, float, str], ...] = (
    ("top-1 %", "quality/top1", 100, ".1f"),
    ("test top-1 %", "test/top1", 100, ".1f"),
    ("agreement %", "quality/agreement", 100, ".1f"),
    ("MB", "size/mb", 1, ".2f"),
    ("p50 ms (b1)", "best/latency_ms", 1, ".2f"),
    ("images/s", "best/throughput_ips", 1, ",.0f"),
    ("x eager f32", "speedup/eager_b1", 1, ".1f"),
    ("x best float PyTorch", "speedup/pytorch_b1", 1, ".1f"),
    ("x best float", "speedup/float_b1", 1, ".1f"),
    ("at least", "speedup/float_b1_low", 1, ".1f"),
)
"""The columns of the table on an execution's page: (title, metric, factor, format)."""


def execution_digest(contents: Sequence[RunContent]) -> str:
    """Return a digest of the digests of all runs."""
    return hashlib.sha256("\n".join(content.digest for content in contents).encode()).hexdigest()


def execution_tags(places: ProjectPaths) -> dict[str, str]:
    """Return the tags of the parent run: winner, reason, and test accuracy context."""
    verdicts = read_verdict_records(places)
    if verdicts is None:
        return {}
    details = verdicts.selection.details
    tags = {"winnow.winner": details["winner"] or "nobody", "winnow.reason": details["why"][:TAG_LENGTH]}
    report = places.artifacts / "report"
    return tags | (test_tags(read_record(report)) if (report / RECORD).is_file() else {})


def execution_note(
    contents: Sequence[RunContent],
    experiment: str,
    runs: Mapping[str, str],
    verdicts: VerdictRecords | None = None,
) -> str:
    """Return the table of candidates as Markdown. `runs`: digest -> run id, for links."""
    error_line = describe_errors(verdicts.benchmark.details["measurement_error"]) if verdicts else ""
    header = " | ".join(["candidate", *(title for title, *_ in COLUMNS), "verdict"])
    rows = [f"| {header} |", "|" + " --- |" * (len(COLUMNS) + 2)]
    step_links = []
    test_accuracy = _test_accuracy(contents, verdicts)
    for content in contents:
        link = f"[{content.name}](#/experiments/{experiment}/runs/{runs[content.digest]})"
        if not content.is_candidate:
            step_links.append(link)
            continue
        values = content.metrics | content.figures | test_accuracy.get(content.name, {})
        cells = [format(values[key] * factor, spec) if key in values else "-" for _, key, factor, spec in COLUMNS]
        rows.append(f"| {' | '.join([link, *cells, content.tags.get('winnow.verdict', 'not judged')])} |")
    return "\n".join([*rows, "", *([error_line] if error_line else []), f"Steps: {', '.join(step_links)}"])


def _test_accuracy(contents: Sequence[RunContent], verdicts: VerdictRecords | None) -> dict[str, dict[str, float]]:
    """Return candidate -> {test/top1} for the candidates that the report has measured on the test split."""
    accuracy = {}
    winner = verdicts.selection.details["winner"] if verdicts else None
    for content in contents:
        if content.step == "report":
            names = {"dense": ROOT, "dense-kd": CONTROL, **({"winner": winner} if winner else {})}
            for key, name in names.items():
                if f"test/{key}_top1" in content.metrics:
                    accuracy[name] = {"test/top1": content.metrics[f"test/{key}_top1"]}
    return accuracy


def execution_files(places: ProjectPaths) -> list[Path]:
    """Return the files of the parent run: dvc.lock, the report and the plots."""
    lock = places.root / "dvc.lock"
    folders = (places.artifacts / "report", places.artifacts / "select")
    pages = [path for folder in folders for path in sorted(folder.glob("*")) if path.suffix in REPORT_FILES]
    return [lock, *pages] if lock.is_file() else pages
