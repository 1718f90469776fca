from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from tasks.forecast.__main__ import main
from tasks.forecast.data_counts import Counts, Forecast, count_images, expected_counts
from tasks.forecast.step_costs import StepForecaster
from tasks.project.paths import ProjectPaths
from tasks.project.state_files import PLAN
from tests.closure import ROOT
from tests.conftest import CLASSES, tiny_params, write_folder
from winnow.benchmark.cases import plan_cases
from winnow.cli import plan
from winnow.config import Config, check_config
from winnow.deploy.teacher_embeddings import load_embeddings
from winnow.errors import WinnowError
from winnow.hardware import cores
from winnow.records import sha256_of
from winnow.steps.ingest import ingest

COUNTS = Counts(train=220, validation=60, test=40, budget=60, choosing=60, classes=3)


def make_config(folder: Path, **sections: dict) -> Config:
    params = tiny_params()
    params["data"]["path"] = str(folder)
    for section, changes in sections.items():
        params[section] |= changes
    return check_config(params)


PEAKS = """
import subprocess, sys, time
import numpy as np
import tasks.project.peak_memory

def peak(act):
    with tasks.project.peak_memory.measure_peak_memory(every=0.02) as seen:
        act()
    return seen.mb

np.save(sys.argv[1], np.ones(25_000_000))
child = "import time; x = b'x' * 150_000_000; time.sleep(0.5)"
idle = peak(lambda: None)
mapped = peak(lambda: np.load(sys.argv[1], mmap_mode="r").sum())
below = peak(lambda: subprocess.run([sys.executable, "-c", child], check=True))
def hold():
    kept = np.ones(25_000_000)
    time.sleep(0.5)

print(mapped - idle, below - idle, peak(hold) - idle)
"""


@pytest.mark.thorough
def test_peak_memory_counts_child_processes_but_no_mapped_files(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PEAKS, str(tmp_path / "large.npy")]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    mapped_mb, child_mb, own_mb = (float(number) for number in output.split())
    assert mapped_mb < 50
    assert 120 < child_mb < 300
    assert own_mb == pytest.approx(200, abs=30)


@pytest.mark.thorough
@pytest.mark.parametrize("pool", [0, 90])
def test_expected_counts_are_near_those_of_ingest(image_folder: Path, tmp_path: Path, pool: int) -> None:
    for number in range(pool):
        (image_folder / "unlabelled").mkdir(exist_ok=True)
        shutil.copy(next((image_folder / CLASSES[0]).iterdir()), image_folder / "unlabelled" / f"{number}.png")
    config = make_config(image_folder)
    expected = expected_counts(config, tmp_path)
    ingest(config, tmp_path / "data", tmp_path)
    actual = count_images(config, tmp_path / "data", tmp_path)
    assert expected.classes == actual.classes == 3
    assert expected.images == pytest.approx(actual.images, abs=2)
    for key, value in asdict(actual).items():
        assert asdict(expected)[key] == pytest.approx(value, abs=12 + pool), key


def test_a_named_test_set_and_a_label_budget_are_counted(image_folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "split"
    for split_name in ("train", "test"):
        for name in CLASSES:
            (root / split_name / name).mkdir(parents=True)
            for file in sorted((image_folder / name).iterdir())[:: 1 if split_name == "train" else 5]:
                shutil.copy(file, root / split_name / name / file.name)
    counts = expected_counts(make_config(root, data={"labels_per_class": 4}), tmp_path)
    test_files = sum(1 for path in (root / "test").rglob("*") if path.is_file())
    assert counts.test == test_files
    assert counts.budget == 4 * len(CLASSES)


@pytest.fixture(scope="module")
def forecasts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Forecast]:
    """Return the forecasts of the first steps of the tiny tree."""
    folder = tmp_path_factory.mktemp("rehearsal")
    forecaster = StepForecaster(make_config(write_folder(folder / "photos")), COUNTS, folder, folder / "tried")
    return {step: forecaster.forecast_step(step) for step in ("ingest", "pretrain", "finetune")}


@pytest.mark.slow
def test_steps_are_forecast_by_what_they_count(forecasts: dict[str, Forecast]) -> None:
    for forecast in forecasts.values():
        assert 0 < forecast.seconds < 600
        assert 50 < forecast.memory_mb < 10_000
    assert forecasts["ingest"].disk_mb == pytest.approx(320 * (16 * 16 * 3 + 18 * 18 * 3 + 60) / 1e6)
    assert forecasts["pretrain"].basis.startswith("12 steps of 32 images at ")
    assert forecasts["finetune"].basis.startswith("4 trainings: 96 steps of 32 images at ")


@pytest.mark.slow
def test_candidates_are_forecast_from_small_runs(forecasts: dict[str, Forecast], tmp_path: Path) -> None:
    forecaster = StepForecaster(check_config(tiny_params()), COUNTS, tmp_path, tmp_path / "tried")
    int8, pruned, student = (forecaster.forecast_step(step) for step in ("pruned-int8", "pruned", "student"))
    assert int8.basis.startswith("32 images at ")
    assert pruned.basis.startswith("12 steps of 32 images at ")
    assert int8.disk_mb < pruned.disk_mb < forecasts["finetune"].disk_mb
    assert student.disk_mb < pruned.disk_mb


@pytest.mark.thorough
def test_steps_with_a_teacher_are_forecast(tmp_path: Path) -> None:
    """As in params.yaml: embeddings, distillation, pseudo-labels, and the teacher as a candidate."""
    params = tiny_params()
    params["teacher"] = {"weights": "package:efficientnet-lite0"}
    params["pretrain"] = {"method": "auto", "epochs": 1, "min_steps": 1}
    params["finetune"]["unlabelled"] = "propagation"
    recovery = params["candidates"]["student"]["recovery"] | {"hint": "embeddings"}
    student = params["candidates"]["student"] | {"recovery": recovery}
    params["candidates"] = {"large": {"from": "dense", "method": "probe"}, "student": student}
    forecaster = StepForecaster(check_config(params), COUNTS, tmp_path, tmp_path / "tried")
    forecasts = {step: forecaster.forecast_step(step) for step in ("embed", "pretrain", "finetune", "large", "student")}
    for forecast in forecasts.values():
        assert 0 < forecast.seconds < 600
    assert forecasts["embed"].basis.startswith(f"{COUNTS.train + COUNTS.validation} images, ")
    assert "on images without labels" in forecasts["finetune"].basis
    embeddings_ND = load_embeddings(tmp_path / "tried" / "embed")
    assert np.isfinite(embeddings_ND).all()


@pytest.mark.thorough
@pytest.mark.parametrize("hint", ["none", "embeddings"])
def test_a_candidate_alone_is_forecast(tmp_path: Path, hint: str) -> None:
    """As where the steps before are up to date: the embeddings that it learns are made for it."""
    params = tiny_params()
    params["teacher"] = {"weights": "package:efficientnet-lite0"}
    params["finetune"]["unlabelled"] = "propagation"
    recovery = params["candidates"]["student"]["recovery"] | {"hint": hint}
    params["candidates"] = {"student": params["candidates"]["student"] | {"recovery": recovery}}
    forecaster = StepForecaster(check_config(params), COUNTS, tmp_path, tmp_path / "tried")
    assert 0 < forecaster.forecast_step("student").seconds < 600


@pytest.mark.slow
def test_the_benchmark_is_forecast_by_its_cases(tmp_path: Path) -> None:
    params = tiny_params()
    params["candidates"] = {"dense-int8": params["candidates"]["dense-int8"]}
    forecaster = StepForecaster(check_config(params), COUNTS, tmp_path, tmp_path / "short")
    forecast = forecaster.forecast_step("benchmark")
    cases = plan_cases({"dense": False, "dense-int8": True}, forecaster.config.benchmark, cores(), cuda=False)
    assert forecast.basis == f"{len(cases)} cases of 2 files, 5 processes"
    params["benchmark"] |= {"samples": 100_000}
    slow_forecaster = StepForecaster(check_config(params), COUNTS, tmp_path, tmp_path / "longer")
    assert slow_forecaster.forecast_step("benchmark").seconds > forecast.seconds + 20


@pytest.mark.slow
def test_more_work_takes_longer(tmp_path: Path, image_folder: Path) -> None:
    def forecast(step: str, **changes: dict[str, Any]) -> Forecast:
        config = make_config(image_folder, **changes)
        return StepForecaster(config, COUNTS, tmp_path, tmp_path / str(changes)).forecast_step(step)

    assert forecast("pretrain", pretrain={"epochs": 2000}).seconds > 20 * forecast("pretrain").seconds
    crossed = forecast("finetune", finetune={"cross_validation": "always"})
    assert "4 trainings and 5 of cross-validation: 216 steps" in crossed.basis


@pytest.mark.slow
def test_a_refit_is_forecast_if_labels_are_few(tmp_path: Path) -> None:
    params = tiny_params()
    params["refit"] = {"when": "auto"}
    params["candidates"] = {name: params["candidates"][name] for name in ("pruned", "pruned-int8")}
    forecast = StepForecaster(check_config(params), COUNTS, tmp_path, tmp_path / "few").forecast_step("refit")
    assert forecast.basis == "dense and pruned and pruned-int8 again, as an upper estimate of the winner's refit"
    assert forecast.disk_mb > 0.2
    params["refit"] = {"when": "never"}
    without_refit = StepForecaster(check_config(params), COUNTS, tmp_path, tmp_path / "none").forecast_step("refit")
    assert without_refit.basis == "none: refit.when is never"
    assert without_refit.disk_mb < forecast.disk_mb


@pytest.mark.thorough
def test_a_step_that_would_fail_is_an_error_of_the_plan(
    tmp_path: Path, image_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    params = tiny_params()
    params["data"]["path"] = str(image_folder)
    params["candidates"] = {"pruned": params["candidates"]["pruned"] | {"remove": {"channels": 0.01}, "round_to": 512}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    arguments = [tmp_path / "params.yaml", json.dumps(asdict(COUNTS)), tmp_path, tmp_path / "in", tmp_path, "pruned"]
    status = main([str(argument) for argument in arguments])
    output = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert status == 2
    assert "leaves this resnet8 unchanged" in output["error"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "params.yaml", "photos"]


def test_the_plan_is_compared_with_the_run_of_the_same_parameters(tmp_path: Path) -> None:
    paths = ProjectPaths(tmp_path)
    paths.state_dir.mkdir()
    (tmp_path / "params.yaml").write_text("a: 1\n")
    forecast = Forecast("pretrain", 90.0, 1000.0, 100.0, "")
    steps = {row.step: asdict(row) for row in (forecast, replace(forecast, step="select"))}
    PLAN.write(
        paths, {"params": sha256_of(tmp_path / "params.yaml"), "total_seconds": 1.0, "disk_gb": 0.0, "steps": steps}
    )
    actual = {"pretrain": {"seconds": 100.0, "memory_mb": 800.0, "disk_mb": 100.0}}
    planned, text = plan.compare_with_plan(paths, actual)
    assert set(planned) == {"pretrain"}
    assert text == (
        "Planned: 1:30, it took 1:40 (forecast -10 %); 0.10 GB of artifacts, 0.10 GB (forecast +0 %); "
        "memory 1.00 GB, 0.80 GB (forecast +25 %)"
    )
    assert plan.compare_with_plan(paths, actual | {"report": actual["pretrain"]}) == ({}, "")
    (tmp_path / "params.yaml").write_text("a: 2\n")
    assert plan.compare_with_plan(paths, actual) == ({}, "")


@pytest.mark.parametrize(
    ("settings", "kinds"),
    [('type = "hardlink,copy"', {"hardlink"}), ("type = copy", {""}), ("", {"", "reflink"})],
)
def test_the_link_type_of_the_cache_is_probed(tmp_path: Path, settings: str, kinds: set[str]) -> None:
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".winnow").mkdir()
    (tmp_path / ".dvc" / "config").write_text(f"[cache]\n    {settings}\n")
    assert plan.link_type(ProjectPaths(tmp_path)) in kinds


def test_a_killed_child_is_an_error_with_its_last_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    (tmp_path / ".winnow").mkdir()
    with pytest.raises(WinnowError, match="could not be measured on a sample"):
        list(plan._forecasts(ProjectPaths(tmp_path), check_config(tiny_params()), COUNTS, ["pretrain"]))
