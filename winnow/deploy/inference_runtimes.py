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

from collections.abc import Callable
from pathlib import Path

from winnow.deploy.onnxruntime_inference import open_onnxruntime, open_onnxruntime_gpu
from winnow.deploy.openvino_inference import open_openvino, open_openvino_streams
from winnow.deploy.pytorch_inference import open_compiled, open_eager, open_eager_cuda
from winnow.deploy.runtime_properties import Predict
from winnow.records.benchmark import BenchmarkCase, Runtime


def open_case(folder: Path, case: BenchmarkCase) -> Predict:
    """Open the case's function. Raises ArtifactError for a missing or damaged file, or RuntimeUnavailable."""
    return OPENERS[case.runtime](folder, case)


OPENERS: dict[Runtime, Callable[[Path, BenchmarkCase], Predict]] = {
    "eager": open_eager,
    "compile": open_compiled,
    "compile-autotune": open_compiled,
    "ort": open_onnxruntime,
    "openvino": open_openvino,
    "openvino-throughput": open_openvino_streams,
    "eager-cuda": open_eager_cuda,
    "ort-cuda": open_onnxruntime_gpu,
    "ort-tensorrt": open_onnxruntime_gpu,
}
