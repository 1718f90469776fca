from __future__ import annotations

from typing import Any

import pytest
import yaml

from tasks.project.templates import template
from tests.closure import ROOT
from winnow.cli.params_editor import apply_preset
from winnow.cli.presets import FULL
from winnow.cli.suggested_settings import suggest_settings
from winnow.config import check_config, load_config
from winnow.data.survey import Survey
from winnow.evaluation.intervals import simultaneous_confidence, smallest_upper_end
from winnow.records.selection import Drop
from winnow.selection.gates import needed_allowance

CONFIG = load_config(ROOT / "params.yaml")


def suggest(side: int, per_class: int = 5000, unlabelled: int = 0, has_gpu: bool = False) -> dict[str, Any]:
    survey = Survey({"cat": per_class, "dog": per_class}, unlabelled, 0, side)
    return {setting.key: setting.value for setting in suggest_settings(survey, CONFIG, has_gpu)}


@pytest.mark.parametrize(
    ("side", "has_gpu", "expected"), [(20, False, None), (60, False, 48), (3000, False, 64), (3000, True, 128)]
)
def test_the_image_size_fits_images_and_machine(side: int, has_gpu: bool, expected: int | None) -> None:
    assert suggest(side, has_gpu=has_gpu).get("data.image_size") == expected


def test_large_images_get_another_backbone() -> None:
    assert suggest(3000, has_gpu=True)["pretrain.backbone"] == "mobilenet_v3_small"
    assert "pretrain.backbone" not in suggest(3000)


def test_gates_become_wider_only_where_images_are_few() -> None:
    assert "promotion.gates.max_drop_points" not in suggest(32)
    few, fewer = suggest(32, per_class=200), suggest(32, per_class=40)
    assert 1.0 < few["promotion.gates.max_drop_points"] < fewer["promotion.gates.max_drop_points"]
    assert fewer["promotion.gates.max_macro_f1_drop_points"] > CONFIG.promotion.gates.max_macro_f1_drop_points


def test_suggested_gates_can_be_passed_with_the_candidates_of_full() -> None:
    full = check_config(yaml.safe_load(apply_preset(template("params.yaml"), template(FULL))))
    drop = suggest(32, per_class=250)["promotion.gates.max_drop_points"]
    upper_end = smallest_upper_end(100, simultaneous_confidence(len(full.candidates)))
    assert needed_allowance(Drop(0.0, 0.0, upper_end)) <= drop


def test_images_without_labels_narrow_the_gate() -> None:
    alone, helped = (suggest(32, 40, unlabelled)["promotion.gates.max_drop_points"] for unlabelled in (0, 800))
    assert helped < alone
