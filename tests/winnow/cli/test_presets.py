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


def test_full_leaves_what_the_user_has_defined() -> None:
    text = apply_assignments(SHIPPED, ["finetune.unlabelled=none", "pretrain.method=rotnet", "pretrain.epochs=3"])
    settings = parsed(text)
    del settings["candidates"]["student"], settings["candidates"]["student-int8"]
    settings["candidates"]["sparse"] = {"from": "dense", "method": "quantize"}
    changed = full(yaml.safe_dump(settings))
    assert changed["finetune"]["unlabelled"] == "none"
    assert "student" not in changed["candidates"]
    assert changed["candidates"]["sparse"] == {"from": "dense", "method": "quantize"}
    assert check_config(changed).pretrain.epochs == 10  # type: ignore[union-attr]  # the default of rotnet


def test_full_without_a_teacher_adds_nothing_that_needs_one() -> None:
    changed = full(apply_assignments(SHIPPED, ["teacher.weights=none"]))
    assert "large" not in changed["candidates"]
    hints = {
        candidate["recovery"].get("hint") for candidate in changed["candidates"].values() if "recovery" in candidate
    }
    assert "embeddings" not in hints
    check_config(changed)


def test_merge_removes_a_key_and_ignores_a_section_that_is_missing() -> None:
    document = {"a": {"b": 1, "c": 2}, "d": "text"}
    merge_preset(document, {"a": {"b": None, "x": 5}, "d": {"e": 1}, "f": {"g": 1}, "h": {"method": "m"}})
    assert document == {"a": {"c": 2, "x": 5}, "d": "text", "h": {"method": "m"}}


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
