"""Predict with networks and files in memory, measure their accuracy and speed, save and load them."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from winnow.api.argument_checks import check_any_network, check_classes, check_folder, check_images, check_pixels
from winnow.benchmark.grid import time_cases
from winnow.benchmark.prediction_check import CHECKED_IMAGES
from winnow.benchmark.sweep import sweep_cases
from winnow.compression import write_network
from winnow.config import Benchmark, check_settings
from winnow.config.section import Count, Section
from winnow.data.dataset import SPLITS, VALIDATION, ImageSet, spread_indices
from winnow.deploy.batch_inference import predict_file, predict_torch
from winnow.deploy.inference_runtimes import open_case
from winnow.deploy.onnx_export import inspect_onnx, load_onnx
from winnow.deploy.onnx_session import MODEL
from winnow.errors import ConfigError, DataError
from winnow.evaluation.intervals import proportion_interval
from winnow.hardware import cores
from winnow.models.backbones import WEIGHTS_FILE, load_architecture, load_model
from winnow.models.network import Network, OnnxNetwork
from winnow.records.benchmark import BenchmarkRow

AnyNetwork = Network | OnnxNetwork


class _TimedGrid(Section):
    """The batch sizes and the number of threads that networks are timed with."""

    batch_sizes: Annotated[list[Count], Field(min_length=1)]
    threads: Count


@dataclass(frozen=True)
class Accuracy:
    """Top-1 accuracy with its 95 % interval, as fractions."""

    top1: float
    """Top-1 accuracy."""
    low: float
    """Lower end of the 95 % interval."""
    high: float
    """Upper end of the 95 % interval."""
    images: int
    """Number of labelled images."""

    def __str__(self) -> str:
        """Return the accuracy in percent."""
        low, high = self.low * 100, self.high * 100
        return f"{self.top1 * 100:.1f} % ({low:.1f} to {high:.1f}, {self.images} images)"


def predict(network: AnyNetwork, pixels_NHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the logits float32 (N, C) for pixels uint8 (N, S, S, 3), with S the image size of the network.

    Raises ConfigError for anything but a network of winnow, DataError for pixels of another type or shape.
    """
    pixels_NHWC = check_pixels(check_any_network(network, "predict"), pixels_NHWC)
    every = np.arange(len(pixels_NHWC))
    if not len(every):
        return np.empty((0, network.architecture.num_classes), np.float32)
    if isinstance(network, Network):
        return predict_torch(network.copy().model, pixels_NHWC, every)
    with tempfile.TemporaryDirectory() as temporary:
        save(network, temporary)
        return predict_file(Path(temporary) / MODEL, pixels_NHWC, every)


def evaluate(
    network: AnyNetwork, images: ImageSet, split: Literal["train", "validation", "test"] = "validation"
) -> Accuracy:
    """Return the top-1 accuracy on the labelled images of a split.

    Labels are positions in `images.classes`, whose order must be that of the images that the network was trained on.
    Raises ConfigError for an unknown split, DataError where the split has no labelled image, and where the network
    has another image size or number of classes.
    """
    if split not in SPLITS:
        raise ConfigError(f"split: {split!r} is not one of {', '.join(SPLITS)}")
    check_classes(check_any_network(network, "evaluate"), images, "evaluate")
    check_images(network, images, "evaluate")
    indices = images.indices(SPLITS.index(split), labelled=True)
    if not len(indices):
        raise DataError(f"no image of the {split} split has a label, so there is no accuracy to measure")
    predictions_M = predict(network, np.ascontiguousarray(images.images_NHWC[indices])).argmax(1)
    correct_M = predictions_M == images.labels_N[indices]
    low, high = proportion_interval(correct_M, images.groups_N[indices])
    return Accuracy(float(correct_M.mean()), low, high, len(indices))


def time_networks(
    networks: Mapping[str, AnyNetwork],
    images: ImageSet,
    *,
    batch_sizes: Sequence[int] = (1, 64),
    threads: int | None = None,
    **settings: Any,
) -> list[BenchmarkRow]:
    """Time the networks as ONNX files in ONNX Runtime and OpenVINO, interleaved; return a row for each case.

    `threads`: by default all cores. `settings`: keys of the section `benchmark:`, such as samples and rounds. A
    runtime is left out where its predictions differ from those of the file in ONNX Runtime. Raises ConfigError for
    settings that cannot be used, DataError where a network has another image size.
    """
    checked = check_settings(Benchmark, settings, "benchmark")
    machine = {"batch_sizes": list(batch_sizes), "threads": cores() if threads is None else threads}
    grid = check_settings(_TimedGrid, machine, "time_networks")
    if not networks:
        raise ConfigError("time_networks: pass at least one network, as in {'dense': network}")
    for name, network in networks.items():
        check_images(check_any_network(network, f"time_networks, {name}"), images, f"time_networks, {name}")
    indices = images.indices(VALIDATION)
    chosen = indices[spread_indices(len(indices), CHECKED_IMAGES)]
    pixels_NHWC = np.ascontiguousarray(images.images_NHWC[chosen])
    cases, predictions = [], {}
    with tempfile.TemporaryDirectory() as temporary:
        folders = {name: Path(temporary) / str(number) for number, name in enumerate(networks)}
        for name, network in networks.items():
            save(network, folders[name])
            file = folders[name] / MODEL
            predictions[name] = predict_file(file, pixels_NHWC, np.arange(len(chosen))).argmax(1)
            cases += sweep_cases(name, inspect_onnx(file).precision, grid.batch_sizes, [grid.threads])
        result = time_cases(
            cases, lambda case: open_case(folders[case.candidate], case), pixels_NHWC, predictions, checked
        )
    return result.rows


def save(network: AnyNetwork, folder: str | Path) -> None:
    """Write model.onnx, architecture.json and, for a PyTorch network, weights.safetensors to the folder.

    A network that was saved there before is replaced. Raises ConfigError where `folder` is a file, and for anything but
    a network of winnow.
    """
    check_any_network(network, "save")
    folder = check_folder(folder, "save")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        write_network(network.copy() if isinstance(network, Network) else network, Path(temporary))
        (folder / WEIGHTS_FILE).unlink(missing_ok=True)
        for file in Path(temporary).iterdir():
            file.replace(folder / file.name)


def load(folder: str | Path) -> AnyNetwork:
    """Return the network that `save` wrote, or a candidate of a project, from its folder.

    Raises ArtifactError where a file is missing or damaged.
    """
    folder = Path(folder)
    if (folder / WEIGHTS_FILE).is_file():
        return Network(*load_model(folder))
    load_onnx(folder / MODEL)
    return OnnxNetwork((folder / MODEL).read_bytes(), load_architecture(folder))
