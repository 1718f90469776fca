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


def drawn(rng: np.random.Generator, chance: float, alike: float, groups: int) -> np.ndarray:
    """Chance of each group; `alike`: correlation of two images of one group."""
    if alike == 0:
        return np.full(groups, chance)
    scale = (1 - alike) / alike
    return rng.beta(chance * scale, (1 - chance) * scale, groups)


def uneven(rng: np.random.Generator, groups: int, mean: int = 20) -> np.ndarray:
    """Group of each image: sizes differ as those of crops of photographs do."""
    return np.repeat(np.arange(groups), np.maximum(1, rng.poisson(rng.gamma(2, mean / 2, groups))))


@pytest.mark.thorough
@pytest.mark.parametrize("groups", [8, 20, 50])
@pytest.mark.parametrize("alike", [0.0, 0.1, 0.4])
def test_accuracy_in_groups_covers_the_truth_as_often_as_it_says(groups: int, alike: float) -> None:
    rng, truth, tries, covered, naive = np.random.default_rng(groups), 0.8, 600, 0, 0
    for _ in range(tries):
        groups_N = uneven(rng, groups)
        right_N = rng.random(len(groups_N)) < drawn(rng, truth, alike, groups)[groups_N]
        low, high = proportion_interval(right_N, groups_N)
        covered += low <= truth <= high
        low, high = wilson_interval(right_N.sum(), len(right_N))
        naive += low <= truth <= high
    assert covered / tries >= 0.92
    if alike == 0.4:
        assert naive / tries < 0.6  # what a user was shown before


@pytest.mark.parametrize("groups", [8, 20, 50])
@pytest.mark.parametrize("alike", [0.0, 0.1, 0.3])
def test_a_drop_in_groups_covers_the_truth_as_often_as_it_says(groups: int, alike: float) -> None:
    rng, lost, won, tries, covered = np.random.default_rng(groups), 0.06, 0.03, 200, 0
    for _ in range(tries):
        groups_N = uneven(rng, groups)
        draw = rng.random(len(groups_N))
        is_lost = draw < drawn(rng, lost, alike, groups)[groups_N]
        is_won = ~is_lost & (draw > 1 - drawn(rng, won, alike, groups)[groups_N])
        drop = paired_drop(~is_won, ~is_lost, groups_N=groups_N)
        covered += drop.low <= (lost - won) * 100 <= drop.high
    assert covered / tries >= 0.93


@pytest.mark.thorough
@pytest.mark.parametrize("groups", [8, 50])
@pytest.mark.parametrize("alike", [0.0, 0.2])
def test_macro_f1_in_groups_covers_no_change_as_often_as_it_says(groups: int, alike: float) -> None:
    rng, tries, covered, naive = np.random.default_rng(groups), 120, 0, 0
    for _ in range(tries):
        groups_N = uneven(rng, groups)
        labels = rng.choice(4, len(groups_N), p=(0.4, 0.3, 0.2, 0.1))
        wrong = (labels + 1) % 4
        draw, chance = rng.random(len(labels)), drawn(rng, 0.1, alike, groups)[groups_N]
        reversed_chance = drawn(rng, 0.1, alike, groups)[groups_N]
        reference = np.where(draw < chance, wrong, labels)
        child = np.where(draw > 1 - reversed_chance, wrong, labels)
        drop = macro_f1_drop(labels, reference, child, groups_N=groups_N)
        covered += drop.low <= 0 <= drop.high
        drop = macro_f1_drop(labels, reference, child)
        naive += drop.low <= 0 <= drop.high
    assert covered / tries >= 0.91
    if alike:
        assert naive / tries < 0.7


def test_images_that_are_alone_in_their_group_count_as_without_groups() -> None:
    alone = np.arange(400)
    right, other = RNG.random(400) < 0.8, RNG.random(400) < 0.8
    labels, one, two = (RNG.integers(0, 4, 400) for _ in range(3))
    assert image_groups(alone) is None
    assert image_groups(None) is None
    assert proportion_interval(right, alone) == proportion_interval(right) == wilson_interval(right.sum(), 400)
    assert paired_drop(right, other, groups_N=alone) == paired_drop(right, other)
    assert disagreement_interval(one, two, groups_N=alone) == disagreement_interval(one, two)
    assert macro_f1_drop(labels, one, two, groups_N=alone) == macro_f1_drop(labels, one, two)
    assert smallest_upper_end(400, groups_N=alone) == smallest_upper_end(400)


def test_copies_of_every_image_tell_no_more_than_the_images() -> None:
    right, other = RNG.random(60) < 0.8, RNG.random(60) < 0.8
    groups_N = np.repeat(np.arange(60), 10)
    low, high = proportion_interval(right)
    grouped = proportion_interval(right.repeat(10), groups_N)
    assert grouped == pytest.approx((low, high), abs=0.02)
    drop, many = paired_drop(right, other), paired_drop(right.repeat(10), other.repeat(10), groups_N=groups_N)
    assert (many.points, many.low, many.high) == pytest.approx((drop.points, drop.low, drop.high), abs=1.5)


def test_of_no_change_at_all_images_are_worth_as_many_as_there_are_groups() -> None:
    groups_N = np.repeat(np.arange(30), 20)
    same = np.ones(600, dtype=bool)
    drop = paired_drop(same, same, groups_N=groups_N)
    assert drop.points == 0
    assert drop.high == pytest.approx(smallest_upper_end(600, groups_N=groups_N))
    assert smallest_upper_end(30) < drop.high < 1.2 * smallest_upper_end(30)  # Student's t in place of the normal
    labels = np.arange(600) % 3
    assert macro_f1_drop(labels, labels, labels, groups_N=groups_N).high > 1


def test_errors_that_stand_alone_in_their_groups_make_images_worth_more() -> None:
    groups_N = np.repeat(np.arange(30), 20)
    scattered = np.arange(600) % 20 != 0  # one error in each group
    apart, together = proportion_interval(scattered, groups_N), proportion_interval(np.arange(600) >= 30, groups_N)
    assert apart[1] - apart[0] < 0.5 * (together[1] - together[0])


@pytest.mark.parametrize("groups", range(1, MIN_GROUPS))
def test_with_fewer_than_a_handful_of_groups_nothing_is_shown(groups: int) -> None:
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


def test_reasons_tell_images_and_groups() -> None:
    logits = np.eye(4, dtype=np.float32)[RNG.integers(0, 4, 600)]
    report = measure_drops(logits, logits, logits.argmax(1), groups_N=np.arange(600) // 2)
    assert (report.top1.images, report.top1.groups) == (600, 300)
    gate = judge_drop(report.top1, 1.0)
    assert gate.passed
    assert "600 images in 300 groups" in gate.reason
    assert in_groups(8.0) == " in 8 groups"
    assert in_groups(None) == ""


def test_groups_count_of_what_decides() -> None:
    """With few labels the answers of all images decide, in all their groups."""
    logits = np.eye(4, dtype=np.float32)[RNG.integers(0, 4, 600)]
    labels = np.where(np.arange(600) < 100, logits.argmax(1), -1)
    report = measure_drops(logits, logits, labels, groups_N=np.arange(600) // 10)
    assert (report.top1.route, report.top1.images, report.top1.groups) == ("answers", 600, 60)
