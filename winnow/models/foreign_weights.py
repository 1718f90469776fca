"""Load backbone weights from a .safetensors or .pth file that winnow did not write.

    load_foreign_backbone(path, architecture)   the weights that fine-tuning starts from
    fill_backbone(model, read_tensors(path), path)

A .pth file is read by a process of its own (winnow/models/pickled_tensors.py), since a pickle can hang or crash its
reader; the error message includes that process's last output.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from winnow.errors import ArtifactError
from winnow.models.backbones import SMALL_IMAGE, Architecture, build_model
from winnow.models.classifier_head import backbone_state, head_path
from winnow.models.input_adapter import without_adapter
from winnow.models.pickled_tensors import UNSAFE_PICKLE_STATUS
from winnow.models.state_loading import load_state
from winnow.printable import printable

State = dict[str, torch.Tensor]
LOAD_SECONDS = 60.0
"""The limit of processor time in seconds, to which each byte of the file adds."""
BYTES_PER_SECOND = 20_000_000
WALL_TIME_FACTOR = 20
"""The limit of wall-clock time, as a multiple of the limit of processor time: the machine may be busy."""
BATCH_COUNTER = ".num_batches_tracked"
"""The number of batches that a batch norm has seen. Files of old torchvision lack it, and winnow does not use it."""
RESNET_STEM = "conv1.weight"
"""The first layer of torchvision's ResNets, which is smaller for small images."""
PREFIXES = ("module.", "model.", "backbone.", "encoder.")
PARAMETERS = ("weight", "bias", "gamma", "running_mean", "running_var")
"""Last parts of the names of tensors by which a network computes; others, such as masks, may be rebuilt."""


def load_foreign_backbone(path: Path, architecture: Architecture, load_seconds: float = LOAD_SECONDS) -> State:
    """Load backbone weights from the user's file, matched by name and shape against the architecture.

    Missing batch counters become zero. Raises ArtifactError where the file cannot be read without running code, or does
    not hold this backbone.
    """
    model = build_model(architecture)
    fill_backbone(model, read_tensors(path, load_seconds), path, architecture)
    return backbone_state(model, head_path(model))


def fill_backbone(model: nn.Module, state: State, path: Path, architecture: Architecture) -> None:
    """Load the tensors of the file `path` into the backbone of `model`, in place; its head stays as it is.

    Raises ArtifactError where the file does not hold this backbone.
    """
    network = without_adapter(model)
    head = head_path(network)
    expected = backbone_state(network, head)
    state = strip_prefixes(state, expected)
    state |= {name: value for name, value in expected.items() if name not in state and name.endswith(BATCH_COUNTER)}
    missing = [name for name in expected if name not in state]
    mismatched = {
        name: (tuple(state[name].shape), tuple(value.shape))
        for name, value in expected.items()
        if name in state and state[name].shape != value.shape
    }
    if missing or mismatched:
        raise ArtifactError(f"{path} {_mismatch_message(architecture, len(expected), missing, mismatched)}")
    check_all_used(state, expected, head, path, architecture.backbone)
    loaded = {name: state[name] for name in expected}
    check_values(loaded, path)
    load_state(network, loaded, strict=False)


def _mismatch_message(
    architecture: Architecture,
    tensors: int,
    missing: list[str],
    mismatched: dict[str, tuple[tuple[int, ...], tuple[int, ...]]],
) -> str:
    """Return what does not match and what to do. `mismatched`: (shape in the file, in the network) by tensor."""
    shapes = [
        f"{name} is {file_shape} in the file and {network_shape} in the network"
        for name, (file_shape, network_shape) in mismatched.items()
    ]
    if not missing and len(mismatched) == 1:
        [(name, (file_shape, network_shape))] = mismatched.items()
        if _differs_by_channels(file_shape, network_shape):
            channels = file_shape[1]
            remedy, images = "Such weights cannot be used", f"images of {channels} channels"
            if channels == 1:
                remedy = f"Repeat the weights of {name} over 3 channels, divide them by 3, and save the file again"
                images = "images of 1 channel"
            return f"holds a {architecture.backbone} for {images} ({shapes[0]}); winnow's images have 3. {remedy}"
    if not missing and list(mismatched) == [RESNET_STEM]:
        return (
            f"holds a {architecture.backbone} whose first layer does not fit: {shapes[0]}. Networks for images of up "
            f"to {SMALL_IMAGE} pixels begin with a convolution of 3 x 3 in place of 7 x 7, and data.image_size is "
            f"{architecture.image_size}; set data.image_size to more than {SMALL_IMAGE} for weights of large images "
            f"(training costs more), and to {SMALL_IMAGE} or less for weights of small ones"
        )
    problems = [f"{name} is not in the file" for name in missing] + shapes
    listing = "; ".join(problems[:3]) + ("; ..." if len(problems) > 3 else "")
    return (
        f"does not hold a {architecture.backbone} for images of {architecture.image_size} pixels: {len(problems)} of "
        f"{tensors} tensors are missing or of another shape ({listing}); "
        "set pretrain.backbone to the network that the file was made from"
    )


def _differs_by_channels(file_shape: tuple[int, ...], network_shape: tuple[int, ...]) -> bool:
    """Return whether a first convolution takes other channels than the network's 3: gray or multispectral images."""
    if len(file_shape) != 4 or len(network_shape) != 4:
        return False
    return network_shape[1] == 3 and file_shape[1] != 3 and file_shape[0] == network_shape[0]


def check_all_used(state: State, expected: State, head: str, path: Path, backbone: str) -> None:
    """Raise ArtifactError where the file's backbone has parameters that this one lacks: it is a deeper network.

    All tensors of a ResNet-18 are in the file of a ResNet-34, too. Tensors of heads, and of parts that this network
    does not have at all, do not count. `expected`: the tensors of the network; `head`: the path of its head.
    """
    parts = {name.partition(".")[0] for name in expected}
    head_parts = (f"{head}.", f"{head.rpartition('.')[0] or head}.")
    unused = [
        name
        for name in state
        if name not in expected
        and name.partition(".")[0] in parts
        and name.rpartition(".")[2] in PARAMETERS
        and not name.startswith(head_parts)
    ]
    if unused:
        listing = ", ".join(unused[:3]) + (", ..." if len(unused) > 3 else "")
        raise ArtifactError(
            f"{path} holds a larger network than {backbone}, which has no place for {len(unused)} of its tensors "
            f"({listing}); set the backbone to the network that the file was made from"
        )


def strip_prefixes(state: State, expected: State) -> State:
    """Strip the name prefixes that training frameworks add, but not the network's own."""
    for prefix in PREFIXES:
        stripped = {name.removeprefix(prefix): value for name, value in state.items()}
        if len(stripped.keys() & expected.keys()) >= len(state.keys() & expected.keys()):
            state = stripped
    return state


def read_tensors(path: Path, load_seconds: float = LOAD_SECONDS) -> State:
    """Return the tensors in a .safetensors or .pth file.

    Raises ArtifactError where the file is missing, damaged or slow to load, or holds more than tensors.
    """
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    try:
        seconds = load_seconds + path.stat().st_size / BYTES_PER_SECOND
    except OSError as error:
        raise _read_error(path, str(error.strerror)) from error
    with tempfile.TemporaryDirectory() as scratch:
        converted = Path(scratch) / "converted.safetensors"
        _convert_pickle(path, converted, seconds)
        return _read_safetensors(converted)


def check_values(state: State, path: Path) -> None:
    """Raise ArtifactError for a backbone's tensors that are not finite, and for variances below 0."""
    for name, value in state.items():
        is_finite = not value.is_floating_point() or bool(torch.isfinite(value).all())
        if not is_finite or (name.endswith("running_var") and bool((value < 0).any())):
            problem = "a variance below 0" if is_finite else "values that are not finite numbers"
            raise ArtifactError(
                f"{path}: {name} has {problem}, so no network can compute with it; the training that wrote the file "
                "has failed, or the file is damaged. Use an earlier checkpoint, or choose other weights"
            )


def _convert_pickle(path: Path, out: Path, seconds: float) -> None:
    """Convert a .pth file to safetensors in a process of its own. Raises ArtifactError where that fails."""
    command = [sys.executable, "-m", "winnow.models.pickled_tensors", str(path.absolute()), str(out), str(seconds)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(part or str(Path.cwd()) for part in sys.path)}
    timed_out = f"takes more than {seconds:.0f} s to load: it is damaged, or made to hang"
    try:
        process = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=WALL_TIME_FACTOR * seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise _read_error(path, timed_out) from error
    if process.returncode == UNSAFE_PICKLE_STATUS:
        raise ArtifactError(
            f"{path} is damaged or holds more than tensors, and is not loaded, since that could "
            "run foreign code; save the state_dict alone (torch.save(model.state_dict(), ...)) or use safetensors"
        )
    if process.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        raise _read_error(path, timed_out)
    if process.returncode:
        output = process.stderr.decode("utf-8", "replace").strip().splitlines()
        raise _read_error(path, output[-1] if output else f"the process that loads it exits with {process.returncode}")


def _read_safetensors(path: Path) -> State:
    try:
        state: State = load_file(path)
    except (OSError, SafetensorError, RuntimeError, ValueError, KeyError) as error:
        raise _read_error(path, str(error)) from error
    return state


def _read_error(path: Path, reason: str) -> ArtifactError:
    short_reason = printable(" ".join(reason.split())[:200])
    return ArtifactError(
        f"{path} cannot be read as weights ({short_reason}); it must be a .safetensors file or a "
        "state_dict written by torch.save"
    )
