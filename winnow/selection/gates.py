"""The gates that a candidate must pass, each with its reason. Pure: numbers in, reasons out.

drop        top-1 lost against the better of dense and dense-kd, paired on the same validation images: the point
            difference within the allowance and the worst end of its interval within twice the allowance. More than
            the allowance is a failure; within it but with too wide an interval is "not shown", which does not pass
            either. With few labels (winnow/evaluation/accuracy_drop.py), the share of images whose prediction
            changes replaces the worst end: no drop exceeds it, and it needs no label, if labelled and unlabelled
            images come from one distribution. If the labels show a larger loss, the labels decide
macro-f1    the same for the mean F1 of the classes, in which rare and common classes count alike: losing a class
            costs up to 100 / C points. With too few labels, the predictions of the reference replace them as truth;
            this is not a bound
agreement   share of validation images, labelled or not, on which the candidate predicts the same class as dense
size        the file, as a share of dense's
int8        for an int8 file, the share of multiply-adds that the runtime executes in int8. Where it was not
            measured on the serving machine the gate is "not checked": it blocks nothing, and a warning says so
speedup     against dense as the best float of any precision and runtime: the lower end of the 95 % interval.
            More than the threshold with a lower end below it is "not shown", which does not pass
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from winnow.config import Gates
from winnow.evaluation.effective_sample_size import MIN_GROUPS, in_groups
from winnow.evaluation.intervals import Ratio
from winnow.records import Gate
from winnow.records.selection import Drop, DropEvidence

UNINFORMATIVE_POINTS = 100.0
"""Points: an interval that reaches this far on both sides carries no information."""
WORST_END_ALLOWANCES = 2.0
"""The number of allowances that the worst end of the interval may reach."""
GATES = {
    "drop": "drop",
    "macro-f1": "macro F1",
    "agreement": "agreement",
    "size": "size",
    "speedup": "speed-up",
    "int8": "int8 executed",
}
"""Gate -> its name in texts."""


@dataclass(frozen=True)
class CandidateMetrics:
    """The measured figures of one candidate; None where not measured (no labels; not timed on any runtime)."""

    name: str
    top1: float | None
    drop: DropEvidence
    macro_f1: DropEvidence
    agreement: float
    size_mb: float
    latency_ms: float | None
    throughput_ips: float | None
    speedup: Ratio | None
    """The speed-up over dense as the best float, on the objective's batch."""
    round_ms: tuple[float, ...] = ()
    """Median call of each round in which it was compared with the others, where it would serve."""
    int8_share: float | None = None
    """The share of an int8 file's multiply-adds executed in int8 where it would serve; None for float, or if not
    measured.
    """
    int8_unchecked: str = ""
    """Why the share of an int8 file was not measured; empty for float, or if it was."""


def judge_gates(candidate: CandidateMetrics, dense: CandidateMetrics, gates: Gates) -> tuple[Gate, ...]:
    """Return all gates of a candidate."""
    return (
        judge_drop(candidate.drop, gates.max_drop_points),
        judge_macro_f1(candidate.macro_f1, gates.max_macro_f1_drop_points),
        _share("agreement", "same prediction as dense", candidate.agreement, gates.min_agreement, "min_agreement"),
        *judge_cost_gates(candidate, dense, gates),
    )


def judge_cost_gates(candidate: CandidateMetrics, dense: CandidateMetrics, gates: Gates) -> tuple[Gate, ...]:
    """Return the gates on cost, which depend on no prediction: size, speed-up, int8."""
    cost_gates = (
        _size_gate(candidate, dense, gates.max_size_ratio),
        _speed_gate(candidate.speedup, gates.min_speedup),
    )
    if candidate.int8_share is None:
        reason = candidate.int8_unchecked
        if not reason:
            return cost_gates
        return (*cost_gates, Gate(name="int8", passed=True, checked=False, reason=f"not checked {reason}"))
    subject, needed = "multiply-adds executed in int8", gates.min_int8_share
    return (*cost_gates, _share("int8", subject, candidate.int8_share, needed, "min_int8_share"))


def judge_drop(drop: DropEvidence, allowed: float) -> Gate:
    """Return the gate on top-1, by labels; with few labels, by the share of changed predictions, a bound."""
    labelled, answers = drop.labelled, drop.answers
    share, most = signed_points(answers.points), signed_points(answers.high)
    disagreement = f"predictions differ on {share} % of the images, at most {most} %, which bounds the drop"
    sample = f"{drop.images:,} images{in_groups(drop.groups)}"
    if labelled is None:
        return _judge("drop", f"drop (no label; {disagreement}{_level(drop)})", answers, allowed, measured=False)
    exceeds_answers = labelled.low > min(allowed, answers.high)  # labels show more than changed predictions allow
    if drop.route == "labels" or exceeds_answers:
        return _judge("drop", f"drop {_describe_loss(labelled)}{_level(drop)})", labelled, allowed, sample)
    combined = Drop(min(labelled.points, answers.points), labelled.low, answers.high)
    return _judge("drop", f"drop {_describe_loss(labelled)}; {disagreement}{_level(drop)})", combined, allowed, sample)


def judge_macro_f1(drop: DropEvidence, allowed: float) -> Gate:
    """Return the gate on macro F1, by labels; if they cannot show it, with the reference's predictions as truth.

    Labels cannot show it if they are few, or if not even a candidate that changes no prediction would pass.
    """
    labelled, answers = drop.labelled, drop.answers
    by_answers = (
        f"with the reference's predictions as truth {signed_points(answers.points)}, "
        f"at most {signed_points(answers.high)}"
    )
    if labelled is None:
        return _judge(
            "macro-f1", f"macro F1 drop (no label; {by_answers}{_level(drop)})", answers, allowed, measured=False
        )
    by_labels = drop.route == "labels" and drop.unchanged <= WORST_END_ALLOWANCES * allowed
    if by_labels or labelled.points > allowed:
        return _judge(
            "macro-f1", f"macro F1 drop {_describe_loss(labelled)}{_level(drop)})", labelled, allowed, drop.rarest
        )
    stand_in = Drop(labelled.points, labelled.low, answers.high)
    return _judge(
        "macro-f1",
        f"macro F1 drop {_describe_loss(labelled)}; {by_answers}{_level(drop)})",
        stand_in,
        allowed,
        drop.rarest,
    )


def _level(drop: DropEvidence) -> str:
    """Return the number of candidates and of groups that the interval counts, for a reason; empty where neither
    applies.
    """
    over = "" if drop.candidates == 1 else f"; 95 % over {drop.candidates} candidates"
    if drop.groups is None:
        return over
    few = f", fewer than the {MIN_GROUPS} that an interval needs" if drop.groups < MIN_GROUPS else ""
    return f"{over}; {drop.images:,} images in {drop.groups:,} groups{few}"


def _passes(loss: Drop, allowed: float) -> bool:
    return loss.points <= allowed and loss.high <= WORST_END_ALLOWANCES * allowed


def _judge(name: str, subject: str, loss: Drop, allowed: float, sample: str = "", measured: bool = True) -> Gate:
    """Return a gate that passed, failed or is not shown, with its reason. `sample`: the images that are too few."""
    upper_limit = WORST_END_ALLOWANCES * allowed
    if _passes(loss, allowed):
        return Gate(
            name=name, passed=True, reason=f"{subject} is within {allowed:g}, its worst end within {upper_limit:g}"
        )
    key = {"drop": "max_drop_points", "macro-f1": "max_macro_f1_drop_points"}[name]
    needs = f"{key} {needed_allowance(loss):g}"
    shown = measured and loss.points > allowed and loss.low > -UNINFORMATIVE_POINTS
    if measured and loss.points > allowed:
        reason = f"{subject} exceeds {allowed:g}" if shown else f"not shown: {subject}"
    elif round(loss.points, 1) < 0 and sample:
        metric = "" if name == "drop" else " of macro F1"
        reason = (
            f"not shown: gains {signed_points(-loss.points)} points{metric}; with {sample} a loss of up to "
            f"{signed_points(loss.high)} points cannot be excluded, {upper_limit:g} are allowed ({subject})"
        )
    elif loss.points > allowed:
        reason = f"not shown: {subject} may exceed {allowed:g}"
    else:
        reason = f"not shown: {subject} may be within {allowed:g}, but its worst end exceeds {upper_limit:g}"
    return Gate(name=name, passed=False, reason=reason, needs=needs, shown=shown)


def _round_up(value: float, decimals: int) -> float:
    """Return the value rounded up."""
    scale = 10.0**decimals
    return math.ceil(round(value * scale, 6)) / scale


def _round_down(value: float, decimals: int) -> float:
    """Return the value rounded down."""
    scale = 10.0**decimals
    return math.floor(round(value * scale, 6)) / scale


def needed_allowance(loss: Drop) -> float:
    """Return the smallest allowance with which such a loss would pass, in points, to one decimal."""
    return _round_up(max(loss.points, loss.high / WORST_END_ALLOWANCES), 1)


def _describe_loss(loss: Drop) -> str:
    """Return a loss with its interval, without the closing bracket."""
    return f"{signed_points(loss.points)} points ({signed_points(loss.low)} to {signed_points(loss.high)}"


def _size_gate(candidate: CandidateMetrics, dense: CandidateMetrics, allowed: float) -> Gate:
    ratio = candidate.size_mb / dense.size_mb
    subject = f"{candidate.size_mb:.2f} MB are {ratio * 100:.0f} % of dense's {dense.size_mb:.2f} MB"
    if ratio <= allowed:
        return Gate(name="size", passed=True, reason=f"{subject}, within {allowed * 100:g} %")
    needs = f"max_size_ratio {_round_up(ratio, 2):g}"
    return Gate(name="size", passed=False, reason=f"{subject}, more than {allowed * 100:g} %", needs=needs)


def _speed_gate(speedup: Ratio | None, needed: float) -> Gate:
    if speedup is None:
        return Gate(
            name="speedup",
            passed=False,
            reason=f"was not timed with dense on the serving machine; {needed:g} times dense's best is needed",
        )
    lower_end = _round_down(speedup.low, 2)
    needs = f"min_speedup {lower_end:g}" if lower_end > 0 else ""  # params.yaml accepts positive values only
    interval = f"{speedup.low:.2f} to {speedup.high:.2f}" if math.isfinite(speedup.high) else "interval not known"
    subject = f"speed over dense's best float {speedup.value:.2f} times ({interval})"
    if speedup.low >= needed:
        return Gate(name="speedup", passed=True, reason=f"{subject}, its lower end at least {needed:g}")
    if speedup.value >= needed:
        reason = f"not shown: {subject} may be at least {needed:g}, but its lower end is less"
        return Gate(name="speedup", passed=False, reason=reason, needs=needs, shown=False)
    return Gate(name="speedup", passed=False, reason=f"{subject} is less than {needed:g}", needs=needs)


def _share(name: str, subject: str, value: float, needed: float, key: str) -> Gate:
    """Return a gate on a share with a minimum, in percent."""
    return _at_least(name, subject, value * 100, needed * 100, " %", f"{key} {_round_down(value, 3):g}")


def _at_least(name: str, subject: str, value: float, needed: float, unit: str, needs: str) -> Gate:
    passed = value >= needed
    compared = "at least" if passed else "less than"
    # As many decimals as distinguish a value just below the limit from the limit.
    decimals = next((count for count in (1, 2, 3) if passed == (round(value, count) >= needed)), 4)
    reason = f"{subject} {value:.{decimals}f}{unit}, {compared} {needed:g}{unit}"
    return Gate(name=name, passed=passed, reason=reason, needs="" if passed else needs)


def signed_points(points: float) -> str:
    """Format with one decimal, a true minus sign and no minus zero."""
    return f"{round(points, 1) + 0.0:.1f}".replace("-", "−")


def describe_failed(failed: Sequence[Gate]) -> str:
    """Return what a candidate does not reach, as a clause: "fails size and is not shown to pass macro F1"."""
    names = {shown: [GATES[gate.name] for gate in failed if gate.shown is shown] for shown in (True, False)}
    verbs = {True: "fails", False: "is not shown to pass"}
    return " and ".join(f"{verbs[shown]} {', '.join(gate_names)}" for shown, gate_names in names.items() if gate_names)


def describe_failures(gates: Sequence[Gate]) -> str:
    """Return the gates that did not pass in a few words: "fails: size; not shown: macro F1"; empty where all passed.

    A gate that is not shown is no failure of the file: too few images, or times that vary too much, to decide.
    """
    failed = [gate for gate in gates if not gate.passed]
    kinds = {"fails": [gate for gate in failed if gate.shown], "not shown": [gate for gate in failed if not gate.shown]}
    return "; ".join(
        f"{kind}: {', '.join(GATES[gate.name] for gate in kind_gates)}"
        for kind, kind_gates in kinds.items()
        if kind_gates
    )


def describe_reasons(gates: Sequence[Gate]) -> str:
    """Return why gates did not pass, first those that failed: "fails: ...; not shown: ..."; empty where all passed."""
    failed_gates = [gate for gate in gates if not gate.passed]
    failed = "; ".join(gate.reason for gate in failed_gates if gate.shown)
    unshown = [gate.reason for gate in failed_gates if not gate.shown]
    return "; ".join([*([f"fails: {failed}"] if failed else []), *unshown])
