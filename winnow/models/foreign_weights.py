"""Backbone weights that somebody brought: tensors of a .safetensors or .pth file, by the names of the network here.

    foreign_backbone(path, architecture)        what fine-tuning starts from (finetune.weights)

A .pth file is read by a process of its own (winnow/models/pickled_tensors.py), since a pickle can hang or crash its
reader; what that process ends with is part of the message.
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

from winnow.errors import ArtifactError
from winnow.models.backbones import SMALL_IMAGE, Architecture, build
from winnow.models.classifier_head import backbone_state, head_path
from winnow.models.pickled_tensors import HOLDS_CODE
from winnow.printable import printable

State = dict[str, torch.Tensor]
LOAD_SECONDS = 60.0
"""Of processor time, for a file of no size."""
BYTES_PER_SECOND = 20_000_000
PATIENCE = 20
"""How many times its processor time a process may take by the clock, on a busy machine."""
COUNTER = ".num_batches_tracked"
"""Batches that a batch norm has seen: files of old torchvision lack it, and nothing hangs on it here."""
STEM = "conv1.weight"
"""First layer of torchvision's ResNets, which have another one for small images."""
PREFIXES = ("module.", "model.", "backbone.", "encoder.")


def foreign_backbone(path: Path, architecture: Architecture, load_seconds: float = LOAD_SECONDS) -> State:
    """Backbone weights that somebody brought, matched by name and shape against the architecture.

    Counters of batches that a file lacks are zero. Raises ArtifactError when the file cannot be read without running
    code, or does not hold this backbone.
    """
    model = build(architecture)
    wanted = backbone_state(model, head_path(model))
    found = without_prefixes(_tensors(path, load_seconds), wanted)
    found |= {name: value for name, value in wanted.items() if name not in found and name.endswith(COUNTER)}
    missing = [name for name in wanted if name not in found]
    other = {
        name: (tuple(found[name].shape), tuple(value.shape))
        for name, value in wanted.items()
        if name in found and found[name].shape != value.shape
    }
    if missing or other:
        raise ArtifactError(f"finetune.weights: {path} {_misfit(architecture, len(wanted), missing, other)}")
    return {name: found[name] for name in wanted}


def _misfit(
    architecture: Architecture,
    tensors: int,
    missing: list[str],
    other: dict[str, tuple[tuple[int, ...], tuple[int, ...]]],
) -> str:
    """Return what does not fit, and what to do. `other`: tensor -> (its shape in the file, in the network)."""
    first = [f"{name} is {theirs} in the file and {ours} in the network" for name, (theirs, ours) in other.items()]
    told = [f"{name} is not in the file" for name in missing] + first
    if not missing and list(other) == [STEM]:
        return (
            f"holds a {architecture.backbone} whose first layer does not fit: {first[0]}. Networks for images of up to "
            f"{SMALL_IMAGE} pixels begin with a convolution of 3 x 3 in place of 7 x 7, and data.image_size is "
            f"{architecture.image_size}; set data.image_size to more than {SMALL_IMAGE} for weights of large images "
            f"(training costs more), and to {SMALL_IMAGE} or less for weights of small ones"
        )
    return (
        f"does not hold a {architecture.backbone} for images of {architecture.image_size} pixels: {len(told)} of "
        f"{tensors} tensors are missing or of another shape ({'; '.join(told[:3])}{'; ...' if len(told) > 3 else ''}); "
        "set pretrain.backbone to the network that the file was made from"
    )


def without_prefixes(state: State, wanted: State) -> State:
    """Strip the prefixes that trainers add, but not the network's own."""
    for prefix in PREFIXES:
        stripped = {name.removeprefix(prefix): value for name, value in state.items()}
        if len(stripped.keys() & wanted.keys()) >= len(state.keys() & wanted.keys()):
            state = stripped
    return state


def _tensors(path: Path, load_seconds: float) -> State:
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    try:
        seconds = load_seconds + path.stat().st_size / BYTES_PER_SECOND
    except OSError as error:
        raise _unreadable(path, str(error.strerror)) from error
    too_long = f"takes more than {seconds:.0f} s to load: it is damaged, or made to hang"
    with tempfile.TemporaryDirectory() as scratch:
        plain = Path(scratch) / "plain.safetensors"
        command = [
            sys.executable,
            "-m",
            "winnow.models.pickled_tensors",
            str(path.absolute()),
            str(plain),
            str(seconds),
        ]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(part or str(Path.cwd()) for part in sys.path)}
        try:
            done = subprocess.run(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=PATIENCE * seconds,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise _unreadable(path, too_long) from error
        if done.returncode == HOLDS_CODE:
            raise ArtifactError(
                f"finetune.weights: {path} is damaged or holds more than tensors, and is not loaded, since that could "
                "run foreign code; save the state_dict alone (torch.save(model.state_dict(), ...)) or use safetensors"
            )
        if done.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
            raise _unreadable(path, too_long)
        if done.returncode:
            said = done.stderr.decode("utf-8", "replace").strip().splitlines()
            raise _unreadable(path, said[-1] if said else f"the process that loads it ended with {done.returncode}")
        return _read_safetensors(plain)


def _read_safetensors(path: Path) -> State:
    try:
        state: State = load_file(path)
    except (OSError, SafetensorError, RuntimeError, ValueError, KeyError) as error:
        raise _unreadable(path, str(error)) from error
    return state


def _unreadable(path: Path, reason: str) -> ArtifactError:
    told = printable(" ".join(reason.split())[:200])
    return ArtifactError(
        f"finetune.weights: {path} cannot be read as weights ({told}); it is to be a .safetensors file, or the "
        "state_dict that torch.save wrote"
    )
