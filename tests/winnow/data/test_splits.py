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


def random_data(seed: int, count: int = 400, *, is_named: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return keys, labels and the named test set; a third has a copy with the same label."""
    rng = np.random.default_rng(seed)
    keys, labels = rng.integers(0, 256, (count, 16), dtype=np.uint8), rng.integers(-1, len(CLASSES), count)
    copies = rng.permutation(count)[: 2 * (count // 3)].reshape(2, -1)
    keys[copies[0]], labels[copies[0]] = keys[copies[1]], labels[copies[1]]
    is_test = (rng.random(count) < 0.15) & (labels >= 0) if is_named else np.zeros(count, bool)
    return keys, labels, is_test


def assign(keys: np.ndarray, labels: np.ndarray, is_test: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    return assign_splits(keys, labels, CLASSES, **FRACTIONS, named_test_N=is_test)


def keys_with_fractions(*fractions: float) -> np.ndarray:
    """Return keys with these fractions."""
    prefixes = [int(u * 2**64).to_bytes(8, "big") + bytes(8) for u in fractions]
    return np.frombuffer(b"".join(prefixes), np.uint8).reshape(-1, 16)


def test_fractions_use_the_first_eight_bytes() -> None:
    keys = np.random.default_rng(0).integers(0, 256, (1000, 16), dtype=np.uint8)
    expected = [int.from_bytes(key[:8].tobytes(), "big") / 2**64 for key in keys]
    np.testing.assert_allclose(key_fractions(keys), expected, atol=2**-52)
    assert key_fractions(np.full((1, 16), 255, np.uint8))[0] < 1
    assert key_fractions(np.zeros((1, 16), np.uint8))[0] == 0


def test_equal_keys_form_a_group() -> None:
    keys, _, _ = random_data(3)
    groups = number_equal_keys(keys)
    by_bytes = [key.tobytes() for key in keys]
    expected = np.array([[a == b for b in by_bytes] for a in by_bytes])
    np.testing.assert_array_equal(groups[:, None] == groups[None], expected)


@pytest.mark.parametrize("fraction", [0.0, 0.1999, 0.2001, 0.3499, 0.3501, 0.9999])
def test_fractions_decide_the_split(fraction: float) -> None:
    # Two more images of each class, so that nothing has to be lent.
    keys = keys_with_fractions(fraction, *[0.05] * 3, *[0.9] * 3)
    labels = np.array([0, 0, 1, 2, 0, 1, 2])
    split = assign(keys, labels, np.zeros(7, bool))[0]
    assert split[0] == (VALIDATION if fraction < 0.2 else TEST if fraction < 0.35 else TRAIN)
    without_label = assign(keys, np.array([-1, *labels[1:]]), np.zeros(7, bool))[0]
    assert without_label[0] == (VALIDATION if fraction < 0.2 else TRAIN)


def test_shares_of_splits_are_as_configured() -> None:
    keys = np.random.default_rng(0).integers(0, 256, (20_000, 16), dtype=np.uint8)
    split, warnings = assign(keys, np.arange(20_000) % 3, np.zeros(20_000, bool))
    shares = np.bincount(split, minlength=3) / len(split)
    np.testing.assert_allclose(shares, [0.65, 0.2, 0.15], atol=0.015)
    assert warnings == ()


@pytest.mark.parametrize("is_named", [False, True], ids=["by hash", "named test set"])
@pytest.mark.parametrize("seed", range(8))
def test_splits_are_stable_when_data_grow_except_for_lent_images(seed: int, is_named: bool) -> None:
    keys, labels, is_test = random_data(seed, is_named=is_named)
    rng = np.random.default_rng(seed + 100)
    complete, _ = assign(keys, labels, is_test)
    subset = np.flatnonzero((rng.random(len(keys)) < rng.uniform(0.05, 0.9)) | is_test)
    earlier, warnings = assign(keys[subset], labels[subset], is_test[subset])
    has_moved = earlier != complete[subset]
    # The only change: an image lent to validation returns when its class has a validation image of its own.
    lent = sum("was moved there" in warning for warning in warnings)
    assert len(np.unique(number_equal_keys(keys[subset][has_moved]))) <= lent
    assert set(earlier[has_moved]) <= {VALIDATION}
    shuffled = rng.permutation(len(keys))
    np.testing.assert_array_equal(assign(keys[shuffled], labels[shuffled], is_test[shuffled])[0], complete[shuffled])


@pytest.mark.parametrize("is_named", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_copies_share_a_split_and_are_not_in_the_test_set(seed: int, is_named: bool) -> None:
    keys, labels, is_test = random_data(seed, is_named=is_named)
    split, warnings = assign(keys, labels, is_test)
    groups = number_equal_keys(keys)
    for group in np.unique(groups):
        group_splits = set(split[groups == group])
        assert len(group_splits - {LEFT_OUT}) == 1
        assert not group_splits & {LEFT_OUT} or TEST in group_splits
    left_out = int((split == LEFT_OUT).sum())
    assert (left_out > 0) == is_named
    assert any(warning.startswith(f"{left_out} images equal") for warning in warnings) == is_named
    if is_named:
        np.testing.assert_array_equal(split == TEST, is_test)


@pytest.mark.parametrize("is_named", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_a_group_shares_a_split_and_nothing_leaks_across(seed: int, is_named: bool) -> None:
    keys, labels, is_test = random_data(seed, is_named=is_named)
    rng = np.random.default_rng(seed)
    groups = rng.integers(0, 256, (60, 16), dtype=np.uint8)[rng.integers(0, 60, len(keys))]
    split, _ = assign_splits(keys, labels, CLASSES, **FRACTIONS, named_test_N=is_test, group_keys_N16=groups)
    for units in (number_equal_keys(groups), number_equal_keys(keys)):
        for unit in np.unique(units):
            assert len(set(split[units == unit]) - {LEFT_OUT}) <= 1
    if is_named:
        np.testing.assert_array_equal(split == TEST, is_test)
    # More images of a group do not change its split, except for copies of test images.
    half = rng.permutation(len(keys))[: len(keys) // 2]
    earlier, warnings = assign_splits(
        keys[half], labels[half], CLASSES, **FRACTIONS, named_test_N=is_test[half], group_keys_N16=groups[half]
    )
    if not is_named and not any("was moved there" in warning for warning in warnings):
        is_used = (earlier != LEFT_OUT) & (split[half] != LEFT_OUT)
        np.testing.assert_array_equal(earlier[is_used], split[half][is_used])


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_a_class_of_few_images_has_training_and_validation_images(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    keys = rng.integers(0, 256, (count + 200, 16), dtype=np.uint8)
    labels = np.array([0] * count + [1, 2] * 100)
    split, warnings = assign(keys, labels, np.zeros(len(keys), bool))
    class_split = split[:count]
    assert (class_split == TRAIN).any()
    assert (class_split == VALIDATION).any() == (count > 1)
    assert any("'a'" in warning for warning in warnings) or count > 1
    # No image of a named test set is lent.
    is_test = np.arange(len(keys)) == 0
    split_with_test_set, _ = assign(keys, labels, is_test)
    assert split_with_test_set[0] == TEST
    assert (split_with_test_set == TEST).sum() == 1


@pytest.mark.parametrize("seed", range(200))
def test_borrowed_groups_do_not_leak_their_copies(seed: int) -> None:
    rng = np.random.default_rng(seed)
    keys = rng.integers(0, 256, (12, 16), dtype=np.uint8)[rng.integers(0, 12, 20)]  # copies in several groups
    groups = rng.integers(0, 256, (6, 16), dtype=np.uint8)[rng.integers(0, 6, 20)]
    labels = rng.integers(0, len(CLASSES), 20)
    splits, warnings = assign_splits(
        keys, labels, CLASSES, **FRACTIONS, named_test_N=np.zeros(20, bool), group_keys_N16=groups
    )
    for numbers in (number_equal_keys(keys), number_equal_keys(groups)):
        for number in np.unique(numbers):
            assert len(set(splits[(numbers == number) & (splits != LEFT_OUT)].tolist())) <= 1
    for label, name in enumerate(CLASSES):
        is_validated = bool((labels[splits == VALIDATION] == label).any())
        assert is_validated != any(f"class {name!r} has no validation image" in warning for warning in warnings)


def test_a_copy_without_label_does_not_leak_the_test_set() -> None:
    keys = keys_with_fractions(0.3, 0.3, *[0.05] * 3, *[0.9] * 3)
    split, _ = assign(keys, np.array([0, -1, 0, 1, 2, 0, 1, 2]), np.zeros(8, bool))
    assert split[:2].tolist() == [TEST, LEFT_OUT]


def test_a_class_without_validation_image_lends_one() -> None:
    keys = keys_with_fractions(0.9, 0.5, 0.4, 0.5, 0.05, 0.9, 0.05, 0.9)
    labels = np.array([0, 0, -1, 0, 1, 1, 2, 2])
    split, warnings = assign(keys, labels, np.zeros(8, bool))
    assert split.tolist() == [TRAIN, VALIDATION, TRAIN, VALIDATION, VALIDATION, TRAIN, VALIDATION, TRAIN]
    assert warnings == ("class 'a' had no validation image; the training image nearest the border was moved there",)


def test_a_class_of_one_image_keeps_it_for_training() -> None:
    split, warnings = assign(
        keys_with_fractions(0.9, 0.9, 0.05, 0.8, 0.1, 0.7), np.array([0, 0, 1, 1, 2, 2]), np.zeros(6, bool)
    )
    assert split[:2].tolist() == [TRAIN, TRAIN]  # the second is a copy of the first
    assert warnings == ("class 'a' has no validation image and too few training images to move one there",)


def draw_budget(images: ImageSet, per_class: int | None, seed: int) -> list[int]:
    return draw_label_budget(images, per_class, seed).tolist()


@pytest.mark.parametrize("per_class", [1, 5, 20])
def test_budget_is_exact_for_each_class_and_of_training_images(tiny_set: ImageSet, per_class: int) -> None:
    budget = draw_label_budget(tiny_set, per_class, 0)
    assert np.bincount(tiny_set.labels_N[budget]).tolist() == [per_class] * 3
    assert (tiny_set.split_N[budget] == TRAIN).all()
    assert (np.diff(budget) > 0).all()


def test_budget_depends_on_the_seed_only(tiny_set: ImageSet) -> None:
    draws = [draw_budget(tiny_set, 10, seed) for seed in (0, 0, 1, 2**32 - 1)]
    assert draws[0] == draws[1]
    assert len({tuple(draw) for draw in draws}) == 3
    drawn = {index for seed in range(60) for index in draw_budget(tiny_set, 10, seed)}
    assert drawn == set(tiny_set.indices(TRAIN, labelled=True).tolist())  # every image is drawn for some seed


def test_a_class_below_the_budget_gives_all_its_labels(tiny_set: ImageSet) -> None:
    labels = np.array(tiny_set.labels_N)
    labels[np.flatnonzero((labels == 1) & (tiny_set.split_N == TRAIN))[4:]] = -1
    images = replace(tiny_set, labels_N=labels)
    assert np.bincount(labels[draw_label_budget(images, 10, 0)]).tolist() == [10, 4, 10]
    assert draw_budget(images, None, 0) == draw_budget(images, 1000, 5) == images.indices(TRAIN, labelled=True).tolist()


@pytest.mark.parametrize("seed", [0, 1])
def test_budget_does_not_depend_on_order_and_a_new_image_displaces_at_most_one(tiny_set: ImageSet, seed: int) -> None:
    def budget_keys(order: np.ndarray) -> set[bytes]:
        arrays = {name: getattr(tiny_set, name)[order] for name in ("labels_N", "split_N", "keys_N16")}
        images = replace(tiny_set, **arrays)
        return {images.keys_N16[index].tobytes() for index in draw_label_budget(images, 10, seed)}

    rng, count = np.random.default_rng(seed), len(tiny_set.labels_N)
    expected = budget_keys(np.arange(count))
    assert budget_keys(rng.permutation(count)) == expected
    for removed in rng.integers(0, count, 10):
        assert len(expected - budget_keys(np.delete(np.arange(count), removed))) <= 1


def test_copies_are_drawn_last(tiny_set: ImageSet) -> None:
    keys = np.array(tiny_set.keys_N16)
    class_indices = np.flatnonzero((tiny_set.labels_N == 0) & (tiny_set.split_N == TRAIN))
    keys[class_indices[:-5]] = keys[class_indices[0]]  # 5 others, and one image many times
    images = replace(tiny_set, keys_N16=keys)
    for seed in range(10):
        drawn_keys = [
            keys[index].tobytes() for index in draw_label_budget(images, 6, seed) if images.labels_N[index] == 0
        ]
        assert len(set(drawn_keys)) == 6
        assert np.bincount(images.labels_N[draw_label_budget(images, 8, seed)])[0] == 8


@pytest.mark.parametrize("per_class", [0, -3])
def test_an_invalid_budget_is_an_error(tiny_set: ImageSet, per_class: int) -> None:
    with pytest.raises(ValueError, match="a label budget must be 1"):
        draw_label_budget(tiny_set, per_class, 0)


def test_all_other_labels_are_hidden(tiny_set: ImageSet) -> None:
    budget = draw_label_budget(tiny_set, 5, 0)
    visible = visible_labels(tiny_set, budget)
    visible_indices = np.union1d(budget, tiny_set.indices(VALIDATION))
    np.testing.assert_array_equal(visible[visible_indices], tiny_set.labels_N[visible_indices])
    hidden = np.setdiff1d(np.arange(len(visible)), visible_indices)
    assert (visible[hidden] == -1).all()
    assert set(tiny_set.indices(TEST)) <= set(hidden)
    assert (tiny_set.labels_N[tiny_set.indices(TEST)] >= 0).all()  # they had labels before


def test_groups_with_equal_images_are_merged() -> None:
    groups = np.array([0, 0, 1, 1, 2, 3, 4])
    key_groups = np.array([5, 6, 6, 7, 8, 9, 8])  # an image of group 0 equals one of group 1; one of 2 equals one of 4
    merged = merge_groups(groups, key_groups)
    assert len(set(merged[:4])) == 1
    assert merged[4] == merged[6]
    assert len(set(merged)) == 3
    np.testing.assert_array_equal(merge_groups(np.arange(5), np.arange(5)), np.arange(5))
    assert len(merge_groups(np.zeros(0, np.int64), np.zeros(0, np.int64))) == 0


def make_image_set(keys: np.ndarray, split: np.ndarray, folder: Path, groups: np.ndarray | None = None) -> ImageSet:
    """Return a set in which only keys, split and groups matter."""
    if groups is not None:
        np.save(folder / "groups.npy", groups)
    count = len(keys)
    return ImageSet(folder, np.zeros((count, 1, 1, 3), np.uint8), np.zeros(count, np.int64), split, keys, CLASSES)


def test_the_selecting_half_does_not_depend_on_other_images(tmp_path: Path) -> None:
    keys, labels, is_test = random_data(5, 3000)
    split = assign(keys, labels, is_test)[0]
    images = make_image_set(keys, split, tmp_path)
    is_selecting = selection_half(images)
    validation = images.indices(VALIDATION)
    assert is_selecting.shape == validation.shape
    assert is_selecting.mean() == pytest.approx(0.5, abs=0.08)
    half_by_key = {keys[index].tobytes(): bool(flag) for index, flag in zip(validation, is_selecting, strict=True)}
    assert [half_by_key[keys[index].tobytes()] for index in validation] == is_selecting.tolist()  # copies share a half
    earlier_images = make_image_set(keys[:2000], split[:2000], tmp_path)
    expected = [half_by_key[keys[index].tobytes()] for index in earlier_images.indices(VALIDATION)]
    assert selection_half(earlier_images).tolist() == expected  # adding images moves none


def test_groups_share_a_half(tmp_path: Path) -> None:
    keys = np.random.default_rng(0).integers(0, 256, (600, 16), dtype=np.uint8)
    groups = np.repeat(np.arange(60), 10)
    is_selecting = selection_half(make_image_set(keys, np.full(600, VALIDATION, np.uint8), tmp_path, groups)).reshape(
        60, 10
    )
    assert (is_selecting == is_selecting[:, :1]).all()
    assert 0.25 < is_selecting.mean() < 0.75


@pytest.mark.parametrize("seed", range(6))
def test_each_half_needs_an_image(seed: int, tmp_path: Path) -> None:
    keys = np.random.default_rng(seed).integers(0, 256, (2, 16), dtype=np.uint8)
    assert selection_half(make_image_set(keys, np.full(2, VALIDATION, np.uint8), tmp_path)).sum() == 1
    with pytest.raises(ConfigError, match="1 validation images cannot select and confirm"):
        selection_half(make_image_set(keys, np.array([VALIDATION, TRAIN], np.uint8), tmp_path))
