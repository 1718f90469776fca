"""All records of a run in one value, with the queries that the sections of the page share."""

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
    """The records of the steps before the report."""

    data: StepRecord
    pretrain: StepRecord
    candidates: dict[str, StepRecord]
    """Name -> record, dense first."""
    benchmark: StepRecord
    selection: StepRecord
    refit: StepRecord
    trade_off: bytes
    """PNG of the Pareto front."""
    near_duplicates: bytes = b""
    """PNG of held-out images beside the training images that they almost equal; empty where there are none."""

    @property
    def source(self) -> str:
        """Return the name of the data, which stands beside every number."""
        return str(self.data.details["source"])

    @property
    def dense(self) -> StepRecord:
        """Return the record of dense, the reference."""
        return self.candidates[ROOT]

    @property
    def large(self) -> int:
        """Return the large batch of the benchmark."""
        return int(self.benchmark.parameters["large_batch"])

    @property
    def winner(self) -> str | None:
        """Return the candidate that passed every gate and is best on the objective, or None."""
        name = self.selection.details["winner"]
        return None if name is None else str(name)

    def row_css(self, name: str) -> str:
        """Return the CSS class of a candidate's table rows, which marks the winner's."""
        return "marked" if name == self.winner else ""

    @property
    def shown(self) -> str | None:
        """Return the candidate that the page compares with dense: the winner, or else the one that fails the fewest
        gates.
        """
        verdicts = self.selection.details["verdicts"]
        if self.winner is not None or not verdicts:
            return self.winner
        fewest = min(verdicts, key=lambda verdict: sum(not gate["passed"] for gate in verdict["gates"]))
        return str(fewest["candidate"])

    @property
    def verdicts(self) -> dict[str, Row]:
        """Return candidate -> verdict; dense has none."""
        return {str(verdict["candidate"]): verdict for verdict in self.selection.details["verdicts"]}

    @property
    def is_refitted(self) -> bool:
        """Return whether the deployed file was trained once more, on training and validation labels."""
        return bool(self.refit.details["is_refitted"])

    def quality(self, name: str) -> dict[str, float]:
        """Return a candidate's metrics: its record's, with the accuracy in the runtime and precision that would serve
        it.
        """
        return self.candidates[name].metrics | quality_as_served(self.selection, name)

    def speed(self, name: str) -> dict[str, float]:
        """Return a candidate's flat metrics in the benchmark; sparse where it could not be timed."""
        figures: dict[str, float] = self.benchmark.details["candidates"][name]
        return figures

    @property
    def target(self) -> str:
        """Return the serving machine where it is another one than this; else ""."""
        speeds = self.selection.details["speeds"]
        return f"{speeds['machine']['cpu']}, {speeds['machine']['threads']} threads" if speeds["is_target"] else ""

    def serving(self, name: str) -> dict[str, float]:
        """Return a candidate's flat metrics on the serving machine; sparse where it could not be timed there."""
        figures: dict[str, float] = self.selection.details["speeds"]["candidates"][name]
        return figures

    def serving_row(self, name: str, metric: str) -> Row | None:
        """Return the candidate's fastest row on the serving machine. `metric`: latency or throughput."""
        row: Row | None = self.selection.details["speeds"]["best"][name][metric]
        return row

    def best(self, name: str, metric: str) -> Row | None:
        """Return the candidate's fastest row in the benchmark. `metric`: latency or throughput."""
        row: Row | None = self.benchmark.details["best"][name][metric]
        return row

    def drop(self, name: str) -> dict[str, float] | None:
        """Return top-1 lost against the reference, {points, low, high}; None where no validation image has a label."""
        drop: dict[str, float] | None = self.selection.details["drops"][name]["labelled"]
        return drop

    @property
    def level(self) -> str:
        """Return the confidence level of the drops' intervals, which are simultaneous over competing candidates."""
        competitors = int(self.selection.details["competitors"])
        return "95 %" if competitors == 1 else f"95 % over {competitors} candidates"

    @property
    def choosing(self) -> str:
        """Return the number of labelled validation images, and of their groups where data.group_by is set, as text."""
        labels = self.dense.details["labels"]
        return f"{labels['choosing']:,} labelled validation images{in_groups(labels.get('choosing_groups'))}"

    def otherwise(self, name: str) -> dict[str, float]:
        """Return the points of validation images whose answer differs from the reference's, {points, low, high}."""
        disagreement: dict[str, float] = self.selection.details["drops"][name]["answers"]
        return disagreement

    def warnings(self) -> list[tuple[str, str]]:
        """Return (step, warning) of the whole run, each warning once."""
        steps = (self.data, self.pretrain, *self.candidates.values(), self.benchmark, self.selection, self.refit)
        step_of_warning: dict[str, str] = {}
        for step in steps:
            for warning in step.warnings:
                step_of_warning.setdefault(warning, step.name)
        return [(step_name, warning) for warning, step_name in step_of_warning.items()]


def read_run_records(artifacts: Path, names: Sequence[str]) -> RunRecords:
    """Return every record below `artifacts`. `names`: the candidates, dense first. Raises ArtifactError."""
    plot = artifacts / "select" / "pareto.png"
    try:
        trade_off = plot.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{plot} is missing; delete its folder and run winnow again") from error
    return RunRecords(
        data=read_record(artifacts / "data"),
        pretrain=read_record(artifacts / "pretrain"),
        candidates={name: read_record(artifacts / "candidates" / name) for name in names},
        benchmark=read_record(artifacts / "benchmark"),
        selection=read_record(artifacts / "select"),
        refit=read_record(artifacts / "refit"),
        trade_off=trade_off,
    )
