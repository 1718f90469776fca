"""Cards are written as they always were, to the byte: MLflow holds their digests."""

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
OF_THE_RUN: dict[str, Any] = {
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
PLAIN = OF_THE_RUN | {"fastest": {}, "test": {}, "split": {"validation_fraction": 0.2, "decoder": "c0de"}}
ADDED = ("resize", "bits", "temperature", "fastest", "test", "split", "pillow")
"""Keys that the first version did not write."""
FIRST = {key: value for key, value in (CANDIDATE | OF_THE_RUN).items() if key not in ADDED}
WITHOUT_CLASSES = {key: value for key, value in CANDIDATE.items() if key != "classes"}
HALF_CHECKED = REFITTED | {"refit": REFITTED["refit"] | {"check": {"images": 1}}}


@pytest.mark.parametrize(
    ("card_type", "content"),
    [
        (CandidateCard, CANDIDATE),
        (CandidateCard, CANDIDATE | {"labels": {"training": 110, "choosing": 60}}),
        (CandidateCard, REFITTED),
        (DeploymentCard, CANDIDATE | OF_THE_RUN),
        (DeploymentCard, REFITTED | OF_THE_RUN),
        (DeploymentCard, CANDIDATE | PLAIN),
        (DeploymentCard, FIRST),
    ],
    ids=["candidate", "no groups", "refitted", "deployed", "refit deployed", "plain", "first version"],
)
def test_a_card_is_written_as_it_was_read(
    card_type: type[CandidateCard], content: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / CARD).write_text(json_text(content), encoding="utf-8")
    before = (tmp_path / CARD).read_bytes()
    card = card_type.read(tmp_path)
    (tmp_path / CARD).unlink()
    card.write(tmp_path)
    assert (tmp_path / CARD).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [CARD]


def test_a_card_made_of_values_holds_the_same_keys_in_the_same_order(tmp_path: Path) -> None:
    expected = [key for key in CANDIDATE if key not in ("resize", "bits")]
    assert list(candidate_card().content()) == expected
    written = deployment_card(fastest=FastestSettings(), test=None, split=SplitRule(), pillow="12.0.0").content()
    assert list(written) == [*expected, *PLAIN]
    assert (written["fastest"], written["test"], written["split"]) == ({}, {}, {})
    single = RuntimeSettings(runtime="ort", precision="f32", threads=1, batch=8, streams=None)
    assert list(single.model_dump()) == ["runtime", "precision", "threads", "batch"]


def test_a_card_of_the_first_version_has_the_defaults(tmp_path: Path) -> None:
    write_json(tmp_path / CARD, FIRST)
    card = DeploymentCard.read(tmp_path)
    assert (card.resize, card.bits, card.temperature, card.refit) == ("crop", 16, 1.0, None)
    assert (card.test, card.fastest, card.split) == (None, FastestSettings(), SplitRule())
    write_json(tmp_path / CARD, FIRST | {"test": {"images": 50.0, "top1": 0.5, "top1_low": 0.4, "top1_high": 0.6}})
    test = DeploymentCard.read(tmp_path).test
    assert test == CardTest(images=50.0, top1=0.5, top1_low=0.4, top1_high=0.6)
    assert (test.baseline, test.warnings, test.abstention.test) == ("", (), None)


def test_keys_of_a_later_version_are_ignored_at_every_depth(tmp_path: Path) -> None:
    write_json(tmp_path / CARD, with_oddities(REFITTED | OF_THE_RUN))
    assert DeploymentCard.read(tmp_path).content() == REFITTED | OF_THE_RUN
    with pytest.raises(ValidationError, match="oddity"):
        candidate_card(oddity=1)


def with_oddities(value: Any) -> Any:
    """The same with one more key in every mapping with fixed keys."""
    if not isinstance(value, dict) or any("/" in key for key in value) or ("pillow" in value and "numpy" in value):
        return value
    return {key: with_oddities(inner) for key, inner in value.items()} | {"oddity": 1}


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
            json_text(HALF_CHECKED),
            r"at refit\.check\.kind: Field",
        ),
    ],
)
def test_a_bad_card_says_what_to_do(text: str | None, message: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / CARD).write_text(text, encoding="utf-8")
    with pytest.raises(ArtifactError, match=message) as caught:
        CandidateCard.read(tmp_path)
    assert str(tmp_path / CARD) in str(caught.value)
    assert text is None or "delete its folder and run winnow again" in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"serving": {"runtime": "abacus"}}, r"at serving\.runtime: Input should be 'eager'"),
        ({"test": {"images": 50.0}}, r"at test\.top1: Field required"),
        ({"machine": None}, r"at machine: Input should be"),
    ],
)
def test_a_deployed_card_that_cannot_be_used_says_what_to_do(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    write_json(tmp_path / CARD, CANDIDATE | OF_THE_RUN | changes)
    with pytest.raises(ArtifactError, match=rf"card\.json is damaged, .*{message}.*update winnow"):
        DeploymentCard.read(tmp_path)


def test_a_candidates_card_is_no_deployed_one(tmp_path: Path) -> None:
    candidate_card().write(tmp_path)
    with pytest.raises(ArtifactError, match=r"at serving: Field required"):
        DeploymentCard.read(tmp_path)
