"""Check that cards keep their bytes: MLflow stores their digests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tests.records import candidate_card, deployment_card
from winnow.errors import ArtifactError
from winnow.records import CARD, CandidateCard, DeploymentCard, json_text, this_machine, write_json
from winnow.records.card import CardTest, FastestSettings, RuntimeSettings, SplitRule

THIRD = 1 / 3
CANDIDATE: dict[str, Any] = {
    "name": "pruned-int8",
    "method": "quantize",
    "lineage": ["dense", "pruned", "pruned-int8"],
    "precision": "int8",
    "labels": {"training": 110, "choosing": 60, "choosing_groups": 20},
    "classes": ["Äpfel", "pears"],
    "image_size": 16,
    "resize": "pad",
    "bits": 12,
    "resize_policy": "EXIF orientation, RGB, long side to 16",
    "input": {"name": "pixels", "type": "uint8", "shape": ["N", 16, 16, 3], "note": "RGB, not normalised"},
    "output": {"name": "logits", "type": "float32", "shape": ["N", 2], "note": "logits"},
    "temperature": 0.4876,
    "metrics": {"quality/top1": THIRD, "delta/top1": 0.0, "size/parameters": 4816.0},
    "measured_on": "the validation split",
}
CHECK = {"images": 50, "kind": "training images", "agreement": 0.9, "kappa": 0.85, "gain_on_labels": 1.5, "refusal": ""}
REFITTED = CANDIDATE | {
    "labels": {"training": 170, "choosing": 60, "choosing_groups": 20},
    "measured_on": "the validation split, before the refit",
    "refit": {"labels": 170, "note": "figures are those of the selected file", "check": CHECK, "selected_sha256": "ab"},
}
RUN = {"runtime": "openvino-throughput", "precision": "int8", "threads": 2, "batch": 64, "streams": 2}
COUNTS = {"images": 50, "answered": [50, 49], "right": [40, 40]}
DEPLOYMENT: dict[str, Any] = {
    "serving": RUN | {"p50_ms": 0.5, "objective": "throughput"},
    "speed": {"best/latency_ms": 0.25, "best/latency_threads": 2},
    "fastest": {"latency": {"runtime": "ort", "precision": "int8", "threads": 1, "batch": 1}, "throughput": RUN},
    "machine": this_machine().model_dump(mode="json"),
    "test": {
        "images": 50.0,
        "groups": 10.0,
        "top1": THIRD,
        "top1_low": 0.25,
        "top1_high": 0.5,
        "baseline": "dense-kd",
        "drop_points": 1.0,
        "drop_low": -1.0,
        "drop_high": 3.0,
        "measured_in": "openvino int8, batches of 64",
        "warnings": ["test and validation disagree"],
        "abstention": {"validation": COUNTS, "test": COUNTS},
    },
    "data_version": "0123.dir",
    "split": {"validation_fraction": 0.2, "test_fraction": 0.15, "group_by": "none", "decoder": "c0de"},
    "pillow": "12.0.0",
    "why": "it is the smallest",
}
MINIMAL = DEPLOYMENT | {"fastest": {}, "test": {}, "split": {"validation_fraction": 0.2, "decoder": "c0de"}}
ADDED_KEYS = ("resize", "bits", "temperature", "fastest", "test", "split", "pillow")
"""Keys that cards of the first version lack."""
FIRST_VERSION = {key: value for key, value in (CANDIDATE | DEPLOYMENT).items() if key not in ADDED_KEYS}
WITHOUT_CLASSES = {key: value for key, value in CANDIDATE.items() if key != "classes"}
INCOMPLETE_CHECK = REFITTED | {"refit": REFITTED["refit"] | {"check": {"images": 1}}}


@pytest.mark.parametrize(
    ("card_type", "content"),
    [
        (CandidateCard, CANDIDATE),
        (CandidateCard, CANDIDATE | {"labels": {"training": 110, "choosing": 60}}),
        (CandidateCard, REFITTED),
        (DeploymentCard, CANDIDATE | DEPLOYMENT),
        (DeploymentCard, REFITTED | DEPLOYMENT),
        (DeploymentCard, CANDIDATE | MINIMAL),
        (DeploymentCard, FIRST_VERSION),
    ],
    ids=["candidate", "no groups", "refitted", "deployed", "refit deployed", "plain", "first version"],
)
def test_a_card_round_trips_to_the_byte(
    card_type: type[CandidateCard], content: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / CARD).write_text(json_text(content), encoding="utf-8")
    content_bytes = (tmp_path / CARD).read_bytes()
    card = card_type.read(tmp_path)
    (tmp_path / CARD).unlink()
    card.write(tmp_path)
    assert (tmp_path / CARD).read_bytes() == content_bytes
    assert [path.name for path in tmp_path.iterdir()] == [CARD]


def test_a_card_built_from_values_has_the_same_keys_in_the_same_order(tmp_path: Path) -> None:
    expected = [key for key in CANDIDATE if key not in ("resize", "bits")]
    assert list(candidate_card().content()) == expected
    content = deployment_card(fastest=FastestSettings(), test=None, split=SplitRule(), pillow="12.0.0").content()
    assert list(content) == [*expected, *MINIMAL]
    assert (content["fastest"], content["test"], content["split"]) == ({}, {}, {})
    settings = RuntimeSettings(runtime="ort", precision="f32", threads=1, batch=8, streams=None)
    assert list(settings.model_dump()) == ["runtime", "precision", "threads", "batch"]


def test_a_card_of_the_first_version_has_the_defaults(tmp_path: Path) -> None:
    write_json(tmp_path / CARD, FIRST_VERSION)
    card = DeploymentCard.read(tmp_path)
    assert (card.resize, card.bits, card.temperature, card.refit) == ("crop", 16, 1.0, None)
    assert (card.test, card.fastest, card.split) == (None, FastestSettings(), SplitRule())
    write_json(
        tmp_path / CARD, FIRST_VERSION | {"test": {"images": 50.0, "top1": 0.5, "top1_low": 0.4, "top1_high": 0.6}}
    )
    test = DeploymentCard.read(tmp_path).test
    assert test == CardTest(images=50.0, top1=0.5, top1_low=0.4, top1_high=0.6)
    assert (test.baseline, test.warnings, test.abstention.test) == ("", (), None)


def test_keys_of_a_later_version_are_ignored_at_every_depth(tmp_path: Path) -> None:
    write_json(tmp_path / CARD, with_unknown_keys(REFITTED | DEPLOYMENT))
    assert DeploymentCard.read(tmp_path).content() == REFITTED | DEPLOYMENT
    with pytest.raises(ValidationError, match="oddity"):
        candidate_card(oddity=1)


def with_unknown_keys(value: Any) -> Any:
    """Return the content with one more key in every mapping with fixed keys."""
    if not isinstance(value, dict) or any("/" in key for key in value) or ("pillow" in value and "numpy" in value):
        return value
    return {key: with_unknown_keys(item) for key, item in value.items()} | {"oddity": 1}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"card\.json is missing"),
        ('{"name": "dense", ', r"card\.json is damaged"),
        ("[]", r"card\.json is damaged.*\(at the top: "),
        (
            json_text(WITHOUT_CLASSES),
            r"at classes: Field required",
        ),
        (json_text(CANDIDATE | {"image_size": "large"}), r"at image_size: Input should be a valid integer"),
        (json_text(CANDIDATE | {"metrics": {"size/mb": "small"}}), r"at metrics\.size/mb: "),
        (
            json_text(INCOMPLETE_CHECK),
            r"at refit\.check\.kind: Field",
        ),
    ],
)
def test_a_damaged_card_is_an_error_with_a_remedy(text: str | None, message: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / CARD).write_text(text, encoding="utf-8")
    with pytest.raises(ArtifactError, match=message) as exc_info:
        CandidateCard.read(tmp_path)
    assert str(tmp_path / CARD) in str(exc_info.value)
    assert text is None or "delete its folder and run winnow again" in str(exc_info.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"serving": {"runtime": "abacus"}}, r"at serving\.runtime: Input should be 'eager'"),
        ({"test": {"images": 50.0}}, r"at test\.top1: Field required"),
        ({"machine": None}, r"at machine: Input should be"),
    ],
)
def test_an_unusable_deployment_card_is_an_error_with_a_remedy(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    write_json(tmp_path / CARD, CANDIDATE | DEPLOYMENT | changes)
    with pytest.raises(ArtifactError, match=rf"card\.json is damaged, .*{message}.*update winnow"):
        DeploymentCard.read(tmp_path)


def test_a_candidate_card_is_not_a_deployment_card(tmp_path: Path) -> None:
    candidate_card().write(tmp_path)
    with pytest.raises(ArtifactError, match=r"at serving: Field required"):
        DeploymentCard.read(tmp_path)
