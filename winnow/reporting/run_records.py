"""All records of a run in one value, with the few questions that every part of the page asks of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from winnow.config import ROOT
from winnow.errors import ArtifactError
from winnow.evaluation.effective_sample_size import in_groups
from winnow.records import StepRecord, quality_as_served, read_record

Row = dict[str, Any]


@dataclass(frozen=True)
class RunRecords:
    """What the steps before the report left."""

    data: StepRecord
    pretrain: StepRecord
    candidates: dict[str, StepRecord]
    """dense first."""
    benchmark: StepRecord
    selection: StepRecord
    refit: StepRecord
    trade_off: bytes
    """PNG of the Pareto front."""
    near_duplicates: bytes = b""
    """PNG of held-out images beside the training images that they almost equal; empty where there are none."""

    @property
    def source(self) -> str:
        """How the data are called beside every number."""
        return str(self.data.details["source"])

    @property
    def dense(self) -> StepRecord:
        """The reference."""
        return self.candidates[ROOT]

    @property
    def large(self) -> int:
        """The large batch of the benchmark."""
        return int(self.benchmark.parameters["large_batch"])

    @property
    def winner(self) -> str | None:
        """Who passed every gate and is best on the objective."""
        name = self.selection.details["winner"]
        return None if name is None else str(name)

    @property
    def shown(self) -> str | None:
        """Whom the page compares with dense: the winner, or else the one that fails the fewest gates."""
        verdicts = self.selection.details["verdicts"]
        if self.winner is not None or not verdicts:
            return self.winner
        fewest = min(verdicts, key=lambda verdict: sum(not gate["passed"] for gate in verdict["gates"]))
        return str(fewest["candidate"])

    @property
    def verdicts(self) -> dict[str, Row]:
        """Candidate -> verdict; dense has none."""
        return {str(verdict["candidate"]): verdict for verdict in self.selection.details["verdicts"]}

    @property
    def is_refitted(self) -> bool:
        """Whether the deployed file was trained once more, on training and validation labels."""
        return bool(self.refit.details["is_refitted"])

    def quality(self, name: str) -> dict[str, float]:
        """Metrics of a candidate: its record's, and accuracy in the runtime and precision that would serve it."""
        return self.candidates[name].metrics | quality_as_served(self.selection, name)

    def speed(self, name: str) -> dict[str, float]:
        """Flat metrics of a candidate in the benchmark; sparse where it could not be timed."""
        figures: dict[str, float] = self.benchmark.details["candidates"][name]
        return figures

    @property
    def target(self) -> str:
        """The machine that will serve, where it is another one than this; else empty."""
        speeds = self.selection.details["speeds"]
        return f"{speeds['machine']['cpu']}, {speeds['machine']['threads']} threads" if speeds["is_target"] else ""

    def serving(self, name: str) -> dict[str, float]:
        """Flat figures of a candidate on the machine that will serve; sparse where it could not be timed there."""
        figures: dict[str, float] = self.selection.details["speeds"]["candidates"][name]
        return figures

    def serving_row(self, name: str, what: str) -> Row | None:
        """The candidate's fastest row there; `what`: latency or throughput."""
        row: Row | None = self.selection.details["speeds"]["best"][name][what]
        return row

    def best(self, name: str, what: str) -> Row | None:
        """The candidate's fastest row; `what`: latency or throughput."""
        row: Row | None = self.benchmark.details["best"][name][what]
        return row

    def drop(self, name: str) -> dict[str, float] | None:
        """Top-1 lost, {points, low, high}, against the reference; None where no validation image has a label."""
        found: dict[str, float] | None = self.selection.details["drops"][name]["labelled"]
        return found

    @property
    def level(self) -> str:
        """Return how sure the intervals of drops are: together, where several candidates compete."""
        competitors = int(self.selection.details["competitors"])
        return "95 %" if competitors == 1 else f"95 % over {competitors} candidates"

    @property
    def choosing(self) -> str:
        """Number of labelled validation images, and of the groups in which they lie where data.group_by says it."""
        labels = self.dense.details["labels"]
        return f"{labels['choosing']:,} labelled validation images{in_groups(labels.get('choosing_groups'))}"

    def otherwise(self, name: str) -> dict[str, float]:
        """Points of validation images that get another answer than the reference's, {points, low, high}."""
        found: dict[str, float] = self.selection.details["drops"][name]["answers"]
        return found

    def warnings(self) -> list[tuple[str, str]]:
        """(step, warning) of the whole run, each warning once."""
        steps = (self.data, self.pretrain, *self.candidates.values(), self.benchmark, self.selection, self.refit)
        found: dict[str, str] = {}
        for step in steps:
            for warning in step.warnings:
                found.setdefault(warning, step.name)
        return [(step_name, warning) for warning, step_name in found.items()]


def read_facts(artifacts: Path, names: Sequence[str]) -> RunRecords:
    """Read every record below `artifacts`; `names` are the candidates, dense first. Raises ArtifactError."""
    picture = artifacts / "select" / "pareto.png"
    try:
        trade_off = picture.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{picture} is missing; delete its folder and run winnow again") from error
    return RunRecords(
        data=read_record(artifacts / "data"),
        pretrain=read_record(artifacts / "pretrain"),
        candidates={name: read_record(artifacts / "candidates" / name) for name in names},
        benchmark=read_record(artifacts / "benchmark"),
        selection=read_record(artifacts / "select"),
        refit=read_record(artifacts / "refit"),
        trade_off=trade_off,
    )
