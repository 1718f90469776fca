"""Which candidate may serve: gates, Pareto front, winner. Pure: numbers in, reasons out; nothing is read or written.

`dense`, the fine-tuned network, is the reference and no contender. Every other candidate, the controls too, must pass
all gates of params.yaml; among those who pass, the best on the objective wins. Those that are not shown to be slower
than the fastest are its equals, and between equals the one wins that loses less accuracy: noise decides nothing.
Nobody passing is an answer like any other, and has a reason.

    drop        top-1 lost against the better of dense and dense-kd, paired on the same validation images: the point
                difference within the allowance and the worst end of its interval within twice the allowance. More than
                the allowance is a failure; within it but with too wide an interval is "not shown", which does not pass
                either. Where labels are few (winnow/evaluation/accuracy_drop.py), the share of images that get another
                answer takes the place of the worst end: no drop exceeds it, and it needs no label, if labelled and
                unlabelled images are of one kind. Labels that contradict it count
    macro-f1    the same for the mean F1 of the classes, in which a rare class counts like a common one: its death
                costs up to 100 / C points. Where labels are too few to show it, keeping the reference's answers class
                by class stands in; nothing bounds it
    agreement   share of validation images, labelled or not, answered like dense
    size        the file, as a share of dense's
    int8        of an int8 file, the share of multiply-adds that the runtime executes in int8. Where it was not read on
                the machine that serves the gate is "not checked": it blocks nothing, and a warning says so
    speedup     against dense as the best float of any precision and runtime: the lower end of the 95 % interval.
                More than the threshold with a lower end below it is "not shown", which does not pass

The winner is one of several, so the intervals are simultaneous: the chance that any candidate that loses more than the
worst end allows passes is at most 2.5 %, however many compete. `competing` counts them, by the gates that ask for no
answer: size, speed, int8.

The front holds those that no other beats in accuracy, size and latency at once; dense is on it like any other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from winnow.config import Gates, Promotion
from winnow.evaluation.accuracy_drop import DropEvidence
from winnow.evaluation.effective_sample_size import LEAST_GROUPS, in_groups
from winnow.evaluation.intervals import Drop, Ratio, paired_ratio
from winnow.records import Gate, Verdict

END_TO_END = 100.0
"""Points: an interval that reaches so far on both sides says nothing."""
WORST_END = 2.0
"""How many allowances the worst end of the interval may reach."""
GATES = {
    "drop": "drop",
    "macro-f1": "macro F1",
    "agreement": "agreement",
    "size": "size",
    "speedup": "speed-up",
    "int8": "int8 executed",
}
"""Of each gate, what it is called for people."""
UNITS = {"latency": "ms", "throughput": "images/s", "size": "MB"}
SERVES = {"latency": "latency", "throughput": "throughput", "size": "latency"}
"""Objective -> which of a candidate's best rows in the benchmark is the one that serves."""


def batch_of_objective(objective: str, large_batch: int) -> int:
    """Return how many images a call takes whose speed the objective looks at."""
    return large_batch if objective == "throughput" else 1


@dataclass(frozen=True)
class CandidateMetrics:
    """What is known of one candidate. None: not measured (no labels; not timed on any runtime)."""

    name: str
    top1: float | None
    drop: DropEvidence
    macro_f1: DropEvidence
    agreement: float
    size_mb: float
    latency_ms: float | None
    throughput_ips: float | None
    speedup: Ratio | None
    """Over dense as the best float, on the objective's batch."""
    round_ms: tuple[float, ...] = ()
    """Median call of each round in which it was compared with the others, where it would serve."""
    int8_share: float | None = None
    """Of an int8 file's multiply-adds, as executed where it would serve; None for float, and where it was not read."""
    int8_unchecked: str = ""
    """Why the share of an int8 file was not read; empty for float, and where it was."""


@dataclass(frozen=True)
class Decision:
    """What `decide` says."""

    verdicts: tuple[Verdict, ...]
    """One per contender, in their order."""
    winner: str | None
    why: str
    front: tuple[str, ...]
    """Names, dense among them where nothing beats it."""


def decide(
    dense: CandidateMetrics, contenders: Sequence[CandidateMetrics], policy: Promotion, error: float = 0.0
) -> Decision:
    """Judge every contender and pick the winner, if there is one.

    `error`: by how much timings of the same thing differ in this run, a share.
    """
    front = pareto_front([dense, *contenders])
    verdicts = []
    for contender in contenders:
        gates = _gates(contender, dense, policy.gates)
        passed = all(gate.passed for gate in gates)
        verdicts.append(Verdict(candidate=contender.name, passed=passed, gates=gates, on_front=contender.name in front))
    passing = [c for c, verdict in zip(contenders, verdicts, strict=True) if verdict.passed]
    ranked = sorted(passing, key=lambda c: (_cost(c, policy.objective), _lost(c), c.name))
    if not ranked:
        return Decision(tuple(verdicts), None, _why_nobody(verdicts), front)
    equals = [c for c in ranked if c is ranked[0] or not _is_shown_worse(c, ranked[0], policy.objective, error)]
    winner = min(equals, key=lambda c: (round(_lost(c), 6), _cost(c, policy.objective), c.name))
    return Decision(tuple(verdicts), winner.name, _why_won(winner, ranked, policy.objective), front)


def _is_shown_worse(contender: CandidateMetrics, best: CandidateMetrics, objective: str, error: float) -> bool:
    """Whether the interval of how much worse it is than the best on the objective leaves out equality."""
    if objective == "size" or not contender.round_ms or len(contender.round_ms) != len(best.round_ms):
        return _cost(contender, objective) > _cost(best, objective)
    value = _cost(contender, "latency") / _cost(best, "latency") if objective == "latency" else None
    return paired_ratio(contender.round_ms, best.round_ms, value).widened(error).low > 1


def _lost(contender: CandidateMetrics) -> float:
    """Points of top-1, by which equals are ordered."""
    return (contender.drop.labelled or contender.drop.answers).points


def competing(dense: CandidateMetrics, contenders: Sequence[CandidateMetrics], gates: Gates) -> int:
    """Return how many pass every gate that asks for no answer to an image: from these the winner is chosen."""
    return sum(all(gate.passed for gate in _gates_of_cost(contender, dense, gates)) for contender in contenders)


def _gates(contender: CandidateMetrics, dense: CandidateMetrics, gates: Gates) -> tuple[Gate, ...]:
    return (
        judge_drop(contender.drop, gates.max_drop_points),
        judge_macro_f1(contender.macro_f1, gates.max_macro_f1_drop_points),
        _share("agreement", "same answer as dense", contender.agreement, gates.min_agreement, "min_agreement"),
        *_gates_of_cost(contender, dense, gates),
    )


def _gates_of_cost(contender: CandidateMetrics, dense: CandidateMetrics, gates: Gates) -> tuple[Gate, ...]:
    """Judge what no answer to an image decides."""
    judged = (
        _size_gate(contender, dense, gates.max_size_ratio),
        _speed_gate(contender.speedup, gates.min_speedup),
    )
    if contender.int8_share is None:
        why = contender.int8_unchecked
        return (*judged, Gate(name="int8", passed=True, checked=False, reason=f"not checked {why}")) if why else judged
    what, needed = "multiply-adds executed in int8", gates.min_int8_share
    return (*judged, _share("int8", what, contender.int8_share, needed, "min_int8_share"))


def judge_drop(drop: DropEvidence, allowed: float) -> Gate:
    """Judge top-1 by labels; where those are few, by the share of images that get another answer, which bounds it."""
    labelled, answers = drop.labelled, drop.answers
    bound = (
        f"answers differ on {_signed(answers.points)} % of the images, at most {_signed(answers.high)} %, so no more"
    )
    few = f"{drop.images:,} images{in_groups(drop.groups)}"
    if labelled is None:
        return _judge("drop", f"drop (no label; {bound}{_level(drop)})", answers, allowed, measured=False)
    contradicted = labelled.low > min(allowed, answers.high)  # labels show more than the answers would allow
    if drop.route == "labels" or contradicted:
        return _judge("drop", f"drop {_told(labelled)}{_level(drop)})", labelled, allowed, few)
    least = Drop(min(labelled.points, answers.points), labelled.low, answers.high)
    return _judge("drop", f"drop {_told(labelled)}; {bound}{_level(drop)})", least, allowed, few)


def judge_macro_f1(drop: DropEvidence, allowed: float) -> Gate:
    """Judge macro F1 by labels; where those are too few to show it, the reference's answers stand in for them.

    They are too few where they are few, and where they could not show it of a child that changes no answer.
    """
    labelled, answers = drop.labelled, drop.answers
    told = f"with the reference's answers as truth {_signed(answers.points)}, at most {_signed(answers.high)}"
    if labelled is None:
        return _judge("macro-f1", f"macro F1 drop (no label; {told}{_level(drop)})", answers, allowed, measured=False)
    by_labels = drop.route == "labels" and drop.unchanged <= WORST_END * allowed
    if by_labels or labelled.points > allowed:
        return _judge("macro-f1", f"macro F1 drop {_told(labelled)}{_level(drop)})", labelled, allowed, drop.rarest)
    stand_in = Drop(labelled.points, labelled.low, answers.high)
    return _judge("macro-f1", f"macro F1 drop {_told(labelled)}; {told}{_level(drop)})", stand_in, allowed, drop.rarest)


def _level(drop: DropEvidence) -> str:
    """Return of how many candidates 95 % is said, and of how many groups, for a reason; nothing where neither is."""
    over = "" if drop.candidates == 1 else f"; 95 % over {drop.candidates} candidates"
    if drop.groups is None:
        return over
    few = f", fewer than the {LEAST_GROUPS} that an interval takes" if drop.groups < LEAST_GROUPS else ""
    return f"{over}; {drop.images:,} images in {drop.groups:,} groups{few}"


def _passes(loss: Drop, allowed: float) -> bool:
    return loss.points <= allowed and loss.high <= WORST_END * allowed


def _judge(name: str, what: str, loss: Drop, allowed: float, few: str = "", measured: bool = True) -> Gate:
    """Passed, failed or not shown, with both numbers in the reason. `few`: the images that are too few to show it."""
    worst = WORST_END * allowed
    if _passes(loss, allowed):
        return Gate(name=name, passed=True, reason=f"{what} is within {allowed:g}, its worst end within {worst:g}")
    key = {"drop": "max_drop_points", "macro-f1": "max_macro_f1_drop_points"}[name]
    needs = f"{key} {allowance(loss):g}"
    shown = measured and loss.points > allowed and loss.low > -END_TO_END
    if measured and loss.points > allowed:
        reason = f"{what} exceeds {allowed:g}" if shown else f"not shown: {what}"
    elif round(loss.points, 1) < 0 and few:
        kind = "" if name == "drop" else " of macro F1"
        reason = (
            f"not shown: gains {_signed(-loss.points)} points{kind}; with {few} a loss of up to {_signed(loss.high)} "
            f"points cannot be excluded, {worst:g} are allowed ({what}))"
        )
    elif loss.points > allowed:
        reason = f"not shown: {what} may exceed {allowed:g}"
    else:
        reason = f"not shown: {what} may be within {allowed:g}, but its worst end exceeds {worst:g}"
    return Gate(name=name, passed=False, reason=reason, needs=needs, shown=shown)


def _up(value: float, decimals: int) -> float:
    """Rounded to where `value` is within."""
    scale = 10.0**decimals
    return math.ceil(round(value * scale, 6)) / scale


def _down(value: float, decimals: int) -> float:
    """Rounded to what `value` is at least."""
    scale = 10.0**decimals
    return math.floor(round(value * scale, 6)) / scale


def allowance(loss: Drop) -> float:
    """The least that would have to be allowed for such a loss to pass, in points, to one decimal."""
    return _up(max(loss.points, loss.high / WORST_END), 1)


def _told(loss: Drop) -> str:
    """Without the bracket that closes it."""
    return f"{_signed(loss.points)} points ({_signed(loss.low)} to {_signed(loss.high)}"


def _size_gate(contender: CandidateMetrics, dense: CandidateMetrics, allowed: float) -> Gate:
    ratio = contender.size_mb / dense.size_mb
    what = f"{contender.size_mb:.2f} MB are {ratio * 100:.0f} % of dense's {dense.size_mb:.2f} MB"
    if ratio <= allowed:
        return Gate(name="size", passed=True, reason=f"{what}, within {allowed * 100:g} %")
    needs = f"max_size_ratio {_up(ratio, 2):g}"
    return Gate(name="size", passed=False, reason=f"{what}, more than {allowed * 100:g} %", needs=needs)


def _speed_gate(speedup: Ratio | None, needed: float) -> Gate:
    if speedup is None:
        return Gate(
            name="speedup",
            passed=False,
            reason=f"was not timed beside dense on the machine that serves; {needed:g} times dense's best is needed",
        )
    least = _down(speedup.low, 2)
    needs = f"min_speedup {least:g}" if least > 0 else ""  # params.yaml takes none that is not positive
    ends = f"{speedup.low:.2f} to {speedup.high:.2f}" if math.isfinite(speedup.high) else "interval not known"
    what = f"speed over dense's best float {speedup.value:.2f} times ({ends})"
    if speedup.low >= needed:
        return Gate(name="speedup", passed=True, reason=f"{what}, its lower end at least {needed:g}")
    if speedup.value >= needed:
        reason = f"not shown: {what} may be at least {needed:g}, but its lower end is less"
        return Gate(name="speedup", passed=False, reason=reason, needs=needs, shown=False)
    return Gate(name="speedup", passed=False, reason=f"{what} is less than {needed:g}", needs=needs)


def _share(name: str, what: str, value: float, needed: float, key: str) -> Gate:
    """At least, in percent."""
    return _at_least(name, what, value * 100, needed * 100, " %", f"{key} {_down(value, 3):g}")


def _at_least(name: str, what: str, value: float, needed: float, unit: str, needs: str) -> Gate:
    passed = value >= needed
    compared = "at least" if passed else "less than"
    # As many decimals as it takes to tell a value just below the limit from the limit.
    decimals = next((count for count in (1, 2, 3) if passed == (round(value, count) >= needed)), 4)
    reason = f"{what} {value:.{decimals}f}{unit}, {compared} {needed:g}{unit}"
    return Gate(name=name, passed=passed, reason=reason, needs="" if passed else needs)


def _signed(points: float) -> str:
    """One decimal, a true minus sign, no minus zero."""
    return f"{round(points, 1) + 0.0:.1f}".replace("-", "−")


def _cost(contender: CandidateMetrics, objective: str) -> float:
    """Smaller is better, whatever the objective; infinite where it was not measured."""
    value = _value(contender, objective)
    if value is None:
        return float("inf")
    return -value if objective == "throughput" else value


def _value(contender: CandidateMetrics, objective: str) -> float | None:
    return {
        "latency": contender.latency_ms,
        "throughput": contender.throughput_ips,
        "size": contender.size_mb,
    }[objective]


def pareto_front(contenders: Sequence[CandidateMetrics]) -> tuple[str, ...]:
    """Names of those that no other beats: at least as good in accuracy, size and latency, and better in one.

    Accuracy is top-1, or agreement with dense where no image has a label. Equals stay on the front together. A
    candidate that was not timed is on no front.
    """
    points = {
        c.name: (-(c.top1 if c.top1 is not None else c.agreement), c.size_mb, c.latency_ms)
        for c in contenders
        if c.latency_ms is not None
    }

    def beaten(own: tuple[float, ...]) -> bool:
        return any(all(a <= b for a, b in zip(other, own, strict=True)) and other != own for other in points.values())

    return tuple(name for name, own in points.items() if not beaten(own))


def _why_won(winner: CandidateMetrics, ranked: Sequence[CandidateMetrics], objective: str) -> str:
    if len(ranked) == 1:
        return f"{winner.name} is the only candidate that passes every gate ({_told_value(winner, objective)})"
    superlative = {"latency": "answers fastest", "throughput": "has the highest throughput", "size": "is the smallest"}
    first, second = ranked[:2]
    if winner is first:
        return (
            f"{winner.name} {superlative[objective]} of the {len(ranked)} candidates that pass every gate: "
            f"{_told_value(winner, objective)}, before {second.name} with {_told_value(second, objective)}"
        )
    return (
        f"{winner.name} loses least of those that are not shown to be slower than the fastest of the {len(ranked)} "
        f"candidates that pass every gate: {_signed(_lost(winner))} points at {_told_value(winner, objective)}, where "
        f"{first.name} loses {_signed(_lost(first))} at {_told_value(first, objective)}"
    )


def _told_value(contender: CandidateMetrics, objective: str) -> str:
    return f"{_value(contender, objective):.4g} {UNITS[objective]}"


def _why_nobody(verdicts: Sequence[Verdict]) -> str:
    if not verdicts:
        return "there is no candidate beside dense, so there is nothing to choose"
    fewest = min(verdicts, key=lambda verdict: sum(not gate.passed for gate in verdict.gates))
    failed = [gate for gate in fewest.gates if not gate.passed]
    needs = [gate.needs for gate in failed if gate.needs]
    passes = f"; it would pass with promotion.gates.{' and '.join(needs)}" if len(needs) == len(failed) else ""
    nearest = f"no candidate passes every gate; the nearest is {fewest.candidate}"
    return f"{nearest}, which {_missed(failed)}{passes}"


def _missed(failed: Sequence[Gate]) -> str:
    """Return what a candidate does not reach, as a clause: "fails size and is not shown to pass macro F1"."""
    names = {shown: [GATES[gate.name] for gate in failed if gate.shown is shown] for shown in (True, False)}
    verbs = {True: "fails", False: "is not shown to pass"}
    return " and ".join(f"{verbs[shown]} {', '.join(found)}" for shown, found in names.items() if found)


def describe_failures(gates: Sequence[Mapping[str, Any]]) -> str:
    """Return the gates that did not pass in a few words: "fails: size; not shown: macro F1"; empty where all did.

    A gate that is not shown is no failure of the file: images are too few, or times too uneven, to tell.
    """
    missed = [gate for gate in gates if not gate["passed"]]
    kinds = {"fails": [gate for gate in missed if gate.get("shown", True)]}
    kinds["not shown"] = [gate for gate in missed if not gate.get("shown", True)]
    return "; ".join(
        f"{kind}: {', '.join(GATES[gate['name']] for gate in found)}" for kind, found in kinds.items() if found
    )


def describe_reasons(gates: Sequence[Mapping[str, Any]]) -> str:
    """Return why gates did not pass, first those that failed: "fails: ...; not shown: ..."; empty where all passed."""
    missed = [gate for gate in gates if not gate["passed"]]
    failed = "; ".join(gate["reason"] for gate in missed if gate.get("shown", True))
    unshown = [gate["reason"] for gate in missed if not gate.get("shown", True)]
    return "; ".join([*([f"fails: {failed}"] if failed else []), *unshown])
