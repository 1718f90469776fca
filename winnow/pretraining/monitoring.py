"""Looking at a backbone while it learns without labels: kNN accuracy and the spread of its embeddings.

kNN is Wu et al. (CVPR 2018, arXiv 1805.01978): the cosine neighbours in the labelled bank vote with exp(similarity /
temperature). The bank is the label budget, nothing more, so the figure may be shown and used. The spread is the mean
deviation of normalised embeddings over images, times the square root of their width: 1 when they fill the sphere, 0
when all images look the same to the network (Chen and He 2021, arXiv 2011.10566, figure 2).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from winnow.deploy.batch_inference import embed

NEIGHBOURS = 20
TEMPERATURE = 0.1
COLLAPSED = 0.15
"""Below this spread the embeddings carry next to nothing; a fresh network has 0.3 and more."""


@dataclass(frozen=True)
class Bank:
    """What kNN may know: labelled training images, and validation images to score."""

    images_NHWC: NDArray[np.uint8]
    labels_N: NDArray[np.int64]
    bank: NDArray[np.int64]
    queries: NDArray[np.int64]


def knn_accuracy(
    bank_ND: torch.Tensor, labels_N: torch.Tensor, queries_MD: torch.Tensor, truth_M: torch.Tensor
) -> float:
    """Share of queries that the weighted vote of their nearest bank images gets right."""
    if len(bank_ND) == 0 or len(queries_MD) == 0:
        raise ValueError("kNN needs labelled images in the bank and among the queries")
    similarity = F.normalize(queries_MD, dim=1) @ F.normalize(bank_ND, dim=1).T
    top, nearest = similarity.topk(min(NEIGHBOURS, len(bank_ND)), dim=1)
    votes = torch.zeros(len(queries_MD), int(labels_N.max()) + 1)
    votes.scatter_add_(1, labels_N[nearest], (top / TEMPERATURE).exp())
    return float((votes.argmax(1) == truth_M).float().mean())


def spread(embeddings_ND: torch.Tensor) -> float:
    """Mean deviation of the normalised embeddings times sqrt(D): about 1 for a full sphere, 0 for a single point."""
    unit = F.normalize(embeddings_ND, dim=1)
    return float(unit.std(0).mean() * unit.shape[1] ** 0.5)


def look(model: nn.Module, bank: Bank) -> dict[str, float]:
    """`knn` (where there are labels to vote and to score) and `spread`."""
    queries = embed(model, bank.images_NHWC, bank.queries)
    figures = {"spread": spread(queries)}
    truth = torch.from_numpy(bank.labels_N[bank.queries])
    scored = truth >= 0
    if len(bank.bank) and bool(scored.any()):
        known = embed(model, bank.images_NHWC, bank.bank)
        labels = torch.from_numpy(bank.labels_N[bank.bank])
        figures["knn"] = knn_accuracy(known, labels, queries[scored], truth[scored])
    return figures
