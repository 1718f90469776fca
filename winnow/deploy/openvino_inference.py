"""Open a candidate's ONNX file in OpenVINO on the CPU, for one call at a time or in parallel streams.

The file is compiled for a fixed batch: with a free batch OpenVINO 2026.4 computes int8 convolutions wrongly.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from winnow.deploy.onnx_session import MODEL, check_exists, damaged_file_error
from winnow.deploy.runtime_properties import Predict, RuntimeUnavailable, count_streams
from winnow.errors import MissingExtra
from winnow.records.benchmark import BenchmarkCase


def openvino_core() -> Any:
    """Return the one openvino.Core of this process, which lives as long as the process. Raises MissingExtra.

    Each Core installs a signal stack and restores the previous one when it is destroyed. Cores destroyed out of order
    leave a freed stack (2026.4), and the next signal that Python handles (Ctrl-C) ends the process by SIGSEGV.
    """
    try:
        import openvino
    except ModuleNotFoundError as error:
        raise MissingExtra("openvino", "runtimes") from error
    return _create_once(openvino.Core)


@functools.cache
def _create_once(factory: Callable[[], Any]) -> Any:
    return factory()


def compile_openvino(folder: Path, case: BenchmarkCase) -> Any:
    """Compile the file for this case: for the whole batch, or for each stream's share of it.

    Raises ArtifactError, MissingExtra, or RuntimeUnavailable.
    """
    core, path = openvino_core(), folder / MODEL
    check_exists(path)
    try:
        model = core.read_model(str(path))
    except RuntimeError as error:
        raise damaged_file_error(path, error) from error
    streams = count_streams(case.runtime, case.batch, case.threads)
    model.reshape([case.batch // streams, *list(model.input(0).partial_shape)[1:]])
    throughput = {"PERFORMANCE_HINT": "THROUGHPUT", "NUM_STREAMS": streams}
    settings = {
        **(throughput if streams > 1 else {"PERFORMANCE_HINT": "LATENCY"}),
        "INFERENCE_NUM_THREADS": case.threads,
        # The float layers of an int8 file stay f32 unless the case says bf16.
        "INFERENCE_PRECISION_HINT": "bf16" if case.precision.endswith("bf16") else "f32",
    }
    try:
        return core.compile_model(model, "CPU", settings)
    except RuntimeError as error:
        if case.precision != "int8-bf16":
            raise
        # OpenVINO 2026.4 cannot compile an int8 file with bf16 float layers on some processors with AMX.
        raise RuntimeUnavailable(f"OpenVINO cannot compile it: {' '.join(str(error).split())[:200]}") from error


def open_openvino(folder: Path, case: BenchmarkCase) -> Predict:
    """Open the file for whole batches, one at a time. Raises as compile_openvino does."""
    request = compile_openvino(folder, case).create_infer_request()
    inputs_NHWC = _input_array(request)

    def predict(pixels_NHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        inputs_NHWC[...] = _of_shape(pixels_NHWC, inputs_NHWC.shape)
        request.infer(share_outputs=True)
        return _logits(request)

    return predict


def open_openvino_streams(folder: Path, case: BenchmarkCase) -> Predict:
    """Open the file in parallel streams that take equal shares of a batch."""
    compiled, streams = compile_openvino(folder, case), count_streams(case.runtime, case.batch, case.threads)
    requests = [compiled.create_infer_request() for _ in range(streams)]
    inputs_SNHWC = [_input_array(request) for request in requests]
    batch_shape = (case.batch, *inputs_SNHWC[0].shape[1:])

    def predict(pixels_NHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        shares = np.split(_of_shape(pixels_NHWC, batch_shape), streams)
        for request, inputs_NHWC, share_NHWC in zip(requests, inputs_SNHWC, shares, strict=True):
            inputs_NHWC[...] = share_NHWC
            request.start_async()
        for request in requests:
            request.wait()
        return np.concatenate([_logits(request) for request in requests])

    return predict


def _input_array(request: Any) -> NDArray[np.uint8]:
    """Return the request's own input as an array to write pixels to.

    Pixels passed to `infer` go through OpenVINO's Python binding, which lists all tensors of the request to find the
    one to set. That takes 0.04 ms, and 0.08 ms where ONNX Runtime is loaded too: as long as a small network (2026.4).
    """
    pixels_NHWC: NDArray[np.uint8] = request.get_input_tensor(0).data
    return pixels_NHWC


def _logits(request: Any) -> NDArray[np.float32]:
    """Return a copy of the request's output, whose memory the next call overwrites."""
    logits_NC: NDArray[np.float32] = request.get_output_tensor(0).data.copy()
    return logits_NC


def _of_shape(pixels_NHWC: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Return the pixels. Raises ValueError if they have another shape, which an assignment might broadcast."""
    if pixels_NHWC.shape != shape:
        raise ValueError(f"the file is open for pixels of shape {shape}, these have {pixels_NHWC.shape}")
    return pixels_NHWC
