from __future__ import annotations

import math
import re
from dataclasses import replace

import numpy as np
import pytest

from winnow.config import Gates, Promotion
from winnow.evaluation.accuracy_drop import measure_drops
from winnow.evaluation.intervals import Ratio, paired_drop, simultaneous_confidence
from winnow.records import Gate
from winnow.records.selection import Drop, DropEvidence
from winnow.selection.decision import candidates_on_front, count_competing, decide
from winnow.selection.gates import (
    GATES,
    CandidateMetrics,
    describe_failures,
    describe_reasons,
    judge_drop,
    judge_macro_f1,
)

FAR = Drop(9.0, 8.0, 10.0)
"""Answers that prove nothing."""


def known(points: float, low: float, high: float, answers: Drop = FAR) -> DropEvidence:
    return DropEvidence(Drop(points, low, high), answers)


def times(value: float, low: float | None = None, high: float | None = None) -> Ratio:
    return Ratio(value, value if low is None else low, value if high is None else high)


def few(points: float, low: float, high: float, answers: Drop) -> DropEvidence:
    """Of few labels."""
    return DropEvidence(Drop(points, low, high), answers, route="answers")


NOTHING = known(0.0, 0.0, 0.0)
DENSE = CandidateMetrics("dense", 0.80, NOTHING, NOTHING, 1.0, 2.0, 4.0, 500.0, times(1.0))
GOOD = CandidateMetrics("good", 0.80, known(0.2, -0.5, 0.9), known(0.3, -0.6, 1.2), 0.95, 0.5, 2.0, 1500.0, times(2.0))
LIMITS = {"max_drop_points": 1.0, "max_macro_f1_drop_points": 2.0, "min_agreement": 0.7, "max_size_ratio": 0.5}
POLICY = Promotion(gates=Gates(**LIMITS, min_speedup=1.2))


def judged(contender: CandidateMetrics, policy: Promotion = POLICY) -> dict[str, bool]:
    verdict = decide(DENSE, [contender], policy).verdicts[0]
    assert verdict.passed == all(gate.passed for gate in verdict.gates)
    return {gate.name: gate.passed for gate in verdict.gates}


@pytest.mark.parametrize(
    ("change", "failing"),
    [
        ({}, set()),
        ({"drop": known(1.0, 0.0, 2.0)}, set()),  # both ends of what is allowed
        ({"drop": known(1.01, 0.5, 1.5)}, {"drop"}),  # more than the allowance
        ({"drop": known(0.5, -1.1, 2.01)}, {"drop"}),  # within it, but not shown
        ({"drop": few(0.0, -6.0, 6.0, Drop(1.5, 1.2, 1.9))}, set()),  # shown by the answers
        ({"drop": known(0.0, -6.0, 6.0, Drop(1.5, 1.2, 1.9))}, {"drop"}),  # labels alone decide where there are many
        ({"drop": few(0.0, -1.0, 1.0, Drop(1.9, 1.5, 2.3))}, {"drop"}),  # answers alone where there are few
        ({"drop": few(1.7, -5.0, 8.0, Drop(0.9, 0.6, 1.3))}, set()),  # by chance more than can be
        ({"drop": few(1.7, -5.0, 8.0, Drop(1.2, 0.9, 1.6))}, {"drop"}),
        ({"drop": few(0.0, -6.0, 6.0, Drop(1.9, 1.5, 2.3))}, {"drop"}),
        ({"drop": few(8.0, 4.0, 15.0, Drop(0.2, 0.1, 0.3))}, {"drop"}),  # the labels contradict the bound
        ({"drop": known(-1.0, -2.0, 0.0)}, set()),  # better than the reference
        ({"drop": DropEvidence(None, Drop(0.9, 0.6, 1.3))}, set()),  # no labels: the answers stand alone
        ({"drop": DropEvidence(None, Drop(1.1, 0.8, 1.5))}, {"drop"}),
        ({"drop": DropEvidence(None, Drop(0.9, 0.1, 3.0))}, {"drop"}),
        ({"macro_f1": known(2.0, 0.0, 4.0)}, set()),
        ({"macro_f1": known(2.1, 1.0, 3.0)}, {"macro-f1"}),
        ({"macro_f1": known(1.0, -6.0, 8.0)}, {"macro-f1"}),
        ({"macro_f1": few(1.0, -6.0, 8.0, Drop(1.0, 0.5, 3.0))}, set()),  # the reference's answers stand in
        ({"macro_f1": few(2.1, -6.0, 8.0, Drop(1.0, 0.5, 3.0))}, {"macro-f1"}),  # but bound nothing
        ({"macro_f1": known(1.0, -6.0, 8.0, Drop(1.0, 0.5, 3.0))}, {"macro-f1"}),  # not where labels could show it
        ({"macro_f1": replace(known(1.0, -6.0, 8.0, Drop(1.0, 0.5, 3.0)), unchanged=4.1)}, set()),  # a rare class
        ({"macro_f1": replace(known(1.0, -1.0, 3.0, Drop(1.0, 0.5, 5.0)), unchanged=4.1)}, {"macro-f1"}),
        ({"macro_f1": DropEvidence(None, Drop(1.0, 0.5, 3.0))}, set()),
        ({"macro_f1": DropEvidence(None, Drop(1.0, 0.5, 4.1))}, {"macro-f1"}),
        ({"agreement": 0.69}, {"agreement"}),
        ({"agreement": 0.7}, set()),
        ({"agreement": 0.6999}, {"agreement"}),
        ({"size_mb": 1.0}, set()),
        ({"size_mb": 1.001}, {"size"}),
        ({"speedup": times(1.2)}, set()),
        ({"speedup": times(1.19)}, {"speedup"}),
        ({"speedup": times(2.0, 1.2, 3.0)}, set()),
        ({"speedup": times(2.0, 1.19, 3.0)}, {"speedup"}),  # not shown
        ({"speedup": times(2.0, 0.0, math.inf)}, {"speedup"}),
        ({"speedup": None, "latency_ms": None, "throughput_ips": None}, {"speedup"}),
        ({"size_mb": 2.0, "speedup": times(1.0)}, {"size", "speedup"}),
    ],
)
def test_gates(change: dict, failing: set[str]) -> None:
    outcome = judged(replace(GOOD, **change))
    assert {name for name, passed in outcome.items() if not passed} == failing
    assert set(outcome) == {"drop", "macro-f1", "agreement", "size", "speedup"}
    assert set(outcome) | {"int8"} == set(GATES)


@pytest.mark.parametrize(
    ("change", "gate", "numbers"),
    [
        ({"drop": known(1.6, 0.4, 2.9)}, "drop", ["1.6", "0.4", "2.9", "exceeds 1"]),
        ({"drop": known(0.4, -0.8, 2.1)}, "drop", ["not shown", "0.4", "−0.8", "2.1", "within 1", "exceeds 2"]),
        ({"drop": few(0.0, -6.0, 6.0, Drop(1.5, 1.2, 1.9))}, "drop", ["−6.0 to 6.0", "1.5 %", "at most 1.9 %"]),
        ({"drop": DropEvidence(None, Drop(1.5, 1.2, 1.9))}, "drop", ["not shown", "no label", "1.5 %", "may exceed 1"]),
        ({"macro_f1": few(1.0, -6.0, 8.0, Drop(1.1, 0.5, 3.0))}, "macro-f1", ["1.0", "8.0", "truth 1.1", "most 3.0"]),
        ({"agreement": 0.6999}, "agreement", ["69.99 %", "70 %", "less than"]),
        ({"size_mb": 1.5}, "size", ["1.50 MB", "75 %", "2.00 MB", "50 %"]),
        ({"speedup": times(1.1)}, "speedup", ["1.10 times", "(1.10 to 1.10)", "less than 1.2"]),
        ({"speedup": times(1.3, 1.1, 1.5)}, "speedup", ["not shown", "1.30 times", "(1.10 to 1.50)", "least 1.2"]),
        ({"speedup": times(1.3, 0.0, math.inf)}, "speedup", ["not shown", "1.30 times", "interval not known"]),
    ],
)
def test_reasons_hold_both_numbers(change: dict, gate: str, numbers: list[str]) -> None:
    verdict = decide(DENSE, [replace(GOOD, **change)], POLICY).verdicts[0]
    reason = next(item.reason for item in verdict.gates if item.name == gate)
    assert all(number in reason for number in numbers), reason


def test_those_compete_that_pass_what_no_answer_decides() -> None:
    changes: list[dict] = [
        {},
        {"drop": known(9.0, 8.0, 10.0)},
        {"size_mb": 1.9},
        {"speedup": times(1.0)},
        {"int8_share": 0.1},
    ]
    contenders = [replace(GOOD, name=str(at), **change) for at, change in enumerate(changes)]
    assert count_competing(DENSE, contenders, POLICY.gates) == 2


def test_a_reason_tells_over_how_many_candidates_its_interval_holds() -> None:
    several = replace(GOOD.drop, candidates=6)
    assert judge_drop(several, 1.0).reason == (
        "drop 0.2 points (−0.5 to 0.9; 95 % over 6 candidates) is within 1, its worst end within 2"
    )
    assert "over 6 candidates" in judge_macro_f1(several, 1.0).reason
    assert "candidates" not in judge_drop(GOOD.drop, 1.0).reason


@pytest.mark.parametrize(("together", "least", "most"), [(False, 0.12, 0.22), (True, 0.005, 0.035)])
def test_of_eight_candidates_beyond_what_is_allowed_hardly_ever_any_passes(
    together: bool, least: float, most: float
) -> None:
    rng, draws, candidates, images = np.random.default_rng(11), 600, 8, 2000
    lost, won, allowed = 0.06, 0.04, 1.0  # two points: as much as the worst end may reach
    confidence = simultaneous_confidence(candidates if together else 1)
    some = 0
    for _ in range(draws):
        chances = rng.random((candidates, images))
        drops = [paired_drop(chance >= won, (chance < won) | (chance >= won + lost), confidence) for chance in chances]
        some += any(judge_drop(DropEvidence(drop, FAR), allowed).passed for drop in drops)
    assert least <= some / draws <= most


@pytest.mark.parametrize(("objective", "winner"), [("latency", "quick"), ("throughput", "broad"), ("size", "small")])
def test_the_objective_orders_those_who_pass(objective: str, winner: str) -> None:
    contenders = [
        replace(GOOD, name="quick", latency_ms=1.0),
        replace(GOOD, name="broad", throughput_ips=9000.0),
        replace(GOOD, name="small", size_mb=0.1),
        replace(GOOD, name="quickest-but-wrong", latency_ms=0.1, throughput_ips=1e5, size_mb=0.01, agreement=0.1),
    ]
    decision = decide(DENSE, contenders, POLICY.model_copy(update={"objective": objective}))
    assert decision.winner == winner
    assert decision.why.startswith(f"{winner} ")
    assert "3 candidates that pass" in decision.why
    assert [verdict.candidate for verdict in decision.verdicts] == [contender.name for contender in contenders]


def test_between_equals_the_smaller_drop_wins_whatever_the_order() -> None:
    worse = replace(GOOD, name="a-worse", drop=known(0.9, 0.0, 1.5))
    better = replace(GOOD, name="b-better", drop=known(0.1, 0.0, 1.5))
    assert decide(DENSE, [worse, better], POLICY).winner == "b-better"
    assert decide(DENSE, [better, worse], POLICY).winner == "b-better"


def test_noise_orders_nobody() -> None:
    steady = [1.0, 1.01, 0.99, 1.0, 1.02, 0.98, 1.0]
    rounds = {"quick": [0.97 * at for at in steady[::-1]], "exact": steady, "slow": [1.5 * at for at in steady]}
    lost = {"quick": 0.9, "exact": 0.2, "slow": 0.0}
    contenders = [
        replace(GOOD, name=name, latency_ms=sorted(of)[3], round_ms=tuple(of), drop=known(lost[name], -1.0, 1.5))
        for name, of in rounds.items()
    ]
    assert decide(DENSE, contenders, POLICY).winner == "quick"  # 3 % faster, and that is shown
    decision = decide(DENSE, contenders, POLICY, error=0.05)  # but not beyond what this run measures of equals
    assert decision.winner == "exact"
    told = "exact loses least of those that are not shown to be slower than the fastest of the 3 candidates"
    assert decision.why.startswith(told)
    assert "0.2 points at 1 ms, where quick loses 0.9 at 0.97 ms" in decision.why
    alike = [replace(at, drop=known(0.2, -1.0, 1.5)) for at in contenders]
    assert decide(DENSE, alike, POLICY, error=0.05).winner == "quick"  # as accurate: the faster one


def test_nobody_passing_names_the_nearest_and_with_which_gates_it_would() -> None:
    far = replace(GOOD, name="far", agreement=0.1, size_mb=1.9, speedup=times(0.5))
    near = replace(GOOD, name="near", speedup=times(1.1))
    decision = decide(DENSE, [far, near], POLICY)
    assert decision.winner is None
    told = "nearest is near, which fails speed-up; it would pass with promotion.gates.min_speedup 1.1"
    assert decision.why.endswith(told)
    assert "1.10 times (1.10 to 1.10) is less than 1.2" in decision.verdicts[1].gates[-1].reason


@pytest.mark.parametrize(
    "lacking",
    [
        replace(GOOD, drop=known(3.04, 1.0, 5.0)),
        replace(GOOD, drop=known(0.2, -4.0, 8.37)),
        replace(GOOD, macro_f1=known(0.2, -4.0, 12.51)),
        replace(GOOD, agreement=0.61237),
        replace(GOOD, size_mb=1.337),
        replace(GOOD, speedup=times(1.0999)),
        replace(GOOD, int8_share=0.43219),
        replace(GOOD, int8_share=0.0),
        replace(GOOD, drop=known(3.04, 1.0, 5.0), speedup=times(0.3)),
    ],
)
def test_what_the_nearest_would_pass_with_is_enough_and_hardly_more(lacking: CandidateMetrics) -> None:
    told = decide(DENSE, [lacking], POLICY).why.rpartition("it would pass with promotion.gates.")[2]
    needed = {key: float(value) for key, value in (each.split() for each in told.split(" and "))}
    loosened = POLICY.model_copy(update={"gates": POLICY.gates.model_copy(update=needed)})
    assert decide(DENSE, [lacking], loosened).winner == lacking.name
    for key, value in needed.items():
        hardly = {"min_agreement": 0.0011, "min_int8_share": 0.0011, "min_speedup": 0.011, "max_size_ratio": -0.011}
        tighter = needed | {key: value + hardly.get(key, -0.11)}
        held = POLICY.model_copy(update={"gates": POLICY.gates.model_copy(update=tighter)})
        assert decide(DENSE, [lacking], held).winner is None


def test_what_was_never_timed_would_pass_with_no_gate() -> None:
    why = decide(DENSE, [replace(GOOD, name="near", speedup=None)], POLICY).why
    assert why.endswith("the nearest is near, which fails speed-up")


def test_without_candidates_there_is_nothing_to_choose() -> None:
    decision = decide(DENSE, [], POLICY)
    assert (decision.winner, decision.verdicts, decision.front) == (None, (), ("dense",))
    assert "nothing to choose" in decision.why


def test_front_keeps_equals_and_drops_the_beaten() -> None:
    twin = replace(DENSE, name="twin")
    beaten = replace(DENSE, name="beaten", latency_ms=4.1)
    smaller = replace(DENSE, name="smaller", latency_ms=9.0, size_mb=0.1)
    untimed = replace(DENSE, name="untimed", top1=0.99, latency_ms=None)
    assert candidates_on_front([DENSE, twin, beaten, smaller, untimed]) == ("dense", "twin", "smaller")


def test_front_takes_agreement_where_no_image_has_a_label() -> None:
    bare = replace(DENSE, top1=None)
    parrot = replace(GOOD, name="parrot", top1=None, agreement=0.9)
    stranger = replace(parrot, name="stranger", agreement=0.5)
    assert candidates_on_front([bare, parrot, stranger]) == ("dense", "parrot")


def test_every_point_off_the_front_is_beaten_by_one_on_it() -> None:
    many = [
        replace(GOOD, name=f"c{i}", top1=0.5 + (i * 7 % 13) / 30, size_mb=0.1 + i * 5 % 11, latency_ms=1.0 + i * 3 % 7)
        for i in range(40)
    ]
    front = set(candidates_on_front(many))

    def key(c: CandidateMetrics) -> tuple[float, float, float]:
        assert c.top1 is not None
        assert c.latency_ms is not None
        return (-c.top1, c.size_mb, c.latency_ms)

    best = [key(c) for c in many if c.name in front]
    assert 0 < len(front) < len(many)
    for contender in many:
        beaten = any(all(a <= b for a, b in zip(one, key(contender), strict=True)) for one in best)
        strictly = any(
            one != key(contender) and all(a <= b for a, b in zip(one, key(contender), strict=True)) for one in best
        )
        assert beaten
        assert strictly == (contender.name not in front)


def test_int8_that_was_not_read_is_not_checked_and_blocks_nothing() -> None:
    why = "on Cortex-A76: check_host.py does not read which kernels ort int8 runs there"
    decision = decide(DENSE, [replace(GOOD, int8_unchecked=why)], POLICY)
    gate = decision.verdicts[0].gates[-1]
    assert (gate.name, gate.checked, gate.passed, gate.reason) == ("int8", False, True, f"not checked {why}")
    assert decision.winner == "good"
    assert all(gate.checked for gate in decide(DENSE, [GOOD], POLICY).verdicts[0].gates)


def test_a_gain_that_few_images_cannot_show_is_told_as_a_gain_and_as_not_shown() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), (200, 200, 6))
    answers = np.where(rng.random(406) < 0.7, labels, (labels + 1) % 3)
    answers[400:] = (2, 2, 2, 0, 0, 0)  # half of the rare class
    child = answers.copy()
    child[400:] = (2, 2, 2, 2, 2, 0)
    found = measure_drops(
        *(np.eye(3, dtype=np.float32)[each] for each in (answers, child)), labels, classes=("1e", "1c", "2c")
    )
    gate = judge_macro_f1(found.macro_f1, 0.01)
    assert not gate.passed
    assert not gate.shown
    assert re.match(
        r"not shown: gains \d+\.\d points of macro F1; with 6 images of class '2c' a loss of up to \d+\.\d points "
        r"cannot be excluded, 0\.02 are allowed",
        gate.reason,
    )
    size = Gate(name="size", passed=False, reason="too large")
    gates = [gate, size]
    assert describe_failures(gates[:1]) == "not shown: macro F1"
    assert describe_failures(gates) == "fails: size; not shown: macro F1"
    assert describe_reasons(gates) == f"fails: too large; {gate.reason}"
    assert describe_failures([size.model_copy(update={"passed": True})]) == ""
