from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.winnow.deploy.conftest import BATCH
from winnow.deploy.inference_runtimes import open_case
from winnow.deploy.pytorch_inference import set_torch_threads
from winnow.deploy.runtime_properties import RuntimeUnavailable
from winnow.hardware import cores, cpu_flags, has_fast_bf16
from winnow.records.benchmark import BenchmarkCase


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, BATCH])
def test_torch_compile_gives_the_logits_of_the_network(
    candidate_folder: Path, pixels: np.ndarray, expected_logits: np.ndarray, batch: int
) -> None:
    predict = open_case(candidate_folder, BenchmarkCase("dense", "compile", "f32", "channels_last", batch, 2))
    logits = predict(pixels[:batch])
    np.testing.assert_allclose(
        logits, expected_logits[:batch], rtol=0, atol=1e-4 * max(1.0, np.abs(expected_logits).max())
    )


def test_torch_compile_needs_a_compiler(
    candidate_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeUnavailable, match=r"g\+\+ is not on the PATH"):
        open_case(candidate_folder, BenchmarkCase("dense", "compile", "f32", "channels_last", 1, 1))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_gpu_runtimes_need_a_gpu(candidate_folder: Path) -> None:
    with pytest.raises(RuntimeUnavailable, match="no CUDA device"):
        open_case(candidate_folder, BenchmarkCase("dense", "eager-cuda", "f32", "channels_last", 1, 1))


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["f32", "bf16"])
def test_the_gpu_gives_the_logits_of_the_network(
    candidate_folder: Path, pixels: np.ndarray, expected_logits: np.ndarray, precision: str
) -> None:
    logits = open_case(candidate_folder, BenchmarkCase("dense", "eager-cuda", precision, "channels_last", BATCH, 1))(
        pixels
    )  # type: ignore[arg-type]
    tolerance = (1e-2 if precision == "f32" else 0.1) * max(1.0, np.abs(expected_logits).max())
    np.testing.assert_allclose(logits, expected_logits, rtol=0, atol=tolerance)


def test_threads_and_flags() -> None:
    previous = torch.get_num_threads()
    assert set_torch_threads(1) == previous
    assert (torch.get_num_threads(), set_torch_threads(previous)) == (1, 1)
    assert 1 <= cores() <= len(os.sched_getaffinity(0))
    assert has_fast_bf16() == bool(cpu_flags() & {"avx512_bf16", "amx_bf16"})
