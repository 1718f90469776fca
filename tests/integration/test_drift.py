"""Test `winnow drift` on a finished project with images of the same distribution and changed ones."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow.exceptions import MlflowException
from PIL import Image

import flows.drift as drift_flow
from tasks import drift
from tasks.project.paths import ProjectPaths
from tasks.registry.promotion import promote
from tasks.tracking import mlflow_client, mlflow_runs, tracked_runs
from tests.conftest import CLASSES, SIZE, draw
from tests.handmade import write_run
from winnow.cli import model_commands
from winnow.config import Config
from winnow.errors import ConfigError, DataError, WinnowError

pytest_plugins = "tests.stores"
COUNT = 90


def new_images(folder: Path, brightness: float = 1.0, colour: float = 1.0, seed: int = 99) -> Path:
    """Write images of all classes to folders, different from those of the project."""
    rng = np.random.default_rng(seed)
    for index in range(COUNT):
        path = folder / f"day{index % 2}" / f"{index:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = draw(index % len(CLASSES), (SIZE, SIZE), rng)
        grey = pixels.mean(axis=2, keepdims=True)
        Image.fromarray(((grey + (pixels - grey) * colour) * brightness).round().astype(np.uint8)).save(path)
    return folder


@pytest.fixture
def config(paths: ProjectPaths) -> Config:
    """Return the config of a run whose winner is champion."""
    new_config = write_run(paths.root)
    new_config = new_config.model_copy(update={"drift": new_config.drift.model_copy(update={"min_images": 60})})
    tracked_runs.track(paths, new_config)
    promote(paths, new_config)
    return new_config


@pytest.mark.thorough
def test_images_of_the_same_distribution_are_no_drift_and_are_tracked(
    paths: ProjectPaths, config: Config, tmp_path: Path
) -> None:
    finding = drift.detect_drift(paths, config, str(new_images(tmp_path / "new")))
    assert (finding.images, finding.is_real, finding.to_label) == (COUNT, False, ())
    assert finding.advice.wants == "nothing"
    run = mlflow_client.connect(paths).get_run(drift.log_drift(paths, config, finding))
    assert run.info.status == "FINISHED"
    assert run.data.metrics["drift/real"] == 0.0
    assert {"drift/embeddings_p", "drift/classes_effect", "drift/confidence_p"} <= set(run.data.metrics)
    assert run.data.tags["winnow.champion"] == "1"
    assert run.data.params["drift.alpha"] == "0.01"


@pytest.mark.thorough
def test_darker_images_are_drift_and_retraining_is_advised(paths: ProjectPaths, config: Config, tmp_path: Path) -> None:
    """The colours still differ, so the confidence of the model does not change."""
    finding = drift.detect_drift(paths, config, str(new_images(tmp_path / "new", brightness=0.4)))
    assert {shift.test for shift in finding.shifts if shift.is_real} == {"embeddings"}
    assert finding.advice.wants == "retrain"
    assert finding.to_label == ()
    assert any(line.startswith("- embeddings (real)") for line in drift.report_lines(finding))


@pytest.mark.thorough
def test_faded_images_are_drift_and_labelling_is_advised(paths: ProjectPaths, config: Config, tmp_path: Path) -> None:
    """The images are almost grey, so the confidence of the model drops."""
    finding = drift.detect_drift(paths, config, str(new_images(tmp_path / "new", colour=0.02)))
    assert "confidence" in {shift.test for shift in finding.shifts if shift.is_real}
    assert finding.advice.wants == "labels"
    run_id = drift.log_drift(paths, config, finding)
    listed = mlflow_client.connect(paths).download_artifacts(run_id, drift.LIST, str(tmp_path))
    with Path(listed).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == config.drift.ask_for
    assert all((tmp_path / "new" / row["file"]).is_file() for row in rows)


@pytest.mark.thorough
def test_ingested_images_are_not_compared(paths: ProjectPaths, config: Config, tmp_path: Path) -> None:
    """Ingested images in the same folder are excluded."""
    from winnow.data.dataset import decode

    folder = new_images(tmp_path / "new")
    digests = [decode(path.read_bytes(), SIZE)[1] for path in sorted(folder.rglob("*.png"))[:40]]
    keys = np.load(paths.artifacts / "data" / "keys.npy")
    keys[:40] = np.stack([np.frombuffer(digest, np.uint8) for digest in digests])
    np.save(paths.artifacts / "data" / "keys.npy", keys)
    with pytest.raises(
        DataError, match=rf"{COUNT - 40} fresh images \(40 ingested before\); drift.min_images requires at least 60"
    ):
        drift.detect_drift(paths, config, str(folder))


@pytest.mark.thorough
def test_copies_are_counted_once_and_reported(paths: ProjectPaths, config: Config, tmp_path: Path) -> None:
    folder = new_images(tmp_path / "new")
    without_copies = drift.detect_drift(paths, config, str(folder))
    for path in sorted(folder.rglob("*.png")):
        for number in range(3):
            shutil.copyfile(path, path.with_name(f"{path.stem}-{number}.png"))
    (folder / "broken.jpg").write_bytes(b"no image")
    with_copies = drift.detect_drift(paths, config, str(folder))
    assert with_copies.images == COUNT
    assert {shift.test for shift in with_copies.shifts if shift.is_real} == set()
    assert [shift.effect for shift in with_copies.shifts[1:]] == [shift.effect for shift in without_copies.shifts[1:]]
    assert f"- not compared: {3 * COUNT} copies of others, 1 not readable" in drift.report_lines(with_copies)


@pytest.mark.thorough
def test_incomparable_images_are_an_error(paths: ProjectPaths, config: Config, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no folder of fresh images"):
        drift.detect_drift(paths, config)
    with pytest.raises(ConfigError, match="is not a folder"):
        drift.detect_drift(paths, config, str(tmp_path / "nowhere"))
    folder = new_images(tmp_path / "new")
    (folder / "broken.jpg").write_bytes(b"no image")
    assert drift.detect_drift(paths, config, str(folder)).rejected[0].startswith("broken.jpg")


@pytest.mark.thorough
def test_the_result_is_shown_before_it_is_logged(
    paths: ProjectPaths,
    config: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: Any) -> None:
        raise MlflowException("MLflow is down")

    folder = str(new_images(tmp_path / "new", colour=0.02))
    finding = drift.detect_drift(paths, config, folder)
    shown: list[str] = []
    monkeypatch.setattr(mlflow_runs, "create_run", fail)
    monkeypatch.setattr(model_commands, "load_project_config", lambda _: config)
    monkeypatch.setattr(drift_flow, "load_config", lambda _: config)
    for name in ("create_markdown_artifact", "create_table_artifact"):
        monkeypatch.setattr(drift_flow, name, lambda key, **_: shown.append(key))
    monkeypatch.setattr(drift_flow, "emit_drifted", lambda *_: shown.append("event"))
    monkeypatch.chdir(paths.root)
    command = model_commands.drift.callback
    assert command is not None
    with pytest.raises(SystemExit) as exc_info:
        command(folder=folder)
    assert exc_info.value.code == 2
    output, errors = capsys.readouterr()
    assert output.splitlines()[: len(finding.shifts)] == drift.report_lines(finding)[: len(finding.shifts)]
    assert output.count("  label ") == len(finding.to_label)
    assert "MLflow is down" in errors
    assert mlflow_client.RESUME_HINT not in errors
    with pytest.raises(mlflow_client.StoreError, match="MLflow is down"):
        drift_flow._detect(paths, folder)
    assert shown == ["drift", "to-label", "event"]


def test_drift_needs_a_champion(paths: ProjectPaths, tmp_path: Path) -> None:
    config = write_run(paths.root)
    with pytest.raises(WinnowError, match="nothing has been promoted yet"):
        drift.detect_drift(paths, config, str(new_images(tmp_path / "new")))
