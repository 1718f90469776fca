"""Label propagation: spread answers over a graph of similar images, so that neighbours agree.

Zhou, Bousquet, Lal, Weston, Schölkopf: Learning with Local and Global Consistency (NIPS 2003); Iscen, Tolias, Avrithis,
Chum: Label Propagation for Deep Semi-supervised Learning (CVPR 2019, arXiv 1904.04717). With S the symmetrically
normalised graph of nearest neighbours, weighted by the cube of their cosine as in the second paper, and Y the first
answers, F converges to (1 - share) (I - share S)^-1 Y by

    F <- share S F + (1 - share) Y

Where the papers start from labels alone, Y here is a classifier's answer for every image.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from winnow.errors import MissingExtra
from winnow.evaluation.nearest_neighbours import cosines_at, nearest_neighbours
from winnow.evaluation.unit_vectors import unit_vectors
from winnow.random_streams import stream_seed

STEPS = 50
"""Iterations; what is left of the first error is share^50, below 1e-4 for shares up to 0.8."""
DIMENSIONS = 128
"""Principal components that neighbours are searched in. All 1,280 of EfficientNet-Lite0 found hardly better ones."""
MAX_NODES = 50_000
"""Images of the graph; more are connected to a random part of so many, since the search takes time quadratic in it."""
FITTED_ON = 20_000
"""Images that principal components are fitted on."""


def propagate_answers(
    features_ND: NDArray[np.float32], answers_NC: NDArray[np.float32], neighbours: int, share: float, seed: int = 0
) -> NDArray[np.float32]:
    """Return the answers (N, C) after propagation; each row sums to 1.

    `features_ND`: vectors whose cosine says how similar two images are. `answers_NC`: probabilities. `seed`: of the
    images of the graph where there are more than MAX_NODES. Raises ValueError where shapes differ.
    """
    if len(features_ND) != len(answers_NC):
        raise ValueError(f"{len(features_ND)} features and {len(answers_NC)} answers")
    neighbours = min(neighbours, len(features_ND) - 1)
    if share == 0 or neighbours < 1:
        return answers_NC
    vectors_ND = unit_components(features_ND, seed)
    count = len(vectors_ND)
    nodes = np.arange(count)
    if count > MAX_NODES:
        nodes = np.sort(np.random.default_rng(stream_seed(seed, "graph")).choice(count, MAX_NODES, replace=False))
    spread_MC = _spread(vectors_ND[nodes], answers_NC[nodes], neighbours, share)
    others = np.setdiff1d(np.arange(count), nodes)
    result_NC = np.empty_like(answers_NC)
    result_NC[nodes] = spread_MC
    if len(others):
        near, weights = nearest(vectors_ND[nodes], vectors_ND[others], neighbours)
        weights /= np.maximum(weights.sum(1, keepdims=True), 1e-12)
        from_neighbours_OC = np.einsum("ok,okc->oc", weights, spread_MC[near])
        result_NC[others] = share * from_neighbours_OC + (1 - share) * answers_NC[others]
    return np.asarray(result_NC / result_NC.sum(1, keepdims=True), dtype=np.float32)


def unit_components(features_ND: NDArray[np.float32], seed: int = 0) -> NDArray[np.float32]:
    """Return the first principal components of centred features as vectors of length 1, float32 (N, at most 128)."""
    try:
        from sklearn.decomposition import PCA
    except ModuleNotFoundError as error:
        raise MissingExtra("scikit-learn", "report") from error
    chosen = np.random.default_rng(stream_seed(seed, "components")).permutation(len(features_ND))[:FITTED_ON]
    dimensions = min(DIMENSIONS, features_ND.shape[1], len(chosen))
    components = PCA(dimensions, random_state=stream_seed(seed, "components")).fit(features_ND[chosen])
    return unit_vectors(np.asarray(components.transform(features_ND), dtype=np.float32))


def nearest(
    bank_MD: NDArray[np.float32], queries_QD: NDArray[np.float32], neighbours: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return indices into the bank and weights, both (Q, K), of each query's nearest vectors; all have length 1.

    A weight is the cube of the cosine; 0 for a negative one.
    """
    distances_QK, near_QK = nearest_neighbours(bank_MD, neighbours, queries_QD)
    return near_QK, np.clip(cosines_at(distances_QK), 0, None) ** 3


def _spread(
    vectors_MD: NDArray[np.float32], answers_MC: NDArray[np.float32], neighbours: int, share: float
) -> NDArray[np.float32]:
    """Iterate over the graph of the vectors; return answers (M, C), not normalised."""
    from scipy import sparse  # comes with scikit-learn

    count = len(vectors_MD)
    near_MK, weights_MK = nearest(vectors_MD, vectors_MD, neighbours + 1)
    weights_MK[near_MK == np.arange(count)[:, None]] = 0  # each is its own nearest
    rows = np.repeat(np.arange(count), near_MK.shape[1])
    graph = sparse.csr_matrix((weights_MK.ravel(), (rows, near_MK.ravel())), shape=(count, count))
    graph = graph + graph.T
    scale = 1 / np.sqrt(np.maximum(np.asarray(graph.sum(1)).ravel(), 1e-12))
    normalised = sparse.diags(scale) @ graph @ sparse.diags(scale)
    spread_MC = answers_MC.astype(np.float64)
    for _ in range(STEPS):
        spread_MC = share * (normalised @ spread_MC) + (1 - share) * answers_MC
    return np.asarray(spread_MC, dtype=np.float32)
