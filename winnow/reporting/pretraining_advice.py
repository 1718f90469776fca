"""What to try where pretraining is not shown to help: for the report and the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from winnow.config.data import Data
from winnow.config.invariances import pretraining_problem

ENOUGH_PAIRS = 5
"""Label seeds from which on a gain over scratch counts as shown."""
OTHERS = {"rotnet": "simclr", "simclr": "rotnet"}


def pretraining_advice(gain: Mapping[str, Any] | None, method: str, data: Data) -> str:
    """Return what to try, without a full stop; empty where the gain over random weights is shown, or nothing was tried.

    `gain`: {arm, mean, low, high, pairs} of the fine-tuning's record, points. A gain counts as shown from ENOUGH_PAIRS
    label seeds on; a gain of fewer is no reason to leave pretraining out.
    """
    few = gain is not None and gain["pairs"] < ENOUGH_PAIRS
    if gain is None or (gain["low"] > 0 and not few):
        return ""
    own = gain["arm"] == "weights"
    seeds = f"{ENOUGH_PAIRS} label seeds (finetune.seeds: {list(range(ENOUGH_PAIRS))})"
    if gain["mean"] > 0 and few:
        return f"whether {'these weights help' if own else 'pretraining helps'} is not shown: {seeds} would tell"
    what = "the weights of finetune.weights do" if own else "pretraining does"
    how = "" if gain["mean"] <= 0 else " by an amount that is shown"
    without = "finetune.weights: data/none starts without them"
    if not own:
        without = "pretrain.method: none leaves it out and saves its time"
    other = None if own else OTHERS.get(method)
    tries = [f"pretrain.method: {other}"] if other and not pretraining_problem(data, other) else []
    tries.append("more images, with or without labels")
    more = f"; {seeds} would show a smaller gain" if few else ""
    return f"{what} not help{how or ' here'}: {without}; or try {', or '.join(tries)}{more}"
