from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file

from winnow.errors import ArtifactError
from winnow.models.backbones import Architecture, build_model
from winnow.models.classifier_head import backbone_state
from winnow.models.foreign_weights import State, load_foreign_backbone, strip_prefixes
from winnow.models.pickled_tensors import unwrap_tensors
from winnow.training.finetuning import initial_model

SMALL = Architecture(backbone="resnet8", num_classes=3, image_size=16, width=0.2)


def backbone(seed: int, architecture: Architecture = SMALL) -> State:
    return backbone_state(build_model(architecture, seed), "fc")


def prefixed(state: State, prefix: str) -> State:
    return {prefix + name: value for name, value in state.items()}


WRAPPINGS: dict[str, Any] = {
    "plain": lambda s: s,
    "module": lambda s: prefixed(s, "module."),
    "module.backbone": lambda s: prefixed(s, "module.backbone."),
    "encoder": lambda s: prefixed(s, "encoder."),
    "state_dict": lambda s: {"state_dict": prefixed(s, "model."), "epoch": 3},
    "nested": lambda s: {"model": {"state_dict": s}, "args": {"lr": 0.1}},
    "with head": lambda s: {**s, "fc.weight": torch.zeros(1000, 40), "fc.bias": torch.zeros(1000)},
    "half": lambda s: {name: value.half() if value.is_floating_point() else value for name, value in s.items()},
}


@pytest.mark.thorough
@pytest.mark.parametrize("how", list(WRAPPINGS))
def test_foreign_weights_are_unwrapped(how: str, tmp_path: Path) -> None:
    torch.save(WRAPPINGS[how](backbone(9)), tmp_path / "w.pth")
    read = load_foreign_backbone(tmp_path / "w.pth", SMALL)
    assert set(read) == set(backbone(9))
    for name, value in backbone(9).items():
        torch.testing.assert_close(read[name].to(value.dtype), value, rtol=1e-3, atol=1e-4)
    initial_model(SMALL, read, 0)


def test_foreign_safetensors(tmp_path: Path) -> None:
    save_file(prefixed(backbone(9), "module."), tmp_path / "w.safetensors")
    read = load_foreign_backbone(tmp_path / "w.safetensors", SMALL)
    assert all(torch.equal(read[name], value) for name, value in backbone(9).items())


def test_prefixes_that_are_the_networks_own_stay() -> None:
    # torchvision's vision transformers call their tensors encoder.layers...
    wanted = {"class_token": torch.zeros(1), "encoder.ln.weight": torch.ones(2)}
    assert strip_prefixes(wanted, wanted).keys() == wanted.keys()
    assert strip_prefixes(prefixed(wanted, "module."), wanted).keys() == wanted.keys()
    assert unwrap_tensors([1, 2]) == {}


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.thorough
def test_pickle_with_code_is_refused_and_not_run(tmp_path: Path) -> None:
    torch.save({"state_dict": backbone(9), "evil": Evil(tmp_path / "ran")}, tmp_path / "w.pth")
    with pytest.raises(ArtifactError, match=r"w\.pth .* more than tensors.*foreign code; save the state_dict alone"):
        load_foreign_backbone(tmp_path / "w.pth", SMALL)
    (tmp_path / "w.pt").write_bytes(pickle.dumps(Evil(tmp_path / "ran"), protocol=2))
    with pytest.raises(ArtifactError, match=r"finetune\.weights: .*w\.pt"):
        load_foreign_backbone(tmp_path / "w.pt", SMALL)
    assert not (tmp_path / "ran").exists()


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize("content", [None, b"", b"no weights", bytes(100)])
def test_unreadable_weights_are_named(tmp_path: Path, name: str, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ArtifactError, match=rf"finetune\.weights: .*{name}"):
        load_foreign_backbone(tmp_path / name, SMALL)


@pytest.mark.thorough
def test_weights_of_another_network_name_its_tensors(tmp_path: Path) -> None:
    wide = SMALL.model_copy(update={"width": 0.5})
    save_file(backbone(0, wide), tmp_path / "w.safetensors")
    with pytest.raises(
        ArtifactError, match=r"does not hold a resnet8 .* of \d+ tensors .*stem\.0\.weight is \(\d+, 3, 3"
    ):
        load_foreign_backbone(tmp_path / "w.safetensors", SMALL)
    incomplete = {name: value for name, value in backbone(0).items() if name != "blocks.1.bn1.bias"}
    torch.save(incomplete, tmp_path / "w.pth")
    with pytest.raises(ArtifactError, match=r"1 of \d+ tensors are missing .*\(blocks\.1\.bn1\.bias is not in"):
        load_foreign_backbone(tmp_path / "w.pth", SMALL)


def resnet18_file(path: Path, *, counters: bool, stem: int = 7) -> dict[str, torch.Tensor]:
    """A file as torchvision publishes resnet18's, with random weights and 1000 classes."""
    model = torchvision.models.resnet18()
    if stem == 3:
        model.conv1 = torch.nn.Conv2d(3, 64, 3, bias=False)
    state = model.state_dict()
    state = {name: value for name, value in state.items() if counters or not name.endswith("num_batches_tracked")}
    torch.save(state, path)
    return state


@pytest.mark.thorough
@pytest.mark.parametrize("counters", [True, False])
@pytest.mark.parametrize(("image_size", "stem"), [(224, 7), (65, 7), (32, 3), (64, 3)])
def test_files_of_torchvision_with_and_without_counters(
    tmp_path: Path, counters: bool, image_size: int, stem: int
) -> None:
    state = resnet18_file(tmp_path / "w.pth", counters=counters, stem=stem)
    architecture = Architecture(backbone="resnet18", num_classes=3, image_size=image_size)
    read = load_foreign_backbone(tmp_path / "w.pth", architecture)
    assert {name for name in state if not name.startswith("fc.")} <= set(read)
    assert all(torch.equal(read[name], state[name]) for name in read if name in state)
    assert initial_model(architecture, read, 0).state_dict()["bn1.num_batches_tracked"] == 0


@pytest.mark.thorough
@pytest.mark.parametrize("counters", [True, False])
@pytest.mark.parametrize(("image_size", "stem", "sizes"), [(32, 7, "7, 7"), (64, 7, "7, 7"), (224, 3, "3, 3")])
def test_another_stem_is_named_with_what_to_do(
    tmp_path: Path, counters: bool, image_size: int, stem: int, sizes: str
) -> None:
    resnet18_file(tmp_path / "w.pth", counters=counters, stem=stem)
    architecture = Architecture(backbone="resnet18", num_classes=3, image_size=image_size)
    with pytest.raises(ArtifactError) as caught:
        load_foreign_backbone(tmp_path / "w.pth", architecture)
    told = str(caught.value)
    assert f"first layer does not fit: conv1.weight is (64, 3, {sizes}) in the file" in told
    assert f"data.image_size is {image_size}; set data.image_size to more than 64" in told


def endless() -> bytes:
    """A pickle of plain tuples as keys of a dict: a pair of pairs of pairs ..., whose hash takes 2^60 steps."""
    nested = b")q\0" + b"".join(b"h" + bytes([at]) + b"\x86q" + bytes([at + 1]) for at in range(60))
    return b"\x80\x02}" + nested + b"K\x01s."


@pytest.mark.thorough
def test_a_file_that_contains_itself_ends(tmp_path: Path) -> None:
    inside: dict[str, Any] = {"epoch": 1}
    inside["state_dict"] = inside
    torch.save(inside, tmp_path / "w.pth")
    with pytest.raises(ArtifactError, match="does not hold a resnet8"):
        load_foreign_backbone(tmp_path / "w.pth", SMALL)


@pytest.mark.thorough
def test_a_file_that_takes_for_ever_ends(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    magic = (tmp_path / "w.pth").read_bytes()
    body = magic.rindex(b"\x80\x02}")
    (tmp_path / "w.pth").write_bytes(magic[:body] + endless() + magic[body:])
    with pytest.raises(ArtifactError, match=r"finetune\.weights: .*w\.pth cannot be read.*more than 2 s to load"):
        load_foreign_backbone(tmp_path / "w.pth", SMALL, load_seconds=2)


@pytest.mark.thorough
@pytest.mark.parametrize("content", [b"\x80\x02a.", b"\x80\x02K\x01a.", "random"])
def test_no_bytes_raise_anything_else(tmp_path: Path, content: bytes | str) -> None:
    some = np.random.default_rng(0).bytes(1000) if isinstance(content, str) else content
    (tmp_path / "w.pth").write_bytes(some)
    with pytest.raises(ArtifactError, match=r"finetune\.weights: .*w\.pth"):
        load_foreign_backbone(tmp_path / "w.pth", SMALL)


@pytest.mark.thorough
def test_what_is_no_plain_tensor_is_missing(tmp_path: Path) -> None:
    state = backbone(9)
    name = next(iter(state))
    torch.save({**state, name: state[name].to_sparse()}, tmp_path / "w.pth")
    with pytest.raises(ArtifactError, match=rf"1 of \d+ tensors are missing .*{name}"):
        load_foreign_backbone(tmp_path / "w.pth", SMALL)
