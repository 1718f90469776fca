"""Folders that name a split: train, Training, train_set, TestImages, Validation, ... and names that only look so.

A name is cut into words at capitals, digits and signs; words such as `set`, `data` and `images` say nothing. What is
left must be one word that is known. Anything else with such a word in it (fold_1, train2017, eval) looks like a split.
"""

from __future__ import annotations

import re
from typing import Literal

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
LOOK_ALIKE = (*WORDS, "eval", "evaluation", "holdout", "heldout", "fold", "split", "subset")
FILLERS = ("set", "sets", "data", "dataset", "image", "images", "img", "imgs", "photos", "pictures", "split")
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+|[^\W\d_]+")


def split_of(name: str) -> Split | None:
    """Return the split that a folder's name means, None where it means none that is known."""
    words = [word for word in _words(name) if word not in FILLERS]
    return WORDS.get(words[0]) if len(words) == 1 else None


def looks_like_split(name: str) -> bool:
    """Return whether a folder's name has a word in it that names splits."""
    return any(word in LOOK_ALIKE for word in _words(name))


def _words(name: str) -> list[str]:
    """Words in small letters, without what says nothing at their ends: trainset -> train."""
    words = [word.lower() for word in _WORD.findall(name)]
    return [_stem(word) for word in words]


def _stem(word: str) -> str:
    for filler in sorted(FILLERS, key=len, reverse=True):
        stem = word.removesuffix(filler)
        if stem != word and stem in LOOK_ALIKE:
            return stem
    return word
