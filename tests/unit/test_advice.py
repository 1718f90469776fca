from __future__ import annotations

from typing import Any

import pytest

from winnow.reporting.advice import pretraining_advice


def gain(mean: float, low: float, pairs: int = 2, arm: str = "pretrained") -> dict[str, Any]:
    return {"arm": arm, "mean": mean, "low": low, "high": 2 * mean - low, "pairs": pairs}


def test_pretraining_that_loses_is_advised_against() -> None:
    advice = pretraining_advice(gain(-1.3, -9.0), "rotnet")
    assert advice.startswith("pretraining does not help here: pretrain.method: none leaves it out and saves its time")
    assert "or try pretrain.method: simclr, or more images, with or without labels" in advice
    assert "finetune.seeds: [0, 1, 2, 3, 4]" in advice


@pytest.mark.parametrize("given", [gain(17.5, -14.3), gain(4.0, 4.0, pairs=1)])
def test_a_gain_that_is_not_shown_is_called_so(given: dict[str, Any]) -> None:
    advice = pretraining_advice(given, "simclr")
    assert advice.startswith("pretraining does not help by an amount that is shown: ")
    assert "pretrain.method: rotnet" in advice
    assert "pretrain.method: rotnet" not in pretraining_advice(given, "simclr", is_up=False)


def test_a_shown_gain_and_no_pretraining_need_no_advice() -> None:
    assert pretraining_advice(gain(6.0, 0.5, pairs=5), "rotnet") == ""
    assert pretraining_advice(None, "none") == ""
    assert "finetune.seeds" not in pretraining_advice(gain(0.2, -0.5, pairs=5), "rotnet")


def test_own_weights_are_named() -> None:
    advice = pretraining_advice(gain(-2.0, -4.0, arm="weights"), "rotnet")
    assert advice.startswith("the weights of finetune.weights do not help here: finetune.weights: data/none")
    assert "pretrain.method" not in advice
