from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.closure import ROOT

RAISE_CTRL_C = """
import signal
from pathlib import Path
from winnow.deploy.inference_runtimes import open_case
from winnow.records.benchmark import BenchmarkCase

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job is born with Ctrl-C ignored
case = BenchmarkCase("dense", "openvino", "f32", "file", 1, 1)
cases = [open_case(Path({folder!r}), case) for _ in range(3)]
while cases:
    cases.pop(0)
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        print("heard", len(cases))
"""


@pytest.mark.thorough
def test_ctrl_c_is_heard_after_models_of_openvino_were_closed_in_any_order(candidate_folder: Path) -> None:
    code = RAISE_CTRL_C.format(folder=str(candidate_folder))
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout.split("\n")[:-1]) == (0, ["heard 2", "heard 1", "heard 0"]), result.stderr
