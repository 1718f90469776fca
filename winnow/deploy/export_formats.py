"""Convert a deployed file to the formats of other runtimes, each compared with the file itself.

    openvino   OpenVINO IR, openvino/model.xml and model.bin, float and int8; from the ONNX file
    torch      torch.export, torch/model.pt2, float; from the network that the ONNX file was made from

Both take pixels uint8 (N, S, S, 3) and return logits float32 (N, C), as the ONNX file does. OpenVINO's file has the
fixed batch 1: with a free batch OpenVINO 2026.4 computes int8 convolutions wrongly, so whoever needs another batch
reshapes it to a fixed one. TensorFlow Lite (LiteRT) is left out: its converter from PyTorch needs an older torch.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from winnow.config.export_formats import FORMAT_FILES, OPENVINO
from winnow.deploy.batch_inference import predict_file
from winnow.deploy.onnx_export import PARITY_TOLERANCE, Deployable
from winnow.deploy.onnx_session import MODEL
from winnow.deploy.openvino_inference import openvino_core
from winnow.deploy.runtime_properties import NEEDED_AGREEMENT
from winnow.errors import ArtifactError, ConfigError
from winnow.models.backbones import load_model
from winnow.records.benchmark import Precision


def write_format(
    name: str, bundle: Path, precision: Precision, pixels_NHWC: NDArray[np.uint8], weights: Path | None
) -> None:
    """Write a format of `bundle`'s model.onnx to a folder of its name, and compare its predictions.

    `precision`: that of the file, f32 or int8. `pixels_NHWC`: images for which both must agree (NEEDED_AGREEMENT).
    `weights`: the folder of the network that the file was made from, where it is at hand. Raises ConfigError for a
    format that this file cannot have, ArtifactError where the predictions differ, MissingExtra without OpenVINO.
    """
    folder = bundle / name
    folder.mkdir()
    if name == OPENVINO:
        logits_NC = _write_openvino(bundle / MODEL, folder / FORMAT_FILES[name][-1], pixels_NHWC)
    elif precision == "int8":
        raise ConfigError("--format torch: the model is int8, and torch.export holds float networks; use openvino")
    elif weights is None:
        raise ConfigError(
            "--format torch: the network of this version is not among the artifacts here; export it in the project "
            "whose run trained it (`dvc checkout` restores the artifacts of an earlier commit)"
        )
    else:
        logits_NC = _write_torch(weights, folder / FORMAT_FILES[name][-1], pixels_NHWC)
    _check_agreement(name, bundle / MODEL, precision, pixels_NHWC, logits_NC)


def _write_openvino(model: Path, file: Path, pixels_NHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Write OpenVINO IR for batch 1, read it again, and return its logits."""
    core = openvino_core()
    import openvino

    converted = core.read_model(str(model))
    converted.reshape([1, *pixels_NHWC.shape[1:]])
    openvino.save_model(converted, str(file), compress_to_fp16=False)
    compiled = core.compile_model(core.read_model(str(file)), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return np.concatenate([np.array(compiled(pixels_HWC[None])[0]) for pixels_HWC in pixels_NHWC])


def _write_torch(weights: Path, file: Path, pixels_NHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Write the network as a program of torch.export with a free batch, read it again, and return its logits."""
    model, architecture = load_model(weights)
    network = Deployable(model).eval()
    example = torch.zeros(2, architecture.image_size, architecture.image_size, 3, dtype=torch.uint8)
    program = torch.export.export(network, (example,), dynamic_shapes=({0: torch.export.Dim("N", min=1)},))
    torch.export.save(program, file)
    with torch.inference_mode():
        logits_NC: NDArray[np.float32] = torch.export.load(file).module()(torch.from_numpy(pixels_NHWC)).numpy()
    return logits_NC


def _check_agreement(
    name: str, model: Path, precision: Precision, pixels_NHWC: NDArray[np.uint8], logits_NC: NDArray[np.float32]
) -> None:
    """Raise ArtifactError where the logits differ from those of the ONNX file; int8 runtimes may round differently."""
    expected_NC = predict_file(model, pixels_NHWC, np.arange(len(pixels_NHWC)))
    agreement = float((logits_NC.argmax(1) == expected_NC.argmax(1)).mean())
    scale = max(1.0, float(np.abs(expected_NC).max()))
    difference = float(np.abs(logits_NC - expected_NC).max()) / scale
    if agreement < NEEDED_AGREEMENT[precision] or (precision != "int8" and not difference <= PARITY_TOLERANCE):
        raise ArtifactError(
            f"--format {name}: the converted file predicts the same class as model.onnx for {agreement:.0%} of "
            f"{len(pixels_NHWC)} images, with logits that differ by up to {difference:.1e} of the largest; it is not "
            "exported. Use model.onnx"
        )
