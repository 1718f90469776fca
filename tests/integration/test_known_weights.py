"""Run the chain from weights of each source, up to a promoted int8 file. They are random: nothing is downloaded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable

import onnx
import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file

from tasks.project.paths import ProjectPaths
from tasks.project.state_files import PROMOTED
from tests.integration.conftest import Project, run_params
from winnow.models.backbones import Architecture, build_model
from winnow.records import read_json, sha256_of

pytestmark = pytest.mark.slow
REGISTER = """
import sys
from mlflow import MlflowClient
client = MlflowClient()
run = client.create_run(client.create_experiment("weights"))
client.log_artifacts(run.info.run_id, sys.argv[1], "model")
client.create_registered_model("flowers")
version = client.create_model_version("flowers", f"{run.info.artifact_uri}/model", run.info.run_id)
client.set_registered_model_alias("flowers", "best", version.version)
"""


def torchvision_file(project: Project) -> dict[str, str]:
    """Write a file as torchvision publishes them."""
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), project.root / "data/weights/resnet18.pth")
    return {"start": "data/weights/resnet18.pth", "backbone": "resnet18"}


def timm_file(project: Project) -> dict[str, str]:
    """Write a file as timm publishes them."""
    network = timm.create_model("mobilenetv3_small_050", pretrained=False)
    save_file(network.state_dict(), project.root / "data/weights/mobilenet.safetensors")
    return {"start": "data/weights/mobilenet.safetensors", "backbone": "timm:mobilenetv3_small_050"}


def hub_cache(project: Project) -> dict[str, str]:
    """Lay out the cache of the Hugging Face hub in the home folder of a user who has downloaded the weights."""
    folder = project.home / ".cache/huggingface/hub/models--timm--resnet18.a1_in1k"
    snapshot = folder / "snapshots" / ("0" * 40)
    for part in (folder / "blobs", folder / "refs", snapshot):
        part.mkdir(parents=True)
    save_file(timm.create_model("resnet18", pretrained=False).state_dict(), folder / "new")
    blob = folder / "blobs" / hashlib.sha256((folder / "new").read_bytes()).hexdigest()
    (folder / "new").rename(blob)
    (folder / "refs/main").write_text("0" * 40)
    (snapshot / "model.safetensors").symlink_to(blob)
    return {"start": "timm:resnet18.a1_in1k", "backbone": "auto"}


def registered_model(project: Project) -> dict[str, str]:
    """Register tensors in the project's own MLflow store."""
    folder = project.root.parent / "model"
    folder.mkdir()
    network = build_model(Architecture(backbone="resnet8", num_classes=5, image_size=16), seed=7)
    save_file(network.state_dict(), folder / "weights.safetensors")
    code = f"from tasks.project import environment; environment.apply({str(project.root)!r})\n{REGISTER}"
    result = project.call("python", "-c", code, str(folder))
    assert result.returncode == 0, result.stderr
    return {"start": "models:/flowers@best", "backbone": "resnet8"}


@pytest.mark.parametrize("source", [torchvision_file, timm_file, hub_cache, registered_model])
def test_weights_of_each_source_end_in_a_promoted_int8_file(
    clean_project: Project, source: Callable[[Project], dict[str, str]]
) -> None:
    project = clean_project
    (project.root / "data/weights").mkdir(exist_ok=True)
    start = source(project)
    params = run_params()
    params["pretrain"] = {"method": "none", **start}
    params["candidates"] = {name: params["candidates"][name] for name in ("dense-int8",)}
    params["promotion"]["gates"] |= {"max_drop_points": 90.0, "max_macro_f1_drop_points": 90.0, "min_agreement": 0.0}
    params["refit"] = {"when": "never"}
    project.set_params(params)
    result = project.winnow("run")
    assert result.returncode == 0, result.stdout + result.stderr
    promoted = PROMOTED.read(ProjectPaths(project.root))
    assert promoted is not None
    folder = project.root / "artifacts/candidates/dense-int8"
    assert promoted["sha256"] == sha256_of(folder / "model.onnx")
    card = read_json(folder / "card.json")
    assert [weights["name"] for weights in card["known_weights"]] == [start["start"]]
    metadata = {entry.key: entry.value for entry in onnx.load(folder / "model.onnx").metadata_props}
    assert json.loads(metadata["winnow.known_weights"])[0]["name"] == start["start"]
