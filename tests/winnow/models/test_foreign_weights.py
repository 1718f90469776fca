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
from winnow.models.classifier_head import backbone_state, backbone_weights
from winnow.models.foreign_weights import State, load_foreign_backbone, strip_prefixes
from winnow.models.pickled_tensors import unwrap_tensors
from winnow.training.finetuning import initial_model

SMALL = Architecture(backbone="resnet8", num_classes=3, image_size=16, width=0.2)


def random_backbone(seed: int, architecture: Architecture = SMALL) -> State:
    return backbone_state(build_model(architecture, seed), "fc")


def with_prefix(state: State, prefix: str) -> State:
    return {prefix + name: value for name, value in state.items()}


WRAPPINGS: dict[str, Any] = {
    "plain": lambda s: s,
    "module": lambda s: with_prefix(s, "module."),
    "module.backbone": lambda s: with_prefix(s, "module.backbone."),
    "encoder": lambda s: with_prefix(s, "encoder."),
    "state_dict": lambda s: {"state_dict": with_prefix(s, "model."), "epoch": 3},
    "nested": lambda s: {"model": {"state_dict": s}, "args": {"lr": 0.1}},
    "with head": lambda s: {**s, "fc.weight": torch.zeros(1000, 40), "fc.bias": torch.zeros(1000)},
    "half": lambda s: {name: value.half() if value.is_floating_point() else value for name, value in s.items()},
}


@pytest.mark.thorough
@pytest.mark.parametrize("wrapping", list(WRAPPINGS))
def test_foreign_weights_are_unwrapped(wrapping: str, tmp_path: Path) -> None:
    torch.save(WRAPPINGS[wrapping](random_backbone(9)), tmp_path / "w.pth")
    loaded = load_foreign_backbone(tmp_path / "w.pth", SMALL)
    assert set(loaded) == set(random_backbone(9))
    for name, value in random_backbone(9).items():
        torch.testing.assert_close(loaded[name].to(value.dtype), value, rtol=1e-3, atol=1e-4)
    initial_model(SMALL, loaded, 0)


def test_foreign_safetensors_are_loaded(tmp_path: Path) -> None:
    save_file(with_prefix(random_backbone(9), "module."), tmp_path / "w.safetensors")
    loaded = load_foreign_backbone(tmp_path / "w.safetensors", SMALL)
    assert all(torch.equal(loaded[name], value) for name, value in random_backbone(9).items())


def test_a_file_of_mnasnet_is_loaded(tmp_path: Path) -> None:
    architecture = Architecture(backbone="mnasnet0_5", num_classes=3, image_size=32)
    expected = backbone_weights(build_model(architecture, 9))
    save_file(expected, tmp_path / "w.safetensors")
    loaded = load_foreign_backbone(tmp_path / "w.safetensors", architecture)
    assert all(torch.equal(loaded[name], value) for name, value in expected.items())


def test_prefixes_of_the_network_itself_are_kept() -> None:
    # torchvision's vision transformers call their tensors encoder.layers...
    expected = {"class_token": torch.zeros(1), "encoder.ln.weight": torch.ones(2)}
    assert strip_prefixes(expected, expected).keys() == expected.keys()
    assert strip_prefixes(with_prefix(expected, "module."), expected).keys() == expected.keys()
    assert unwrap_tensors([1, 2]) == {}


class MaliciousObject:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.thorough
def test_pickle_with_code_is_refused_and_not_run(tmp_path: Path) -> None:
    torch.save({"state_dict": random_backbone(9), "evil": MaliciousObject(tmp_path / "ran")}, tmp_path / "w.pth")
    with pytest.raises(ArtifactError, match=r"w\.pth .* more than tensors.*foreign code; save the state_dict alone"):
        load_foreign_backbone(tmp_path / "w.pth", SMALL)
    (tmp_path / "w.pt").write_bytes(pickle.dumps(MaliciousObject(tmp_path / "ran"), protocol=2))
    with pytest.raises(ArtifactError, match=r"w\.pt"):
        load_foreign_backbone(tmp_path / "w.pt", SMALL)
    assert not (tmp_path / "ran").exists()


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize("content", [None, b"", b"no weights", bytes(100)])
def test_unreadable_weights_are_named(tmp_path: Path, name: str, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ArtifactError, match=rf"{name}"):
        load_foreign_backbone(tmp_path / name, SMALL)


@pytest.mark.thorough
def test_weights_of_another_network_are_refused_by_tensor_name(tmp_path: Path) -> None:
    wide_architecture = SMALL.model_copy(update={"width": 0.5})
    save_file(random_backbone(0, wide_architecture), tmp_path / "w.safetensors")
    with pytest.raises(
        ArtifactError, match=r"does not hold a resnet8 .* of \d+ tensors .*stem\.0\.weight is \(\d+, 3, 3"
    ):
        load_foreign_backbone(tmp_path / "w.safetensors", SMALL)
    incomplete = {name: value for name, value in random_backbone(0).items() if name != "blocks.1.bn1.bias"}
    torch.save(incomplete, tmp_path / "w.pth")
    with pytest.raises(ArtifactError, match=r"1 of \d+ tensors are missing .*\(blocks\.1\.bn1\.bias is not in"):
        load_foreign_backbone(tmp_path / "w.pth", SMALL)


def write_resnet18(path: Path, *, counters: bool, stem: int = 7) -> dict[str, torch.Tensor]:
    """Write resnet18 weights as torchvision publishes them, with random values and 1000 classes."""
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
def test_torchvision_files_with_and_without_counters(
    tmp_path: Path, counters: bool, image_size: int, stem: int
) -> None:
    state = write_resnet18(tmp_path / "w.pth", counters=counters, stem=stem)
    architecture = Architecture(backbone="resnet18", num_classes=3, image_size=image_size)
    loaded = load_foreign_backbone(tmp_path / "w.pth", architecture)
    assert {name for name in state if not name.startswith("fc.")} <= set(loaded)
    assert all(torch.equal(loaded[name], state[name]) for name in loaded if name in state)
    assert initial_model(architecture, loaded, 0).state_dict()["bn1.num_batches_tracked"] == 0


@pytest.mark.thorough
@pytest.mark.parametrize("counters", [True, False])
@pytest.mark.parametrize(("image_size", "stem", "sizes"), [(32, 7, "7, 7"), (64, 7, "7, 7"), (224, 3, "3, 3")])
def test_another_stem_is_an_error_with_a_remedy(
    tmp_path: Path, counters: bool, image_size: int, stem: int, sizes: str
) -> None:
    write_resnet18(tmp_path / "w.pth", counters=counters, stem=stem)
    architecture = Architecture(backbone="resnet18", num_classes=3, image_size=image_size)
    with pytest.raises(ArtifactError) as exc_info:
        load_foreign_backbone(tmp_path / "w.pth", architecture)
    message = str(exc_info.value)
    assert f"first layer does not fit: conv1.weight is (64, 3, {sizes}) in the file" in message
    assert f"data.image_size is {image_size}; set data.image_size to more than 64" in message


@pytest.mark.parametrize("image_size", [32, 224])
def test_weights_of_gray_images_are_named_as_such(tmp_path: Path, image_size: int) -> None:
    state = torchvision.models.resnet18(weights=None).state_dict()
    architecture = Architecture(backbone="resnet18", num_classes=3, image_size=image_size)
    for channels, message in ((1, r"1 channel .* divide them by 3"), (6, r"6 channels .* cannot be used")):
        save_file(state | {"conv1.weight": torch.zeros(64, channels, 7, 7)}, tmp_path / "w.safetensors")
        with pytest.raises(ArtifactError, match=rf"for images of {message}"):
            load_foreign_backbone(tmp_path / "w.safetensors", architecture)


def endless_pickle() -> bytes:
    """Return a pickle of nested pairs as a dict key, whose hash takes 2^60 steps."""
    pairs = b")q\0" + b"".join(b"h" + bytes([index]) + b"\x86q" + bytes([index + 1]) for index in range(60))
    return b"\x80\x02}" + pairs + b"K\x01s."


@pytest.mark.thorough
def test_a_self_referencing_file_is_refused(tmp_path: Path) -> None:
    content: dict[str, Any] = {"epoch": 1}
    content["state_dict"] = content
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(ArtifactError, match="does not hold a resnet8"):
        load_foreign_backbone(tmp_path / "w.pth", SMALL)


@pytest.mark.thorough
def test_loading_has_a_time_limit(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    content = (tmp_path / "w.pth").read_bytes()
    position = content.rindex(b"\x80\x02}")
    (tmp_path / "w.pth").write_bytes(content[:position] + endless_pickle() + content[position:])
    with pytest.raises(ArtifactError, match=r"w\.pth cannot be read.*more than 2 s to load"):
        load_foreign_backbone(tmp_path / "w.pth", SMALL, load_seconds=2)


@pytest.mark.thorough
@pytest.mark.parametrize("content", [b"\x80\x02a.", b"\x80\x02K\x01a.", "random"])
def test_arbitrary_bytes_raise_only_artifact_errors(tmp_path: Path, content: bytes | str) -> None:
    file_bytes = np.random.default_rng(0).bytes(1000) if isinstance(content, str) else content
    (tmp_path / "w.pth").write_bytes(file_bytes)
    with pytest.raises(ArtifactError, match=r"w\.pth"):
        load_foreign_backbone(tmp_path / "w.pth", SMALL)


@pytest.mark.thorough
def test_sparse_tensors_count_as_missing(tmp_path: Path) -> None:
    state = random_backbone(9)
    name = next(iter(state))
    torch.save({**state, name: state[name].to_sparse()}, tmp_path / "w.pth")
    with pytest.raises(ArtifactError, match=rf"1 of \d+ tensors are missing .*{name}"):
        load_foreign_backbone(tmp_path / "w.pth", SMALL)
