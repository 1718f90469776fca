"""Two pictures of embeddings: a map of validation images, and the nearest training images of a few of them.

The map is t-SNE (van der Maaten and Hinton 2008, https://jmlr.org/papers/v9/vandermaaten08a.html): images that are
close together have similar embeddings; distances between groups mean little.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from winnow.errors import MissingExtra
from winnow.evaluation.nearest_neighbours import nearest_neighbours
from winnow.evaluation.unit_vectors import unit_vectors
from winnow.reporting.plots import MUTED, render
from winnow.reporting.thumbnails import GAP, SIDE, png_bytes, thumbnail

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEAST_IMAGES, MOST_IMAGES = 30, 500
"""Images of a map: with fewer there is none; of more a random part is shown."""
MOST_CLASSES = 10
"""Classes with a colour of their own, the most frequent ones."""
NEIGHBOURS, MOST_QUERIES = 6, 8
"""Training images beside each validation image, and validation images, one a row."""


def draw_map(features_ND: NDArray[np.float32], labels_N: NDArray[np.int64], classes: Sequence[str]) -> bytes:
    """Return a PNG of the images as points with the colour of their class, -1: without; b"" with too few images."""
    if len(features_ND) < LEAST_IMAGES:
        return b""
    chosen = np.sort(np.random.default_rng(0).permutation(len(features_ND))[:MOST_IMAGES])
    points_N2, labels_N = _tsne(features_ND[chosen]), labels_N[chosen]
    counts_C = np.bincount(labels_N[labels_N >= 0], minlength=len(classes))
    coloured = [int(label) for label in np.argsort(-counts_C, kind="stable")[:MOST_CLASSES] if counts_C[label]]

    def paint(figure: Figure) -> None:
        from matplotlib import colormaps

        axes = figure.add_subplot()
        others_N = ~np.isin(labels_N, coloured)
        x_N, y_N = points_N2.T
        axes.scatter(x_N[others_N], y_N[others_N], s=7, color=MUTED, alpha=0.3, linewidths=0)
        for number, label in enumerate(sorted(coloured)):
            own_N, colour = labels_N == label, colormaps["tab10"](number)
            axes.scatter(x_N[own_N], y_N[own_N], s=9, color=colour, alpha=0.75, linewidths=0)
            text = axes.annotate(
                classes[label], np.median(points_N2[own_N], axis=0), ha="center", va="center", fontsize=9
            )
            text.set_bbox({"facecolor": "white", "edgecolor": colour, "pad": 2, "alpha": 0.85})
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(False)

    return render(paint, (6.4, 4.8), "png")


def _tsne(features_ND: NDArray[np.float32]) -> NDArray[np.float32]:
    try:
        from sklearn.manifold import TSNE
    except ModuleNotFoundError as error:
        raise MissingExtra("scikit-learn", "report") from error
    perplexity = min(30.0, (len(features_ND) - 1) / 3)
    tsne = TSNE(perplexity=perplexity, metric="cosine", init="random", random_state=0)
    points_N2: NDArray[np.float32] = tsne.fit_transform(features_ND)
    return points_N2


def draw_neighbours(
    images_NHWC: NDArray[np.uint8], indices_M: NDArray[np.int64], queries: int, features_MD: NDArray[np.float32]
) -> bytes:
    """Return a PNG with one row for each of a few queries: the image, and its nearest images of the others.

    `indices_M`: the images that the features belong to; the first `queries` of them are the queries, among the others
    neighbours are searched. b"" without either.
    """
    if not 0 < queries < len(indices_M):
        return b""
    rows_Q = np.sort(np.random.default_rng(0).permutation(queries)[:MOST_QUERIES])
    unit_MD = unit_vectors(features_MD)
    _, order_QK = nearest_neighbours(unit_MD[queries:], NEIGHBOURS, unit_MD[rows_Q])
    shown, nearest_QK = indices_M[rows_Q], indices_M[queries:][order_QK]
    width = SIDE * (1 + nearest_QK.shape[1]) + GAP
    sheet = Image.new("RGB", (width, len(shown) * (SIDE + GAP) - GAP), "white")
    for row, (query, near_K) in enumerate(zip(shown, nearest_QK, strict=True)):
        top = row * (SIDE + GAP)
        sheet.paste(thumbnail(images_NHWC[query]), (0, top))
        for column, index in enumerate(near_K):
            sheet.paste(thumbnail(images_NHWC[index]), (SIDE + GAP + column * SIDE, top))
    return png_bytes(sheet)
