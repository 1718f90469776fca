"""What every flow does first: give up where its process was gone too often, and work alone in the checkout."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from prefect import runtime
from prefect.logging import get_run_logger

from tasks import checkout
from tasks.settings import Places
from winnow.errors import WinnowError

TAKEN_UP = 5
"""A run whose process was gone is taken up again (flows/automations.yaml), but not for ever."""


@contextlib.contextmanager
def working(root: str) -> Iterator[Places]:
    """The folders of the project. A scheduled run waits for one that works there; a person's raises Occupied."""
    if (runtime.flow_run.run_count or 0) > TAKEN_UP:
        raise WinnowError(
            f"this run's process was gone {TAKEN_UP} times; see .winnow/logs/flows.log and the memory it takes"
        )
    places = Places(Path(root).resolve())
    with checkout.run_alone(places, wait=get_run_logger().warning if runtime.deployment.id else None):
        yield places
