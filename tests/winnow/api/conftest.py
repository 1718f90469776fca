from __future__ import annotations

from pathlib import Path

import pytest

import winnow


@pytest.fixture(scope="module")
def network(tiny_dense: Path) -> winnow.Network:
    """Return `tiny_dense` as a network in memory."""
    loaded = winnow.load(tiny_dense)
    assert isinstance(loaded, winnow.Network)
    return loaded
