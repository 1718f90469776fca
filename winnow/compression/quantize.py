"""Int8: weights and activations in 8 bits, from the exported float file; one file for ONNX Runtime and OpenVINO.

static   NNCF's post-training quantization of the ONNX file, calibrated on unlabelled training images: activations
         unsigned after a ReLU (elsewhere signed, which ONNX Runtime shifts to unsigned on x86 itself), weights signed
         per channel, Q/DQ pairs in the graph, biases corrected. No label is used.
dynamic  ONNX Runtime measures ranges at run time. For convolutions this has no fast kernel: smaller, not faster
         (benchmarks/dynamic_int8.py shows it). Not in the shipped tree.

Nagel et al. 2021, A White Paper on Neural Network Quantization (arXiv 2106.08295).
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from winnow.compression.inputs import Inputs
from winnow.config import Quantize
from winnow.data.images import TRAIN
from winnow.errors import ConfigError, MissingExtra
from winnow.export import load_onnx, save_onnx
from winnow.model_file import INPUT, MODEL
from winnow.models.backbones import ARCHITECTURE, load_architecture
from winnow.records import write_json

CALIBRATION_BATCH = 1


def quantize(settings: Quantize, inputs: Inputs, folder: Path) -> dict[str, Any]:
    """Quantize the parent's file and leave model.onnx in `folder` -> details."""
    architecture = load_architecture(inputs.parent)
    write_json(folder / ARCHITECTURE, architecture.model_dump(mode="json"))
    source, target = inputs.parent / MODEL, folder / MODEL
    if settings.scheme == "dynamic":
        _dynamic(source, target)
        return {"calibration_images": 0}
    pixels_NHWC = calibration_images(settings, inputs)
    _static(source, target, pixels_NHWC, settings)
    return {"calibration_images": len(pixels_NHWC)}


def calibration_images(settings: Quantize, inputs: Inputs) -> NDArray[np.uint8]:
    """Training images drawn from the seed, labels unseen, uint8 (N, S, S, 3)."""
    pool = inputs.images.indices(TRAIN)
    count = min(settings.calibration_images, len(pool))
    chosen = np.sort(np.random.default_rng(settings.seed).choice(pool, count, replace=False))
    return np.ascontiguousarray(inputs.images.images_NHWC[chosen])


def _static(source: Path, target: Path, pixels_NHWC: NDArray[np.uint8], settings: Quantize) -> None:
    try:
        import nncf
    except ModuleNotFoundError as error:
        raise MissingExtra("nncf", "compress") from error
    nncf.set_log_level(logging.ERROR)
    batches = [pixels_NHWC[at : at + CALIBRATION_BATCH] for at in range(0, len(pixels_NHWC), CALIBRATION_BATCH)]
    preset = {
        "mixed": nncf.QuantizationPreset.MIXED,
        "performance": nncf.QuantizationPreset.PERFORMANCE,
    }[settings.preset]
    try:
        quantized = nncf.quantize(
            load_onnx(source),
            nncf.Dataset(batches, lambda batch: {INPUT: batch}),
            preset=preset,
            target_device=nncf.TargetDevice.CPU,
            subset_size=len(batches),
            fast_bias_correction=True,
        )
    except (nncf.ValidationError, nncf.UnsupportedModelError) as error:
        raise ConfigError(f"{source}: NNCF cannot quantize this network ({error}); remove the candidate") from error
    save_onnx(quantized, target)


def _dynamic(source: Path, target: Path) -> None:
    try:
        from onnxruntime.quantization import QuantType, quantize_dynamic
    except ModuleNotFoundError as error:
        raise MissingExtra("onnxruntime", "runtimes") from error
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # it advises pre-processing on the root logger
    try:
        # Given a path, it would write beside the parent's file.
        quantize_dynamic(load_onnx(source), target, weight_type=QuantType.QUInt8)
    finally:
        root.setLevel(level)
    save_onnx(load_onnx(target), target)
