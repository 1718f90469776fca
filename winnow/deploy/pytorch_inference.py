"""Open a candidate's network in PyTorch: eager or compiled on the CPU, eager on the GPU.

torch is imported inside the functions, so that a process which serves a file by ONNX Runtime or OpenVINO never loads
it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from winnow.deploy.runtime_properties import Predict, RuntimeUnavailable
from winnow.records.benchmark import BenchmarkCase, Layout, Precision

if TYPE_CHECKING:
    import torch


MAX_COMPILED_GRAPHS = 256
"""The limit of torch.compile's graphs, one for each model, batch, precision and thread count. Beyond its default of 8
it silently falls back to eager mode."""


def has_compiler() -> bool:
    """Return whether the C++ compiler that torch.compile calls is on the PATH."""
    return shutil.which("g++") is not None


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


def open_eager(folder: Path, case: BenchmarkCase) -> Predict:
    """Open the network as it is written."""
    return _as_numpy_function(_load_network(folder, case.layout, case.precision))


def _as_numpy_function(network: Callable[[torch.Tensor], torch.Tensor]) -> Predict:
    import torch

    def predict(pixels_NHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.inference_mode():
            logits_NC: NDArray[np.float32] = network(torch.from_numpy(pixels_NHWC)).float().numpy()
        return logits_NC

    return predict


def open_compiled(folder: Path, case: BenchmarkCase) -> Predict:
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


def open_eager_cuda(folder: Path, case: BenchmarkCase) -> Predict:
    """Open the network on the GPU; a call includes the copies to it and back. Raises RuntimeUnavailable without one."""
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


def set_torch_threads(threads: int) -> int:
    """Set PyTorch's threads, one setting for all networks of the process, and return the previous number."""
    import torch

    previous = torch.get_num_threads()
    torch.set_num_threads(threads)
    return previous
