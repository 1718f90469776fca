"""Pseudo-labels for images without labels, by label propagation on the teacher's embeddings or the network's features.

The first predictions are those of logistic regression on the teacher's embeddings. They are not confident enough: with
25 labels per class of CIFAR-10, 70 % were right at a mean confidence of 45 %. So their logarithms are divided by a
temperature (Guo, Pleiss, Sun, Weinberger: On Calibration of Modern Neural Networks, ICML 2017). It is fitted on
predictions for labelled images by regressions and propagations without the labels of their folds.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from winnow.config import Propagation
from winnow.data.dataset import VALIDATION, ImageSet
from winnow.deploy.batch_inference import predict_torch
from winnow.deploy.teacher_embeddings import TeacherTargets
from winnow.evaluation.metrics import fit_temperature, softmax
from winnow.evaluation.unit_vectors import unit_vectors
from winnow.random_streams import stream_seed
from winnow.training.device import default_device
from winnow.training.feature_projector import capture_features
from winnow.training.folds import judged_folds
from winnow.training.label_propagation import connect_similar_images
from winnow.training.linear_probe import fit_probe

log = logging.getLogger(__name__)

FOLDS = 5
"""Folds of the labels; the images of each are predicted without its labels."""
MOST_LABELS = 5000
"""Labels that the temperature is fitted on; of more a random part."""
DEFAULT_TEMPERATURE = 0.25
"""The temperature where none can be fitted: no class has labels in two groups. The best ones of three draws were 0.20
to 0.28 on CIFAR-10 with one label per class, 0.24 to 0.30 with two, and 0.46 to 0.49 with 25."""
LEAST_PROBABILITY = 1e-9
"""The smallest probability whose logarithm is taken."""
Predict = Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.float32]]
"""(indices of images whose labels are used, indices of K images) -> probabilities (K, C) after propagation."""


@dataclass(frozen=True)
class UnlabelledInputs:
    """The images that are trained on, the labels that may be used, and the teacher's embeddings."""

    images: ImageSet
    budget: NDArray[np.int64]
    """Indices of the images whose labels may be used."""
    pool: NDArray[np.int64]
    """Indices of the images that are trained on; they alone are nodes of the graph, with those of the budget."""
    seed: int
    teacher: TeacherTargets | None
    """The teacher's embeddings of all images; None: features are those of the network itself."""

    @property
    def nodes(self) -> NDArray[np.int64]:
        """Return the sorted indices of the images that the graph consists of."""
        return np.union1d(self.pool, self.budget)

    @property
    def selected(self) -> NDArray[np.int64]:
        """Return the sorted indices of the images that get a pseudo-label: the nodes and the validation split."""
        return np.union1d(self.nodes, self.images.indices(VALIDATION))


def teacher_pseudo_labels(
    settings: Propagation, inputs: UnlabelledInputs, teacher: TeacherTargets
) -> NDArray[np.float32]:
    """Return the probabilities of all images, float32 (N, C); rows of images that are not selected are 0.

    Raises MissingExtra without scikit-learn.
    """
    images, selected_M = inputs.images, inputs.selected
    features_MD = np.asarray(teacher.rows_ND[selected_M], dtype=np.float32)
    nodes = np.searchsorted(selected_M, inputs.nodes)
    graph = connect_similar_images(features_MD, nodes, settings.neighbours, inputs.seed)
    unit_MD = unit_vectors(np.subtract(features_MD, teacher.mean_D, out=features_MD))

    def predict(known: NDArray[np.int64], wanted: NDArray[np.int64]) -> NDArray[np.float32]:
        rows = np.searchsorted(selected_M, known)
        probe = fit_probe(unit_MD[rows], images.labels_N[known], settings.inverse_regularisation, standardise=False)
        first_MC = np.zeros((len(selected_M), len(images.classes)), dtype=np.float32)
        first_MC[:, probe.classes_] = probe.predict_proba(unit_MD)
        return graph.spread(first_MC, settings.share, np.searchsorted(selected_M, wanted))

    temperature = _temperature(predict, inputs)
    log.info("label propagation: temperature %.2f", temperature)
    probabilities_NC = np.zeros((len(images.labels_N), len(images.classes)), dtype=np.float32)
    probabilities_NC[selected_M] = softmax(_logarithms(predict(inputs.budget, selected_M)), temperature)
    return probabilities_NC


def network_pseudo_labels(settings: Propagation, inputs: UnlabelledInputs, model: nn.Module) -> NDArray[np.float32]:
    """Return the predictions of `model` after propagation on the graph of its own features, as with a teacher.

    No temperature is fitted: the network was trained on all labels.
    """
    images, selected_M = inputs.images, inputs.selected
    with capture_features(model.to(default_device())) as batches:
        first_MC = softmax(predict_torch(model, images.images_NHWC, selected_M)).astype(np.float32)
    features_MD = torch.cat([batch.float().cpu() for batch in batches]).numpy()
    nodes = np.searchsorted(selected_M, inputs.nodes)
    graph = connect_similar_images(features_MD, nodes, settings.neighbours, inputs.seed)
    probabilities_NC = np.zeros((len(images.labels_N), len(images.classes)), dtype=np.float32)
    probabilities_NC[selected_M] = graph.spread(first_MC, settings.share)
    return probabilities_NC


def with_visible_labels(probabilities_NC: NDArray[np.float32], inputs: UnlabelledInputs) -> NDArray[np.float32]:
    """Return a copy of the probabilities in which images whose labels may be used have probability 1 of their class."""
    learned_NC = probabilities_NC.copy()
    learned_NC[inputs.budget] = np.eye(len(inputs.images.classes), dtype=np.float32)[
        inputs.images.labels_N[inputs.budget]
    ]
    return learned_NC


def _temperature(predict: Predict, inputs: UnlabelledInputs) -> float:
    """Return the temperature that fits the labels, each predicted without the labels of its fold."""
    budget, labels_N = inputs.budget, inputs.images.labels_N
    if len(budget) > MOST_LABELS:
        rng = np.random.default_rng(stream_seed(inputs.seed, "temperature"))
        budget = np.sort(rng.choice(budget, MOST_LABELS, replace=False))
    labels_L, groups_L = labels_N[budget], inputs.images.groups_N[budget]
    folds = min(FOLDS, len(np.unique(groups_L)), int(np.bincount(labels_L).max()))
    logarithms, labels = [np.zeros((0, len(inputs.images.classes)), dtype=np.float32)], [labels_L[:0]]
    for known, judged in judged_folds(labels_L, groups_L, folds, inputs.seed) if folds > 1 else ():
        logarithms.append(_logarithms(predict(budget[known], budget[judged])))
        labels.append(labels_L[judged])
    fitted_on = np.concatenate(labels)
    if not len(fitted_on):
        return DEFAULT_TEMPERATURE
    return fit_temperature(np.concatenate(logarithms), fitted_on)


def _logarithms(probabilities_KC: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.log(np.maximum(probabilities_KC, LEAST_PROBABILITY))
