from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import hide_labels, tiny_params, write_set
from winnow.config import Config, check_config
from winnow.data.dataset import TEST, TRAIN, ImageSet
from winnow.data.splits import draw_label_budget
from winnow.errors import ArtifactError, ConfigError, DataError, TrainingError
from winnow.models.backbones import build_model, load_architecture
from winnow.pretraining.monitoring import MIN_SPREAD
from winnow.records import PretrainDetails, PretrainRecord, read_record, record_digest, sha256_of
from winnow.steps.pretrain import _collapse_warnings, _monitor_bank, pretrain

ROOT = Path(__file__).resolve().parents[3]


def make_config(**changes: Any) -> Config:
    raw = tiny_params()
    raw["pretrain"] = {**raw["pretrain"], **changes}
    return check_config(raw)


def run(config: Config, data: Path, root: Path, name: str = "pretrain") -> PretrainRecord:
    return pretrain(config, data, root / name, root / f"scratch-{name}")


def test_the_record_describes_the_pretraining(tiny_data: Path, tiny_set: ImageSet, tmp_path: Path) -> None:
    config = make_config()
    record = run(config, tiny_data, tmp_path)
    assert record == read_record(tmp_path / "pretrain")
    assert (record.step, record.name, record.warnings, record.machine) == ("pretrain", "pretrain", (), None)
    assert record.parameters == config.pretrain.model_dump(mode="json")
    assert record.inputs == {"data": record_digest(tiny_data)}
    assert set(record.metrics) == {"pretrain/loss", "pretrain/knn", "pretrain/spread"}
    curves = record.details.curves
    assert [row["epoch"] for row in curves] == [1, 2]
    assert record.metrics["pretrain/knn"] == curves[-1]["knn"] > 0.5
    assert json.loads((tmp_path / "pretrain" / "curves.json").read_text()) == curves
    for artifact in record.artifacts:
        assert sha256_of(tmp_path / "pretrain" / artifact.name) == artifact.sha256
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pretrain", "scratch-pretrain"]


def test_pretraining_writes_a_backbone_without_head(tiny_data: Path, tmp_path: Path) -> None:
    run(make_config(), tiny_data, tmp_path)
    architecture = load_architecture(tmp_path / "pretrain")
    state = load_file(tmp_path / "pretrain" / "weights.safetensors")
    initial = build_model(architecture, 0).state_dict()
    assert architecture.num_classes == 3
    assert set(state) == {name for name in initial if not name.startswith("fc.")}
    assert all(value.shape == initial[name].shape for name, value in state.items())
    assert not torch.equal(state["stem.0.weight"], initial["stem.0.weight"])


@pytest.mark.thorough
@pytest.mark.parametrize("changes", [{}, {"method": "simclr", "projector_width": 16, "projection_dim": 8}])
def test_equal_inputs_give_equal_bytes(tiny_data: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run(make_config(seed=seed, **changes), tiny_data, tmp_path, name)
    a, b, c = ((tmp_path / name / "record.json").read_text() for name in "abc")
    assert a == b != c


def test_labels_and_test_images_are_not_used(tiny_data: Path, tiny_set: ImageSet, tmp_path: Path) -> None:
    data = Path(shutil.copytree(tiny_data, tmp_path / "data"))
    pixels, labels = np.load(data / "images.npy"), np.load(data / "labels.npy")
    pixels[tiny_set.indices(TEST)] = 0
    labels[tiny_set.indices(TRAIN)] = -1
    np.save(data / "images.npy", pixels)
    np.save(data / "labels.npy", labels)
    run(make_config(), tiny_data, tmp_path, "a")
    record = run(make_config(), data, tmp_path, "b")
    assert "pretrain/knn" not in record.metrics
    weights = [sha256_of(tmp_path / name / "weights.safetensors") for name in "ab"]
    assert weights[0] == weights[1]


def test_labels_outside_the_budget_are_not_read(tiny_data: Path, tmp_path: Path) -> None:
    """The monitor's neighbours are the label budget, so the record does not depend on other labels."""
    noise = Path(shutil.copytree(tiny_data, tmp_path / "noise"))  # a neighbour's label depends on the neighbours
    pixels = np.load(noise / "images.npy")
    np.save(noise / "images.npy", np.random.default_rng(0).integers(0, 256, pixels.shape, dtype=np.uint8))
    raw = tiny_params()
    raw["data"]["labels_per_class"] = 5
    for name, data in (("a", noise), ("b", hide_labels(noise, tmp_path / "hidden", per_class=5, seed=0))):
        record = run(check_config(raw), data, tmp_path, name)
        assert "pretrain/knn" in record.metrics
    assert (tmp_path / "a" / "record.json").read_text() == (tmp_path / "b" / "record.json").read_text()


def test_without_pretraining_weights_depend_on_the_seed_only(tiny_data: Path, tmp_path: Path) -> None:
    raw = tiny_params()
    raw["pretrain"] = {"method": "none", "seed": 5}
    record = run(check_config(raw), tiny_data, tmp_path)
    assert (record.metrics, record.details, record.warnings) == ({}, PretrainDetails(curves=[]), ())
    initial = build_model(load_architecture(tmp_path / "pretrain"), 5).state_dict()
    for name, value in load_file(tmp_path / "pretrain" / "weights.safetensors").items():
        assert torch.equal(value, initial[name])


KILLED_PRETRAIN = """
import os, signal, sys
from pathlib import Path
import winnow.training.loop as training
from tests.winnow.steps.test_pretrain import make_config, run

training.CHECKPOINT_SECONDS = 0.0  # weights after every step
save, saves = training.save_checkpoint, 0

def counted(*arguments, **named):
    global saves
    save(*arguments, **named)
    saves += 1
    if saves == 14:  # in the fifth epoch of three steps each
        os.kill(os.getpid(), signal.SIGKILL)

training.save_checkpoint = counted
run(make_config(epochs=9, monitor_every=2), Path(sys.argv[1]), Path(sys.argv[2]))
"""


@pytest.mark.slow
def test_a_killed_step_resumes_to_the_same_bytes(tiny_data: Path, tmp_path: Path) -> None:
    config = make_config(epochs=9, monitor_every=2)
    run(config, tiny_data, tmp_path / "whole")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", KILLED_PRETRAIN, str(tiny_data), str(tmp_path / "killed")]
    killed = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "killed" / "pretrain").exists()
    curves = tmp_path / "killed" / "scratch-pretrain" / "pretrain.curves.jsonl"
    assert len(curves.read_text().splitlines()) == 4
    run(config, tiny_data, tmp_path / "killed")
    for name in ("weights.safetensors", "curves.json", "record.json"):
        digests = [sha256_of(tmp_path / run_name / "pretrain" / name) for run_name in ("whole", "killed")]
        assert digests[0] == digests[1]


@pytest.mark.parametrize(
    ("name", "content"),
    [("record.json", None)]
    + [(name, content) for name in ("images.npy", "labels.npy", "classes.json") for content in (None, b"damaged")],
)
def test_damaged_data_change_nothing(tiny_data: Path, tmp_path: Path, name: str, content: bytes | None) -> None:
    data = Path(shutil.copytree(tiny_data, tmp_path / "data"))
    (tmp_path / "pretrain").mkdir()
    (tmp_path / "pretrain" / "old").write_text("kept")
    (data / name).unlink()
    if content is not None:
        (data / name).write_bytes(content)
    with pytest.raises(ArtifactError, match=rf"{name} is (missing|damaged)"):
        run(make_config(), data, tmp_path)
    assert [path.name for path in (tmp_path / "pretrain").iterdir()] == ["old"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "pretrain"]


def test_a_diverging_training_writes_nothing(tiny_data: Path, tmp_path: Path) -> None:
    diverging = {"optimiser": {"learning_rate": 1e30}}
    with pytest.raises(TrainingError, match="learning rate"):
        run(make_config(**diverging), tiny_data, tmp_path)
    assert not (tmp_path / "pretrain").exists()


@pytest.mark.parametrize("validation", [0, 1])
def test_too_few_validation_images_are_an_error_before_training(tmp_path: Path, validation: int) -> None:
    write_set(tmp_path / "data", train=40, validation=validation, test=3)
    with pytest.raises(DataError, match=rf"validation split holds {validation} images"):
        run(make_config(), tmp_path / "data", tmp_path)
    assert not list(tmp_path.glob("scratch*"))


@pytest.mark.parametrize("network", ["vit_b_32", "alexnet", "inception_v3"])
def test_a_network_that_cannot_take_the_images_is_refused_before_training(
    network: str, tiny_data: Path, tmp_path: Path
) -> None:
    raw = tiny_params()
    raw["candidates"]["student"] |= {"student": network, "width": 1.0}
    for config, key in (
        (check_config(raw), "candidates.student.student"),
        (make_config(backbone=network), "pretrain.backbone"),
    ):
        with pytest.raises(ConfigError, match=f"^{re.escape(key)}: "):
            run(config, tiny_data, tmp_path)
    assert not list(tmp_path.iterdir())


def test_labels_of_another_seed_do_not_vote(tiny_set: ImageSet) -> None:
    """The label budget is that of dense, whatever the seed of pretraining."""
    raw = tiny_params()
    raw["data"]["labels_per_class"], raw["pretrain"]["seed"] = 5, 1
    bank = _monitor_bank(check_config(raw), tiny_set).bank
    np.testing.assert_array_equal(bank, draw_label_budget(tiny_set, 5, 0))
    assert not np.array_equal(bank, draw_label_budget(tiny_set, 5, 1))


def test_collapse_is_warned_of_with_a_remedy() -> None:
    settings = make_config().pretrain
    assert _collapse_warnings(settings, [{"spread": 0.01}, {"spread": MIN_SPREAD}]) == ()
    (warning,) = _collapse_warnings(settings, [{"spread": 0.9}, {"spread": 0.0123}])
    assert "collapsed: their spread is 0.012" in warning
    assert "Lower pretrain.optimiser.learning_rate (now 0.05)" in warning


def test_collapse_is_in_the_record(tmp_path: Path, tiny_data: Path) -> None:
    """All images are equal, so all embeddings are equal."""
    data = Path(shutil.copytree(tiny_data, tmp_path / "data"))
    np.save(data / "images.npy", np.full_like(np.load(data / "images.npy"), 90))
    record = run(make_config(), data, tmp_path)
    assert record.metrics["pretrain/spread"] < 0.01
    assert record.warnings == read_record(tmp_path / "pretrain").warnings != ()
