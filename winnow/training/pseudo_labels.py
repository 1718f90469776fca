"""Pseudo-labels for images without labels, by label propagation on the teacher's embeddings or the network's features.

First answers are those of logistic regression on the teacher's embeddings. Such answers are too cautious: with 25
labels per class 70 % are right, at a mean confidence of 45 %. So they are divided by a temperature, as logits are in
Guo, Pleiss, Sun, Weinberger: On Calibration of Modern Neural Networks (ICML 2017). It is fitted on the labels, each
answered by a regression and a propagation that were not given it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from torch import nn

from winnow.config import Propagation
from winnow.data.dataset import TEST, ImageSet
from winnow.deploy.batch_inference import embed, predict_torch
from winnow.evaluation.metrics import fit_temperature, softmax
from winnow.evaluation.unit_vectors import centred_unit_vectors
from winnow.training.folds import grouped_folds
from winnow.training.label_propagation import connect_similar_images
from winnow.training.linear_probe import fit_probe

log = logging.getLogger(__name__)

FOLDS = 5
"""Folds of the labels, each answered without its labels."""
TEMPERATURE_OF_FEW_LABELS = 0.25
"""The temperature where no class has two labels. The best ones of three draws were 0.20 to 0.28 on CIFAR-10 with one
label per class, 0.24 to 0.30 with two, and 0.46 to 0.49 with 25."""
LEAST_ANSWER = 1e-9
"""The smallest probability whose logarithm is taken."""


AnswersFrom = Callable[[NDArray[np.int64]], NDArray[np.float32]]
"""Indices of the images whose labels may be used -> answers (M, C) for the images of the graph."""


def teacher_answers(
    settings: Propagation, images: ImageSet, budget: NDArray[np.int64], teacher_ND: NDArray[np.float16], seed: int
) -> NDArray[np.float32]:
    """Return an answer for every image but those of the test split, whose rows are 0; float32 (N, C).

    `budget`: indices of the images whose labels may be used. `teacher_ND`: an embedding of each image, NaN for the
    test split. Raises MissingExtra without scikit-learn.
    """
    indices_M = np.flatnonzero(images.split_N != TEST)
    features_MD = np.asarray(teacher_ND[indices_M], dtype=np.float32)
    unit_MD = centred_unit_vectors(features_MD)
    graph = connect_similar_images(features_MD, settings.neighbours, seed)

    def answers_from(known: NDArray[np.int64]) -> NDArray[np.float32]:
        rows = np.searchsorted(indices_M, known)
        probe = fit_probe(unit_MD[rows], images.labels_N[known], settings.inverse_regularisation, standardise=False)
        first_MC = np.zeros((len(indices_M), len(images.classes)), dtype=np.float32)
        first_MC[:, probe.classes_] = probe.predict_proba(unit_MD)
        return graph.spread(first_MC, settings.share)

    temperature = _temperature(answers_from, images, budget, indices_M, seed)
    log.info("label propagation: temperature %.2f", temperature)
    answers_NC = np.zeros((len(images.labels_N), len(images.classes)), dtype=np.float32)
    answers_NC[indices_M] = softmax(_logarithms(answers_from(budget)), temperature)
    return answers_NC


def network_answers(settings: Propagation, images: ImageSet, model: nn.Module, seed: int) -> NDArray[np.float32]:
    """Return the answers of `model` after propagation on the graph of its own features, as `teacher_answers` does.

    No temperature is fitted: the network was trained on all labels.
    """
    indices_M = np.flatnonzero(images.split_N != TEST)
    graph = connect_similar_images(embed(model, images.images_NHWC, indices_M).numpy(), settings.neighbours, seed)
    first_MC = softmax(predict_torch(model, images.images_NHWC, indices_M)).astype(np.float32)
    answers_NC = np.zeros((len(images.labels_N), len(images.classes)), dtype=np.float32)
    answers_NC[indices_M] = graph.spread(first_MC, settings.share)
    return answers_NC


def _temperature(
    answers_from: AnswersFrom,
    images: ImageSet,
    budget: NDArray[np.int64],
    indices_M: NDArray[np.int64],
    seed: int,
) -> float:
    """Return the temperature that fits labels which were held out, by images of a group or by themselves."""
    labels_L, groups_L = images.labels_N[budget], images.groups_N[budget]
    folds = min(FOLDS, len(np.unique(groups_L)), int(np.bincount(labels_L).max()))
    logarithms, labels = [np.zeros((0, len(images.classes)), dtype=np.float32)], [labels_L[:0]]
    for known, held_out in grouped_folds(labels_L, groups_L, folds, seed) if folds > 1 else ():
        asked = held_out[np.isin(labels_L[held_out], labels_L[known])]  # others cannot be answered
        if len(asked) and len(np.unique(labels_L[known])) > 1:
            answers_MC = answers_from(budget[known])
            logarithms.append(_logarithms(answers_MC[np.searchsorted(indices_M, budget[asked])]))
            labels.append(labels_L[asked])
    fitted_on = np.concatenate(labels)
    if not len(fitted_on):
        return TEMPERATURE_OF_FEW_LABELS
    return fit_temperature(np.concatenate(logarithms), fitted_on)


def _logarithms(answers_MC: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.log(np.maximum(answers_MC, LEAST_ANSWER))
