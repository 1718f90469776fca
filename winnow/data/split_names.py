"""Recognize names of splits, of folders and in tables: train, Training, train_set, TestImages, Validation, ...

A name is cut into words at capitals, digits and signs, and fillers such as `set`, `data` and `images` are dropped. One
known word must remain. Any other name with a word of splits in it (fold_1, train2017, eval) only looks like a split.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from winnow.errors import DataError

Split = Literal["train", "test", "validation"]
WORDS: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "trn": "train",
    "test": "test",
    "testing": "test",
    "tst": "test",
    "val": "validation",
    "valid": "validation",
    "validate": "validation",
    "validation": "validation",
    "dev": "validation",
}
SPLIT_LIKE_WORDS = (*WORDS, "eval", "evaluation", "holdout", "heldout", "fold", "split", "subset")
FILLERS = ("set", "sets", "data", "dataset", "image", "images", "img", "imgs", "photos", "pictures", "split")
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+|[^\W\d_]+")


def parse_split(name: str) -> Split | None:
    """Return the split that a folder's name denotes, or None."""
    words = [word for word in _words(name) if word not in FILLERS]
    return WORDS.get(words[0]) if len(words) == 1 else None


def is_test_row(split: str, file: Path, number: int) -> bool:
    """Return whether row `number` of a table is of the test split; `split` is its cell, which may be empty.

    Raises DataError for another name than one of a split.
    """
    parsed = parse_split(split)
    if split and parsed is None:
        raise DataError(
            f"{file}: row {number} has the split {split[:100]!r}; write train, validation or test, or leave it empty"
        )
    return parsed == "test"


def looks_like_split(name: str) -> bool:
    """Return whether a folder's name contains a word that is used for splits."""
    return any(word in SPLIT_LIKE_WORDS for word in _words(name))


def _words(name: str) -> list[str]:
    """Return the words of a name in lower case, without fillers at their ends: trainset -> train."""
    return [_strip_filler(word.lower()) for word in _WORD.findall(name)]


def _strip_filler(word: str) -> str:
    for filler in sorted(FILLERS, key=len, reverse=True):
        stem = word.removesuffix(filler)
        if stem != word and stem in SPLIT_LIKE_WORDS:
            return stem
    return word
