"""A linear probe: logistic regression on the features of a frozen network."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from winnow.errors import MissingExtra


def fit_probe(
    features_ND: NDArray[np.float32],
    labels_N: NDArray[np.int64],
    inverse_regularisation: float = 0.1,
    standardise: bool = True,
) -> Any:
    """Return scikit-learn's logistic regression, fitted on features that are standardised first, or as they are.

    With labels of one class alone, as in a fold without the others, return a classifier that always predicts it.
    """
    try:
        from sklearn.dummy import DummyClassifier
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    except ModuleNotFoundError as error:
        raise MissingExtra("scikit-learn", "report") from error
    is_one_class = len(np.unique(labels_N)) == 1
    classifier = DummyClassifier() if is_one_class else LogisticRegression(max_iter=1000, C=inverse_regularisation)
    return (make_pipeline(StandardScaler(), classifier) if standardise else classifier).fit(features_ND, labels_N)
