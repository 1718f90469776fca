from __future__ import annotations

import pytest

from tests.conftest import tiny_params
from winnow.config.data import Data
from winnow.records.finetune import PretrainingGain
from winnow.reporting.pretraining_advice import pretraining_advice


def make_gain(mean: float, low: float, pairs: int = 2, arm: str = "pretrained") -> PretrainingGain:
    return PretrainingGain(arm=arm, mean=mean, low=low, high=2 * mean - low, pairs=pairs)


DATA = Data.model_validate(tiny_params()["data"])
WITHOUT_ORIENTATION = DATA.model_copy(update={"up": False})
WITHOUT_VIEWS = DATA.model_copy(update={"colour": False, "scale": False})


def test_pretraining_that_loses_is_advised_against() -> None:
    advice = pretraining_advice(make_gain(-1.3, -9.0), "rotnet", DATA)
    assert advice.startswith("pretraining does not help here: pretrain.method: none saves its time")
    assert "or try pretrain.method: simclr, or more images, with or without labels" in advice
    assert "finetune.seeds: [0, 1, 2, 3, 4]" in advice


@pytest.mark.parametrize("measured_gain", [make_gain(17.5, -14.3), make_gain(17.5, 2.0), make_gain(4.0, 4.0, pairs=1)])
def test_more_seeds_are_advised_for_a_gain_of_few_seeds(measured_gain: PretrainingGain) -> None:
    expected = "whether pretraining helps is not shown; use 5 label seeds (finetune.seeds: [0, 1, 2, 3, 4])"
    assert pretraining_advice(measured_gain, "simclr", DATA) == expected


def test_a_gain_that_many_seeds_do_not_show_is_reported() -> None:
    advice = pretraining_advice(make_gain(0.2, -0.5, pairs=5), "simclr", DATA)
    assert advice.startswith("pretraining does not help significantly: ")
    assert "pretrain.method: rotnet" in advice
    assert "finetune.seeds" not in advice


@pytest.mark.parametrize(("method", "data"), [("simclr", WITHOUT_ORIENTATION), ("rotnet", WITHOUT_VIEWS)])
def test_an_unsupported_method_is_not_advised(method: str, data: Data) -> None:
    assert "or try more images" in pretraining_advice(make_gain(-1.3, -9.0), method, data)


def test_a_shown_gain_and_no_pretraining_need_no_advice() -> None:
    assert pretraining_advice(make_gain(6.0, 0.5, pairs=5), "rotnet", DATA) == ""
    assert pretraining_advice(None, "none", DATA) == ""


def test_advice_names_own_weights() -> None:
    advice = pretraining_advice(make_gain(-2.0, -4.0, arm="weights"), "rotnet", DATA)
    assert advice.startswith("the weights of finetune.weights do not help here: finetune.weights: data/none turns")
    assert "pretrain.method" not in advice
