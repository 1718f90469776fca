"""What to try where pretraining is not shown to help: for the report and the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ENOUGH_PAIRS = 5
"""Label seeds from which on a gain over scratch counts as shown."""
OTHERS = {"rotnet": "simclr", "simclr": "rotnet"}


def pretraining_advice(gain: Mapping[str, Any] | None, method: str, is_up: bool = True) -> str:
    """Return what to try, without a full stop; empty where the gain over random weights is shown, or nothing was tried.

    `gain`: {arm, mean, low, high, pairs} of the fine-tuning's record, points; `is_up`: data.up.
    """
    if gain is None or (gain["low"] > 0 and gain["pairs"] > 1):
        return ""
    what = "the weights of finetune.weights do" if gain["arm"] == "weights" else "pretraining does"
    without = "finetune.weights: data/none" if gain["arm"] == "weights" else "pretrain.method: none"
    other = OTHERS.get(method) if gain["arm"] != "weights" else None
    tries = [] if other is None or (other == "rotnet" and not is_up) else [f"pretrain.method: {other}"]
    tries.append("more images, with or without labels")
    told = f"{what} not help here" if gain["mean"] <= 0 else f"{what} not help by an amount that is shown"
    seeds = ""
    if gain["pairs"] < ENOUGH_PAIRS:
        seeds = f"; {ENOUGH_PAIRS} label seeds (finetune.seeds: {list(range(ENOUGH_PAIRS))}) would show a smaller gain"
    return f"{told}: {without} leaves it out and saves its time; or try {', or '.join(tries)}{seeds}"
