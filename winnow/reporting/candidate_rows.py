"""One row per candidate: the values that the terminal, the report, MLflow, Prefect and the card show.

Each of these formats the same `CandidateRow`; none computes a figure of its own. Imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from winnow.benchmark.speedups import read_ratio
from winnow.config import CONTROL, ROOT
from winnow.evaluation.intervals import Ratio
from winnow.records import BenchmarkRecord, CandidateRecord, ReportRecord, SelectionRecord, Verdict
from winnow.records.benchmark import BestRows, PeakShares
from winnow.records.selection import Drop
from winnow.selection.gates import GATES, describe_failures

BASELINES = ("eager", "pytorch", "float")
NOT_TIMED = BestRows(latency=None, throughput=None)


@dataclass(frozen=True)
class Share:
    """A fraction with the ends of its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class CandidateRow:
    """The figures of one candidate; None where they were not measured."""

    name: str
    lineage: tuple[str, ...]
    method: str
    precision: str
    parameters: float
    macs: float
    size_mb: float
    zipped_mb: float
    agreement: float
    top1: Share | None = None
    """On validation, in the runtime and precision that would serve it."""
    test_top1: Share | None = None
    """On the test split; only dense, its control and the winner are evaluated there."""
    macro_f1: float | None = None
    drop: Drop | None = None
    """Points of top-1 lost against the reference."""
    best: BestRows = NOT_TIMED
    """The fastest rows on this machine."""
    latency_ms: float | None = None
    throughput_ips: float | None = None
    speedups: Mapping[str, tuple[Ratio | None, Ratio | None]] = field(default_factory=dict)
    """Baseline -> speed-up for one image, and for the large batch."""
    peak: PeakShares = field(default_factory=PeakShares)
    verdict: Verdict | None = None
    """None for dense, and before the selection."""
    is_winner: bool = False

    @property
    def origin(self) -> str:
        """Return what the candidate was made from, and how."""
        return "the fine-tuned network" if self.name == ROOT else f"{self.lineage[-2]} → {self.method}"

    @property
    def outcome(self) -> str:
        """Return winner, passed, reference, or the gates that did not pass, and those that were not checked."""
        if self.verdict is None:
            return "reference" if self.name == ROOT else "not judged"
        unchecked = ", ".join(GATES[gate.name] for gate in self.verdict.gates if not gate.checked)
        result = "winner" if self.is_winner else describe_failures(self.verdict.gates) or "passed"
        return result + (f" (not checked: {unchecked})" if unchecked else "")


def candidate_row(
    record: CandidateRecord,
    benchmark: BenchmarkRecord | None = None,
    selection: SelectionRecord | None = None,
    report: ReportRecord | None = None,
) -> CandidateRow:
    """Return the row of a candidate from its record and, as far as they exist, those of the later steps."""
    name, metrics = record.name, record.metrics
    if selection is not None:
        metrics = metrics | selection.details.quality[name]
    winner = selection.details.winner if selection else None
    speed: Mapping[str, float] = benchmark.details.candidates[name] if benchmark else {}
    large = benchmark.parameters["large_batch"] if benchmark else 0
    return CandidateRow(
        name=name,
        lineage=tuple(record.details.lineage),
        method=record.details.method,
        precision=record.details.precision,
        parameters=metrics["size/parameters"],
        macs=metrics["compute/macs"],
        size_mb=metrics["size/mb"],
        zipped_mb=metrics["size/zipped_mb"],
        agreement=metrics["quality/agreement"],
        top1=_share(metrics, "quality/top1"),
        test_top1=tested_top1(name, winner, report.metrics) if report else None,
        macro_f1=metrics.get("quality/macro_f1"),
        drop=selection.details.drops[name].labelled if selection else None,
        best=benchmark.details.best[name] if benchmark else NOT_TIMED,
        latency_ms=speed.get("best/latency_ms"),
        throughput_ips=speed.get("best/throughput_ips"),
        speedups={
            kind: (read_ratio(speed, f"speedup/{kind}_b1"), read_ratio(speed, f"speedup/{kind}_b{large}"))
            for kind in BASELINES
        },
        peak=benchmark.details.peak_share[name] if benchmark else PeakShares(),
        verdict=selection.details.verdict(name) if selection else None,
        is_winner=winner == name,
    )


def _share(metrics: Mapping[str, float], key: str) -> Share | None:
    return Share(metrics[key], metrics[f"{key}_low"], metrics[f"{key}_high"]) if key in metrics else None


def tested_top1(name: str, winner: str | None, metrics: Mapping[str, float]) -> Share | None:
    """Return top-1 on the test split, if the candidate was evaluated there; the winner's is of its deployed file.

    `metrics`: those of the report.
    """
    role = "winner" if name == winner else name if name in (ROOT, CONTROL) else None
    return None if role is None else _share(metrics, f"test/{role}_top1")
