from __future__ import annotations

import pytest

from tasks.registry.comparability import find_difference
from tests.records import deployment_card

SPLIT = {"validation_fraction": 0.2, "test_fraction": 0.15}
WHOLE = SPLIT | {"group_by": "none", "decoder": "c0de"}


@pytest.mark.parametrize(
    ("champion", "challenger", "expected"),
    [
        (SPLIT, SPLIT, ""),
        (None, SPLIT, ""),
        (SPLIT, None, ""),
        ({}, SPLIT, ""),
        (SPLIT, SPLIT | {"validation_fraction": 0.3}, "validation_fraction 0.2 and test_fraction 0.15, the challenger"),
        (SPLIT | {"test_fraction": 0.1}, SPLIT, "it may have been trained on images that are validation images now"),
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
        (None, WHOLE | {"group_by": "folder"}, "the other has 'folder'"),
        (WHOLE | {"group_by": "folder"}, SPLIT, "the challenger's card does not say by which group key"),
        (SPLIT | {"validation_fraction": 0.3}, WHOLE, "validation_fraction 0.3 and test_fraction 0.15, the challenger"),
    ],
)
def test_models_of_different_splits_are_not_compared(
    champion: dict | None, challenger: dict | None, expected: str
) -> None:
    cards = [deployment_card(**({} if split is None else {"split": split})) for split in (champion, challenger)]
    reason = find_difference(*cards)
    assert expected in reason
    assert bool(reason) == bool(expected)


@pytest.mark.parametrize(
    ("champion", "challenger", "differs"),
    [
        ({}, {"resize": "crop", "bits": 16}, False),
        ({"resize": "pad", "bits": 16}, {"resize": "pad", "bits": 16}, False),
        ({}, {"resize": "stretch", "bits": 16}, True),
        ({"resize": "crop", "bits": 16}, {"resize": "crop", "bits": 12}, True),
    ],
)
def test_models_of_different_preprocessing_are_not_compared(champion: dict, challenger: dict, differs: bool) -> None:
    reason = find_difference(deployment_card(**champion), deployment_card(**challenger))
    assert ("its preprocessing (" in reason) == differs
    assert bool(reason) == differs
