"""The total time left of a run: forecasts, corrected by the steps that have ended."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tasks import time_left
from tasks.forecast.data_counts import Counts
from tasks.forecast.rough_forecast import RoughForecast, write_rough_forecast
from tasks.project.paths import ProjectPaths
from tasks.project.state_files import PLAN, ROUGH_FORECAST
from tasks.project.templates import template
from tasks.time_left import TimeLeft, begin_step, end_step, read_forecast, tracked
from tests.conftest import tiny_params
from winnow.cli.params_editor import apply_preset
from winnow.cli.presets import FULL
from winnow.config import ROOT, check_config
from winnow.records import sha256_of
from winnow.steps.ingest import ingest

STEPS = ["ingest", "pretrain", "finetune", "pruned"]
FORECAST = {"ingest": 5.0, "pretrain": 20.0, "finetune": 60.0, "pruned": 30.0}


@pytest.fixture
def paths(tmp_path: Path) -> ProjectPaths:
    (tmp_path / "params.yaml").write_text("a: 1\n", encoding="utf-8")
    return ProjectPaths(tmp_path)


def write_forecast(paths: ProjectPaths, seconds: dict[str, float]) -> None:
    ROUGH_FORECAST.write(paths, {"params": sha256_of(paths.root / "params.yaml"), "seconds": seconds})


def test_ended_steps_correct_the_forecast(paths: ProjectPaths) -> None:
    left = TimeLeft(paths, STEPS)
    assert left.begin("ingest") == "step 1 of 4"  # no forecast yet
    write_forecast(paths, FORECAST)
    assert left.seconds_left() == 115 + 4 * time_left.STEP_OVERHEAD
    left.end("ingest", 10.0)  # too short to correct anything
    assert left.seconds_left() == 110 + 3 * time_left.STEP_OVERHEAD
    left.end("pretrain", 43.0)  # with the overhead of both, 55 s instead of 27
    assert left.seconds_left() == pytest.approx(92 * 55 / 27)
    assert left.begin("finetune") == "step 3 of 4, about 3:07 left in total"
    left.end("finetune", 3600.0)
    assert left.seconds_left() == pytest.approx(31 * time_left.MAX_CORRECTION)
    left.end("pruned", 1.0)
    assert left.seconds_left() == 0


def test_steps_that_did_not_do_all_their_work_correct_nothing(paths: ProjectPaths) -> None:
    left = TimeLeft(paths, STEPS)
    write_forecast(paths, FORECAST)
    left.end("ingest", None)
    left.end("pretrain", None)
    left.end("finetune", None)
    assert left.seconds_left() == 30 + time_left.STEP_OVERHEAD


def test_the_first_forecast_is_printed_once_within_a_step(paths: ProjectPaths) -> None:
    left = TimeLeft(paths, STEPS)
    assert left.begin("ingest") == "step 1 of 4"
    assert left.first_line() == ""
    write_forecast(paths, FORECAST)
    assert left.first_line() == "about 1:59 left in total"
    assert left.first_line() == ""
    assert TimeLeft(paths, STEPS).begin("ingest") == "step 1 of 4, about 1:59 left in total"


def test_a_forecast_of_other_settings_is_not_used(paths: ProjectPaths) -> None:
    write_forecast(paths, FORECAST)
    (paths.root / "params.yaml").write_text("a: 2\n", encoding="utf-8")
    assert read_forecast(paths) == {}
    assert TimeLeft(paths, STEPS).seconds_left() is None
    write_forecast(paths, {"ingest": 5.0})
    assert TimeLeft(paths, STEPS).seconds_left() is None  # not of all steps


def test_a_plan_replaces_the_rough_forecast(paths: ProjectPaths) -> None:
    write_forecast(paths, FORECAST)
    step = {"seconds": 7.0, "memory_mb": 1.0, "disk_mb": 1.0}
    digest = sha256_of(paths.root / "params.yaml")
    PLAN.write(paths, {"params": digest, "total_seconds": 7.0, "disk_gb": 0.1, "steps": {"pretrain": step}})  # type: ignore[typeddict-item]
    rough = {step: seconds + time_left.STEP_OVERHEAD for step, seconds in FORECAST.items()}
    assert read_forecast(paths) == rough | {"pretrain": 7.0}


def test_lines_are_of_the_run_that_is_tracked(paths: ProjectPaths) -> None:
    write_forecast(paths, FORECAST)
    with tracked(paths, "run", STEPS):
        assert begin_step("run", "ingest").startswith("step 1 of 4, about ")
        end_step("run", "ingest", 5.0)
        assert begin_step("run", "pretrain").startswith("step 2 of 4, about ")
        assert begin_step("another", "pretrain") == ""
    assert begin_step("run", "pretrain") == ""
    end_step("run", "pretrain", 1.0)


@pytest.mark.thorough
def test_the_full_settings_take_longer_than_the_shipped_ones(tmp_path: Path) -> None:
    counts = Counts(train=8000, validation=2000, test=2000, budget=250, choosing=2000, classes=10)
    shipped = template("params.yaml")
    seconds = {}
    for name, text in {"short": shipped, "full": apply_preset(shipped, template(FULL))}.items():
        config = check_config(yaml.safe_load(text))
        seconds[name] = RoughForecast(config, counts, tmp_path / name).seconds()
        assert seconds[name].keys() >= {"ingest", "embed", "finetune", "benchmark", "report", *config.candidates}
        assert all(value > 0 for value in seconds[name].values())
    assert seconds["full"]["student"] > 2 * seconds["short"]["student"]
    assert sum(seconds["full"].values()) > 2 * sum(seconds["short"].values())


@pytest.mark.thorough
def test_the_forecast_of_a_project_covers_its_steps(tmp_path: Path, image_folder: Path) -> None:
    params = tiny_params()
    params["data"]["path"] = str(image_folder)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    paths = ProjectPaths(tmp_path)
    scratch = paths.state_dir / "forecast"
    paths.state_dir.mkdir()
    write_rough_forecast(paths, scratch)
    assert read_forecast(paths) == {}  # the images are not ingested
    ingest(check_config(params), paths.artifacts / "data", tmp_path / "scratch")
    write_rough_forecast(paths, scratch)
    assert read_forecast(paths).keys() >= {"ingest", "pretrain", "finetune", *params["candidates"]}
    assert ROOT not in read_forecast(paths)
    assert not scratch.exists()


def test_without_a_usable_project_there_is_no_forecast(paths: ProjectPaths) -> None:
    write_rough_forecast(paths, paths.state_dir / "forecast")
    assert ROUGH_FORECAST.read(paths) is None


@pytest.mark.thorough
def test_a_refit_takes_as_long_as_its_trainings(tmp_path: Path) -> None:
    params = yaml.safe_load(template("params.yaml"))
    params["data"]["labels_per_class"] = "all"
    few = Counts(train=800, validation=200, test=200, budget=800, choosing=200, classes=10)
    many = Counts(train=8000, validation=2000, test=2000, budget=8000, choosing=2000, classes=10)
    seconds = {}
    for name, counts in {"few": few, "many": many}.items():
        seconds[name] = RoughForecast(check_config(params), counts, tmp_path / name).seconds()
    assert seconds["few"]["refit"] > max(seconds["few"]["pruned"], seconds["few"]["student"])
    assert seconds["many"]["refit"] < 10  # validation has enough labels without a refit
