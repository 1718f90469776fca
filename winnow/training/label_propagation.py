"""Label propagation: spread answers over a graph of similar images, so that neighbours agree.

Zhou, Bousquet, Lal, Weston, Schölkopf: Learning with Local and Global Consistency (NIPS 2003); Iscen, Tolias, Avrithis,
Chum: Label Propagation for Deep Semi-supervised Learning (CVPR 2019, arXiv 1904.04717). With S the symmetrically
normalised graph of nearest neighbours, weighted by the cube of their cosine as in the second paper, and Y the first
answers, F converges to (1 - share) (I - share S)^-1 Y by

    F <- share S F + (1 - share) Y

Where the papers start from labels alone, Y here is a classifier's answer for every image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from winnow.errors import MissingExtra
from winnow.evaluation.nearest_neighbours import cosines_at, nearest_neighbours
from winnow.evaluation.unit_vectors import unit_vectors
from winnow.random_streams import stream_seed

if TYPE_CHECKING:
    from scipy import sparse

STEPS = 50
"""Iterations; what is left of the first error is share^50, below 1e-4 for shares up to 0.8."""
DIMENSIONS = 128
"""Principal components that neighbours are searched in. All 1,280 of EfficientNet-Lite0 found hardly better ones."""
MAX_NODES = 50_000
"""Images of the graph; more are connected to a random part of so many, since the search takes time quadratic in it."""
FITTED_ON = 20_000
"""Images that principal components are fitted on."""


@dataclass(frozen=True)
class ImageGraph:
    """A graph that connects similar images; answers of several classifiers can be spread over it."""

    count: int
    """Images, inside the graph and beyond it."""
    nodes_M: NDArray[np.int64]
    """Positions of the images of the graph; all of them, up to MAX_NODES."""
    normalised: sparse.csr_matrix
    """S of the formula above, (M, M)."""
    others_O: NDArray[np.int64]
    """Positions of the other images."""
    near_OK: NDArray[np.int64]
    """Indices into `nodes_M` of the nearest images of the graph, for each of the others."""
    weights_OK: NDArray[np.float32]
    """Weights of these; each row sums to 1, or to 0 where no image is similar."""

    def spread(self, answers_NC: NDArray[np.float32], share: float) -> NDArray[np.float32]:
        """Return the answers (N, C) after propagation; each row sums to 1.

        `answers_NC`: probabilities. Raises ValueError unless there is an answer for each image.
        """
        if len(answers_NC) != self.count:
            raise ValueError(f"{self.count} images and {len(answers_NC)} answers")
        if share == 0:
            return answers_NC
        first_MC = answers_NC[self.nodes_M]
        spread_MC = first_MC.astype(np.float64)
        for _ in range(STEPS):
            spread_MC = share * (self.normalised @ spread_MC) + (1 - share) * first_MC
        result_NC = np.empty(answers_NC.shape)
        result_NC[self.nodes_M] = spread_MC
        if len(self.others_O):
            from_neighbours_OC = np.einsum("ok,okc->oc", self.weights_OK, spread_MC[self.near_OK])
            result_NC[self.others_O] = share * from_neighbours_OC + (1 - share) * answers_NC[self.others_O]
        return np.asarray(result_NC / result_NC.sum(1, keepdims=True), dtype=np.float32)


def connect_similar_images(features_ND: NDArray[np.float32], neighbours: int, seed: int = 0) -> ImageGraph:
    """Return the graph of images with these features, vectors whose cosine says how similar two images are.

    `seed`: of the images of the graph where there are more than MAX_NODES. Raises MissingExtra without scikit-learn.
    """
    count = len(features_ND)
    vectors_ND = unit_components(features_ND, seed) if count > 1 else unit_vectors(features_ND)
    nodes_M = np.arange(count)
    if count > MAX_NODES:
        nodes_M = np.sort(np.random.default_rng(stream_seed(seed, "graph")).choice(count, MAX_NODES, replace=False))
    others_O = np.setdiff1d(np.arange(count), nodes_M)
    near_OK, weights_OK = nearest(vectors_ND[nodes_M], vectors_ND[others_O], neighbours)
    weights_OK /= np.maximum(weights_OK.sum(1, keepdims=True), 1e-12)
    normalised = _normalised_graph(vectors_ND[nodes_M], neighbours)
    return ImageGraph(count, nodes_M, normalised, others_O, near_OK, weights_OK)


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


def _normalised_graph(vectors_MD: NDArray[np.float32], neighbours: int) -> sparse.csr_matrix:
    """Return the symmetric graph of nearest neighbours (M, M), each weight divided by the roots of both row sums."""
    from scipy import sparse  # comes with scikit-learn

    count = len(vectors_MD)
    near_MK, weights_MK = nearest(vectors_MD, vectors_MD, min(neighbours + 1, count))
    weights_MK[near_MK == np.arange(count)[:, None]] = 0  # each is its own nearest
    rows = np.repeat(np.arange(count), near_MK.shape[1])
    graph = sparse.csr_matrix((weights_MK.ravel(), (rows, near_MK.ravel())), shape=(count, count))
    graph = graph + graph.T
    scale = 1 / np.sqrt(np.maximum(np.asarray(graph.sum(1)).ravel(), 1e-12))
    return (sparse.diags(scale) @ graph @ sparse.diags(scale)).tocsr()
