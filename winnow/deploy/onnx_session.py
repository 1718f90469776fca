"""The file that is deployed: its name in a candidate's folder, and how ONNX Runtime opens it.

No torch here: a process that serves the file never loads it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from winnow.errors import ArtifactError, MissingExtra
from winnow.hardware import thread_limit

MODEL = "model.onnx"
INPUT, OUTPUT = "pixels", "logits"


CPU = "CPUExecutionProvider"
Provider = tuple[str, dict[str, str]]
"""ONNX Runtime's name, and options."""


def open_session(path: Path, threads: int = 0, provider: Provider = (CPU, {})) -> Any:
    """An onnxruntime.InferenceSession; 0 threads: as many as ONNX Runtime likes; what `provider` lacks the CPU does.

    Raises ArtifactError when the file is missing or damaged, MissingExtra without ONNX Runtime.
    """
    onnxruntime = onnxruntime_library()
    check_exists(path)
    broken = onnxruntime.capi.onnxruntime_pybind11_state
    try:
        return session_of(str(path), threads, provider)
    except (
        broken.Fail,
        broken.InvalidArgument,
        broken.InvalidGraph,
        broken.InvalidProtobuf,
        broken.NotImplemented,
        broken.RuntimeException,
        UnicodeDecodeError,  # what its message becomes where a damaged name is quoted
    ) as error:
        raise damaged(path, error) from error


def session_of(model: str | bytes, threads: int = 0, provider: Provider = (CPU, {})) -> Any:
    """A session for a path, or for the bytes of a model that was just made."""
    onnxruntime = onnxruntime_library()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads or thread_limit()
    return onnxruntime.InferenceSession(model, options, providers=[provider] if provider[0] == CPU else [provider, CPU])


def onnxruntime_library() -> Any:
    """onnxruntime. Raises MissingExtra."""
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise MissingExtra("onnxruntime", "runtimes") from error
    return onnxruntime


def check_exists(path: Path) -> None:
    """Raise ArtifactError where there is no such file."""
    if not path.is_file():
        raise ArtifactError(f"{path} is missing; run the step that makes it (winnow status shows which)")


def damaged(path: Path, error: Exception) -> ArtifactError:
    """The error for a file that its runtime refuses, with the runtime's own words."""
    told = " ".join(str(error).split())[:200]
    return ArtifactError(f"{path} is damaged ({told}); delete its folder and run winnow again")
