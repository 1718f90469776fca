from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.winnow.deploy.conftest import BATCH
from winnow.deploy.inference_runtimes import open_case
from winnow.deploy.runtime_properties import RuntimeUnavailable
from winnow.records.benchmark import BenchmarkCase


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
@pytest.mark.parametrize(
    ("runtime", "requirement"), [("ort-cuda", "the extra cuda"), ("ort-tensorrt", "tensorrt-cu13")]
)
def test_onnxruntime_on_the_gpu_names_its_requirements(candidate_folder: Path, runtime: str, requirement: str) -> None:
    with pytest.raises(RuntimeUnavailable, match=f"needs an NVIDIA GPU and .*{requirement}"):
        open_case(candidate_folder, BenchmarkCase("dense", runtime, "f32", "file", 1, 1))  # type: ignore[arg-type]


@pytest.mark.gpu
@pytest.mark.parametrize("runtime", ["ort-cuda", "ort-tensorrt"])
def test_onnxruntime_on_the_gpu_gives_the_logits_of_the_network(
    candidate_folder: Path, pixels: np.ndarray, expected_logits: np.ndarray, runtime: str
) -> None:
    try:
        predict = open_case(candidate_folder, BenchmarkCase("dense", runtime, "f32", "file", BATCH, 1))  # type: ignore[arg-type]
    except RuntimeUnavailable as reason:
        pytest.skip(str(reason))
    np.testing.assert_allclose(
        predict(pixels), expected_logits, rtol=0, atol=1e-2 * max(1.0, np.abs(expected_logits).max())
    )
