"""Label propagation: spread predictions over a graph of similar images, so that neighbours agree.

Zhou, Bousquet, Lal, Weston, Schölkopf: Learning with Local and Global Consistency (NIPS 2003); Iscen, Tolias, Avrithis,
Chum: Label Propagation for Deep Semi-supervised Learning (CVPR 2019, arXiv 1904.04717). With S the symmetrically
normalised graph of nearest neighbours, weighted by the cube of their cosine as in the second paper, and Y the first
predictions, F converges to (1 - share) (I - share S)^-1 Y by

    F <- share S F + (1 - share) Y

Where the papers start from labels alone, Y here is a classifier's prediction for every image.
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
ROWS_AT_ONCE = 8192
"""Images whose neighbours' probabilities are averaged at once."""


@dataclass(frozen=True)
class ImageGraph:
    """A graph of similar images, and for other images the nearest ones of the graph."""

    nodes_M: NDArray[np.int64]
    """Positions of the images of the graph."""
    normalised: sparse.csr_matrix
    """S of the formula above, (M, M)."""
    others_O: NDArray[np.int64]
    """Positions of the other images."""
    near_OK: NDArray[np.int64]
    """Indices into `nodes_M` of the nearest images of the graph, for each of the others."""
    weights_OK: NDArray[np.float32]
    """Weights of these; each row sums to 1, or to 0 where no image is similar."""

    def spread(
        self, predictions_NC: NDArray[np.float32], share: float, wanted_K: NDArray[np.int64] | None = None
    ) -> NDArray[np.float32]:
        """Return the probabilities of all images, or of those at the positions `wanted_K`, after propagation.

        `predictions_NC`: probabilities. Each row of the result sums to 1. Raises ValueError unless each image has a
        prediction.
        """
        count = len(self.nodes_M) + len(self.others_O)
        if len(predictions_NC) != count:
            raise ValueError(f"{count} images and {len(predictions_NC)} predictions")
        wanted_K = np.arange(count) if wanted_K is None else wanted_K
        if share == 0:
            return predictions_NC[wanted_K]
        first_MC = predictions_NC[self.nodes_M]
        spread_MC = first_MC.astype(np.float64)
        for _ in range(STEPS):
            spread_MC = share * (self.normalised @ spread_MC) + (1 - share) * first_MC
        row_N = np.empty(count, dtype=np.int64)
        row_N[self.nodes_M], row_N[self.others_O] = np.arange(len(self.nodes_M)), np.arange(len(self.others_O))
        is_node_N = np.zeros(count, dtype=np.bool_)
        is_node_N[self.nodes_M] = True
        result_KC = np.empty((len(wanted_K), predictions_NC.shape[1]), dtype=np.float32)
        for start in range(0, len(wanted_K), ROWS_AT_ONCE):
            positions = wanted_K[start : start + ROWS_AT_ONCE]
            block = np.empty((len(positions), predictions_NC.shape[1]))
            is_node, rows = is_node_N[positions], row_N[positions]
            block[is_node] = spread_MC[rows[is_node]]
            others = rows[~is_node]
            from_neighbours = np.einsum("ok,okc->oc", self.weights_OK[others], spread_MC[self.near_OK[others]])
            block[~is_node] = share * from_neighbours + (1 - share) * predictions_NC[positions[~is_node]]
            result_KC[start : start + ROWS_AT_ONCE] = block / block.sum(1, keepdims=True)
        return result_KC


def connect_similar_images(
    features_ND: NDArray[np.float32], candidates_P: NDArray[np.int64], neighbours: int, seed: int = 0
) -> ImageGraph:
    """Return a graph of the images at the positions `candidates_P`, at most MAX_NODES of them, drawn by `seed`.

    `features_ND`: vectors whose cosine says how similar two images are. Raises MissingExtra without scikit-learn.
    """
    nodes_M = np.sort(candidates_P)
    if len(nodes_M) > MAX_NODES:
        rng = np.random.default_rng(stream_seed(seed, "graph"))
        nodes_M = np.sort(rng.choice(nodes_M, MAX_NODES, replace=False))
    vectors_ND = unit_components(features_ND, seed, nodes_M) if len(nodes_M) > 1 else unit_vectors(features_ND)
    others_O = np.setdiff1d(np.arange(len(features_ND)), nodes_M)
    near_OK, weights_OK = nearest(vectors_ND[nodes_M], vectors_ND[others_O], neighbours)
    weights_OK /= np.maximum(weights_OK.sum(1, keepdims=True), 1e-12)
    return ImageGraph(nodes_M, _normalised_graph(vectors_ND[nodes_M], neighbours), others_O, near_OK, weights_OK)


def unit_components(
    features_ND: NDArray[np.float32], seed: int = 0, fitted_on_M: NDArray[np.int64] | None = None
) -> NDArray[np.float32]:
    """Return the first principal components of centred features as vectors of length 1, float32 (N, at most 128).

    `fitted_on_M`: positions of the images that determine mean and components, of which at most FITTED_ON are drawn;
    None: all.
    """
    try:
        from sklearn.decomposition import PCA
    except ModuleNotFoundError as error:
        raise MissingExtra("scikit-learn", "report") from error
    positions_M = np.arange(len(features_ND)) if fitted_on_M is None else fitted_on_M
    order = np.random.default_rng(stream_seed(seed, "components")).permutation(len(positions_M))
    chosen = positions_M[order[:FITTED_ON]]
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
