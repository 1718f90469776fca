from __future__ import annotations

import pytest

from tasks.registry.champion_challenger import incomparable
from tasks.registry.promotion import _split
from winnow.records import StepRecord

CARD = {"classes": ["a", "b"], "image_size": 32}
SPLIT = {"validation_fraction": 0.2, "test_fraction": 0.15}
WHOLE = SPLIT | {"group_by": "none", "decoder": "c0de"}


@pytest.mark.parametrize(
    ("champion", "challenger", "said"),
    [
        (SPLIT, SPLIT, ""),
        (None, SPLIT, ""),
        (SPLIT, None, ""),
        ({}, SPLIT, ""),
        (SPLIT, SPLIT | {"validation_fraction": 0.3}, "validation_fraction 0.2 and test_fraction 0.15, the challenger"),
        (SPLIT | {"test_fraction": 0.1}, SPLIT, "it may have learned from images that validate now"),
        (SPLIT, {"validation_fraction": 0.2}, "the challenger's by validation_fraction 0.2:"),
        (WHOLE, WHOLE, ""),
        (WHOLE, WHOLE | {"group_by": "folder"}, "data.group_by 'none', the challenger's with 'folder': it may have"),
        (WHOLE | {"group_by": "(a)"}, WHOLE | {"group_by": "(b)"}, "data.group_by '(a)', the challenger's with '(b)'"),
        (
            WHOLE,
            WHOLE | {"decoder": "beef"},
            "another decoder, which gives other pixels for the same files (digest c0de, the",
        ),
        # Cards of earlier versions.
        (SPLIT, WHOLE, ""),
        (None, WHOLE, ""),
        (SPLIT, WHOLE | {"group_by": "folder"}, "its card does not say by which group key the images were split"),
        (None, WHOLE | {"group_by": "folder"}, "the other one's key is 'folder'"),
        (WHOLE | {"group_by": "folder"}, SPLIT, "the challenger's card does not say by which group key"),
        (SPLIT | {"validation_fraction": 0.3}, WHOLE, "validation_fraction 0.3 and test_fraction 0.15, the challenger"),
    ],
)
def test_two_splits_are_not_compared(champion: dict | None, challenger: dict | None, said: str) -> None:
    cards = [CARD | ({} if split is None else {"split": split}) for split in (champion, challenger)]
    told = incomparable(*cards)
    assert said in told
    assert bool(told) == bool(said)


@pytest.mark.parametrize(
    ("test_set", "expected"), [("by hash", SPLIT), ("named by the source", {"validation_fraction": 0.2})]
)
def test_the_card_holds_the_rule_of_the_split(test_set: str, expected: dict[str, float]) -> None:
    parameters = SPLIT | {"image_size": 32, "group_by": "folder"}
    details = {"test_set": test_set, "decoder": "c0de"}
    data = StepRecord(step="ingest", name="ingest", parameters=parameters, inputs={}, metrics={}, details=details)
    assert _split(data) == expected | {"group_by": "folder", "decoder": "c0de"}
    earlier = data.model_copy(update={"parameters": SPLIT, "details": {"test_set": test_set}})
    assert _split(earlier) == expected


@pytest.mark.parametrize(
    ("champion", "challenger", "differ"),
    [
        ({}, {"resize": "crop", "bits": 16}, False),
        ({"resize": "pad", "bits": 16}, {"resize": "pad", "bits": 16}, False),
        ({}, {"resize": "stretch", "bits": 16}, True),
        ({"resize": "crop", "bits": 16}, {"resize": "crop", "bits": 12}, True),
    ],
)
def test_models_of_other_pixels_are_not_compared(champion: dict, challenger: dict, differ: bool) -> None:
    told = incomparable(CARD | champion, CARD | challenger)
    assert ("its images become pixels in another way" in told) == differ
    assert bool(told) == differ
