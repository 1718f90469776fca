"""Monitoring of pretraining without labels: kNN accuracy and the spread of the embeddings.

kNN is Wu et al. (CVPR 2018, arXiv 1805.01978): the cosine neighbours in the labelled bank vote with exp(similarity /
temperature). The bank holds only images of the label budget, so its accuracy may be used for decisions. The spread is
the mean standard deviation of normalised embeddings over images, times the square root of their width: 1 when they fill
the sphere, 0 when all images have the same embedding (Chen and He 2021, arXiv 2011.10566, figure 2).
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
MIN_SPREAD = 0.15
"""Spread below which embeddings have collapsed; an untrained network has 0.3 or more."""


@dataclass(frozen=True)
class KnnBank:
    """Images, labels, and the indices of bank images and of query images."""

    images_NHWC: NDArray[np.uint8]
    labels_N: NDArray[np.int64]
    bank: NDArray[np.int64]
    """Indices of the labelled training images that vote."""
    queries: NDArray[np.int64]
    """Indices of the validation images that are classified."""


def knn_accuracy(
    bank_ND: torch.Tensor, labels_N: torch.Tensor, queries_MD: torch.Tensor, truth_M: torch.Tensor
) -> float:
    """Return the share of queries that the weighted vote of their nearest bank images classifies correctly."""
    if len(bank_ND) == 0 or len(queries_MD) == 0:
        raise ValueError("kNN needs labelled images in the bank and among the queries")
    similarity = F.normalize(queries_MD, dim=1) @ F.normalize(bank_ND, dim=1).T
    top, nearest = similarity.topk(min(NEIGHBOURS, len(bank_ND)), dim=1)
    votes = torch.zeros(len(queries_MD), int(labels_N.max()) + 1)
    votes.scatter_add_(1, labels_N[nearest], (top / TEMPERATURE).exp())
    return float((votes.argmax(1) == truth_M).float().mean())


def embedding_spread(embeddings_ND: torch.Tensor) -> float:
    """Return the mean deviation of normalised embeddings times sqrt(D): about 1 for a full sphere, 0 for one point."""
    unit = F.normalize(embeddings_ND, dim=1)
    return float(unit.std(0).mean() * unit.shape[1] ** 0.5)


def monitor_embeddings(model: nn.Module, bank: KnnBank) -> dict[str, float]:
    """Return {spread, knn}; without `knn` where there are no labels to vote or to score."""
    queries_MD = embed(model, bank.images_NHWC, bank.queries)
    metrics = {"spread": embedding_spread(queries_MD)}
    truth_M = torch.from_numpy(bank.labels_N[bank.queries])
    scored_M = truth_M >= 0
    if len(bank.bank) and bool(scored_M.any()):
        bank_ND = embed(model, bank.images_NHWC, bank.bank)
        labels_N = torch.from_numpy(bank.labels_N[bank.bank])
        metrics["knn"] = knn_accuracy(bank_ND, labels_N, queries_MD[scored_M], truth_M[scored_M])
    return metrics
