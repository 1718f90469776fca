from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from winnow.compression import write_candidate
from winnow.compression.factorize import apply_ranks, choose_ranks
from winnow.compression.method_inputs import MethodInputs
from winnow.compression.network_size import count_macs, count_parameters
from winnow.config import Factorize
from winnow.deploy.onnx_export import inspect_onnx
from winnow.errors import ConfigError
from winnow.models.backbones import Architecture, build_model, load_model, save_model

RECOVERY = {"epochs": 1, "min_steps": 1, "batch_size": 32, "optimiser": {"learning_rate": 0.02}}


def settings(**changes: Any) -> Factorize:
    fields = {"from": "dense", "method": "factorize", "remove": {"macs": 0.4}, "recovery": RECOVERY, **changes}
    return Factorize.model_validate(fields)


@pytest.mark.parametrize("share", [0.2, 0.4])
@pytest.mark.parametrize("quantity", ["macs", "parameters"])
def test_the_requested_share_is_removed_and_little_more(tiny_dense: Path, quantity: str, share: float) -> None:
    model, architecture = load_model(tiny_dense)
    dense_cost = count_macs(model, architecture) if quantity == "macs" else count_parameters(model)
    ranks, energy = choose_ranks(model, architecture, settings(remove={quantity: share}))
    factorized_architecture = apply_ranks(model, architecture, ranks)
    factorized_cost = count_macs(model, factorized_architecture) if quantity == "macs" else count_parameters(model)
    assert 1 - share - 0.08 < factorized_cost / dense_cost <= 1 - share
    assert 0 < energy < 1
    assert {rank % 8 for rank in ranks.values()} == {0}


def test_layers_of_low_rank_lose_more(tiny_dense: Path) -> None:
    model, architecture = load_model(tiny_dense)
    weight = model.blocks[2].conv2.weight
    matrix = weight.data.flatten(1)
    weight.data = (matrix[:, :4] @ torch.randn(4, matrix.shape[1])).view_as(weight) / 20
    ranks, _ = choose_ranks(model, architecture, settings(remove={"macs": 0.2}))
    assert ranks["blocks.2.conv2"] == 8


@pytest.mark.thorough
def test_method_writes_a_candidate(tiny_inputs: MethodInputs, tmp_path: Path) -> None:
    details = write_candidate(settings(), tiny_inputs, tmp_path)
    loaded, architecture = load_model(tmp_path)
    assert architecture.ranks == details.ranks
    assert details.macs_after == count_macs(loaded, architecture) == inspect_onnx(tmp_path / "model.onnx").macs
    assert details.macs_after <= 0.6 * details.macs_before
    assert [row["epoch"] for row in details.curves] == [1]


def test_too_much_is_refused(tiny_dense: Path) -> None:
    model, architecture = load_model(tiny_dense)
    with pytest.raises(ConfigError, match=r"cannot remove 99% of the macs of this resnet8: .*remove less"):
        choose_ranks(model, architecture, settings(remove={"macs": 0.99}))


def test_channels_cannot_be_removed() -> None:
    with pytest.raises(ValidationError, match="factorize removes no channels"):
        settings(remove={"channels": 0.3})


@pytest.mark.thorough
def test_a_vision_transformer_is_factorized(tmp_path: Path) -> None:
    architecture = Architecture(backbone="vit_b_32", num_classes=3, image_size=32)
    model = build_model(architecture)
    ranks = {"encoder.layers.encoder_layer_0.mlp.0": 64, "encoder.layers.encoder_layer_0.self_attention.query": 64}
    factorized_architecture = apply_ranks(model, architecture, ranks)
    save_model(tmp_path, model, factorized_architecture)
    x = torch.rand(1, 3, 32, 32)
    assert torch.equal(load_model(tmp_path)[0](x), model.eval()(x))
