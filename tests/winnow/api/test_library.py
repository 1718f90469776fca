"""The library in memory: its page runs, its names are those documented, and it gives what the steps give."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import winnow
from tests.closure import ROOT
from winnow.data.dataset import TRAIN, ImageSet
from winnow.errors import ConfigError, DataError
from winnow.models.backbones import load_model

PAGE = ROOT / "docs" / "library.md"
QUICK = {"epochs": 1, "min_steps": 1}


def weights(network: winnow.Network) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in network.model.state_dict().items()}


@pytest.fixture(scope="module")
def network(tiny_dense: Path) -> winnow.Network:
    loaded = winnow.load(tiny_dense)
    assert isinstance(loaded, winnow.Network)
    return loaded


@pytest.mark.thorough
def test_every_block_of_the_page_runs(image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert image_folder == tmp_path / "photos"
    names: dict[str, object] = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    assert {"pruned", "student", "factorized", "sparse", "clustered", "int8", "again"} <= names.keys()
    rows = names["rows"]
    assert {row.candidate for row in rows} == {"dense", "student-int8"}
    assert (tmp_path / "deployed" / "model.onnx").is_file()
    assert not (tmp_path / "deployed" / "weights.safetensors").exists()


def test_names_are_those_of_the_page() -> None:
    from winnow import api

    text = PAGE.read_text(encoding="utf-8")
    types = {"Accuracy", "ImageSet", "Network", "OnnxNetwork"}
    assert winnow.__all__ == api.__all__ == sorted(api.__all__)
    assert [name for name in winnow.__all__ if f"winnow.{name}(" not in text and name not in types] == []
    assert all(getattr(winnow, name) is getattr(api, name) for name in winnow.__all__)
    with pytest.raises(AttributeError, match="'winnow' has no attribute 'no_such_name'"):
        _ = winnow.no_such_name


def test_import_is_light() -> None:
    code = "import sys, winnow; assert 'torch' not in sys.modules and 'pydantic' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.thorough
def test_a_method_gives_what_the_step_gives(
    network: winnow.Network,
    tiny_set: ImageSet,
    tiny_candidate: Callable[[str], Path],
    tiny_config: winnow.config.Config,
) -> None:
    settings = tiny_config.candidates["pruned"].model_dump(mode="json", exclude={"parent", "method"}, exclude_none=True)
    pruned = winnow.prune(network, tiny_set, **settings)
    expected, architecture = load_model(tiny_candidate("pruned"))
    assert pruned.architecture == architecture
    torch.testing.assert_close(dict(pruned.model.state_dict()), dict(expected.state_dict()), rtol=0, atol=0)


@pytest.mark.thorough
def test_a_method_leaves_its_network_as_it_was(network: winnow.Network, tiny_set: ImageSet, tmp_path: Path) -> None:
    before = weights(network)
    winnow.prune(network, tiny_set, remove={"channels": 0.3}, recovery=QUICK)
    int8 = winnow.quantize(network, tiny_set, calibration_images=8)
    winnow.finetune(network, tiny_set, **QUICK)
    winnow.save(network, tmp_path / "saved")
    torch.testing.assert_close(weights(network), before, rtol=0, atol=0)
    pixels = np.ascontiguousarray(tiny_set.images_NHWC[:5])
    assert winnow.predict(int8, pixels).shape == (5, 3)
    assert winnow.load(tmp_path / "saved").architecture == network.architecture


def test_a_teacher_can_be_another_network(network: winnow.Network, tiny_set: ImageSet) -> None:
    recovery = QUICK | {"teacher_weight": 1.0}
    other = winnow.finetune(network, tiny_set, seed=5, **QUICK)
    taught = [
        winnow.distill(network, tiny_set, student="resnet8", width=0.5, recovery=recovery, teacher=teacher)
        for teacher in (network, other, network)
    ]
    assert torch.equal(taught[0].model.fc.weight, taught[2].model.fc.weight)
    assert not torch.equal(taught[0].model.fc.weight, taught[1].model.fc.weight)


@pytest.mark.thorough
def test_training_resumes_from_its_checkpoints(
    tiny_set: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from winnow.training import loop

    whole = winnow.pretrain(tiny_set, epochs=4, min_steps=1, batch_size=32)

    def stop(epoch: loop.Epoch) -> None:
        if epoch.number == 2:
            raise KeyboardInterrupt

    from winnow.pretraining import backbone_training

    with monkeypatch.context() as patch:
        finish = loop.run_to_end
        patch.setattr(backbone_training, "run_to_end", lambda training, _monitor: finish(training, stop))
        with pytest.raises(KeyboardInterrupt):
            winnow.pretrain(tiny_set, epochs=4, min_steps=1, batch_size=32, checkpoints=tmp_path)
    resumed = winnow.pretrain(tiny_set, epochs=4, min_steps=1, batch_size=32, checkpoints=tmp_path)
    torch.testing.assert_close(weights(resumed), weights(whole), rtol=0, atol=0)


@pytest.mark.thorough
def test_settings_are_checked_like_params(network: winnow.Network, tiny_set: ImageSet) -> None:
    with pytest.raises(ConfigError, match=r"prune has 2 mistakes:\n  remove.channels: .*\n  speed: unknown key"):
        winnow.prune(network, tiny_set, remove={"channels": 2}, speed=1)
    with pytest.raises(ConfigError, match="there is no method 'dino'; valid: none, rotnet, simclr"):
        winnow.pretrain(tiny_set, method="dino")
    with pytest.raises(ConfigError, match="hint: pretrained needs backbone="):
        winnow.distill(network, tiny_set, recovery=QUICK | {"hint": "pretrained"})
    int8 = winnow.quantize(network, tiny_set, calibration_images=8)
    with pytest.raises(ConfigError, match="prune: an ONNX file cannot be compressed further"):
        winnow.prune(int8, tiny_set, remove={"channels": 0.3})


def test_without_labels_it_says_so(network: winnow.Network, tiny_set: ImageSet) -> None:
    pixels = np.array(tiny_set.images_NHWC)
    unlabelled = winnow.images_from_arrays(pixels, classes=("a", "b", "c"))
    with pytest.raises(DataError, match="no training image has a label"):
        winnow.finetune(network, unlabelled)
    with pytest.raises(DataError, match="no image of the validation split has a label"):
        winnow.evaluate(network, unlabelled)


def test_labels_are_limited_in_training_alone(tiny_set: ImageSet) -> None:
    few = winnow.limit_labels(tiny_set, per_class=4)
    labelled = few.indices(TRAIN, labelled=True)
    assert np.bincount(few.labels_N[labelled]).tolist() == [4, 4, 4]
    others = tiny_set.split_N != TRAIN
    assert np.array_equal(few.labels_N[others], tiny_set.labels_N[others])
