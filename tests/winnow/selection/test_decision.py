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

UNCERTAIN = Drop(9.0, 8.0, 10.0)
"""Interval that is too wide to show anything."""


def labelled_drop(points: float, low: float, high: float, predictions_drop: Drop = UNCERTAIN) -> DropEvidence:
    return DropEvidence(Drop(points, low, high), predictions_drop)


def speedup_ratio(value: float, low: float | None = None, high: float | None = None) -> Ratio:
    return Ratio(value, value if low is None else low, value if high is None else high)


def few_labels_drop(points: float, low: float, high: float, predictions_drop: Drop) -> DropEvidence:
    """Return evidence that few labels give, so that predictions decide."""
    return DropEvidence(Drop(points, low, high), predictions_drop, route="answers")


NO_DROP = labelled_drop(0.0, 0.0, 0.0)
DENSE = CandidateMetrics("dense", 0.80, NO_DROP, NO_DROP, 1.0, 2.0, 4.0, 500.0, speedup_ratio(1.0))
GOOD = CandidateMetrics(
    "good",
    0.80,
    labelled_drop(0.2, -0.5, 0.9),
    labelled_drop(0.3, -0.6, 1.2),
    0.95,
    0.5,
    2.0,
    1500.0,
    speedup_ratio(2.0),
)
LIMITS = {"max_drop_points": 1.0, "max_macro_f1_drop_points": 2.0, "min_agreement": 0.7, "max_size_ratio": 0.5}
POLICY = Promotion(gates=Gates(**LIMITS, min_speedup=1.2))


def gate_results(candidate: CandidateMetrics, policy: Promotion = POLICY) -> dict[str, bool]:
    verdict = decide(DENSE, [candidate], policy).verdicts[0]
    assert verdict.passed == all(gate.passed for gate in verdict.gates)
    return {gate.name: gate.passed for gate in verdict.gates}


@pytest.mark.parametrize(
    ("change", "failing"),
    [
        ({}, set()),
        ({"drop": labelled_drop(1.0, 0.0, 2.0)}, set()),  # exactly at both limits
        ({"drop": labelled_drop(1.01, 0.5, 1.5)}, {"drop"}),  # above the limit
        ({"drop": labelled_drop(0.5, -1.1, 2.01)}, {"drop"}),  # within it, but not shown
        ({"drop": few_labels_drop(0.0, -6.0, 6.0, Drop(1.5, 1.2, 1.9))}, set()),  # shown by predictions
        (
            {"drop": labelled_drop(0.0, -6.0, 6.0, Drop(1.5, 1.2, 1.9))},
            {"drop"},
        ),  # with many labels, only labels decide
        (
            {"drop": few_labels_drop(0.0, -1.0, 1.0, Drop(1.9, 1.5, 2.3))},
            {"drop"},
        ),  # with few labels, only predictions decide
        (
            {"drop": few_labels_drop(1.7, -5.0, 8.0, Drop(0.9, 0.6, 1.3))},
            set(),
        ),  # more than predictions allow, by chance
        ({"drop": few_labels_drop(1.7, -5.0, 8.0, Drop(1.2, 0.9, 1.6))}, {"drop"}),
        ({"drop": few_labels_drop(0.0, -6.0, 6.0, Drop(1.9, 1.5, 2.3))}, {"drop"}),
        ({"drop": few_labels_drop(8.0, 4.0, 15.0, Drop(0.2, 0.1, 0.3))}, {"drop"}),  # the labels contradict the bound
        ({"drop": labelled_drop(-1.0, -2.0, 0.0)}, set()),  # better than the reference
        ({"drop": DropEvidence(None, Drop(0.9, 0.6, 1.3))}, set()),  # no labels: only predictions
        ({"drop": DropEvidence(None, Drop(1.1, 0.8, 1.5))}, {"drop"}),
        ({"drop": DropEvidence(None, Drop(0.9, 0.1, 3.0))}, {"drop"}),
        ({"macro_f1": labelled_drop(2.0, 0.0, 4.0)}, set()),
        ({"macro_f1": labelled_drop(2.1, 1.0, 3.0)}, {"macro-f1"}),
        ({"macro_f1": labelled_drop(1.0, -6.0, 8.0)}, {"macro-f1"}),
        (
            {"macro_f1": few_labels_drop(1.0, -6.0, 8.0, Drop(1.0, 0.5, 3.0))},
            set(),
        ),  # predictions of the reference replace labels
        ({"macro_f1": few_labels_drop(2.1, -6.0, 8.0, Drop(1.0, 0.5, 3.0))}, {"macro-f1"}),  # but are no bound
        (
            {"macro_f1": labelled_drop(1.0, -6.0, 8.0, Drop(1.0, 0.5, 3.0))},
            {"macro-f1"},
        ),  # not where labels could show it
        (
            {"macro_f1": replace(labelled_drop(1.0, -6.0, 8.0, Drop(1.0, 0.5, 3.0)), unchanged=4.1)},
            set(),
        ),  # a rare class
        ({"macro_f1": replace(labelled_drop(1.0, -1.0, 3.0, Drop(1.0, 0.5, 5.0)), unchanged=4.1)}, {"macro-f1"}),
        ({"macro_f1": DropEvidence(None, Drop(1.0, 0.5, 3.0))}, set()),
        ({"macro_f1": DropEvidence(None, Drop(1.0, 0.5, 4.1))}, {"macro-f1"}),
        ({"agreement": 0.69}, {"agreement"}),
        ({"agreement": 0.7}, set()),
        ({"agreement": 0.6999}, {"agreement"}),
        ({"size_mb": 1.0}, set()),
        ({"size_mb": 1.001}, {"size"}),
        ({"speedup": speedup_ratio(1.2)}, set()),
        ({"speedup": speedup_ratio(1.19)}, {"speedup"}),
        ({"speedup": speedup_ratio(2.0, 1.2, 3.0)}, set()),
        ({"speedup": speedup_ratio(2.0, 1.19, 3.0)}, {"speedup"}),  # not shown
        ({"speedup": speedup_ratio(2.0, 0.0, math.inf)}, {"speedup"}),
        ({"speedup": None, "latency_ms": None, "throughput_ips": None}, {"speedup"}),
        ({"size_mb": 2.0, "speedup": speedup_ratio(1.0)}, {"size", "speedup"}),
    ],
)
def test_gates_at_their_limits(change: dict, failing: set[str]) -> None:
    outcome = gate_results(replace(GOOD, **change))
    assert {name for name, passed in outcome.items() if not passed} == failing
    assert set(outcome) == {"drop", "macro-f1", "agreement", "size", "speedup"}
    assert set(outcome) | {"int8"} == set(GATES)


@pytest.mark.parametrize(
    ("change", "gate", "numbers"),
    [
        ({"drop": labelled_drop(1.6, 0.4, 2.9)}, "drop", ["1.6", "0.4", "2.9", "exceeds 1"]),
        ({"drop": labelled_drop(0.4, -0.8, 2.1)}, "drop", ["not shown", "0.4", "−0.8", "2.1", "within 1", "exceeds 2"]),
        (
            {"drop": few_labels_drop(0.0, -6.0, 6.0, Drop(1.5, 1.2, 1.9))},
            "drop",
            ["−6.0 to 6.0", "1.5 %", "at most 1.9 %"],
        ),
        ({"drop": DropEvidence(None, Drop(1.5, 1.2, 1.9))}, "drop", ["not shown", "no label", "1.5 %", "may exceed 1"]),
        (
            {"macro_f1": few_labels_drop(1.0, -6.0, 8.0, Drop(1.1, 0.5, 3.0))},
            "macro-f1",
            ["1.0", "8.0", "truth 1.1", "most 3.0"],
        ),
        ({"agreement": 0.6999}, "agreement", ["69.99 %", "70 %", "less than"]),
        ({"size_mb": 1.5}, "size", ["1.50 MB", "75 %", "2.00 MB", "50 %"]),
        ({"speedup": speedup_ratio(1.1)}, "speedup", ["1.10 times", "(1.10 to 1.10)", "less than 1.2"]),
        (
            {"speedup": speedup_ratio(1.3, 1.1, 1.5)},
            "speedup",
            ["not shown", "1.30 times", "(1.10 to 1.50)", "least 1.2"],
        ),
        ({"speedup": speedup_ratio(1.3, 0.0, math.inf)}, "speedup", ["not shown", "1.30 times", "interval not known"]),
    ],
)
def test_reasons_state_both_numbers(change: dict, gate: str, numbers: list[str]) -> None:
    verdict = decide(DENSE, [replace(GOOD, **change)], POLICY).verdicts[0]
    reason = next(item.reason for item in verdict.gates if item.name == gate)
    assert all(number in reason for number in numbers), reason


def test_competing_candidates_pass_the_gates_without_predictions() -> None:
    changes: list[dict] = [
        {},
        {"drop": labelled_drop(9.0, 8.0, 10.0)},
        {"size_mb": 1.9},
        {"speedup": speedup_ratio(1.0)},
        {"int8_share": 0.1},
    ]
    candidates = [replace(GOOD, name=str(index), **change) for index, change in enumerate(changes)]
    assert count_competing(DENSE, candidates, POLICY.gates) == 2


def test_a_reason_states_the_number_of_candidates_of_its_interval() -> None:
    several = replace(GOOD.drop, candidates=6)
    assert judge_drop(several, 1.0).reason == (
        "drop 0.2 points (−0.5 to 0.9; 95 % over 6 candidates) is within 1, its worst end within 2"
    )
    assert "over 6 candidates" in judge_macro_f1(several, 1.0).reason
    assert "candidates" not in judge_drop(GOOD.drop, 1.0).reason


@pytest.mark.parametrize(("is_simultaneous", "low", "high"), [(False, 0.12, 0.22), (True, 0.005, 0.035)])
def test_candidates_beyond_the_limit_rarely_pass_with_simultaneous_intervals(
    is_simultaneous: bool, low: float, high: float
) -> None:
    rng, draws, candidates, images = np.random.default_rng(11), 600, 8, 2000
    loss_rate, win_rate, max_drop = 0.06, 0.04, 1.0  # two points: the limit of the worst end
    confidence = simultaneous_confidence(candidates if is_simultaneous else 1)
    passing_draws = 0
    for _ in range(draws):
        uniform_draws = rng.random((candidates, images))
        drops = [
            paired_drop(uniform_N >= win_rate, (uniform_N < win_rate) | (uniform_N >= win_rate + loss_rate), confidence)
            for uniform_N in uniform_draws
        ]
        passing_draws += any(judge_drop(DropEvidence(drop, UNCERTAIN), max_drop).passed for drop in drops)
    assert low <= passing_draws / draws <= high


@pytest.mark.parametrize(("objective", "winner"), [("latency", "quick"), ("throughput", "broad"), ("size", "small")])
def test_the_objective_orders_passing_candidates(objective: str, winner: str) -> None:
    candidates = [
        replace(GOOD, name="quick", latency_ms=1.0),
        replace(GOOD, name="broad", throughput_ips=9000.0),
        replace(GOOD, name="small", size_mb=0.1),
        replace(GOOD, name="quickest-but-wrong", latency_ms=0.1, throughput_ips=1e5, size_mb=0.01, agreement=0.1),
    ]
    decision = decide(DENSE, candidates, POLICY.model_copy(update={"objective": objective}))
    assert decision.winner == winner
    assert decision.why.startswith(f"{winner} ")
    assert "3 candidates that pass" in decision.why
    assert [verdict.candidate for verdict in decision.verdicts] == [candidate.name for candidate in candidates]


def test_among_equals_the_smaller_drop_wins() -> None:
    worse = replace(GOOD, name="a-worse", drop=labelled_drop(0.9, 0.0, 1.5))
    better = replace(GOOD, name="b-better", drop=labelled_drop(0.1, 0.0, 1.5))
    assert decide(DENSE, [worse, better], POLICY).winner == "b-better"
    assert decide(DENSE, [better, worse], POLICY).winner == "b-better"


def test_differences_within_noise_do_not_decide() -> None:
    round_ms = [1.0, 1.01, 0.99, 1.0, 1.02, 0.98, 1.0]
    rounds = {"quick": [0.97 * ms for ms in round_ms[::-1]], "exact": round_ms, "slow": [1.5 * ms for ms in round_ms]}
    drops = {"quick": 0.9, "exact": 0.2, "slow": 0.0}
    candidates = [
        replace(
            GOOD,
            name=name,
            latency_ms=sorted(times)[3],
            round_ms=tuple(times),
            drop=labelled_drop(drops[name], -1.0, 1.5),
        )
        for name, times in rounds.items()
    ]
    assert decide(DENSE, candidates, POLICY).winner == "quick"  # 3 % faster, which is shown
    decision = decide(DENSE, candidates, POLICY, error=0.05)  # but within the measurement error of this run
    assert decision.winner == "exact"
    expected = (
        "exact loses least accuracy of those that are not significantly slower than the fastest of the 3 candidates"
    )
    assert decision.why.startswith(expected)
    assert "0.2 points at 1 ms, where quick loses 0.9 at 0.97 ms" in decision.why
    equal_drops = [replace(ms, drop=labelled_drop(0.2, -1.0, 1.5)) for ms in candidates]
    assert decide(DENSE, equal_drops, POLICY, error=0.05).winner == "quick"  # as accurate: the faster one


def test_without_a_winner_the_nearest_candidate_and_its_gates_are_named() -> None:
    farther = replace(GOOD, name="far", agreement=0.1, size_mb=1.9, speedup=speedup_ratio(0.5))
    nearest = replace(GOOD, name="near", speedup=speedup_ratio(1.1))
    decision = decide(DENSE, [farther, nearest], POLICY)
    assert decision.winner is None
    expected = "nearest is near, which fails speed-up; it would pass with promotion.gates.min_speedup 1.1"
    assert decision.why.endswith(expected)
    assert "1.10 times (1.10 to 1.10) is less than 1.2" in decision.verdicts[1].gates[-1].reason


@pytest.mark.parametrize(
    "failing",
    [
        replace(GOOD, drop=labelled_drop(3.04, 1.0, 5.0)),
        replace(GOOD, drop=labelled_drop(0.2, -4.0, 8.37)),
        replace(GOOD, macro_f1=labelled_drop(0.2, -4.0, 12.51)),
        replace(GOOD, agreement=0.61237),
        replace(GOOD, size_mb=1.337),
        replace(GOOD, speedup=speedup_ratio(1.0999)),
        replace(GOOD, int8_share=0.43219),
        replace(GOOD, int8_share=0.0),
        replace(GOOD, drop=labelled_drop(3.04, 1.0, 5.0), speedup=speedup_ratio(0.3)),
    ],
)
def test_suggested_gates_are_sufficient_and_tight(failing: CandidateMetrics) -> None:
    suggestion = decide(DENSE, [failing], POLICY).why.rpartition("it would pass with promotion.gates.")[2]
    suggested = {key: float(value) for key, value in (item.split() for item in suggestion.split(" and "))}
    looser_policy = POLICY.model_copy(update={"gates": POLICY.gates.model_copy(update=suggested)})
    assert decide(DENSE, [failing], looser_policy).winner == failing.name
    for key, value in suggested.items():
        margins = {"min_agreement": 0.0011, "min_int8_share": 0.0011, "min_speedup": 0.011, "max_size_ratio": -0.011}
        tighter = suggested | {key: value + margins.get(key, -0.11)}
        tighter_policy = POLICY.model_copy(update={"gates": POLICY.gates.model_copy(update=tighter)})
        assert decide(DENSE, [failing], tighter_policy).winner is None


def test_an_untimed_candidate_gets_no_suggested_gate() -> None:
    reason = decide(DENSE, [replace(GOOD, name="near", speedup=None)], POLICY).why
    assert reason.endswith("the nearest is near, which fails speed-up")


def test_no_candidates_give_no_winner() -> None:
    decision = decide(DENSE, [], POLICY)
    assert (decision.winner, decision.verdicts, decision.front) == (None, (), ("dense",))
    assert "nothing to select" in decision.why


def test_the_front_keeps_equals_and_excludes_dominated_candidates() -> None:
    equal = replace(DENSE, name="twin")
    dominated = replace(DENSE, name="beaten", latency_ms=4.1)
    smaller = replace(DENSE, name="smaller", latency_ms=9.0, size_mb=0.1)
    untimed = replace(DENSE, name="untimed", top1=0.99, latency_ms=None)
    assert candidates_on_front([DENSE, equal, dominated, smaller, untimed]) == ("dense", "twin", "smaller")


def test_the_front_uses_agreement_without_labels() -> None:
    unlabelled = replace(DENSE, top1=None)
    agreeing = replace(GOOD, name="parrot", top1=None, agreement=0.9)
    disagreeing = replace(agreeing, name="stranger", agreement=0.5)
    assert candidates_on_front([unlabelled, agreeing, disagreeing]) == ("dense", "parrot")


def test_every_candidate_off_the_front_is_dominated_by_one_on_it() -> None:
    candidates = [
        replace(GOOD, name=f"c{i}", top1=0.5 + (i * 7 % 13) / 30, size_mb=0.1 + i * 5 % 11, latency_ms=1.0 + i * 3 % 7)
        for i in range(40)
    ]
    front = set(candidates_on_front(candidates))

    def key(c: CandidateMetrics) -> tuple[float, float, float]:
        assert c.top1 is not None
        assert c.latency_ms is not None
        return (-c.top1, c.size_mb, c.latency_ms)

    front_keys = [key(c) for c in candidates if c.name in front]
    assert 0 < len(front) < len(candidates)
    for candidate in candidates:
        is_covered = any(
            all(a <= b for a, b in zip(front_key, key(candidate), strict=True)) for front_key in front_keys
        )
        is_dominated = any(
            front_key != key(candidate) and all(a <= b for a, b in zip(front_key, key(candidate), strict=True))
            for front_key in front_keys
        )
        assert is_covered
        assert is_dominated == (candidate.name not in front)


def test_unread_int8_kernels_leave_the_gate_unchecked() -> None:
    reason = "on Cortex-A76: check_host.py does not read which kernels ort int8 runs there"
    decision = decide(DENSE, [replace(GOOD, int8_unchecked=reason)], POLICY)
    gate = decision.verdicts[0].gates[-1]
    assert (gate.name, gate.checked, gate.passed, gate.reason) == ("int8", False, True, f"not checked {reason}")
    assert decision.winner == "good"
    assert all(gate.checked for gate in decide(DENSE, [GOOD], POLICY).verdicts[0].gates)


def test_a_gain_on_few_images_is_reported_as_not_shown() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), (200, 200, 6))
    reference = np.where(rng.random(406) < 0.7, labels, (labels + 1) % 3)
    reference[400:] = (2, 2, 2, 0, 0, 0)  # half of the rare class
    child = reference.copy()
    child[400:] = (2, 2, 2, 2, 2, 0)
    report = measure_drops(
        *(np.eye(3, dtype=np.float32)[predictions] for predictions in (reference, child)),
        labels,
        classes=("1e", "1c", "2c"),
    )
    gate = judge_macro_f1(report.macro_f1, 0.01)
    assert not gate.passed
    assert not gate.shown
    assert re.match(
        r"not shown: gains \d+\.\d points of macro F1; with 6 images of class '2c' a loss of up to \d+\.\d points "
        r"cannot be excluded, 0\.02 are allowed",
        gate.reason,
    )
    assert gate.reason.count("(") == gate.reason.count(")")
    size = Gate(name="size", passed=False, reason="too large")
    gates = [gate, size]
    assert describe_failures(gates[:1]) == "not shown: macro F1"
    assert describe_failures(gates) == "fails: size; not shown: macro F1"
    assert describe_reasons(gates) == f"fails: too large; {gate.reason}"
    assert describe_failures([size.model_copy(update={"passed": True})]) == ""
