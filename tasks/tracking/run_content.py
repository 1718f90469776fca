"""What MLflow is to show of the records in artifacts/: one `RunContent` per step and candidate, as plain values.

Reads files, asks nobody and imports no mlflow, so that "is everything tracked?" costs milliseconds. A candidate's run
holds its own record, the figures that the benchmark found for it and the verdict. Its digest covers all three, and
until the last two are there (and belong to this very record) it is the digest of the record alone. Metric names are
the records' own, hence the same for all candidates.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from tasks.project.paths import ProjectPaths
from tasks.versioning import dvc_stages
from winnow.benchmark.measurement_error import describe_errors
from winnow.config import CONTROL, ROOT, Config
from winnow.evaluation.effective_sample_size import in_groups
from winnow.records import RECORD, Machine, StepRecord, quality_as_served, read_record, record_digest
from winnow.selection.decision import GATES

CANDIDATE_STEPS = ("finetune", "candidate")
DATASET = "images"
DATASET_CONTEXT = {"benchmark": "validation", "select": "validation", "report": "test"}
"""What a step reads the images for; all others train on them."""
REPORT_FILES = (".html", ".png", ".svg")
TAG_LENGTH, PARAM_LENGTH, KEY_LENGTH = 8000, 6000, 250
"""MLflow's limits, characters."""
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
"""Of the table on an execution's page: title, metric, factor, format."""


@dataclass(frozen=True)
class RunContent:
    """All that one run shows."""

    name: str
    step: str
    folder: Path
    record_digest: str
    digest: str
    """Equals `record_digest` until benchmark and verdict belong to it."""
    params: dict[str, str]
    metrics: dict[str, float]
    figures: dict[str, float]
    """From the benchmark, where it has timed this very candidate."""
    tags: dict[str, str]
    note: str
    curves: list[dict[str, float]]

    @property
    def is_candidate(self) -> bool:
        """dense and the tree below it."""
        return self.step in CANDIDATE_STEPS

    @property
    def is_judged(self) -> bool:
        """A candidate whose figures and verdict are in."""
        return self.digest != self.record_digest


@dataclass(frozen=True)
class VerdictRecords:
    """The last two steps that speak of candidates."""

    benchmark: StepRecord
    selection: StepRecord


def contents(places: ProjectPaths, config: Config) -> list[RunContent]:
    """Every step that has left a record, in the graph's order."""
    judging = read_judging(places)
    found = []
    for stage in dvc_stages.stages(config):
        folder = places.artifacts / stage.out
        if (folder / RECORD).is_file():
            found.append(content(folder, stage.name.partition("@")[0], judging))
    return found


def is_whole(places: ProjectPaths, config: Config) -> bool:
    """Whether every step has left a record."""
    return all((places.artifacts / stage.out / RECORD).is_file() for stage in dvc_stages.stages(config))


def read_judging(places: ProjectPaths) -> VerdictRecords | None:
    """Benchmark and verdict, if they belong together."""
    benchmark, selection = places.artifacts / "benchmark", places.artifacts / "select"
    if not ((benchmark / RECORD).is_file() and (selection / RECORD).is_file()):
        return None
    judging = VerdictRecords(read_record(benchmark), read_record(selection))
    return judging if judging.selection.inputs.get("benchmark") == record_digest(benchmark) else None


def content(folder: Path, step: str, judging: VerdictRecords | None = None) -> RunContent:
    """What the run of one step shows. Without `judging` a candidate has no figures of speed and no verdict."""
    record, digest, name = read_record(folder), record_digest(folder), folder.name
    own = RunContent(
        name=name,
        step=step,
        folder=folder,
        record_digest=digest,
        digest=digest,
        params=flatten(record.parameters),
        metrics=record.metrics,
        figures={},
        tags={"winnow.step": step, "winnow.name": name, **_machine_tags(record.machine)},
        note="\n".join([*_details_lines(record), *(f"- warning: {text}" for text in record.warnings)]),
        curves=record.details.get("curves", []),
    )
    if step == "report":
        return replace(own, tags=own.tags | tags_of_the_test(record))
    if step not in CANDIDATE_STEPS:
        return own
    own = replace(own, params={"method": str(record.details["method"])} | own.params, tags=own.tags | _lineage(record))
    if judging is None or judging.benchmark.inputs.get(name) != digest or judging.selection.inputs.get(name) != digest:
        return own
    return _judged(own, judging)


def _judged(own: RunContent, judging: VerdictRecords) -> RunContent:
    figures: dict[str, float] = judging.benchmark.details["candidates"][own.name]
    figures = figures | quality_as_served(judging.selection, own.name)
    verdict, reason = _verdict(own.name, judging.selection)
    parts = [own.record_digest, figures, verdict, reason]
    return replace(
        own,
        digest=hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest(),
        figures=figures,
        tags=own.tags | {"winnow.verdict": verdict, "winnow.reason": reason} | _machine_tags(judging.benchmark.machine),
        note=f"**{verdict}**: {reason}\n\n{own.note}",
    )


def _verdict(name: str, selection: StepRecord) -> tuple[str, str]:
    """One word, and the reason with its numbers."""
    if name == ROOT:
        return "reference", "every other candidate is compared with it"
    found = next(row for row in selection.details["verdicts"] if row["candidate"] == name)
    gates = [gate["reason"] for gate in found["gates"] if gate["passed"] == found["passed"] and _is_checked(gate)]
    gates += [f"{GATES[gate['name']]}: {gate['reason']}" for gate in found["gates"] if not _is_checked(gate)]
    if selection.details["winner"] == name:
        return "winner", "; ".join([selection.details["why"], *gates])
    unshown = all(not gate.get("shown", True) for gate in found["gates"] if not gate["passed"])
    return "passed" if found["passed"] else "not shown" if unshown else "failed", "; ".join(gates)


def _is_checked(gate: Mapping[str, Any]) -> bool:
    """Whether a gate was measured; one that was not blocks nothing."""
    return bool(gate.get("checked", True))


def _lineage(record: StepRecord) -> dict[str, str]:
    lineage = [str(name) for name in record.details["lineage"]]
    labels = record.details["labels"]
    return {
        "winnow.candidate": lineage[-1],
        "winnow.parent": lineage[-2] if len(lineage) > 1 else "",
        "winnow.lineage": " > ".join(lineage),
        "winnow.method": str(record.details["method"]),
        "winnow.precision": str(record.details["precision"]),
        "winnow.labels.training": str(labels["training"]),
        "winnow.labels.choosing": str(labels["choosing"]),
    }


def _details_lines(record: StepRecord) -> list[str]:
    if "lineage" not in record.details:
        return [f"- {record.details['why']}"] if "why" in record.details else []
    labels = record.details["labels"]
    return [
        f"- {' > '.join(record.details['lineage'])}, {record.details['method']}, {record.details['precision']}",
        f"- labels used: {labels['training']} for training, {labels['choosing']}"
        f"{in_groups(labels.get('choosing_groups'))} for choosing",
    ]


def _machine_tags(machine: Machine | None) -> dict[str, str]:
    """Where the figures were taken; nothing for records that hold no times."""
    if machine is None:
        return {}
    return {"winnow.machine": machine.identity, "winnow.device": machine.gpu or "cpu"}


def flatten(parameters: Mapping[str, Any], above: str = "") -> dict[str, str]:
    """Nested settings as MLflow's flat text: dotted keys, cut to its limits. Lists of settings keep their JSON."""
    flat: dict[str, str] = {}
    for key, value in parameters.items():
        path = f"{above}{key}"
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{path}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            flat[path[:KEY_LENGTH]] = text[:PARAM_LENGTH]
    return flat


def execution_digest(shown: Sequence[RunContent]) -> str:
    """Changes when any of the runs does."""
    return hashlib.sha256("\n".join(content.digest for content in shown).encode()).hexdigest()


def execution_tags(places: ProjectPaths) -> dict[str, str]:
    """What the execution as a whole ended with."""
    judging = read_judging(places)
    if judging is None:
        return {}
    details = judging.selection.details
    tags = {"winnow.winner": details["winner"] or "nobody", "winnow.reason": details["why"][:TAG_LENGTH]}
    report = places.artifacts / "report"
    return tags | (tags_of_the_test(read_record(report)) if (report / RECORD).is_file() else {})


def tags_of_the_test(report: StepRecord) -> dict[str, str]:
    """Return what the figures on the test split are: their baseline, where they were measured, their first warnings."""
    if "baseline" not in report.details:
        return {}
    tags = {f"winnow.test.{key}": str(report.details[key]) for key in ("baseline", "measured_in")}
    return tags | ({"winnow.test.warning": "; ".join(report.warnings)[:TAG_LENGTH]} if report.warnings else {})


def execution_note(
    shown: Sequence[RunContent], experiment: str, runs: Mapping[str, str], judging: VerdictRecords | None = None
) -> str:
    """Markdown: a table of the candidates. `runs`: digest -> run, for links to their pages."""
    error = describe_errors(judging.benchmark.details["measurement_error"]) if judging else ""
    head = " | ".join(["candidate", *(title for title, *_ in COLUMNS), "verdict"])
    rows = [f"| {head} |", "|" + " --- |" * (len(COLUMNS) + 2)]
    others = []
    tested = _test_accuracy(shown, judging)
    for content in shown:
        link = f"[{content.name}](#/experiments/{experiment}/runs/{runs[content.digest]})"
        if not content.is_candidate:
            others.append(link)
            continue
        known = content.metrics | content.figures | tested.get(content.name, {})
        cells = [format(known[key] * times, form) if key in known else "-" for _, key, times, form in COLUMNS]
        rows.append(f"| {' | '.join([link, *cells, content.tags.get('winnow.verdict', 'not judged')])} |")
    return "\n".join([*rows, "", *([error] if error else []), f"Steps: {', '.join(others)}"])


def _test_accuracy(shown: Sequence[RunContent], judging: VerdictRecords | None) -> dict[str, dict[str, float]]:
    """Return candidate -> {test/top1} of those that the report has measured on the test split."""
    found = {}
    winner = judging.selection.details["winner"] if judging else None
    for content in shown:
        if content.step == "report":
            names = {"dense": ROOT, "dense-kd": CONTROL, **({"winner": winner} if winner else {})}
            for who, name in names.items():
                if f"test/{who}_top1" in content.metrics:
                    found[name] = {"test/top1": content.metrics[f"test/{who}_top1"]}
    return found


def execution_files(places: ProjectPaths) -> list[Path]:
    """What belongs to an execution as a whole: the lock file, the report's page and the plots."""
    lock = places.root / "dvc.lock"
    folders = (places.artifacts / "report", places.artifacts / "select")
    pages = [path for folder in folders for path in sorted(folder.glob("*")) if path.suffix in REPORT_FILES]
    return [lock, *pages] if lock.is_file() else pages


def data_version(places: ProjectPaths) -> str:
    """DVC's hash of artifacts/data, which fits MLflow's 36 characters; before DVC has one, the record's digest."""
    try:
        lock = yaml.safe_load((places.root / "dvc.lock").read_text(encoding="utf-8"))
        return str(lock["stages"]["ingest"]["outs"][0]["md5"])
    except (OSError, yaml.YAMLError, KeyError, IndexError, TypeError):
        folder = places.artifacts / "data"
        return record_digest(folder)[:36] if (folder / RECORD).is_file() else "unknown"
