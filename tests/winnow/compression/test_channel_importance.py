from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from winnow.compression.channel_importance import Criterion, import_torch_pruning, prepare_criterion
from winnow.compression.channel_pruning import PruningStep, min_channels_by_layer, remove_channels
from winnow.compression.method_inputs import MethodInputs
from winnow.config.candidates import Importance
from winnow.data.augmentation import normalise, to_float
from winnow.errors import ConfigError
from winnow.models.backbones import Architecture, build_model, load_model

NAMES = get_args(Importance)


def pruned_channels_by(folder: Path, name: Importance, inputs: MethodInputs, seed: int = 0) -> list[object]:
    model, architecture = load_model(folder)
    criterion = prepare_criterion(model, name, inputs, seed)
    return remove_channels(
        model, architecture, PruningStep(0.4, criterion, 8, min_channels_by_layer(model, 0.75))
    ).pruning


@pytest.mark.thorough
@pytest.mark.parametrize("name", NAMES)
def test_each_criterion_repeats(tiny_dense: Path, tiny_inputs: MethodInputs, name: Importance) -> None:
    pruned_channels = pruned_channels_by(tiny_dense, name, tiny_inputs)
    torch.manual_seed(7)
    assert pruned_channels == pruned_channels_by(tiny_dense, name, tiny_inputs)


@pytest.mark.thorough
def test_criteria_differ(tiny_dense: Path, tiny_inputs: MethodInputs) -> None:
    histories = {str(pruned_channels_by(tiny_dense, name, tiny_inputs)) for name in NAMES}
    assert len(histories) == len(NAMES)


def test_only_random_depends_on_the_seed_if_all_labels_are_used(tiny_dense: Path, tiny_inputs: MethodInputs) -> None:
    assert pruned_channels_by(tiny_dense, "random", tiny_inputs, 0) != pruned_channels_by(
        tiny_dense, "random", tiny_inputs, 1
    )
    assert pruned_channels_by(tiny_dense, "magnitude", tiny_inputs, 0) == pruned_channels_by(
        tiny_dense, "magnitude", tiny_inputs, 1
    )


def first_labels(inputs: MethodInputs, count: int) -> MethodInputs:
    return dataclasses.replace(inputs, budget=inputs.budget[:count])


def normalised_images(inputs: MethodInputs) -> torch.Tensor:
    return normalise(to_float(torch.from_numpy(inputs.images.images_NHWC[inputs.budget]).permute(0, 3, 1, 2)))


def test_taylor_uses_the_gradient_of_the_mean_loss(tiny_dense: Path, tiny_inputs: MethodInputs) -> None:
    inputs = first_labels(tiny_inputs, 12)
    model, _ = load_model(tiny_dense)
    prepare_criterion(model, "taylor", inputs, 0)
    reference, _ = load_model(tiny_dense)
    reference.requires_grad_(True)
    F.cross_entropy(reference(normalised_images(inputs)), torch.from_numpy(inputs.labels_N[inputs.budget])).backward()
    for parameter, expected in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, expected.grad, rtol=1e-3, atol=1e-5)


def test_hessian_is_the_mean_of_squared_gradients_of_single_images(tiny_dense: Path, tiny_inputs: MethodInputs) -> None:
    inputs = first_labels(tiny_inputs, 5)
    model, _ = load_model(tiny_dense)
    prepare_criterion(model, "hessian", inputs, 0)
    reference, _ = load_model(tiny_dense)
    reference.requires_grad_(True)
    squares = torch.zeros_like(reference.fc.weight)
    for x, label in zip(normalised_images(inputs), inputs.labels_N[inputs.budget], strict=True):
        reference.zero_grad()
        F.cross_entropy(reference(x[None]), torch.tensor([label])).backward()
        squares += reference.fc.weight.grad.square() / 5
    torch.testing.assert_close(model.fc.weight.grad, squares, rtol=1e-4, atol=1e-7)
    assert model.fc.weight.grad.min() >= 0


def test_taylor_removes_channels_without_effect_on_the_loss_first(tiny_dense: Path, tiny_inputs: MethodInputs) -> None:
    model, architecture = load_model(tiny_dense)
    unused = [1, 5, 9, 13, 17, 21, 25, 29]
    block = model.blocks[1]
    # Large weights whose output is unused: magnitude keeps them, Taylor does not.
    block.conv1.weight.data[unused] *= 20
    block.conv2.weight.data[:, unused] = 0
    running_mean = copy.deepcopy(block.bn1.running_mean)
    criterion = prepare_criterion(model, "taylor", tiny_inputs, 0)
    remove_channels(model, architecture, PruningStep(0.1, criterion, 8, min_channels_by_layer(model, 0.75)))
    remaining = {int((running_mean == value).int().argmax()) for value in block.bn1.running_mean}
    assert not remaining & set(unused)


def test_a_group_has_one_score_per_channel(tiny_dense: Path) -> None:
    model, architecture = load_model(tiny_dense)
    model.requires_grad_(True)
    side = architecture.image_size
    graph = import_torch_pruning().DependencyGraph().build_dependency(model, torch.zeros(1, 3, side, side))
    layer = model.blocks[1].conv1
    group = graph.get_pruning_group(
        layer, import_torch_pruning().prune_conv_out_channels, list(range(layer.out_channels))
    )
    scores = Criterion("magnitude", 0).scorer()(group)
    assert scores is not None
    assert scores.shape == (layer.out_channels,)
    assert float(scores.mean()) == pytest.approx(1, rel=1e-4)


def test_bn_scale_needs_batch_normalisation(tiny_inputs: MethodInputs) -> None:
    with pytest.raises(ConfigError, match=r"bn-scale ranks channels by batch normalisation.*use magnitude"):
        prepare_criterion(
            build_model(Architecture(backbone="vgg11", num_classes=3, image_size=32)), "bn-scale", tiny_inputs, 0
        )


def test_gradients_need_labels(tiny_dense: Path, tiny_inputs: MethodInputs) -> None:
    unlabelled = dataclasses.replace(tiny_inputs, labels_N=np.full_like(tiny_inputs.labels_N, -1))
    with pytest.raises(ConfigError, match="need labelled images"):
        prepare_criterion(load_model(tiny_dense)[0], "taylor", unlabelled, 0)


def pruning_group(model: nn.Module, layer: nn.Module, side: int) -> Any:
    """Return all channels of the layer with what is removed together with them."""
    library = import_torch_pruning()
    graph = library.DependencyGraph().build_dependency(model, torch.zeros(1, 3, side, side))
    width = layer.out_channels
    return graph.get_pruning_group(layer, library.prune_conv_out_channels, list(range(width)))


def fpgm_reference(weight: np.ndarray) -> np.ndarray:
    """Return each filter's sum of Euclidean distances to all filters of its layer (He et al. 2019, equation 4)."""
    filters = [array.ravel() for array in weight]
    return np.array([sum(np.sqrt(((first - second) ** 2).sum()) for second in filters) for first in filters])


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_fpgm_equals_the_formula_of_the_paper(seed: int) -> None:
    model = build_model(Architecture(backbone="resnet8", num_classes=3, image_size=32), seed).requires_grad_(True)
    conv = model.blocks[1].conv1
    scores = Criterion("fpgm", 0).scorer()(pruning_group(model, conv, 32))
    expected = fpgm_reference(conv.weight.detach().double().numpy())
    assert scores is not None
    assert scores.argsort().tolist() == expected.argsort().tolist()
    np.testing.assert_allclose(scores.numpy(), expected / expected.mean(), rtol=1e-5)


def test_fpgm_distinguishes_a_filter_from_its_negative() -> None:
    model = build_model(Architecture(backbone="resnet8", num_classes=3, image_size=32), 0).requires_grad_(True)
    conv = model.blocks[1].conv1
    with torch.no_grad():  # two bundles of filters, and a last one opposite to the first bundle
        conv.weight[:] = conv.weight[:1]
        conv.weight[-1] *= -1
    scores = Criterion("fpgm", 0).scorer()(pruning_group(model, conv, 32))
    assert scores is not None
    assert int(scores.argmax()) == len(scores) - 1
    assert float(scores[-1]) > 2 * float(scores[0])


def test_fpgm_counts_all_layers_whose_outputs_are_added() -> None:
    model = build_model(Architecture(backbone="resnet8", num_classes=3, image_size=32), 0).requires_grad_(True)
    group = pruning_group(model, model.blocks[1].conv2, 32)
    output_pruning = (import_torch_pruning().prune_conv_out_channels,)
    layers = [item.dep.layer for item in group if item.dep.pruning_fn in output_pruning]
    assert len(layers) > 1
    expected = sum(fpgm_reference(layer.weight.detach().double().numpy()) for layer in layers)
    scores = Criterion("fpgm", 0).scorer()(group)
    np.testing.assert_allclose(scores.numpy(), expected / expected.mean(), rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "is_affected"), [("magnitude", True), ("hessian", True), ("taylor", False), ("fpgm", False)]
)
def test_criteria_that_use_batch_normalisation(name: Importance, is_affected: bool) -> None:
    """torch-pruning's Taylor ignores batch normalisation."""
    model = build_model(Architecture(backbone="resnet8", num_classes=3, image_size=32), 0).requires_grad_(True)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    conv = model.blocks[1].conv1
    before = Criterion(name, 0).scorer()(pruning_group(model, conv, 32))
    with torch.no_grad():
        model.blocks[1].bn1.weight[0] = 100.0
    after = Criterion(name, 0).scorer()(pruning_group(model, conv, 32))
    assert before is not None
    assert after is not None
    assert bool((before != after).any()) == is_affected
