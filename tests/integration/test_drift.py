"""`winnow drift` on a finished project: images of the same kind, and changed ones."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tasks import drift
from tasks.project.paths import ProjectPaths
from tasks.registry.promotion import promote
from tasks.tracking import mlflow_client, mlflow_runs
from tests.conftest import CLASSES, SIZE, draw
from tests.handmade import write_run
from winnow.config import Config
from winnow.errors import ConfigError, DataError, WinnowError

pytest_plugins = "tests.stores"
COUNT = 90


def fresh_images(folder: Path, brightness: float = 1.0, colour: float = 1.0, seed: int = 99) -> Path:
    """Images of all classes, in folders, never seen before."""
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
    """A run whose winner serves."""
    made = write_run(paths.root)
    made = made.model_copy(update={"drift": made.drift.model_copy(update={"min_images": 60})})
    mlflow_runs.track(paths, made)
    promote(paths, made)
    return made


@pytest.mark.thorough
def test_images_of_the_same_kind_are_no_drift_and_are_tracked(
    paths: ProjectPaths, config: Config, tmp_path: Path
) -> None:
    finding = drift.detect_drift(paths, config, str(fresh_images(tmp_path / "new")))
    assert (finding.images, finding.is_real, finding.to_label) == (COUNT, False, ())
    assert finding.advice.wants == "nothing"
    run = mlflow_client.connect(paths).get_run(drift.log_drift(paths, config, finding))
    assert run.info.status == "FINISHED"
    assert run.data.metrics["drift/real"] == 0.0
    assert {"drift/embeddings_p", "drift/classes_effect", "drift/confidence_p"} <= set(run.data.metrics)
    assert run.data.tags["winnow.champion"] == "1"
    assert run.data.params["drift.alpha"] == "0.01"


@pytest.mark.thorough
def test_darker_images_are_drift_and_a_retrain_is_asked_for(
    paths: ProjectPaths, config: Config, tmp_path: Path
) -> None:
    """The colours still differ, so the model is as sure as before."""
    finding = drift.detect_drift(paths, config, str(fresh_images(tmp_path / "new", brightness=0.4)))
    assert {shift.test for shift in finding.shifts if shift.is_real} == {"embeddings"}
    assert finding.advice.wants == "retrain"
    assert finding.to_label == ()
    assert any(line.startswith("- embeddings (real)") for line in drift.report_lines(finding))


@pytest.mark.thorough
def test_faded_images_are_drift_and_labels_are_asked_for(paths: ProjectPaths, config: Config, tmp_path: Path) -> None:
    """Almost grey: the model is less sure."""
    finding = drift.detect_drift(paths, config, str(fresh_images(tmp_path / "new", colour=0.02)))
    assert "confidence" in {shift.test for shift in finding.shifts if shift.is_real}
    assert finding.advice.wants == "labels"
    run_id = drift.log_drift(paths, config, finding)
    listed = mlflow_client.connect(paths).download_artifacts(run_id, drift.LIST, str(tmp_path))
    with Path(listed).open(encoding="utf-8", newline="") as opened:
        rows = list(csv.DictReader(opened))
    assert len(rows) == config.drift.ask_for
    assert all((tmp_path / "new" / row["file"]).is_file() for row in rows)


@pytest.mark.thorough
def test_what_is_known_is_no_news(paths: ProjectPaths, config: Config, tmp_path: Path) -> None:
    """Ingested pictures that lie there too are left out."""
    from winnow.data.dataset import decode

    folder = fresh_images(tmp_path / "new")
    digests = [decode(path.read_bytes(), SIZE)[1] for path in sorted(folder.rglob("*.png"))[:40]]
    keys = np.load(paths.artifacts / "data" / "keys.npy")
    keys[:40] = np.stack([np.frombuffer(digest, np.uint8) for digest in digests])
    np.save(paths.artifacts / "data" / "keys.npy", keys)
    with pytest.raises(
        DataError, match=rf"{COUNT - 40} fresh images \(40 ingested before\); drift.min_images requires at least 60"
    ):
        drift.detect_drift(paths, config, str(folder))


@pytest.mark.thorough
def test_copies_count_once_and_that_is_said(paths: ProjectPaths, config: Config, tmp_path: Path) -> None:
    folder = fresh_images(tmp_path / "new")
    plain = drift.detect_drift(paths, config, str(folder))
    for path in sorted(folder.rglob("*.png")):
        for number in range(3):
            shutil.copyfile(path, path.with_name(f"{path.stem}-{number}.png"))
    (folder / "broken.jpg").write_bytes(b"no image")
    found = drift.detect_drift(paths, config, str(folder))
    assert found.images == COUNT
    assert {shift.test for shift in found.shifts if shift.is_real} == set()
    assert [shift.effect for shift in found.shifts[1:]] == [shift.effect for shift in plain.shifts[1:]]
    assert f"- not compared: {3 * COUNT} copies of others, 1 not readable" in drift.report_lines(found)


@pytest.mark.thorough
def test_what_cannot_be_compared_says_so(paths: ProjectPaths, config: Config, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no folder of fresh images"):
        drift.detect_drift(paths, config)
    with pytest.raises(ConfigError, match="is not a folder"):
        drift.detect_drift(paths, config, str(tmp_path / "nowhere"))
    folder = fresh_images(tmp_path / "new")
    (folder / "broken.jpg").write_bytes(b"no image")
    assert drift.detect_drift(paths, config, str(folder)).rejected[0].startswith("broken.jpg")


def test_without_a_champion_nothing_is_compared(paths: ProjectPaths, tmp_path: Path) -> None:
    config = write_run(paths.root)
    with pytest.raises(WinnowError, match="nothing has been promoted yet"):
        drift.detect_drift(paths, config, str(fresh_images(tmp_path / "new")))
