"""Memory, load time and first call of one file in one runtime, each in a fresh process.

In the benchmark's own process libraries are loaded, thread pools are warm, and memory of other models is included. So a
child process imports one runtime, opens one file, predicts once and reports the times. The peak is the high-water mark
of the child's resident memory, including the interpreter and the runtime's libraries: what a machine needs to serve the
file. A loaded server may need more.

    python -m winnow.benchmark.memory_footprint FOLDER RUNTIME PRECISION LAYOUT THREADS IMAGE_SIZE  # a JSON object
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import cast

import numpy as np

from winnow.deploy.inference_runtimes import open_case
from winnow.deploy.pytorch_inference import set_torch_threads
from winnow.errors import ArtifactError
from winnow.records.benchmark import BenchmarkCase, Layout, Precision, ProcessFootprint, Runtime

TIMEOUT_SECONDS = 600
IMPORTS = {
    "ort": "onnxruntime",
    "openvino": "openvino",
    "eager": "torch",
    "compile": "torch",
    "compile-autotune": "torch",
    "eager-cuda": "torch",
}


def measure_footprint(folder: Path, case: BenchmarkCase, image_size: int) -> ProcessFootprint:
    """Return start-up times and peak memory at batch 1.

    Raises ArtifactError with the last line of stderr if the child process fails.
    """
    arguments = [str(folder), case.runtime, case.precision, case.layout, str(case.threads), str(image_size)]
    try:
        child = subprocess.run(
            [sys.executable, "-m", "winnow.benchmark.memory_footprint", *arguments],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
            check=False,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([_root(), os.environ.get("PYTHONPATH", "")])},
        )
    except subprocess.TimeoutExpired as error:
        raise ArtifactError(
            f"{folder}: {case.runtime} did not finish within {TIMEOUT_SECONDS} s in a separate process"
        ) from error
    if child.returncode != 0:
        reason = (child.stderr.strip().splitlines() or [f"exit status {child.returncode}"])[-1]
        raise ArtifactError(f"{folder}: {case.runtime} could not run the model in a separate process ({reason})")
    measurements: dict[str, float] = json.loads(child.stdout.strip().splitlines()[-1])
    return ProcessFootprint(candidate=case.candidate, runtime=case.runtime, precision=case.precision, **measurements)


def _root() -> str:
    return str(Path(__file__).resolve().parents[2])


def peak_mb() -> float:
    """Return the high-water mark of this process's resident memory in MB (1e6 bytes).

    Linux reports it per address space (VmHWM). getrusage is wrong there: it starts from the mark of the process that
    was forked, so a child of a large parent would look large.
    """
    try:
        text = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        import resource

        usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return usage / 1e6 if sys.platform == "darwin" else usage * 1024 / 1e6
    line = next(line for line in text.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e6


def _child(arguments: list[str]) -> None:
    """Measure one file in this fresh process and print a JSON object."""
    folder, runtime, precision, layout, threads, side = arguments
    case = BenchmarkCase(
        Path(folder).name,
        cast(Runtime, runtime),
        cast(Precision, precision),
        cast(Layout, layout),
        batch=1,
        threads=int(threads),
    )
    started = time.perf_counter()
    importlib.import_module(IMPORTS[runtime])
    if IMPORTS[runtime] == "torch":
        set_torch_threads(case.threads)
    imported = time.perf_counter()
    predict = open_case(Path(folder), case)
    loaded = time.perf_counter()
    predict(np.zeros((1, int(side), int(side), 3), np.uint8))
    predicted = time.perf_counter()
    measurements = {
        "import_ms": (imported - started) * 1e3,
        "load_ms": (loaded - imported) * 1e3,
        "first_call_ms": (predicted - loaded) * 1e3,
        "peak_mb": peak_mb(),
    }
    sys.stdout.write(json.dumps({name: round(value, 3) for name, value in measurements.items()}) + "\n")


if __name__ == "__main__":
    _child(sys.argv[1:])
