"""From a candidate's folder to a function on a named runtime, precision and number of threads.

    cell = Cell("dense", "openvino", "bf16", "file", batch=1, threads=2)
    predict = open_cell(Path("artifacts/candidates/dense"), cell)
    logits_NC = predict(pixels_NHWC)                       # uint8 in, float32 out, the same for every runtime

    runtime      precision    what runs
    eager        f32, bf16    PyTorch as written, inference_mode; bf16: weights held in bf16; two memory layouts
    compile      f32, bf16    torch.compile with frozen weights (Inductor); needs a C++ compiler
    compile-autotune  same    torch.compile in mode max-autotune, which times several kernels for each product
    ort          f32, int8    ONNX Runtime on the CPU, the file as it is
    openvino     f32, bf16,   OpenVINO on the CPU, compiled for this batch. The precision is always named: left alone,
                 int8,        OpenVINO runs "float32" in bf16 on processors with AMX, and a baseline would not be one.
                 int8-bf16    int8-bf16: what an int8 file leaves in float runs in bf16
    openvino-throughput       the same in several streams side by side, the batch dealt out to them
    eager-cuda   f32, bf16    PyTorch on the GPU, the copies to it and back included
    ort-cuda     f32          ONNX Runtime on the GPU; needs onnxruntime-gpu in place of onnxruntime
    ort-tensorrt f32 (TF32)   the same through TensorRT 10, which has to be installed, too

Every runtime gets the same uint8 pixels and normalises inside. Nothing is timed here (winnow/benchmark/grid.py). Only
numpy is imported at the top: a process that serves a file by ONNX Runtime or OpenVINO never loads torch.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from winnow.deploy.onnx_session import MODEL, check_exists, damaged, onnxruntime_library, open_session
from winnow.errors import MissingExtra
from winnow.hardware import has_fast_bf16

if TYPE_CHECKING:
    import torch

Runtime = Literal[
    "eager",
    "compile",
    "compile-autotune",
    "ort",
    "openvino",
    "openvino-throughput",
    "eager-cuda",
    "ort-cuda",
    "ort-tensorrt",
]
Precision = Literal["f32", "bf16", "int8", "int8-bf16"]
INT8: tuple[Precision, ...] = ("int8", "int8-bf16")
"""Precisions of int8 files."""
NEEDED_AGREEMENT: dict[Precision, float] = {
    "f32": 0.99,  # the same arithmetic in another order: only ties may fall differently
    "bf16": 0.95,  # 8 bits of mantissa move logits by a hundredth; close calls flip
    "int8-bf16": 0.95,
    "int8": 0.95,  # runtimes round differently, and without VNNI products saturate: more than this is another model
}
"""Share of images for which a runtime must name the class that the reference does, before it is timed."""
Layout = Literal["contiguous", "channels_last", "file"]
Predict = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""uint8 pixels (N, S, S, 3) -> float32 logits (N, classes)."""

PYTORCH = ("eager", "compile", "compile-autotune")
OPENVINO: tuple[Runtime, ...] = ("openvino", "openvino-throughput")
ON_GPU = ("eager-cuda", "ort-cuda", "ort-tensorrt")
PROVIDERS = {"ort-cuda": "CUDAExecutionProvider", "ort-tensorrt": "TensorrtExecutionProvider"}
"""ONNX Runtime's own names."""
COMPILED_GRAPHS = 256
"""torch.compile keeps one graph per model, batch, precision and thread count; beyond its default of 8 it would quietly
run eager code instead."""


@dataclass(frozen=True)
class BenchmarkCase:
    """One cell of the grid: what runs, where, how."""

    candidate: str
    runtime: Runtime
    precision: Precision
    layout: Layout
    batch: int
    threads: int


def cell_of(row: Mapping[str, Any]) -> BenchmarkCase:
    """The cell of a row of the benchmark."""
    return BenchmarkCase(**{name: row[name] for name in BenchmarkCase.__dataclass_fields__})


class RuntimeUnavailable(Exception):
    """This machine cannot run the runtime; the message says why. Caught by the benchmark, which lists it."""


def on_cpu(precision: Precision, batch: int, threads: int) -> list[tuple[Runtime, Precision]]:
    """Where a file of that precision, f32 or int8, runs on this processor; what is float also in bf16 where fast."""
    in_bf16: Precision = "bf16" if precision == "f32" else "int8-bf16"
    precisions: list[Precision] = [precision, in_bf16] if has_fast_bf16() else [precision]
    return [("ort", precision), *((mode, how) for how in precisions for mode in openvino_modes(batch, threads))]


def streams_of(runtime: str, batch: int, threads: int) -> int:
    """Streams that take equal parts of a batch and equally many of the threads; 1 but in OpenVINO's throughput mode."""
    return math.gcd(batch, threads) if runtime == "openvino-throughput" else 1


def openvino_modes(batch: int, threads: int) -> list[Runtime]:
    """For latency, and for throughput where streams can share such a batch and the threads."""
    return [mode for mode in OPENVINO if mode == "openvino" or streams_of(mode, batch, threads) > 1]


def has_compiler() -> bool:
    """Whether torch.compile finds the C++ compiler that it calls."""
    return shutil.which("g++") is not None


def open_cell(folder: Path, cell: BenchmarkCase) -> Predict:
    """The cell's function. Raises ArtifactError for a file that cannot be opened, NotHere where it cannot run."""
    return OPENERS[cell.runtime](folder, cell)


def _onnxruntime(folder: Path, cell: BenchmarkCase) -> Predict:
    session = open_session(folder / MODEL, cell.threads)
    name, output = session.get_inputs()[0].name, session.get_outputs()[0].name

    def predict(pixels_NHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        logits_NC: NDArray[np.float32] = session.run([output], {name: pixels_NHWC})[0]
        return logits_NC

    return predict


def _onnxruntime_gpu(folder: Path, cell: BenchmarkCase) -> Predict:
    provider, onnxruntime = PROVIDERS[cell.runtime], onnxruntime_library()
    tensorrt = cell.runtime == "ort-tensorrt"
    needs = "needs an NVIDIA GPU and the extra cuda, with onnxruntime uninstalled before (docs/compression.md)"
    needs += ", and NVIDIA's package tensorrt-cu13 in version 10" if tensorrt else ""
    if provider not in onnxruntime.get_available_providers():
        raise RuntimeUnavailable(f"this ONNX Runtime has no {provider}: it {needs}")
    onnxruntime.preload_dlls()  # those that pip installed
    if tensorrt:
        with contextlib.suppress(ModuleNotFoundError):
            importlib.import_module("tensorrt")  # loads its own
    # f32 as on the CPU, not TF32.
    session = open_session(folder / MODEL, cell.threads, (provider, {} if tensorrt else {"use_tf32": "0"}))
    if provider not in session.get_providers():
        raise RuntimeUnavailable(f"{provider} does not start here: it {needs}")
    name, output = session.get_inputs()[0].name, session.get_outputs()[0].name

    def predict(pixels_NHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        logits_NC: NDArray[np.float32] = session.run([output], {name: pixels_NHWC})[0]
        return logits_NC

    return predict


def openvino_core() -> Any:
    """Return the one openvino.Core of this process, which lives as long as the process. Raises MissingExtra.

    Each Core sets a signal stack of its own and puts the former one back when it goes: two that do not go in reverse
    order leave a freed one (2026.4), and the next signal that Python handles (Ctrl-C) ends the process by SIGSEGV.
    """
    try:
        import openvino
    except ModuleNotFoundError as error:
        raise MissingExtra("openvino", "runtimes") from error
    return _made_once(openvino.Core)


@functools.cache
def _made_once(kind: Callable[[], Any]) -> Any:
    return kind()


def compiled_openvino(folder: Path, cell: BenchmarkCase) -> Any:
    """The file compiled for this cell: for a whole batch, or for each stream's part of it.

    Raises ArtifactError, MissingExtra.
    """
    core, path = openvino_core(), folder / MODEL
    check_exists(path)
    try:
        model = core.read_model(str(path))
    except RuntimeError as error:
        raise damaged(path, error) from error
    streams = streams_of(cell.runtime, cell.batch, cell.threads)
    model.reshape([cell.batch // streams, *list(model.input(0).partial_shape)[1:]])
    throughput = {"PERFORMANCE_HINT": "THROUGHPUT", "NUM_STREAMS": streams}
    settings = {
        **(throughput if streams > 1 else {"PERFORMANCE_HINT": "LATENCY"}),
        "INFERENCE_NUM_THREADS": cell.threads,
        # What an int8 file leaves in float stays f32 unless the cell says bf16.
        "INFERENCE_PRECISION_HINT": "bf16" if cell.precision.endswith("bf16") else "f32",
    }
    try:
        return core.compile_model(model, "CPU", settings)
    except RuntimeError as error:
        if cell.precision != "int8-bf16":
            raise
        # OpenVINO 2026.4 compiles no int8 file whose rest is bf16 on some processors with AMX.
        raise RuntimeUnavailable(f"OpenVINO cannot compile it: {' '.join(str(error).split())[:200]}") from error


def _openvino(folder: Path, cell: BenchmarkCase) -> Predict:
    request = compiled_openvino(folder, cell).create_infer_request()

    def predict(pixels_NHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        logits_NC: NDArray[np.float32] = request.infer([pixels_NHWC], share_inputs=True)[0]
        return logits_NC

    return predict


def _openvino_streams(folder: Path, cell: BenchmarkCase) -> Predict:
    """A batch is dealt out in equal parts to streams that run side by side, as many as divide it and the threads."""
    compiled, streams = compiled_openvino(folder, cell), streams_of(cell.runtime, cell.batch, cell.threads)
    part = cell.batch // streams
    requests = [compiled.create_infer_request() for _ in range(streams)]

    def predict(pixels_NHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        for at, request in enumerate(requests):
            request.start_async([pixels_NHWC[at * part : (at + 1) * part]], share_inputs=True)
        for request in requests:
            request.wait()
        return np.concatenate([request.get_output_tensor(0).data for request in requests])

    return predict


def _network(folder: Path, layout: Layout, precision: Precision) -> torch.nn.Module:
    """Return the network with uint8 pixels (N, S, S, 3) in and the normalisation inside, as in the ONNX file.

    bf16: weights are held in bf16. Autocast would turn them into it on every call.
    """
    import torch

    from winnow.deploy.onnx_export import Deployable
    from winnow.models.backbones import load_model

    memory = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    number = torch.bfloat16 if precision == "bf16" else torch.float32

    class InLayout(torch.nn.Module):
        """Brings the images into the layout and type of the weights: pixels arrive channels last."""

        def __init__(self, inner: torch.nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
            """Logits."""
            logits: torch.Tensor = self.inner(x_BCHW.to(number).contiguous(memory_format=memory))
            return logits

    model, _ = load_model(folder)
    return Deployable(InLayout(model.to(number).to(memory_format=memory))).eval().requires_grad_(False)


def _eager(folder: Path, cell: BenchmarkCase) -> Predict:
    return _torch_call(_network(folder, cell.layout, cell.precision))


def _torch_call(network: Callable[[torch.Tensor], torch.Tensor]) -> Predict:
    import torch

    def predict(pixels_NHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.inference_mode():
            logits_NC: NDArray[np.float32] = network(torch.from_numpy(pixels_NHWC)).float().numpy()
        return logits_NC

    return predict


def _compiled(folder: Path, cell: BenchmarkCase) -> Predict:
    """Compiled for this batch and thread count, with the first call made: later ones compile nothing."""
    if not has_compiler():
        raise RuntimeUnavailable("no compiler: g++ is not on the PATH")
    import torch
    import torch._dynamo as dynamo
    import torch._inductor.config as inductor

    network = _network(folder, cell.layout, cell.precision)
    mode = "max-autotune-no-cudagraphs" if cell.runtime == "compile-autotune" else None
    predict = _torch_call(torch.compile(network, dynamic=False, mode=mode))
    side = _image_size(folder)
    limits: dict[str, Any] = {"recompile_limit": COMPILED_GRAPHS, "accumulated_recompile_limit": COMPILED_GRAPHS}
    limits["fail_on_recompile_limit_hit"] = True
    try:
        with inductor.patch(freezing=True), dynamo.config.patch(limits):
            predict(np.zeros((cell.batch, side, side, 3), np.uint8))
    except (RuntimeError, dynamo.exc.TorchDynamoException) as error:
        # A g++ without Python's or OpenMP's headers: torch's message begins with what is missing.
        raise RuntimeUnavailable(f"torch.compile failed: {' '.join(str(error).split())[:300]}") from error
    return predict


def _cuda(folder: Path, cell: BenchmarkCase) -> Predict:
    import torch

    if not torch.cuda.is_available():
        raise RuntimeUnavailable("no CUDA device")
    network = _network(folder, cell.layout, cell.precision).cuda()

    def predict(pixels_NHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        f32 = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)  # as ONNX Runtime on CUDA
        with f32, torch.inference_mode():
            logits_NC = network(torch.from_numpy(pixels_NHWC).cuda()).float().cpu()
        torch.cuda.synchronize()
        array: NDArray[np.float32] = logits_NC.numpy()
        return array

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
    """Threads of PyTorch in this process; it has one setting for all networks. Returns the setting before."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    return before
