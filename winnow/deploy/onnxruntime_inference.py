"""Open a candidate's ONNX file in ONNX Runtime, on the CPU or a GPU."""

from __future__ import annotations

import contextlib
import importlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from winnow.deploy.onnx_session import MODEL, import_onnxruntime, open_session
from winnow.deploy.runtime_properties import Predict, RuntimeUnavailable
from winnow.records.benchmark import BenchmarkCase

PROVIDERS = {"ort-cuda": "CUDAExecutionProvider", "ort-tensorrt": "TensorrtExecutionProvider"}
"""The names of ONNX Runtime's execution providers."""


def open_onnxruntime(folder: Path, case: BenchmarkCase) -> Predict:
    """Open the file on the CPU. Raises ArtifactError for a missing or damaged file, or MissingExtra."""
    return _as_numpy_function(open_session(folder / MODEL, case.threads))


def open_onnxruntime_gpu(folder: Path, case: BenchmarkCase) -> Predict:
    """Open the file on a GPU, in the case's execution provider.

    Raises RuntimeUnavailable where the provider is missing or does not start, and names what it needs.
    """
    provider, onnxruntime = PROVIDERS[case.runtime], import_onnxruntime()
    tensorrt = case.runtime == "ort-tensorrt"
    requirements = "needs an NVIDIA GPU and the extra cuda, with onnxruntime uninstalled before (docs/compression.md)"
    requirements += ", and NVIDIA's package tensorrt-cu13 in version 10" if tensorrt else ""
    if provider not in onnxruntime.get_available_providers():
        raise RuntimeUnavailable(f"this ONNX Runtime has no {provider}: it {requirements}")
    onnxruntime.preload_dlls()  # CUDA libraries that pip installed
    if tensorrt:
        with contextlib.suppress(ModuleNotFoundError):
            importlib.import_module("tensorrt")  # the import loads TensorRT's libraries
    # f32 as on the CPU, not TF32.
    session = open_session(folder / MODEL, case.threads, (provider, {} if tensorrt else {"use_tf32": "0"}))
    if provider not in session.get_providers():
        raise RuntimeUnavailable(f"{provider} does not start on this machine: it {requirements}")
    return _as_numpy_function(session)


def _as_numpy_function(session: Any) -> Predict:
    name, output = session.get_inputs()[0].name, session.get_outputs()[0].name

    def predict(pixels_NHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        logits_NC: NDArray[np.float32] = session.run([output], {name: pixels_NHWC})[0]
        return logits_NC

    return predict
