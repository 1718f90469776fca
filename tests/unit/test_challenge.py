from __future__ import annotations

import pytest

from tasks.challenge import incomparable
from tasks.promotion import _split
from winnow.records import StepRecord

CARD = {"classes": ["a", "b"], "image_size": 32}
SPLIT = {"validation_fraction": 0.2, "test_fraction": 0.15}


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
def test_the_card_holds_the_shares_that_decide(test_set: str, expected: dict[str, float]) -> None:
    parameters = SPLIT | {"image_size": 32}
    details = {"test_set": test_set}
    data = StepRecord(step="ingest", name="ingest", parameters=parameters, inputs={}, metrics={}, details=details)
    assert _split(data) == expected
