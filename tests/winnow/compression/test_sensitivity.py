from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from torch import nn

from tasks.project.paths import ProjectPaths
from winnow.cli.sensitivity import run_sensitivity
from winnow.compression.channel_pruning import prunable_groups
from winnow.compression.sensitivity import measure_sensitivities, table_rows
from winnow.config import Config
from winnow.data.dataset import ImageSet
from winnow.errors import ConfigError
from winnow.models.backbones import Architecture, build_model, load_model, save_model


@pytest.mark.thorough
def test_every_layer_has_a_row_and_shares_add_up(tiny_dense: Path, tiny_set: ImageSet) -> None:
    results = measure_sensitivities(tiny_dense, tiny_set)
    model, _ = load_model(tiny_dense)
    layers = [path for path, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert [result.layer for result in results] == layers
    assert sum(result.macs for result in results) == pytest.approx(1)
    assert [result.layer for result in results if result.pruned is None] == ["fc"]
    pruned_with = {result.layer: result.pruned_with for result in results}
    assert pruned_with["stem.0"] == ("blocks.0.conv2",)
    assert pruned_with["blocks.1.conv1"] == ()
    assert all(0 <= result.int8.changed <= 0.2 for result in results)
    assert any(
        result.pruned and result.pruned.changed > 0 for result in measure_sensitivities(tiny_dense, tiny_set, 0.9)
    )


def test_unused_channels_have_zero_sensitivity(tiny_dense: Path, tiny_set: ImageSet, tmp_path: Path) -> None:
    model, architecture = load_model(tiny_dense)
    block = model.blocks[1]
    unused = list(range(0, 96, 2))
    with torch.no_grad():
        block.conv1.weight[unused] = 0
        block.bn1.weight[unused] = 0
        block.bn1.bias[unused] = 0
        block.conv2.weight[:, unused] = 0
    save_model(tmp_path, model, architecture)
    by_layer = {result.layer: result for result in measure_sensitivities(tmp_path, tiny_set, share=0.5)}
    assert by_layer["blocks.1.conv1"].pruned is not None
    assert by_layer["blocks.1.conv1"].pruned.changed == 0
    assert by_layer["blocks.1.conv1"].pruned.points == 0


def test_removing_more_changes_more_predictions(tiny_dense: Path, tiny_set: ImageSet) -> None:
    low_share, high_share = (measure_sensitivities(tiny_dense, tiny_set, share) for share in (0.1, 0.9))
    totals = [sum(result.pruned.changed for result in results if result.pruned) for results in (low_share, high_share)]
    assert totals[0] < totals[1]


@pytest.mark.thorough
@pytest.mark.parametrize("backbone", ["mobilenet_v3_small", "densenet121", "regnet_y_400mf"])
def test_a_group_of_any_backbone_can_be_pruned(backbone: str) -> None:
    architecture = Architecture(backbone=backbone, num_classes=3, image_size=32)
    groups = prunable_groups(build_model(architecture), architecture)
    assert groups
    for group in groups[:4]:
        model = build_model(architecture)
        parameters_before = sum(parameter.numel() for parameter in model.parameters())
        group.remove_least(model, architecture, 0.5)
        assert model.eval()(torch.rand(1, 3, 32, 32)).shape == (1, 3)
        assert sum(parameter.numel() for parameter in model.parameters()) < parameters_before


def test_the_command_writes_a_table_and_a_plot(
    tiny_dense: Path, tiny_data: Path, tiny_config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "artifacts" / "candidates").mkdir(parents=True)
    (tmp_path / "artifacts" / "candidates" / "dense").symlink_to(tiny_dense)
    (tmp_path / "artifacts" / "data").symlink_to(tiny_data)
    assert run_sensitivity(ProjectPaths(tmp_path), tiny_config, "dense", 0.5) == 0
    out = tmp_path / ".winnow" / "sensitivity" / "dense"
    with (out / "layers.csv").open() as file:
        table = list(csv.DictReader(file))
    assert table[0]["layer"] == "stem.0"
    assert (out / "layers.png").read_bytes().startswith(b"\x89PNG")
    output = capsys.readouterr().out
    assert "blocks.2.conv2" in output
    assert "layers.csv" in output
    with pytest.raises(ConfigError, match=r"dense-int8: no candidate of that name has a weights\.safetensors"):
        run_sensitivity(ProjectPaths(tmp_path), tiny_config, "dense-int8", 0.5)
    with pytest.raises(ConfigError, match="is between 0 and 1"):
        run_sensitivity(ProjectPaths(tmp_path), tiny_config, "dense", 1.5)


def test_rows_are_in_percent(tiny_dense: Path, tiny_set: ImageSet) -> None:
    table = table_rows(measure_sensitivities(tiny_dense, tiny_set))
    assert sum(row["macs_percent"] for row in table) == pytest.approx(100)
    assert table[-1]["pruned_changed_percent"] is None


@pytest.mark.thorough
def test_unprunable_networks_are_quantized_only(tiny_set: ImageSet, tmp_path: Path) -> None:
    architecture = Architecture(backbone="shufflenet_v2_x0_5", num_classes=len(tiny_set.classes), image_size=16)
    save_model(tmp_path, build_model(architecture), architecture)
    results = measure_sensitivities(tmp_path, tiny_set)
    assert {result.pruned for result in results} == {None}
