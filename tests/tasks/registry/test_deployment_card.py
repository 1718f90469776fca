from __future__ import annotations

import pytest

from tasks.registry.deployment_card import split_rule
from tests.records import ingest_details, make_record

SPLIT = {"validation_fraction": 0.2, "test_fraction": 0.15}


@pytest.mark.parametrize(
    ("test_set", "expected"), [("by hash", SPLIT), ("named by the source", {"validation_fraction": 0.2})]
)
def test_the_card_holds_the_split_rule(test_set: str, expected: dict[str, float]) -> None:
    parameters = SPLIT | {"image_size": 32, "group_by": "folder"}
    data = make_record("ingest", ingest_details(("a", "b"), test_set=test_set), parameters=parameters)
    assert split_rule(data).model_dump() == expected | {"group_by": "folder", "decoder": "c0de"}
    earlier = data.model_copy(update={"parameters": SPLIT})
    assert split_rule(earlier).model_dump() == expected | {"decoder": "c0de"}
