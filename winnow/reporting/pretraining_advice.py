"""Advice on what to try where pretraining is not shown to help, for the report and the terminal."""

from __future__ import annotations

from winnow.config.data import Data
from winnow.config.invariances import pretraining_problem
from winnow.config.section import NO_FILE
from winnow.config.weights import NO_WEIGHTS
from winnow.records.finetune import PretrainingGain

ENOUGH_PAIRS = 5
"""Label seeds from which on a gain over scratch counts as shown."""
OTHER_METHODS = {"rotnet": "simclr", "simclr": "rotnet"}


def pretraining_advice(gain: PretrainingGain | None, method: str, data: Data) -> str:
    """Return what to try, without a full stop; empty where the gain over scratch is shown, or nothing was tried.

    A gain counts as shown from ENOUGH_PAIRS label seeds on; one over fewer seeds is no reason to leave pretraining out.
    """
    few = gain is not None and gain.pairs < ENOUGH_PAIRS
    if gain is None or (gain.low > 0 and not few):
        return ""
    key = {"weights": "finetune.weights", "start": "pretrain.start"}.get(gain.arm)
    seeds = f"{ENOUGH_PAIRS} label seeds (finetune.seeds: {list(range(ENOUGH_PAIRS))})"
    if gain.mean > 0 and few:
        question = "these weights help" if key else "pretraining helps"
        return f"whether {question} is not shown; use {seeds}"
    subject = f"the weights of {key} do" if key else "pretraining does"
    amount = "" if gain.mean <= 0 else " significantly"
    without = "pretrain.method: none saves its time"
    if key:
        without = f"{key}: {NO_WEIGHTS if gain.arm == 'start' else NO_FILE} turns them off"
    other_method = None if key else OTHER_METHODS.get(method)
    suggestions = (
        [f"pretrain.method: {other_method}"] if other_method and not pretraining_problem(data, other_method) else []
    )
    suggestions.append("more images, with or without labels")
    more = f"; {seeds} can show a smaller gain" if few else ""
    return f"{subject} not help{amount or ' here'}: {without}; or try {', or '.join(suggestions)}{more}"
