from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from winnow.data.dataset import TEST, TRAIN, VALIDATION, ImageSet, number_equal_keys
from winnow.data.splits import (
    LEFT_OUT,
    assign_splits,
    draw_label_budget,
    key_fractions,
    merge_groups,
    selection_half,
    visible_labels,
)
from winnow.errors import ConfigError

CLASSES = ("a", "b", "c")
FRACTIONS = {"validation_fraction": 0.2, "test_fraction": 0.15}


def pile(seed: int, count: int = 400, *, named: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Keys, labels and the named test set; a third has a copy, whose label is the same."""
    rng = np.random.default_rng(seed)
    keys, labels = rng.integers(0, 256, (count, 16), dtype=np.uint8), rng.integers(-1, len(CLASSES), count)
    copies = rng.permutation(count)[: 2 * (count // 3)].reshape(2, -1)
    keys[copies[0]], labels[copies[0]] = keys[copies[1]], labels[copies[1]]
    tested = (rng.random(count) < 0.15) & (labels >= 0) if named else np.zeros(count, bool)
    return keys, labels, tested


def assign(keys: np.ndarray, labels: np.ndarray, tested: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    return assign_splits(keys, labels, CLASSES, **FRACTIONS, named_test_N=tested)


def keys_at(*paths: float) -> np.ndarray:
    """Keys whose fraction is as given."""
    high = [int(u * 2**64).to_bytes(8, "big") + bytes(8) for u in paths]
    return np.frombuffer(b"".join(high), np.uint8).reshape(-1, 16)


def test_fractions_are_the_first_eight_bytes() -> None:
    keys = np.random.default_rng(0).integers(0, 256, (1000, 16), dtype=np.uint8)
    expected = [int.from_bytes(key[:8].tobytes(), "big") / 2**64 for key in keys]
    np.testing.assert_allclose(key_fractions(keys), expected, atol=2**-52)
    assert key_fractions(np.full((1, 16), 255, np.uint8))[0] < 1
    assert key_fractions(np.zeros((1, 16), np.uint8))[0] == 0


def test_groups_are_the_sets_of_equal_keys() -> None:
    keys, _, _ = pile(3)
    groups = number_equal_keys(keys)
    by_bytes = [key.tobytes() for key in keys]
    same = np.array([[a == b for b in by_bytes] for a in by_bytes])
    np.testing.assert_array_equal(groups[:, None] == groups[None], same)


@pytest.mark.parametrize("place", [0.0, 0.1999, 0.2001, 0.3499, 0.3501, 0.9999])
def test_the_stretches(place: float) -> None:
    # Two more images of each class, so that nothing has to be lent.
    keys = keys_at(place, *[0.05] * 3, *[0.9] * 3)
    labels = np.array([0, 0, 1, 2, 0, 1, 2])
    split = assign(keys, labels, np.zeros(7, bool))[0]
    assert split[0] == (VALIDATION if place < 0.2 else TEST if place < 0.35 else TRAIN)
    without_label = assign(keys, np.array([-1, *labels[1:]]), np.zeros(7, bool))[0]
    assert without_label[0] == (VALIDATION if place < 0.2 else TRAIN)


def test_shares_are_about_right() -> None:
    keys = np.random.default_rng(0).integers(0, 256, (20_000, 16), dtype=np.uint8)
    split, warnings = assign(keys, np.arange(20_000) % 3, np.zeros(20_000, bool))
    shares = np.bincount(split, minlength=3) / len(split)
    np.testing.assert_allclose(shares, [0.65, 0.2, 0.15], atol=0.015)
    assert warnings == ()


@pytest.mark.parametrize("named", [False, True], ids=["by hash", "named test set"])
@pytest.mark.parametrize("seed", range(8))
def test_nothing_moves_when_data_grow_but_for_lent_images(seed: int, named: bool) -> None:
    keys, labels, tested = pile(seed, named=named)
    rng = np.random.default_rng(seed + 100)
    whole, _ = assign(keys, labels, tested)
    part = np.flatnonzero((rng.random(len(keys)) < rng.uniform(0.05, 0.9)) | tested)
    early, warnings = assign(keys[part], labels[part], tested[part])
    moved = early != whole[part]
    # The only move: an image lent to validation goes back when its class has a validation image of its own.
    lent = sum("was moved there" in warning for warning in warnings)
    assert len(np.unique(number_equal_keys(keys[part][moved]))) <= lent
    assert set(early[moved]) <= {VALIDATION}
    shuffled = rng.permutation(len(keys))
    np.testing.assert_array_equal(assign(keys[shuffled], labels[shuffled], tested[shuffled])[0], whole[shuffled])


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_copies_share_a_split_and_never_meet_the_test_set(seed: int, named: bool) -> None:
    keys, labels, tested = pile(seed, named=named)
    split, warnings = assign(keys, labels, tested)
    groups = number_equal_keys(keys)
    for group in np.unique(groups):
        found = set(split[groups == group])
        assert len(found - {LEFT_OUT}) == 1
        assert not found & {LEFT_OUT} or TEST in found
    left_out = int((split == LEFT_OUT).sum())
    assert (left_out > 0) == named
    assert any(warning.startswith(f"{left_out} images equal") for warning in warnings) == named
    if named:
        np.testing.assert_array_equal(split == TEST, tested)


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_a_group_shares_a_split_and_nothing_leaks_across(seed: int, named: bool) -> None:
    keys, labels, tested = pile(seed, named=named)
    rng = np.random.default_rng(seed)
    groups = rng.integers(0, 256, (60, 16), dtype=np.uint8)[rng.integers(0, 60, len(keys))]
    split, _ = assign_splits(keys, labels, CLASSES, **FRACTIONS, named_test_N=tested, group_keys_N16=groups)
    for units in (number_equal_keys(groups), number_equal_keys(keys)):
        for unit in np.unique(units):
            assert len(set(split[units == unit]) - {LEFT_OUT}) <= 1
    if named:
        np.testing.assert_array_equal(split == TEST, tested)
    # The same groups, the same splits: more images of a group change nothing, but for what equals a test image.
    half = rng.permutation(len(keys))[: len(keys) // 2]
    early, warnings = assign_splits(
        keys[half], labels[half], CLASSES, **FRACTIONS, named_test_N=tested[half], group_keys_N16=groups[half]
    )
    if not named and not any("lent" in warning for warning in warnings):
        stays = (early != LEFT_OUT) & (split[half] != LEFT_OUT)
        np.testing.assert_array_equal(early[stays], split[half][stays])


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_a_class_of_few_images_can_be_learned_and_chosen_by(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    keys = rng.integers(0, 256, (count + 200, 16), dtype=np.uint8)
    labels = np.array([0] * count + [1, 2] * 100)
    split, warnings = assign(keys, labels, np.zeros(len(keys), bool))
    own = split[:count]
    assert (own == TRAIN).any()
    assert (own == VALIDATION).any() == (count > 1)
    assert any("'a'" in warning for warning in warnings) or count > 1
    # Of a named test set nothing is lent.
    tested = np.arange(len(keys)) == 0
    named, _ = assign(keys, labels, tested)
    assert named[0] == TEST
    assert (named == TEST).sum() == 1


def test_a_copy_without_label_does_not_leak_the_test_set() -> None:
    keys = keys_at(0.3, 0.3, *[0.05] * 3, *[0.9] * 3)
    split, _ = assign(keys, np.array([0, -1, 0, 1, 2, 0, 1, 2]), np.zeros(8, bool))
    assert split[:2].tolist() == [TEST, LEFT_OUT]


def test_a_class_without_validation_image_lends_its_nearest() -> None:
    keys = keys_at(0.9, 0.5, 0.4, 0.5, 0.05, 0.9, 0.05, 0.9)
    labels = np.array([0, 0, -1, 0, 1, 1, 2, 2])
    split, warnings = assign(keys, labels, np.zeros(8, bool))
    assert split.tolist() == [TRAIN, VALIDATION, TRAIN, VALIDATION, VALIDATION, TRAIN, VALIDATION, TRAIN]
    assert warnings == ("class 'a' had no validation image; the training image nearest the border was moved there",)


def test_a_class_of_one_image_keeps_it_for_training() -> None:
    split, warnings = assign(keys_at(0.9, 0.9, 0.05, 0.8, 0.1, 0.7), np.array([0, 0, 1, 1, 2, 2]), np.zeros(6, bool))
    assert split[:2].tolist() == [TRAIN, TRAIN]  # the second is a copy of the first
    assert warnings == ("class 'a' has no validation image and too few training images to move one there",)


def budgeted(images: ImageSet, per_class: int | None, seed: int) -> list[int]:
    return draw_label_budget(images, per_class, seed).tolist()


@pytest.mark.parametrize("per_class", [1, 5, 20])
def test_budget_is_exact_for_each_class_and_of_training_images(tiny_set: ImageSet, per_class: int) -> None:
    budget = draw_label_budget(tiny_set, per_class, 0)
    assert np.bincount(tiny_set.labels_N[budget]).tolist() == [per_class] * 3
    assert (tiny_set.split_N[budget] == TRAIN).all()
    assert (np.diff(budget) > 0).all()


def test_budget_depends_on_the_seed_alone(tiny_set: ImageSet) -> None:
    draws = [budgeted(tiny_set, 10, seed) for seed in (0, 0, 1, 2**32 - 1)]
    assert draws[0] == draws[1]
    assert len({tuple(draw) for draw in draws}) == 3
    seen = {index for seed in range(60) for index in budgeted(tiny_set, 10, seed)}
    assert seen == set(tiny_set.indices(TRAIN, labelled=True).tolist())  # nobody is never drawn


def test_a_class_below_the_budget_gives_all(tiny_set: ImageSet) -> None:
    labels = np.array(tiny_set.labels_N)
    labels[np.flatnonzero((labels == 1) & (tiny_set.split_N == TRAIN))[4:]] = -1
    poor = replace(tiny_set, labels_N=labels)
    assert np.bincount(labels[draw_label_budget(poor, 10, 0)]).tolist() == [10, 4, 10]
    assert budgeted(poor, None, 0) == budgeted(poor, 1000, 5) == poor.indices(TRAIN, labelled=True).tolist()


@pytest.mark.parametrize("seed", [0, 1])
def test_budget_does_not_depend_on_order_and_a_new_image_displaces_at_most_one(tiny_set: ImageSet, seed: int) -> None:
    def chosen(order: np.ndarray) -> set[bytes]:
        arrays = {name: getattr(tiny_set, name)[order] for name in ("labels_N", "split_N", "keys_N16")}
        images = replace(tiny_set, **arrays)
        return {images.keys_N16[at].tobytes() for at in draw_label_budget(images, 10, seed)}

    rng, count = np.random.default_rng(seed), len(tiny_set.labels_N)
    whole = chosen(np.arange(count))
    assert chosen(rng.permutation(count)) == whole
    for gone in rng.integers(0, count, 10):
        assert len(whole - chosen(np.delete(np.arange(count), gone))) <= 1


def test_copies_are_drawn_last(tiny_set: ImageSet) -> None:
    keys = np.array(tiny_set.keys_N16)
    of_class = np.flatnonzero((tiny_set.labels_N == 0) & (tiny_set.split_N == TRAIN))
    keys[of_class[:-5]] = keys[of_class[0]]  # 5 others, and one image many times
    images = replace(tiny_set, keys_N16=keys)
    for seed in range(10):
        drawn = [keys[at].tobytes() for at in draw_label_budget(images, 6, seed) if images.labels_N[at] == 0]
        assert len(set(drawn)) == 6
        assert np.bincount(images.labels_N[draw_label_budget(images, 8, seed)])[0] == 8


@pytest.mark.parametrize("per_class", [0, -3])
def test_no_budget_is_an_error(tiny_set: ImageSet, per_class: int) -> None:
    with pytest.raises(ValueError, match="a label budget must be 1"):
        draw_label_budget(tiny_set, per_class, 0)


def test_all_other_labels_are_hidden(tiny_set: ImageSet) -> None:
    budget = draw_label_budget(tiny_set, 5, 0)
    visible = visible_labels(tiny_set, budget)
    shown = np.union1d(budget, tiny_set.indices(VALIDATION))
    np.testing.assert_array_equal(visible[shown], tiny_set.labels_N[shown])
    hidden = np.setdiff1d(np.arange(len(visible)), shown)
    assert (visible[hidden] == -1).all()
    assert set(tiny_set.indices(TEST)) <= set(hidden)
    assert (tiny_set.labels_N[tiny_set.indices(TEST)] >= 0).all()  # they were there to be hidden


def test_groups_are_joined_by_what_they_share() -> None:
    groups = np.array([0, 0, 1, 1, 2, 3, 4])
    twins = np.array([5, 6, 6, 7, 8, 9, 8])  # an image of group 0 equals one of group 1; one of 2 equals one of 4
    found = merge_groups(groups, twins)
    assert len(set(found[:4])) == 1
    assert found[4] == found[6]
    assert len(set(found)) == 3
    np.testing.assert_array_equal(merge_groups(np.arange(5), np.arange(5)), np.arange(5))
    assert len(merge_groups(np.zeros(0, np.int64), np.zeros(0, np.int64))) == 0


def stored(keys: np.ndarray, split: np.ndarray, folder: Path, groups: np.ndarray | None = None) -> ImageSet:
    """A set of which nothing counts but the keys, the split and the groups."""
    if groups is not None:
        np.save(folder / "groups.npy", groups)
    count = len(keys)
    return ImageSet(folder, np.zeros((count, 1, 1, 3), np.uint8), np.zeros(count, np.int64), split, keys, CLASSES)


def test_one_half_of_validation_chooses_whatever_else_there_is(tmp_path: Path) -> None:
    keys, labels, tested = pile(5, 3000)
    split = assign(keys, labels, tested)[0]
    whole = stored(keys, split, tmp_path)
    chooses = selection_half(whole)
    validation = whole.indices(VALIDATION)
    assert chooses.shape == validation.shape
    assert chooses.mean() == pytest.approx(0.5, abs=0.08)
    half = {keys[at].tobytes(): bool(flag) for at, flag in zip(validation, chooses, strict=True)}
    assert [half[keys[at].tobytes()] for at in validation] == chooses.tolist()  # copies share a half
    fewer = stored(keys[:2000], split[:2000], tmp_path)
    later = [half[keys[at].tobytes()] for at in fewer.indices(VALIDATION)]
    assert selection_half(fewer).tolist() == later  # nothing moves when images are added


def test_groups_share_a_half(tmp_path: Path) -> None:
    keys = np.random.default_rng(0).integers(0, 256, (600, 16), dtype=np.uint8)
    groups = np.repeat(np.arange(60), 10)
    chooses = selection_half(stored(keys, np.full(600, VALIDATION, np.uint8), tmp_path, groups)).reshape(60, 10)
    assert (chooses == chooses[:, :1]).all()
    assert 0.25 < chooses.mean() < 0.75


@pytest.mark.parametrize("seed", range(6))
def test_each_half_has_an_image_and_one_image_is_told_to_be_too_few(seed: int, tmp_path: Path) -> None:
    keys = np.random.default_rng(seed).integers(0, 256, (2, 16), dtype=np.uint8)
    assert selection_half(stored(keys, np.full(2, VALIDATION, np.uint8), tmp_path)).sum() == 1
    with pytest.raises(ConfigError, match="1 validation images cannot select and confirm"):
        selection_half(stored(keys, np.array([VALIDATION, TRAIN], np.uint8), tmp_path))
