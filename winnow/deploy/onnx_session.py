"""Open deployed files in ONNX Runtime; the names of the file, its input and its output.

It does not import torch, so that a process which serves a file never loads it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from winnow.errors import ArtifactError, MissingExtra
from winnow.hardware import thread_limit

MODEL = "model.onnx"
INPUT, OUTPUT = "pixels", "logits"


CPU_PROVIDER = "CPUExecutionProvider"
Provider = tuple[str, dict[str, str]]
"""The name of an execution provider of ONNX Runtime, and its options."""


def open_session(path: Path, threads: int = 0, provider: Provider = (CPU_PROVIDER, {})) -> Any:
    """Open a file as an onnxruntime.InferenceSession. Operators that `provider` lacks run on the CPU.

    0 threads means ONNX Runtime's default. Raises ArtifactError where the file is missing or damaged, MissingExtra
    without ONNX Runtime.
    """
    onnxruntime = import_onnxruntime()
    check_exists(path)
    errors = onnxruntime.capi.onnxruntime_pybind11_state
    try:
        return create_session(str(path), threads, provider)
    except (
        errors.Fail,
        errors.InvalidArgument,
        errors.InvalidGraph,
        errors.InvalidProtobuf,
        errors.NotImplemented,
        errors.RuntimeException,
        UnicodeDecodeError,  # raised for a message that quotes a damaged name
    ) as error:
        raise damaged_file_error(path, error) from error


def create_session(model: str | bytes, threads: int = 0, provider: Provider = (CPU_PROVIDER, {})) -> Any:
    """Create a session for a path or for a model's bytes."""
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads or thread_limit()
    return onnxruntime.InferenceSession(
        model, options, providers=[provider] if provider[0] == CPU_PROVIDER else [provider, CPU_PROVIDER]
    )


def import_onnxruntime() -> Any:
    """Import and return onnxruntime. Raises MissingExtra."""
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise MissingExtra("onnxruntime", "runtimes") from error
    return onnxruntime


def check_exists(path: Path) -> None:
    """Raise ArtifactError where the file is missing."""
    if not path.is_file():
        raise ArtifactError(f"{path} is missing; run the step that makes it (winnow status shows which)")


def damaged_file_error(path: Path, error: Exception) -> ArtifactError:
    """Return the error for a file that a runtime rejects, with the runtime's message."""
    reason = " ".join(str(error).split())[:200]
    return ArtifactError(f"{path} is damaged ({reason}); delete its folder and run winnow again")
