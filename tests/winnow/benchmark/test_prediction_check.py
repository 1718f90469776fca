from __future__ import annotations

import pytest

from tests.winnow.benchmark.toy_predictions import LABELS, PIXELS, predict_logits
from winnow.benchmark.prediction_check import agreement


@pytest.mark.parametrize("batch", [1, 4, 21, 64])
def test_agreement_counts_every_image_once(batch: int) -> None:
    assert agreement(predict_logits, batch, PIXELS, LABELS) == 1.0
    changed = LABELS.copy()
    changed[[3, 20]] = (changed[[3, 20]] + 1) % 3
    assert agreement(predict_logits, batch, PIXELS, changed) == pytest.approx(19 / 21)
