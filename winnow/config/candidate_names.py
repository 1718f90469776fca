"""Names of candidates: the root of the tree, the control, and the names that are allowed."""

from __future__ import annotations

import re

ROOT = "dense"
CONTROL = "dense-kd"
NAME_PATTERN = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
LONGEST_NAME = 60
NAME_RULE = f"at most {LONGEST_NAME} lower-case letters, digits and single hyphens ([a-z0-9-]+)"


def is_candidate_name(name: str) -> bool:
    """Return whether this can be the name of a candidate, which is also that of its folder."""
    return len(name) <= LONGEST_NAME and NAME_PATTERN.fullmatch(name) is not None


RESERVED_NAMES = frozenset(
    {"data", "ingest", "embed", "pretrain", "finetune", "benchmark", "select", "refit", "report"}
)
"""The names of steps and their folders: records, checkpoints and runs are found by name."""
