from __future__ import annotations

import itertools

import numpy as np
import pytest

from winnow.errors import DataError
from winnow.labels import suggestion
from winnow.labels.suggestion import METHODS, LabelPool, assign_clusters, neighbour_distances, suggest_images


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def blobs(sizes: list[int], dimension: int = 16, spread: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    """Return vectors of length 1 around far-apart centres, and the centre of each."""
    rng = np.random.default_rng(0)
    centre_M = np.repeat(np.arange(len(sizes)), sizes)
    return unit(np.eye(dimension)[centre_M] + rng.normal(0, spread, (len(centre_M), dimension))), centre_M


def pool_of(vectors_MD: np.ndarray, labelled: dict[int, int] | None = None) -> LabelPool:
    labels_M = np.full(len(vectors_MD), -1)
    for position, label in (labelled or {}).items():
        labels_M[position] = label
    return LabelPool(vectors_MD, labels_M)


@pytest.fixture
def labelled_pool() -> LabelPool:
    """60 images in 4 clusters; two clusters have a label."""
    vectors_MD, _ = blobs([24, 18, 12, 6])
    return pool_of(vectors_MD, {0: 0, 30: 1})


@pytest.mark.parametrize("method", METHODS)
def test_images_are_free_distinct_and_the_same_again(labelled_pool: LabelPool, method: str) -> None:
    chosen = suggest_images(labelled_pool, 20, method, seed=3)
    assert len(set(chosen.tolist())) == 20
    assert labelled_pool.is_free_M[chosen].all()
    np.testing.assert_array_equal(suggest_images(labelled_pool, 20, method, seed=3), chosen)


@pytest.mark.parametrize("method", METHODS)
def test_all_free_images_can_be_asked_for_but_no_more(labelled_pool: LabelPool, method: str) -> None:
    assert set(suggest_images(labelled_pool, 58, method).tolist()) == set(range(60)) - {0, 30}
    with pytest.raises(DataError, match="59 images were asked for, but only 58 training images can be suggested"):
        suggest_images(labelled_pool, 59, method)
    with pytest.raises(ValueError, match="0 images cannot be suggested"):
        suggest_images(labelled_pool, 0, method)


def test_typiclust_covers_each_cluster_once_the_largest_first() -> None:
    vectors_MD, centre_M = blobs([6, 24, 12, 18])
    chosen = suggest_images(pool_of(vectors_MD), 4, "typiclust")
    assert centre_M[chosen].tolist() == [1, 3, 2, 0]


def test_typiclust_covers_clusters_without_a_label(labelled_pool: LabelPool) -> None:
    _, centre_M = blobs([24, 18, 12, 6])
    chosen = suggest_images(labelled_pool, 2, "typiclust")  # two labels and two more: four clusters
    assert centre_M[chosen].tolist() == [2, 3]


def test_typiclust_takes_the_most_typical_image() -> None:
    vectors_MD, centre_M = blobs([25, 30])
    chosen = suggest_images(pool_of(vectors_MD), 2, "typiclust")
    for position, cluster in zip(chosen, (1, 0), strict=True):
        members = np.flatnonzero(centre_M == cluster)
        distances = np.linalg.norm(vectors_MD[members][:, None] - vectors_MD[members][None], axis=2)
        typicality = 1 / np.sort(distances, axis=1)[:, 1 : suggestion.NEIGHBOURS + 1].mean(1)  # without itself
        assert position == members[typicality.argmax()]


def test_beyond_the_largest_number_of_clusters_each_gets_a_second_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suggestion, "MAX_CLUSTERS", 3)
    vectors_MD, centre_M = blobs([10, 20, 15])
    chosen = suggest_images(pool_of(vectors_MD), 7, "typiclust")
    assert centre_M[chosen].tolist() == [1, 2, 0, 1, 2, 0, 1]


def test_large_pools_are_clustered_in_batches_and_compared_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suggestion, "FULL_KMEANS", 100)
    monkeypatch.setattr(suggestion, "MAX_COMPARED", 40)
    vectors_MD, centre_M = blobs([200, 300, 100])
    cluster_M = assign_clusters(vectors_MD, 3, seed=0)
    assert len(np.unique(cluster_M)) == len(np.unique(np.stack([cluster_M, centre_M]), axis=1).T) == 3
    chosen = suggest_images(pool_of(vectors_MD), 3, "typiclust")
    assert centre_M[chosen].tolist() == [1, 0, 2]
    np.testing.assert_array_equal(suggest_images(pool_of(vectors_MD), 3, "typiclust"), chosen)


def test_typicality_of_equal_images_and_of_one_image() -> None:
    same_KD = unit(np.ones((5, 3)))
    np.testing.assert_allclose(neighbour_distances(same_KD), 0, atol=1e-3)
    assert neighbour_distances(same_KD[:1]).tolist() == [0]
    assert len(suggest_images(pool_of(same_KD), 5, "typiclust")) == 5  # fewer different images than clusters


def test_k_center_is_the_greedy_algorithm_and_within_twice_the_optimum() -> None:
    vectors_MD = unit(np.random.default_rng(2).normal(size=(14, 3)))
    distance_MM = np.linalg.norm(vectors_MD[:, None] - vectors_MD[None], axis=2)
    pool = pool_of(vectors_MD, {5: 0, 9: 1})
    expected, centres = [], [5, 9]
    for _ in range(3):
        expected.append(int(distance_MM[:, centres].min(1).argmax()))
        centres.append(expected[-1])
    chosen = suggest_images(pool, 3, "k-center").tolist()
    assert chosen == expected

    def radius(added: tuple[int, ...]) -> float:
        return float(distance_MM[:, [5, 9, *added]].min(1).max())

    optimum = min(radius(added) for added in itertools.combinations(range(14), 3))
    assert optimum <= radius(tuple(chosen)) <= 2 * optimum


def test_k_center_without_labels_begins_in_the_middle() -> None:
    vectors_MD = unit(np.array([[1, 0.9], [1, -1], [1, 1], [1, 0], [1, -0.9]]))
    assert suggest_images(pool_of(vectors_MD), 3, "k-center").tolist()[0] == 3
    assert set(suggest_images(pool_of(vectors_MD), 3, "k-center").tolist()) == {1, 2, 3}


def test_margin_takes_images_between_two_classes() -> None:
    angles_M = np.linspace(0, np.pi, 21)
    vectors_MD = unit(np.stack([np.cos(angles_M), np.sin(angles_M)], axis=1))
    labels = {position: int(position > 10) for position in (0, 1, 2, 18, 19, 20)}
    assert set(suggest_images(pool_of(vectors_MD, labels), 3, "margin").tolist()) == {9, 10, 11}


@pytest.mark.parametrize("labels", [{}, {0: 1, 1: 1}])
def test_margin_needs_two_classes(labels: dict[int, int]) -> None:
    with pytest.raises(
        DataError, match=f"two classes or more, but there are {len(set(labels.values()))}; take --method"
    ):
        suggest_images(pool_of(blobs([10, 10])[0], labels), 2, "margin")


@pytest.mark.parametrize("method", ["typiclust", "random"])
def test_other_seeds_give_other_images(method: str) -> None:
    vectors_MD = unit(np.random.default_rng(0).normal(size=(200, 8)))
    first, second = (suggest_images(pool_of(vectors_MD), 10, method, seed) for seed in (0, 1))
    assert set(first.tolist()) != set(second.tolist())
