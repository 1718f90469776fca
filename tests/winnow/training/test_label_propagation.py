from __future__ import annotations

import numpy as np
import pytest

from winnow.training import label_propagation
from winnow.training.label_propagation import ImageGraph, connect_similar_images, nearest, unit_components


def two_clusters(count: int = 60, dimension: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Return features float32 of two clusters around opposite points, and the cluster of each."""
    rng = np.random.default_rng(0)
    cluster_N = np.arange(count) % 2
    centres_2D = np.array([np.ones(dimension), -np.ones(dimension)])
    return (centres_2D[cluster_N] + rng.normal(0, 0.3, (count, dimension))).astype(np.float32), cluster_N


def connect_all(features_ND: np.ndarray, neighbours: int) -> ImageGraph:
    return connect_similar_images(features_ND, np.arange(len(features_ND)), neighbours)


def test_predictions_of_a_cluster_reach_all_its_members() -> None:
    features_ND, cluster_N = two_clusters()
    first_NC = np.full((60, 2), 0.5, dtype=np.float32)
    first_NC[:2] = np.eye(2)  # one member of each cluster is known
    graph = connect_all(features_ND, 5)
    result_NC = graph.spread(first_NC, share=0.8)
    assert (result_NC.argmax(1) == cluster_N).all()
    np.testing.assert_allclose(result_NC.sum(1), 1, atol=1e-6)
    assert (result_NC >= 0).all()
    again_NC = connect_all(features_ND, 5).spread(first_NC, share=0.8)
    np.testing.assert_array_equal(again_NC, result_NC)


def test_the_result_is_the_solution_of_zhou() -> None:
    features_ND, _ = two_clusters(30)
    first_NC = np.random.default_rng(1).dirichlet([1, 1, 1], 30).astype(np.float32)
    vectors_ND = unit_components(features_ND)
    near_NK, weights_NK = nearest(vectors_ND, vectors_ND, 5)
    graph_NN = np.zeros((30, 30))
    for row, (near_K, weights_K) in enumerate(zip(near_NK, weights_NK, strict=True)):
        graph_NN[row, near_K] = np.where(near_K == row, 0, weights_K)
    graph_NN += graph_NN.T
    scale_N = graph_NN.sum(1) ** -0.5
    normalised_NN = scale_N[:, None] * graph_NN * scale_N
    expected_NC = 0.4 * np.linalg.solve(np.eye(30) - 0.6 * normalised_NN, first_NC)
    expected_NC /= expected_NC.sum(1, keepdims=True)
    np.testing.assert_allclose(connect_all(features_ND, 4).spread(first_NC, 0.6), expected_NC, atol=1e-5)


def test_without_a_share_predictions_stay() -> None:
    features_ND, _ = two_clusters()
    first_NC = np.random.default_rng(1).dirichlet([1, 1], 60).astype(np.float32)
    np.testing.assert_array_equal(connect_all(features_ND, 5).spread(first_NC, 0.0), first_NC)


def test_images_beyond_the_graph_take_the_predictions_of_their_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_propagation, "MAX_NODES", 40)
    features_ND, cluster_N = two_clusters(100)
    first_NC = np.full((100, 2), 0.5, dtype=np.float32)
    first_NC[:10] = np.eye(2)[cluster_N[:10]]
    result_NC = connect_all(features_ND, 5).spread(first_NC, share=0.8)
    assert (result_NC.argmax(1) == cluster_N).mean() > 0.95
    np.testing.assert_allclose(result_NC.sum(1), 1, atol=1e-6)


def test_few_images_have_fewer_neighbours() -> None:
    features_ND, _ = two_clusters(3)
    first_NC = np.full((3, 2), 0.5, dtype=np.float32)
    assert np.isfinite(connect_all(features_ND, 10).spread(first_NC, share=0.8)).all()
    alone = connect_all(features_ND[:1], 10)
    np.testing.assert_allclose(alone.spread(first_NC[:1], share=0.8), first_NC[:1])


def test_features_and_predictions_belong_together() -> None:
    with pytest.raises(ValueError, match="60 images and 3 predictions"):
        connect_all(two_clusters()[0], 5).spread(np.ones((3, 2), dtype=np.float32), 0.8)


def test_images_outside_the_graph_change_nothing_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_propagation, "ROWS_AT_ONCE", 7)
    features_ND, cluster_N = two_clusters(100)
    first_NC = np.eye(2, dtype=np.float32)[cluster_N]
    nodes, others = np.arange(0, 100, 3), np.setdiff1d(np.arange(100), np.arange(0, 100, 3))
    before_NC = connect_similar_images(features_ND, nodes, 5).spread(first_NC, 0.8)
    features_ND[others] += 3
    first_NC[others] = 0.5
    graph = connect_similar_images(features_ND, nodes, 5)
    after_NC = graph.spread(first_NC, 0.8)
    np.testing.assert_allclose(after_NC[nodes], before_NC[nodes], atol=1e-6)
    assert not np.allclose(after_NC[others], before_NC[others])
    wanted = np.array([50, 3, 99, 4])
    np.testing.assert_array_equal(graph.spread(first_NC, 0.8, wanted), after_NC[wanted])
