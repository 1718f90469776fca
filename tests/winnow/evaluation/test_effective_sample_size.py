from __future__ import annotations

import numpy as np
import pytest

from winnow.evaluation.accuracy_drop import measure_drops
from winnow.evaluation.effective_sample_size import MIN_GROUPS, image_groups, in_groups
from winnow.evaluation.intervals import (
    disagreement_interval,
    paired_drop,
    proportion_interval,
    smallest_upper_end,
    wilson_interval,
)
from winnow.evaluation.macro_f1_drop import macro_f1_drop
from winnow.evaluation.metrics import quality_metrics
from winnow.selection.gates import judge_drop, judge_macro_f1

RNG = np.random.default_rng(0)


def group_rates(rng: np.random.Generator, mean: float, correlation: float, groups: int) -> np.ndarray:
    """Draw the rate of each group; `correlation` is that of two images of one group."""
    if correlation == 0:
        return np.full(groups, mean)
    scale = (1 - correlation) / correlation
    return rng.beta(mean * scale, (1 - mean) * scale, groups)


def uneven_groups(rng: np.random.Generator, groups: int, mean: int = 20) -> np.ndarray:
    """Return the group of each image; sizes vary as for crops of photographs."""
    return np.repeat(np.arange(groups), np.maximum(1, rng.poisson(rng.gamma(2, mean / 2, groups))))


@pytest.mark.thorough
@pytest.mark.parametrize("groups", [8, 20, 50])
@pytest.mark.parametrize("correlation", [0.0, 0.1, 0.4])
def test_the_interval_of_accuracy_in_groups_has_its_coverage(groups: int, correlation: float) -> None:
    rng, truth, repetitions, covered, covered_ungrouped = np.random.default_rng(groups), 0.8, 600, 0, 0
    for _ in range(repetitions):
        groups_N = uneven_groups(rng, groups)
        right_N = rng.random(len(groups_N)) < group_rates(rng, truth, correlation, groups)[groups_N]
        low, high = proportion_interval(right_N, groups_N)
        covered += low <= truth <= high
        low, high = wilson_interval(right_N.sum(), len(right_N))
        covered_ungrouped += low <= truth <= high
    assert covered / repetitions >= 0.92
    if correlation == 0.4:
        assert covered_ungrouped / repetitions < 0.6  # the interval without groups


@pytest.mark.parametrize("groups", [8, 20, 50])
@pytest.mark.parametrize("correlation", [0.0, 0.1, 0.3])
def test_the_interval_of_a_drop_in_groups_has_its_coverage(groups: int, correlation: float) -> None:
    rng, loss_rate, win_rate, repetitions, covered = np.random.default_rng(groups), 0.06, 0.03, 200, 0
    for _ in range(repetitions):
        groups_N = uneven_groups(rng, groups)
        draw = rng.random(len(groups_N))
        is_lost = draw < group_rates(rng, loss_rate, correlation, groups)[groups_N]
        is_won = ~is_lost & (draw > 1 - group_rates(rng, win_rate, correlation, groups)[groups_N])
        drop = paired_drop(~is_won, ~is_lost, groups_N=groups_N)
        covered += drop.low <= (loss_rate - win_rate) * 100 <= drop.high
    assert covered / repetitions >= 0.93


@pytest.mark.thorough
@pytest.mark.parametrize("groups", [8, 50])
@pytest.mark.parametrize("correlation", [0.0, 0.2])
def test_the_interval_of_macro_f1_in_groups_has_its_coverage(groups: int, correlation: float) -> None:
    rng, repetitions, covered, covered_ungrouped = np.random.default_rng(groups), 120, 0, 0
    for _ in range(repetitions):
        groups_N = uneven_groups(rng, groups)
        labels = rng.choice(4, len(groups_N), p=(0.4, 0.3, 0.2, 0.1))
        wrong = (labels + 1) % 4
        draw, reference_error = rng.random(len(labels)), group_rates(rng, 0.1, correlation, groups)[groups_N]
        child_error = group_rates(rng, 0.1, correlation, groups)[groups_N]
        reference = np.where(draw < reference_error, wrong, labels)
        child = np.where(draw > 1 - child_error, wrong, labels)
        drop = macro_f1_drop(labels, reference, child, groups_N=groups_N)
        covered += drop.low <= 0 <= drop.high
        drop = macro_f1_drop(labels, reference, child)
        covered_ungrouped += drop.low <= 0 <= drop.high
    assert covered / repetitions >= 0.91
    if correlation:
        assert covered_ungrouped / repetitions < 0.7


def test_groups_of_one_image_equal_no_groups() -> None:
    single_groups = np.arange(400)
    correct, child_correct = RNG.random(400) < 0.8, RNG.random(400) < 0.8
    labels, reference, child = (RNG.integers(0, 4, 400) for _ in range(3))
    assert image_groups(single_groups) is None
    assert image_groups(None) is None
    assert (
        proportion_interval(correct, single_groups)
        == proportion_interval(correct)
        == wilson_interval(correct.sum(), 400)
    )
    assert paired_drop(correct, child_correct, groups_N=single_groups) == paired_drop(correct, child_correct)
    assert disagreement_interval(reference, child, groups_N=single_groups) == disagreement_interval(reference, child)
    assert macro_f1_drop(labels, reference, child, groups_N=single_groups) == macro_f1_drop(labels, reference, child)
    assert smallest_upper_end(400, groups_N=single_groups) == smallest_upper_end(400)


def test_copies_of_images_do_not_narrow_the_interval() -> None:
    correct, child_correct = RNG.random(60) < 0.8, RNG.random(60) < 0.8
    groups_N = np.repeat(np.arange(60), 10)
    low, high = proportion_interval(correct)
    grouped = proportion_interval(correct.repeat(10), groups_N)
    assert grouped == pytest.approx((low, high), abs=0.02)
    drop, copies_drop = (
        paired_drop(correct, child_correct),
        paired_drop(correct.repeat(10), child_correct.repeat(10), groups_N=groups_N),
    )
    assert (copies_drop.points, copies_drop.low, copies_drop.high) == pytest.approx(
        (drop.points, drop.low, drop.high), abs=1.5
    )


def test_without_changes_the_sample_size_is_the_number_of_groups() -> None:
    groups_N = np.repeat(np.arange(30), 20)
    correct = np.ones(600, dtype=bool)
    drop = paired_drop(correct, correct, groups_N=groups_N)
    assert drop.points == 0
    assert drop.high == pytest.approx(smallest_upper_end(600, groups_N=groups_N))
    assert smallest_upper_end(30) < drop.high < 1.2 * smallest_upper_end(30)  # Student's t in place of the normal
    labels = np.arange(600) % 3
    assert macro_f1_drop(labels, labels, labels, groups_N=groups_N).high > 1


def test_scattered_errors_narrow_the_interval() -> None:
    groups_N = np.repeat(np.arange(30), 20)
    one_error_per_group = np.arange(600) % 20 != 0  # one error in each group
    scattered_interval, clustered_interval = (
        proportion_interval(one_error_per_group, groups_N),
        proportion_interval(np.arange(600) >= 30, groups_N),
    )
    assert scattered_interval[1] - scattered_interval[0] < 0.5 * (clustered_interval[1] - clustered_interval[0])


@pytest.mark.parametrize("groups", range(1, MIN_GROUPS))
def test_too_few_groups_show_nothing(groups: int) -> None:
    groups_N = np.arange(600) % groups
    logits = np.eye(4, dtype=np.float32)[RNG.integers(0, 4, 600)]
    labels = logits.argmax(1)
    metrics, _ = quality_metrics(logits, labels, ("a", "b", "c", "d"), groups_N)
    assert (metrics["quality/top1_low"], metrics["quality/top1_high"]) == (0, 1)
    assert smallest_upper_end(600, groups_N=groups_N) == 100
    report = measure_drops(logits, logits, labels, groups_N=groups_N)
    for gate in (judge_drop(report.top1, 5.0), judge_macro_f1(report.macro_f1, 5.0)):
        assert not gate.passed
        assert gate.reason.startswith("not shown: ")
        assert f"600 images in {groups} groups, fewer than the {MIN_GROUPS}" in gate.reason


def test_reasons_state_images_and_groups() -> None:
    logits = np.eye(4, dtype=np.float32)[RNG.integers(0, 4, 600)]
    report = measure_drops(logits, logits, logits.argmax(1), groups_N=np.arange(600) // 2)
    assert (report.top1.images, report.top1.groups) == (600, 300)
    gate = judge_drop(report.top1, 1.0)
    assert gate.passed
    assert "600 images in 300 groups" in gate.reason
    assert in_groups(8.0) == " in 8 groups"
    assert in_groups(None) == ""


def test_groups_are_those_of_the_deciding_images() -> None:
    """With few labels, the predictions of all images decide, in all their groups."""
    logits = np.eye(4, dtype=np.float32)[RNG.integers(0, 4, 600)]
    labels = np.where(np.arange(600) < 100, logits.argmax(1), -1)
    report = measure_drops(logits, logits, labels, groups_N=np.arange(600) // 10)
    assert (report.top1.route, report.top1.images, report.top1.groups) == ("answers", 600, 60)
