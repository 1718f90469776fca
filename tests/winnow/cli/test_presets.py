"""The preset of `winnow run --full`: what it changes in params.yaml, and what it leaves as the user has it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tasks.project.templates import template
from winnow.cli.params_editor import apply_assignments, apply_preset
from winnow.cli.presets import FULL, merge_preset
from winnow.config import check_config

SHIPPED = template("params.yaml")


def parsed(text: str) -> dict[str, Any]:
    settings: dict[str, Any] = yaml.safe_load(text)
    return settings


def full(text: str = SHIPPED) -> dict[str, Any]:
    return parsed(apply_preset(text, template(FULL)))


def test_full_trains_longer_and_adds_controls() -> None:
    short, long = (check_config(settings) for settings in (parsed(SHIPPED), full()))
    assert set(long.candidates) - set(short.candidates) == {
        *("sparse", "student-alone", "dense-kd", "dense-kd-int8", "large")
    }
    for name, candidate in short.candidates.items():
        changed = long.candidates[name].model_dump(mode="json")
        before = candidate.model_dump(mode="json")
        if before.get("recovery"):
            assert changed["recovery"].pop("epochs") > before["recovery"].pop("epochs")
            assert changed["recovery"].pop("min_steps") > before["recovery"].pop("min_steps")
        assert changed == before
    assert long.pretrain.epochs == 30  # type: ignore[union-attr]  # the default of distill
    assert len(long.finetune.seeds) > len(short.finetune.seeds)
    assert long.benchmark.rounds > short.benchmark.rounds


def test_students_and_controls_of_the_full_tree_are_trained_alike() -> None:
    candidates = full()["candidates"]
    for name in ("sparse", "dense-kd"):
        assert candidates[name]["recovery"] == candidates["pruned"]["recovery"]
    alone, student = candidates["student-alone"]["recovery"], candidates["student"]["recovery"]
    assert {key for key in student if alone.get(key) != student[key]} == {
        *("teacher", "images", "augmentation", "hint", "hint_weight")
    }


def test_full_keeps_comments_and_can_be_repeated() -> None:
    text = apply_preset(SHIPPED, template(FULL))
    assert "# control: dense, trained further with the same recovery" in text
    assert "# by the validation split everything is selected" in text
    assert "\n\nfinetune:" in text
    assert apply_preset(text, template(FULL)) == text


def test_the_preset_replaces_the_shipped_values() -> None:
    """The section `from` holds values of params.yaml, and each has a new value in `to`."""

    def check(old: dict[str, Any], new: dict[str, Any], shipped: dict[str, Any]) -> None:
        for key, value in old.items():
            assert key in new
            if isinstance(value, dict):
                check(value, new[key], shipped[key])
            else:
                assert value == shipped[key] != new[key]

    preset = parsed(template(FULL))
    check(preset["from"], preset["to"], parsed(SHIPPED))
    assert set(preset["controls"]) <= set(preset["to"]["candidates"])


def test_full_leaves_longer_trainings_of_the_user() -> None:
    own = {
        "finetune.seeds": "[0,1,2,3,4]",
        "pretrain.epochs": "100",
        "candidates.pruned.recovery.epochs": "60",
        "benchmark.rounds": "40",
    }
    text = apply_assignments(SHIPPED, [f"{key}={value}" for key, value in own.items()])
    changed = full(text)
    assert changed["finetune"]["seeds"] == [0, 1, 2, 3, 4]
    assert (changed["pretrain"]["epochs"], changed["benchmark"]["rounds"]) == (100, 40)
    assert changed["candidates"]["pruned"]["recovery"]["epochs"] == 60
    assert changed["candidates"]["dense-kd"]["recovery"]["epochs"] == 60  # a control of pruned's recovery
    assert changed["candidates"]["student"]["recovery"]["epochs"] == 30
    after = apply_assignments(apply_preset(SHIPPED, template(FULL)), ["candidates.student.recovery.epochs=5"])
    assert full(after)["candidates"]["student"]["recovery"]["epochs"] == 5


def test_controls_are_those_of_the_users_candidates() -> None:
    own = ["candidates.student.student=mobilenet_v3_small", "candidates.student.width=1.0"]
    candidates = full(apply_assignments(SHIPPED, own))["candidates"]
    assert (candidates["student-alone"]["student"], candidates["student-alone"]["width"]) == ("mobilenet_v3_small", 1.0)
    settings = parsed(SHIPPED)
    for name in ("student", "student-int8", "pruned", "pruned-int8"):
        del settings["candidates"][name]
    candidates = full(yaml.safe_dump(settings))["candidates"]
    assert "student-alone" not in candidates
    assert candidates["dense-kd"]["recovery"]["epochs"] == 20


@pytest.mark.parametrize("text", ["", "[]", "abc", "1"])
def test_text_without_sections_is_left_to_the_check(text: str) -> None:
    assert apply_preset(text, template(FULL)) == text


def test_comments_below_a_removed_key_stay() -> None:
    text = SHIPPED.replace("  seed: 0\n\nfinetune:", "\n# FINETUNE NOTES\nfinetune:", 1)
    text = text.replace(
        "  unlabelled: {method: propagation, epochs: 6, min_steps: 600}\n",
        "  unlabelled:\n    method: propagation\n    min_steps: 600\n    epochs: 6\n  # WEIGHTS NOTES\n",
        1,
    )
    changed = apply_preset(text, template(FULL))
    assert "# FINETUNE NOTES\nfinetune:" in changed
    assert "    method: propagation\n  # WEIGHTS NOTES\n" in changed
    assert "min_steps" not in parsed(changed)["pretrain"]


def test_full_leaves_what_the_user_has_defined() -> None:
    text = apply_assignments(SHIPPED, ["finetune.unlabelled=none", "pretrain.method=rotnet", "pretrain.epochs=3"])
    settings = parsed(text)
    del settings["candidates"]["student"], settings["candidates"]["student-int8"]
    settings["candidates"]["sparse"] = {"from": "dense", "method": "quantize"}
    changed = full(yaml.safe_dump(settings))
    assert changed["finetune"]["unlabelled"] == "none"
    assert "student" not in changed["candidates"]
    assert changed["candidates"]["sparse"] == {"from": "dense", "method": "quantize"}
    assert check_config(changed).pretrain.epochs == 3  # type: ignore[union-attr]


def test_full_without_a_teacher_adds_nothing_that_needs_one() -> None:
    changed = full(apply_assignments(SHIPPED, ["teacher.weights=none"]))
    assert "large" not in changed["candidates"]
    hints = {
        candidate["recovery"].get("hint") for candidate in changed["candidates"].values() if "recovery" in candidate
    }
    assert "embeddings" not in hints
    check_config(changed)


def test_merge_removes_a_key_and_ignores_a_section_that_is_missing() -> None:
    document = {"a": {"b": 1, "c": 2, "x": 4, "y": 7}, "d": "text"}
    before = {"a": {"b": 1, "x": 4, "y": 4}, "d": {"e": 0}}
    after = {"a": {"b": None, "x": 5, "y": 5}, "d": {"e": 1}, "f": {"g": 1}, "h": {"method": "m"}}
    merge_preset(document, {"from": before, "to": after})
    assert document == {"a": {"c": 2, "x": 5, "y": 7}, "d": "text", "h": {"method": "m"}}


@pytest.mark.thorough
def test_full_and_settings_are_written_before_a_plan(tmp_path: Path) -> None:
    """`winnow plan --full -S` writes both; the setting is applied last. An invalid one changes nothing."""
    winnow = [sys.executable, "-m", "winnow.cli.main"]
    subprocess.run([*winnow, "init", str(tmp_path / "shop")], check=True, capture_output=True)
    params = tmp_path / "shop" / "params.yaml"
    before = params.read_text(encoding="utf-8")
    for folder in ("a", "b"):
        (tmp_path / "shop" / "photos" / folder).mkdir(parents=True)

    def plan(*options: str) -> subprocess.CompletedProcess[str]:
        command = [*winnow, "plan", "--full", *options]
        return subprocess.run(command, cwd=tmp_path / "shop", capture_output=True, text=True, check=False)

    assert plan("-S", "benchmark.rounds=1").returncode == 2
    assert params.read_text(encoding="utf-8") == before
    assert "+  dense-kd:" in plan("-S", "benchmark.rounds=7").stdout  # it fails later: there are no images
    changed = parsed(params.read_text(encoding="utf-8"))
    assert changed["benchmark"]["rounds"] == 7
    assert "dense-kd" in changed["candidates"]
