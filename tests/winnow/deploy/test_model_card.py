from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.winnow.deploy.conftest import DEPLOYMENT_FIELDS
from winnow.deploy.model_card import render_model_card
from winnow.records import CandidateCard, DeploymentCard


def render(content: dict[str, Any], **changes: Any) -> str:
    return render_model_card(DeploymentCard(**content | changes), "photos, version 1 (dense-int8)")


def test_origin_speed_and_accuracy(promoted: Path) -> None:
    content = DeploymentCard.read(promoted).content()
    text = render(content)
    assert "# photos, version 1 (dense-int8)" in text
    assert "dense > dense-int8, int8" in text
    assert "| p50 latency, one image | 0.112 ms (ort, int8, 2 threads, batch 1) |" in text
    assert "18546 images/s (openvino (PERFORMANCE_HINT THROUGHPUT, 2 streams of 32 images each), int8, 2 thr" in text
    assert "On 2000 test images, not used for any selection: 43.8 % top-1 (95 % interval 41.6 to 46.0).\n" in text
    assert f"{content['metrics']['quality/top1'] * 100:.1f} %" in text


def test_the_drop_and_warnings_of_the_test_split(promoted: Path) -> None:
    figures = {"baseline": "dense-kd", "drop_points": 1.25, "drop_low": 0.5, "drop_high": 2.0}
    measurement = {"measured_in": "openvino int8, batches of 1", "warnings": ["the intervals do not overlap"]}
    test = DEPLOYMENT_FIELDS["test"] | figures | measurement
    text = render(DeploymentCard.read(promoted).content(), test=test)
    assert ", measured in openvino int8, batches of 1; 1.2 points below dense-kd (0.5 to 2.0).\n" in text
    assert "## Quality\n\n**Warning:** the intervals do not overlap.\n\nMeasured on" in text


def test_only_int8_files_need_a_fixed_batch(promoted: Path, tiny_candidate: Callable[[str], Path]) -> None:
    assert "reshape the model" in render(DeploymentCard.read(promoted).content())
    float_card = CandidateCard.read(tiny_candidate("dense")).content() | DEPLOYMENT_FIELDS
    text = render(float_card, test={})
    assert "reshape the model" not in text
    assert "test images" not in text


def test_serving_in_streams_and_without_labels(promoted: Path) -> None:
    content = DeploymentCard.read(promoted).content()
    for key in [key for key in content["metrics"] if key.startswith("quality/") and key != "quality/agreement"]:
        del content["metrics"][key]
    streams = {"runtime": "openvino-throughput", "threads": 4, "batch": 64, "streams": 4}
    serving = "| serve with | openvino (PERFORMANCE_HINT THROUGHPUT, 4 streams of 16 images each), int8, 4 threads |"
    assert serving in render(content, serving=DEPLOYMENT_FIELDS["serving"] | streams)
    unlabelled = render(content, test={}).partition("## Speed")[0]
    assert "top-1" not in unlabelled.partition("## Quality")[2]
