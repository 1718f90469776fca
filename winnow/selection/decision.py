"""Decide which candidate may serve, from its gates, and find the Pareto front. Pure: nothing is read or written.

`dense`, the fine-tuned network, is the reference and no candidate. Every candidate, the controls too, must pass all
gates of params.yaml (winnow/selection/gates.py); of those that pass, the best on the objective wins. Candidates that
are not significantly slower than the fastest are tied with it; of tied candidates the one that loses least accuracy
wins, so noise decides nothing. That no candidate passes is a valid result, with a reason.

The winner is one of several, so the intervals are simultaneous: the chance that any candidate passes that loses more
than the worst end allows is at most 2.5 %, however many compete. `count_competing` counts them, by the gates on cost.

The front holds the candidates that no other beats in accuracy, size and latency at once; dense may be on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from winnow.config import Gates, Promotion
from winnow.evaluation.intervals import paired_ratio
from winnow.evaluation.pareto import pareto_front
from winnow.records import Verdict
from winnow.records.benchmark import SpeedMetric
from winnow.records.selection import nearest_verdict
from winnow.selection.gates import CandidateMetrics, describe_failed, judge_cost_gates, judge_gates, signed_points

UNITS = {"latency": "ms", "throughput": "images/s", "size": "MB"}
SERVING_METRIC: dict[str, SpeedMetric] = {"latency": "latency", "throughput": "throughput", "size": "latency"}
"""Objective -> which of a candidate's best rows in the benchmark would serve."""


def batch_of_objective(objective: str, large_batch: int) -> int:
    """Return the images per call at which the objective measures speed."""
    return large_batch if objective == "throughput" else 1


@dataclass(frozen=True)
class Decision:
    """The result of `decide`."""

    verdicts: tuple[Verdict, ...]
    """One per candidate, in their order."""
    winner: str | None
    why: str
    front: tuple[str, ...]
    """Names on the Pareto front, which may include dense."""


def decide(
    dense: CandidateMetrics, candidates: Sequence[CandidateMetrics], policy: Promotion, error: float = 0.0
) -> Decision:
    """Judge every candidate and select the winner, if there is one.

    `error`: the relative measurement error of this run's timings.
    """
    front = candidates_on_front([dense, *candidates])
    verdicts = []
    for candidate in candidates:
        gates = judge_gates(candidate, dense, policy.gates)
        passed = all(gate.passed for gate in gates)
        verdicts.append(Verdict(candidate=candidate.name, passed=passed, gates=gates, on_front=candidate.name in front))
    passing = [c for c, verdict in zip(candidates, verdicts, strict=True) if verdict.passed]
    ranked = sorted(passing, key=lambda c: (_cost(c, policy.objective), _points_lost(c), c.name))
    if not ranked:
        return Decision(tuple(verdicts), None, _why_none_passes(verdicts), front)
    ties = [c for c in ranked if c is ranked[0] or not _is_shown_worse(c, ranked[0], policy.objective, error)]
    winner = min(ties, key=lambda c: (round(_points_lost(c), 6), _cost(c, policy.objective), c.name))
    return Decision(tuple(verdicts), winner.name, _why_won(winner, ranked, policy.objective), front)


def _is_shown_worse(candidate: CandidateMetrics, best: CandidateMetrics, objective: str, error: float) -> bool:
    """Return whether the interval of its ratio to the best on the objective excludes equality."""
    if objective == "size" or not candidate.round_ms or len(candidate.round_ms) != len(best.round_ms):
        return _cost(candidate, objective) > _cost(best, objective)
    value = _cost(candidate, "latency") / _cost(best, "latency") if objective == "latency" else None
    return paired_ratio(candidate.round_ms, best.round_ms, value).widened(error).low > 1


def _points_lost(candidate: CandidateMetrics) -> float:
    """Return the points of top-1 lost, by which ties are ordered."""
    return (candidate.drop.labelled or candidate.drop.answers).points


def count_competing(dense: CandidateMetrics, candidates: Sequence[CandidateMetrics], gates: Gates) -> int:
    """Return how many candidates pass every gate on cost; from these the winner is chosen."""
    return sum(all(gate.passed for gate in judge_cost_gates(candidate, dense, gates)) for candidate in candidates)


def _cost(candidate: CandidateMetrics, objective: str) -> float:
    """Return the objective's value such that smaller is better; infinite where it was not measured."""
    value = _value(candidate, objective)
    if value is None:
        return float("inf")
    return -value if objective == "throughput" else value


def _value(candidate: CandidateMetrics, objective: str) -> float | None:
    return {
        "latency": candidate.latency_ms,
        "throughput": candidate.throughput_ips,
        "size": candidate.size_mb,
    }[objective]


def candidates_on_front(candidates: Sequence[CandidateMetrics]) -> tuple[str, ...]:
    """Return the names that no other dominates: at least as good in accuracy, size and latency, and better in one.

    Accuracy is top-1, or agreement with dense where no image has a label. Equal candidates stay on the front together.
    A candidate that was not timed is on no front.
    """
    timed = [(c, c.latency_ms) for c in candidates if c.latency_ms is not None]
    points = [(-(c.agreement if c.top1 is None else c.top1), c.size_mb, latency_ms) for c, latency_ms in timed]
    return tuple(timed[index][0].name for index in pareto_front(points))


def _why_won(winner: CandidateMetrics, ranked: Sequence[CandidateMetrics], objective: str) -> str:
    if len(ranked) == 1:
        return f"{winner.name} is the only candidate that passes every gate ({_format_value(winner, objective)})"
    superlative = {"latency": "is the fastest", "throughput": "has the highest throughput", "size": "is the smallest"}
    first, second = ranked[:2]
    if winner is first:
        return (
            f"{winner.name} {superlative[objective]} of the {len(ranked)} candidates that pass every gate: "
            f"{_format_value(winner, objective)}, before {second.name} with {_format_value(second, objective)}"
        )
    return (
        f"{winner.name} loses least accuracy of those that are not significantly slower than the fastest of the "
        f"{len(ranked)} candidates that pass every gate: {signed_points(_points_lost(winner))} points at "
        f"{_format_value(winner, objective)}, where {first.name} loses {signed_points(_points_lost(first))} at "
        f"{_format_value(first, objective)}"
    )


def _format_value(candidate: CandidateMetrics, objective: str) -> str:
    return f"{_value(candidate, objective):.4g} {UNITS[objective]}"


def _why_none_passes(verdicts: Sequence[Verdict]) -> str:
    if not verdicts:
        return "there is no candidate other than dense, so there is nothing to select"
    nearest = nearest_verdict(verdicts)
    needs = [gate.needs for gate in nearest.failed if gate.needs]
    passes = f"; it would pass with promotion.gates.{' and '.join(needs)}" if len(needs) == len(nearest.failed) else ""
    reason = f"no candidate passes every gate; the nearest is {nearest.candidate}"
    return f"{reason}, which {describe_failed(nearest.failed)}{passes}"
