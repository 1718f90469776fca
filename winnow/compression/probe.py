"""The teacher as a candidate: a linear head on its frozen features, fitted to the label budget.

It shows what the large network with known weights achieves with the same labels, at its own size and speed, and can be
quantized and deployed like every other candidate. The head is scikit-learn's logistic regression on standardised
features; the standardisation is folded into its weights, so that the file is the network with one linear layer.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from winnow.compression.method_inputs import MethodInputs
from winnow.config import Probe
from winnow.deploy.teacher_embeddings import load_embeddings
from winnow.errors import ArtifactError, ConfigError, DataError
from winnow.models.backbones import load_model
from winnow.models.classifier_head import feature_dim, set_head
from winnow.models.network import Network
from winnow.records.method_results import ProbeResult
from winnow.timing_lock import compute_lock
from winnow.training.linear_probe import fit_probe

log = logging.getLogger(__name__)

ABSENT_CLASS_LOGIT = -30.0
"""Logit of a class without a label in the budget."""


def probe(settings: Probe, inputs: MethodInputs) -> tuple[Network, ProbeResult]:
    """Fit the head; return the teacher with it, and what was done.

    Raises ConfigError without a teacher, DataError where the budget holds fewer than two classes, ArtifactError where
    the embeddings are not those of the network.
    """
    if inputs.teacher is None:
        raise ConfigError("candidates: method probe needs a teacher: set teacher.weights, or remove the candidate")
    labels = inputs.images.labels_N[inputs.budget]
    if len(np.unique(labels)) < 2:
        raise DataError("candidates: method probe needs labels of two classes at least")
    features_ND = np.asarray(load_embeddings(inputs.teacher)[inputs.budget], dtype=np.float32)
    model, architecture = load_model(inputs.teacher)
    if features_ND.shape[1] != feature_dim(model):
        raise ArtifactError(
            f"{inputs.teacher}: embeddings have {features_ND.shape[1]} values, but the head of the network takes "
            f"{feature_dim(model)}; delete the folder and run winnow again"
        )
    with compute_lock():
        fitted = fit_probe(features_ND, labels, settings.inverse_regularisation)
    set_head(model, linear_layer(fitted, len(inputs.images.classes)))
    return Network(model.eval(), architecture), ProbeResult(curves=[], features=features_ND.shape[1])


def linear_layer(fitted: Any, classes: int) -> nn.Linear:
    """Return a standardiser followed by logistic regression as one linear layer: features (B, D) -> logits (B, C)."""
    scaler, regression = fitted[0], fitted[-1]
    weight_KD: NDArray[np.float64] = regression.coef_ / scaler.scale_
    bias_K: NDArray[np.float64] = regression.intercept_ - weight_KD @ scaler.mean_
    if len(regression.classes_) == 2:  # scikit-learn keeps one row, the logit of the second class over the first
        weight_KD, bias_K = np.concatenate([-weight_KD, weight_KD]) / 2, np.concatenate([-bias_K, bias_K]) / 2
    layer = nn.Linear(weight_KD.shape[1], classes)
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.fill_(ABSENT_CLASS_LOGIT)
        layer.weight[regression.classes_] = torch.from_numpy(weight_KD).float()
        layer.bias[regression.classes_] = torch.from_numpy(bias_K).float()
    return layer
