"""Open a candidate's folder as a function, in a given runtime and precision, with a given number of threads.

    case = BenchmarkCase("dense", "openvino", "bf16", "file", batch=1, threads=2)
    predict = open_case(Path("artifacts/candidates/dense"), case)
    logits_NC = predict(pixels_NHWC)                       # uint8 in, float32 out, the same for every runtime

    runtime      precision    what runs
    eager        f32, bf16    PyTorch as written, inference_mode; bf16: weights held in bf16; two memory layouts
    compile      f32, bf16    torch.compile with frozen weights (Inductor); needs a C++ compiler
    compile-autotune  same    torch.compile in mode max-autotune, which times several kernels for each product
    ort          f32, int8    ONNX Runtime on the CPU, the file as it is
    openvino     f32, bf16,   OpenVINO on the CPU, compiled for this batch. The precision is always set: by default
                 int8,        OpenVINO runs "float32" in bf16 on processors with AMX, and a baseline would not be one.
                 int8-bf16    int8-bf16: the float layers of an int8 file run in bf16
    openvino-throughput       the same with the batch divided among parallel streams
    eager-cuda   f32, bf16    PyTorch on the GPU, including the copies to it and back
    ort-cuda     f32          ONNX Runtime on the GPU; needs onnxruntime-gpu in place of onnxruntime
    ort-tensorrt f32 (TF32)   the same through TensorRT 10, which must be installed, too

Every runtime gets the same uint8 pixels and normalises inside. winnow/benchmark/grid.py does the timing. Only numpy is
imported at the top, so that a process which serves a file by ONNX Runtime or OpenVINO never loads torch.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from winnow.deploy.onnx_session import MODEL, check_exists, damaged_file_error, import_onnxruntime, open_session
from winnow.errors import MissingExtra
from winnow.hardware import has_fast_bf16
from winnow.records.benchmark import BenchmarkCase, Layout, Precision, Runtime

if TYPE_CHECKING:
    import torch

INT8_PRECISIONS: tuple[Precision, ...] = ("int8", "int8-bf16")
"""The precisions of int8 files."""
NEEDED_AGREEMENT: dict[Precision, float] = {
    "f32": 0.99,  # the same arithmetic in another order changes ties only
    "bf16": 0.95,  # 8 bits of mantissa move logits by a hundredth; close calls flip
    "int8-bf16": 0.95,
    "int8": 0.95,  # runtimes round differently, and without VNNI products saturate
}
"""The share of images for which a runtime must predict the reference's class before it is timed."""
Predict = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""A function from uint8 pixels (N, S, S, 3) to float32 logits (N, C)."""

PYTORCH_RUNTIMES = ("eager", "compile", "compile-autotune")
OPENVINO_RUNTIMES: tuple[Runtime, ...] = ("openvino", "openvino-throughput")
GPU_RUNTIMES = ("eager-cuda", "ort-cuda", "ort-tensorrt")
PROVIDERS = {"ort-cuda": "CUDAExecutionProvider", "ort-tensorrt": "TensorrtExecutionProvider"}
"""The names of ONNX Runtime's execution providers."""
MAX_COMPILED_GRAPHS = 256
"""The limit of torch.compile's graphs, one for each model, batch, precision and thread count. Beyond its default of 8
it silently falls back to eager mode."""


class RuntimeUnavailable(Exception):
    """This machine lacks the runtime, for the reason in the message. The benchmark catches and lists it."""


def list_cpu_runtimes(precision: Precision, batch: int, threads: int) -> list[tuple[Runtime, Precision]]:
    """Return the CPU runtimes and precisions for a file in f32 or int8, with bf16 variants where bf16 is fast."""
    in_bf16: Precision = "bf16" if precision == "f32" else "int8-bf16"
    precisions: list[Precision] = [precision, in_bf16] if has_fast_bf16() else [precision]
    modes = openvino_modes(batch, threads)
    return [("ort", precision), *((mode, variant) for variant in precisions for mode in modes)]


def count_streams(runtime: str, batch: int, threads: int) -> int:
    """Return the number of streams that share batch and threads equally; 1 except in OpenVINO's throughput mode."""
    return math.gcd(batch, threads) if runtime == "openvino-throughput" else 1


def openvino_modes(batch: int, threads: int) -> list[Runtime]:
    """Return the latency mode, and the throughput mode where streams can share the batch and the threads."""
    return [mode for mode in OPENVINO_RUNTIMES if mode == "openvino" or count_streams(mode, batch, threads) > 1]


def has_compiler() -> bool:
    """Return whether the C++ compiler that torch.compile calls is on the PATH."""
    return shutil.which("g++") is not None


def open_case(folder: Path, case: BenchmarkCase) -> Predict:
    """Open the case's function. Raises ArtifactError for a missing or damaged file, or RuntimeUnavailable."""
    return OPENERS[case.runtime](folder, case)


def _onnxruntime(folder: Path, case: BenchmarkCase) -> Predict:
    session = open_session(folder / MODEL, case.threads)
    name, output = session.get_inputs()[0].name, session.get_outputs()[0].name

    def predict(pixels_NHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        logits_NC: NDArray[np.float32] = session.run([output], {name: pixels_NHWC})[0]
        return logits_NC

    return predict


def _onnxruntime_gpu(folder: Path, case: BenchmarkCase) -> Predict:
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
    name, output = session.get_inputs()[0].name, session.get_outputs()[0].name

    def predict(pixels_NHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        logits_NC: NDArray[np.float32] = session.run([output], {name: pixels_NHWC})[0]
        return logits_NC

    return predict


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


def _openvino(folder: Path, case: BenchmarkCase) -> Predict:
    request = compile_openvino(folder, case).create_infer_request()

    def predict(pixels_NHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        logits_NC: NDArray[np.float32] = request.infer([pixels_NHWC], share_inputs=True)[0]
        return logits_NC

    return predict


def _openvino_streams(folder: Path, case: BenchmarkCase) -> Predict:
    """Open the file in parallel streams that take equal shares of a batch."""
    compiled, streams = compile_openvino(folder, case), count_streams(case.runtime, case.batch, case.threads)
    share = case.batch // streams
    requests = [compiled.create_infer_request() for _ in range(streams)]

    def predict(pixels_NHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        for stream, request in enumerate(requests):
            request.start_async([pixels_NHWC[stream * share : (stream + 1) * share]], share_inputs=True)
        for request in requests:
            request.wait()
        return np.concatenate([request.get_output_tensor(0).data for request in requests])

    return predict


def _load_network(folder: Path, layout: Layout, precision: Precision) -> torch.nn.Module:
    """Load the network with uint8 pixels (N, S, S, 3) as input and normalisation inside, as in the ONNX file.

    With bf16 its weights are stored in bf16, since autocast would convert them on every call.
    """
    import torch

    from winnow.deploy.onnx_export import Deployable
    from winnow.models.backbones import load_model

    memory_format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32

    class MatchInput(torch.nn.Module):
        """Converts the images, which arrive channels last, to the memory format and dtype of the weights."""

        def __init__(self, inner: torch.nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
            """Return the logits."""
            logits: torch.Tensor = self.inner(x_BCHW.to(dtype).contiguous(memory_format=memory_format))
            return logits

    model, _ = load_model(folder)
    return Deployable(MatchInput(model.to(dtype).to(memory_format=memory_format))).eval().requires_grad_(False)


def _eager(folder: Path, case: BenchmarkCase) -> Predict:
    return _as_numpy_function(_load_network(folder, case.layout, case.precision))


def _as_numpy_function(network: Callable[[torch.Tensor], torch.Tensor]) -> Predict:
    import torch

    def predict(pixels_NHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.inference_mode():
            logits_NC: NDArray[np.float32] = network(torch.from_numpy(pixels_NHWC)).float().numpy()
        return logits_NC

    return predict


def _compiled(folder: Path, case: BenchmarkCase) -> Predict:
    """Compile the network for this batch and thread count, and call it once, so that later calls compile nothing."""
    if not has_compiler():
        raise RuntimeUnavailable("no compiler: g++ is not on the PATH")
    import torch
    import torch._dynamo as dynamo
    import torch._inductor.config as inductor

    network = _load_network(folder, case.layout, case.precision)
    mode = "max-autotune-no-cudagraphs" if case.runtime == "compile-autotune" else None
    predict = _as_numpy_function(torch.compile(network, dynamic=False, mode=mode))
    side = _image_size(folder)
    limits: dict[str, Any] = {
        "recompile_limit": MAX_COMPILED_GRAPHS,
        "accumulated_recompile_limit": MAX_COMPILED_GRAPHS,
    }
    limits["fail_on_recompile_limit_hit"] = True
    try:
        with inductor.patch(freezing=True), dynamo.config.patch(limits):
            predict(np.zeros((case.batch, side, side, 3), np.uint8))
    except (RuntimeError, dynamo.exc.TorchDynamoException) as error:
        # g++ may lack Python's or OpenMP's headers; torch's message begins with the missing one.
        raise RuntimeUnavailable(f"torch.compile failed: {' '.join(str(error).split())[:300]}") from error
    return predict


def _cuda(folder: Path, case: BenchmarkCase) -> Predict:
    import torch

    if not torch.cuda.is_available():
        raise RuntimeUnavailable("no CUDA device")
    network = _load_network(folder, case.layout, case.precision).cuda()

    def predict(pixels_NHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        f32 = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)  # as ONNX Runtime on CUDA
        with f32, torch.inference_mode():
            logits_NC = network(torch.from_numpy(pixels_NHWC).cuda()).float().cpu()
        torch.cuda.synchronize()
        result_NC: NDArray[np.float32] = logits_NC.numpy()
        return result_NC

    return predict


def _image_size(folder: Path) -> int:
    from winnow.models.backbones import load_architecture

    return load_architecture(folder).image_size


OPENERS: dict[Runtime, Callable[[Path, BenchmarkCase], Predict]] = {
    "eager": _eager,
    "compile": _compiled,
    "compile-autotune": _compiled,
    "ort": _onnxruntime,
    "openvino": _openvino,
    "openvino-throughput": _openvino_streams,
    "eager-cuda": _cuda,
    "ort-cuda": _onnxruntime_gpu,
    "ort-tensorrt": _onnxruntime_gpu,
}


def set_torch_threads(threads: int) -> int:
    """Set PyTorch's threads, one setting for all networks of the process, and return the previous number."""
    import torch

    previous = torch.get_num_threads()
    torch.set_num_threads(threads)
    return previous
