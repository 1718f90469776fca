"""Choose the images to label next from features that use no labels.

- typiclust: Hacohen, Dekel, Weinshall: Active Learning on a Budget: Opposite Strategies Suit High and Low Budgets (ICML
  2022, arXiv 2202.02794). k-means into as many clusters as there will be labels; from each cluster without a label, the
  largest first, the image whose neighbours are nearest. For few labels.
- k-center: Sener, Savarese: Active Learning for Convolutional Neural Networks: A Core-Set Approach (ICLR 2018, arXiv
  1708.00489), the greedy algorithm. Again and again the image that is farthest from all labelled and chosen ones.
- margin: Scheffer, Decomain, Wrobel: Active Hidden Markov Models for Information Extraction (IDA 2001). The images at
  which a linear probe hesitates most between two classes. For many labels.
- random: for comparison.

A method is a function of (pool, count, seed); the same arguments give the same images.
"""

from __future__ import annotations

import heapq
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from winnow.errors import DataError, MissingExtra
from winnow.evaluation.nearest_neighbours import nearest_neighbours
from winnow.random_streams import stream_seed
from winnow.training.linear_probe import fit_probe

MAX_CLUSTERS = 500
"""Clusters at most, as in the paper; beyond it clusters get a second image, the largest of those with fewest first."""
NEIGHBOURS = 20
"""Neighbours by which typicality is measured, as in the paper."""
MAX_COMPARED = 10_000
"""Images of a cluster that are compared with each other, drawn at random: the time is quadratic in them."""
FULL_KMEANS = 20_000
"""Images up to which all are used in each step of k-means; above, batches of BATCH."""
BATCH = 5_000
INVERSE_REGULARISATION = 10.0
"""The parameter C of the probe on vectors of length 1, as in label propagation (winnow/config/unlabelled.py)."""


@dataclass(frozen=True)
class LabelPool:
    """The images with a label that may be used, and those that may be suggested."""

    vectors_MD: NDArray[np.float32]
    """Features of length 1."""
    labels_M: NDArray[np.int64]
    """Labels; -1 for an image that may be suggested."""

    @property
    def is_free_M(self) -> NDArray[np.bool_]:
        """Return which images may be suggested."""
        return self.labels_M < 0


def suggest_images(pool: LabelPool, count: int, method: str, seed: int = 0) -> NDArray[np.int64]:
    """Return the positions (count,) in the pool of the images to label next, the most useful one first.

    Raises DataError where fewer images are free, or the method needs labels that are not there.
    """
    free = int(pool.is_free_M.sum())
    if count < 1:
        raise ValueError(f"{count} images cannot be suggested; ask for 1 or more")
    if count > free:
        raise DataError(
            f"{count} images were asked for, but only {free} training images can be suggested; ask for fewer"
        )
    return METHODS[method](pool, count, seed)


def typiclust(pool: LabelPool, count: int, seed: int) -> NDArray[np.int64]:
    """Return the most typical images of the clusters that have no label, (count,); the largest cluster first."""
    free_M = pool.is_free_M.copy()
    clusters = min(int((~free_M).sum()) + count, MAX_CLUSTERS, len(free_M))
    cluster_M = assign_clusters(pool.vectors_MD, clusters, seed)
    sizes_C = np.bincount(cluster_M, minlength=clusters)
    labelled_C = np.bincount(cluster_M[~free_M], minlength=clusters)
    rng = np.random.default_rng(stream_seed(seed, "typicality"))
    queue = [(int(labelled_C[c]), -int(sizes_C[c]), c) for c in range(clusters) if sizes_C[c]]
    heapq.heapify(queue)
    chosen: list[int] = []
    while len(chosen) < count:
        labelled, size, cluster = heapq.heappop(queue)
        members = np.flatnonzero((cluster_M == cluster) & free_M)
        if not len(members):
            continue
        if len(members) > MAX_COMPARED:
            members = np.sort(rng.choice(members, MAX_COMPARED, replace=False))
        typical = int(members[neighbour_distances(pool.vectors_MD[members]).argmin()])
        chosen.append(typical)
        free_M[typical] = False
        heapq.heappush(queue, (labelled + 1, size, cluster))
    return np.array(chosen, dtype=np.int64)


def assign_clusters(vectors_MD: NDArray[np.float32], clusters: int, seed: int) -> NDArray[np.int64]:
    """Return the cluster (M,) of each vector by k-means; on one thread, since with more the order of sums varies."""
    try:
        from sklearn.cluster import KMeans, MiniBatchKMeans
        from sklearn.exceptions import ConvergenceWarning
        from threadpoolctl import threadpool_limits  # comes with scikit-learn
    except ModuleNotFoundError as error:
        raise MissingExtra("scikit-learn", "report") from error
    state = stream_seed(seed, "clusters")
    if len(vectors_MD) <= FULL_KMEANS:
        method = KMeans(clusters, random_state=state)
    else:
        method = MiniBatchKMeans(clusters, batch_size=BATCH, random_state=state)
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer different images than clusters
        return np.asarray(method.fit_predict(vectors_MD), dtype=np.int64)


def neighbour_distances(vectors_KD: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the mean distance (K,) of each vector to its nearest NEIGHBOURS others: the inverse of its typicality."""
    distances_KN, _ = nearest_neighbours(vectors_KD, NEIGHBOURS)
    return distances_KN.mean(1, dtype=np.float64) if distances_KN.shape[1] else np.zeros(len(vectors_KD))


def k_center(pool: LabelPool, count: int, seed: int) -> NDArray[np.int64]:
    """Return (count,) images, each the farthest from all labelled ones and those before it.

    Without labels the first is the one nearest the mean. `seed` is not used.
    """
    vectors_MD, free_M = pool.vectors_MD, pool.is_free_M
    labelled = np.flatnonzero(~free_M)
    cosine_M = np.full(len(vectors_MD), -2.0, dtype=np.float32)  # to the nearest centre; -2: there is none
    for start in range(0, len(labelled), 256):
        centres_CD = vectors_MD[labelled[start : start + 256]]
        cosine_M = np.maximum(cosine_M, (vectors_MD @ centres_CD.T).max(1))
    chosen: list[int] = []
    for _ in range(count):
        if not len(labelled) and not chosen:
            farthest = int((vectors_MD @ vectors_MD.mean(0)).argmax())
        else:
            farthest = int(np.where(free_M, cosine_M, np.inf).argmin())
        chosen.append(farthest)
        free_M[farthest] = False
        cosine_M = np.maximum(cosine_M, vectors_MD @ vectors_MD[farthest])
    return np.array(chosen, dtype=np.int64)


def smallest_margin(pool: LabelPool, count: int, seed: int) -> NDArray[np.int64]:
    """Return (count,) images with the smallest difference between the two largest probabilities of a linear probe.

    `seed` is not used. Raises DataError for labels of fewer than two classes.
    """
    free_M = pool.is_free_M
    known = np.flatnonzero(~free_M)
    if (classes := len(np.unique(pool.labels_M[known]))) < 2:
        raise DataError(
            f"the method margin needs training labels of two classes or more, but there are {classes}; "
            "take --method typiclust, or label some images of each class first"
        )
    probe = fit_probe(pool.vectors_MD[known], pool.labels_M[known], INVERSE_REGULARISATION, standardise=False)
    free = np.flatnonzero(free_M)
    largest_F2 = np.sort(probe.predict_proba(pool.vectors_MD[free]), axis=1)[:, -2:]
    return free[np.argsort(largest_F2[:, 1] - largest_F2[:, 0], kind="stable")[:count]].astype(np.int64)


def random_images(pool: LabelPool, count: int, seed: int) -> NDArray[np.int64]:
    """Return (count,) images drawn at random without replacement."""
    rng = np.random.default_rng(stream_seed(seed, "suggestion"))
    return rng.choice(np.flatnonzero(pool.is_free_M), count, replace=False).astype(np.int64)


METHODS: dict[str, Callable[[LabelPool, int, int], NDArray[np.int64]]] = {
    "typiclust": typiclust,
    "k-center": k_center,
    "margin": smallest_margin,
    "random": random_images,
}
"""Name -> function of (pool, count, seed)."""
