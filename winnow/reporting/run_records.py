"""All records of a run in one value, with the queries that the sections of the page share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from winnow.config import ROOT
from winnow.evaluation.effective_sample_size import in_groups
from winnow.labels.label_errors import LabelCheck
from winnow.records import (
    AnyRecord,
    BenchmarkRecord,
    CandidateRecord,
    FinetuneDetails,
    IngestRecord,
    PretrainRecord,
    RefitRecord,
    SelectionRecord,
    Verdict,
)
from winnow.records.benchmark import BenchmarkRow, SpeedMetric
from winnow.records.selection import Drop, nearest_verdict
from winnow.reporting.candidate_rows import CandidateRow, candidate_row


@dataclass(frozen=True)
class RunRecords:
    """The records of the steps before the report."""

    data: IngestRecord
    pretrain: PretrainRecord
    candidates: dict[str, CandidateRecord]
    """Name -> record, dense first."""
    benchmark: BenchmarkRecord
    selection: SelectionRecord
    refit: RefitRecord
    trade_off: bytes = b""
    """PNG of the Pareto front."""
    near_duplicates: bytes = b""
    """PNG of held-out images beside the training images that they almost equal; empty where there are none."""
    embedding_map: bytes = b""
    """PNG of validation images as points, by the similarity of their embeddings; empty with too few images."""
    neighbours: bytes = b""
    """PNG of validation images beside the training images with the most similar embeddings."""
    embedded_by: str = ""
    """The network that the embeddings of both are of, for users."""
    label_check: LabelCheck | None = None
    """The suspicious labels of training and validation; None with too few labels for a check."""
    visible_labels: int = 0
    """Number of labels that may be used, of which those that were checked may be a random part."""
    suspicious: bytes = b""
    """PNG of the images whose labels are most suspicious; empty where there are none or the check is not reliable."""

    @property
    def source(self) -> str:
        """Return the name of the data, which is shown with every number."""
        return self.data.details.source

    @property
    def dense(self) -> CandidateRecord:
        """Return the record of dense, the reference."""
        return self.candidates[ROOT]

    @property
    def fine_tuning(self) -> FinetuneDetails:
        """Return what fine-tuning did."""
        details = self.dense.details
        assert isinstance(details, FinetuneDetails)
        return details

    @property
    def large(self) -> int:
        """Return the large batch of the benchmark."""
        return int(self.benchmark.parameters["large_batch"])

    @property
    def winner(self) -> str | None:
        """Return the candidate that passed every gate and is best on the objective, or None."""
        return self.selection.details.winner

    def row_css(self, name: str) -> str:
        """Return the CSS class of a candidate's table rows, which marks the winner's."""
        return "marked" if name == self.winner else ""

    @property
    def shown(self) -> str | None:
        """Return the candidate that the page compares with dense: the winner, or else the one that fails the fewest
        gates.
        """
        verdicts = self.selection.details.verdicts
        if self.winner is not None or not verdicts:
            return self.winner
        return nearest_verdict(verdicts).candidate

    @property
    def verdicts(self) -> dict[str, Verdict]:
        """Return candidate -> verdict; dense has none."""
        return {verdict.candidate: verdict for verdict in self.selection.details.verdicts}

    @property
    def is_refitted(self) -> bool:
        """Return whether the deployed file was trained once more, on training and validation labels."""
        return self.refit.details.is_refitted

    def quality(self, name: str) -> dict[str, float]:
        """Return a candidate's metrics: its record's, with the accuracy in the runtime and precision that would serve
        it.
        """
        return self.candidates[name].metrics | self.selection.details.quality[name]

    def row(self, name: str) -> CandidateRow:
        """Return a candidate's row, which terminal, MLflow and Prefect show, too."""
        return candidate_row(self.candidates[name], self.benchmark, self.selection)

    def speed(self, name: str) -> dict[str, float]:
        """Return a candidate's flat metrics in the benchmark; sparse where it could not be timed."""
        return self.benchmark.details.candidates[name]

    @property
    def target(self) -> str:
        """Return the serving machine where it is another one than this; else ""."""
        speeds = self.selection.details.speeds
        return f"{speeds.machine.cpu}, {speeds.machine.threads} threads" if speeds.is_target else ""

    def serving(self, name: str) -> dict[str, float]:
        """Return a candidate's flat metrics on the serving machine; sparse where it could not be timed there."""
        return self.selection.details.speeds.candidates[name]

    def serving_row(self, name: str, metric: SpeedMetric) -> BenchmarkRow | None:
        """Return the candidate's fastest row on the serving machine."""
        return self.selection.details.speeds.best[name].of(metric)

    def best(self, name: str, metric: SpeedMetric) -> BenchmarkRow | None:
        """Return the candidate's fastest row in the benchmark."""
        return self.benchmark.details.best[name].of(metric)

    def drop(self, name: str) -> Drop | None:
        """Return top-1 lost against the reference; None where no validation image has a label."""
        return self.selection.details.drops[name].labelled

    @property
    def level(self) -> str:
        """Return the confidence level of the drops' intervals, which are simultaneous over competing candidates."""
        competitors = self.selection.details.competitors
        return "95 %" if competitors == 1 else f"95 % over {competitors} candidates"

    @property
    def choosing(self) -> str:
        """Return the number of labelled validation images, and of their groups where data.group_by is set, as text."""
        labels = self.dense.details.labels
        return f"{labels.choosing:,} labelled validation images{in_groups(labels.choosing_groups)}"

    def otherwise(self, name: str) -> Drop:
        """Return the points of validation images whose prediction differs from that of the reference."""
        return self.selection.details.drops[name].answers

    def warnings(self) -> list[tuple[str, str]]:
        """Return (step, warning) of the whole run, each warning once."""
        steps: tuple[AnyRecord, ...] = (
            self.data,
            self.pretrain,
            *self.candidates.values(),
            self.benchmark,
            self.selection,
            self.refit,
        )
        step_of_warning: dict[str, str] = {}
        for step in steps:
            for warning in step.warnings:
                step_of_warning.setdefault(warning, step.name)
        return [(step_name, warning) for warning, step_name in step_of_warning.items()]


def read_run_records(artifacts: Path, names: Sequence[str]) -> RunRecords:
    """Return every record below `artifacts`. `names`: the candidates, dense first. Raises ArtifactError."""
    return RunRecords(
        data=IngestRecord.read(artifacts / "data"),
        pretrain=PretrainRecord.read(artifacts / "pretrain"),
        candidates={name: CandidateRecord.read(artifacts / "candidates" / name) for name in names},
        benchmark=BenchmarkRecord.read(artifacts / "benchmark"),
        selection=SelectionRecord.read(artifacts / "select"),
        refit=RefitRecord.read(artifacts / "refit"),
    )
