"""Checks on two cards: can champion and challenger be compared on the validation split, or is one a refit?

Two models can be compared where classes, image size, preprocessing and the rule of the split are equal. With another
split the champion may have been trained on images that are validation images now.
"""

from __future__ import annotations

from pathlib import Path

from winnow.data.preprocessing import Preprocessing
from winnow.deploy.onnx_session import MODEL
from winnow.records import DeploymentCard, sha256_of
from winnow.records.card import SplitRule
from winnow.refit.deployed_folder import selected_folder


def find_difference(champion: DeploymentCard, challenger: DeploymentCard) -> str:
    """Return why the two cannot be compared on one validation split; "" where they can."""
    if champion.classes != challenger.classes:
        return f"its classes are {_few(champion.classes)}, the challenger's {_few(challenger.classes)}"
    if champion.image_size != challenger.image_size:
        return f"it takes images of {champion.image_size} pixels, the challenger {challenger.image_size}"
    before, after = Preprocessing.of(champion), Preprocessing.of(challenger)
    if before != after:
        return f"its preprocessing ({before.policy}) differs from the challenger's ({after.policy})"
    if difference := _split_difference(champion.split, challenger.split):
        return f"{difference}: it may have been trained on images that are validation images now"
    return ""


def _split_difference(champion: SplitRule, challenger: SplitRule) -> str:
    """Return the difference between the rules of the two splits; "" where they are equal.

    Cards of earlier versions have no group key and no decoder. A missing value counts as equal, but where one card has
    no group key the other's must be `none`.
    """
    if (
        (champion_fractions := _fractions(champion))
        and (challenger_fractions := _fractions(challenger))
        and champion_fractions != challenger_fractions
    ):
        shares = _shares(champion_fractions), _shares(challenger_fractions)
        return f"its images were split by {shares[0]}, the challenger's by {shares[1]}"
    group_keys = [split.group_by for split in (champion, challenger) if split.group_by is not None]
    if len(group_keys) == 2 and group_keys[0] != group_keys[1]:
        return f"its images were split with data.group_by {group_keys[0]!r}, the challenger's with {group_keys[1]!r}"
    if len(group_keys) == 1 and group_keys[0] != "none":
        owner = "its" if champion.group_by is None else "the challenger's"
        return f"{owner} card does not say by which group key the images were split; the other has {group_keys[0]!r}"
    if champion.decoder and challenger.decoder and champion.decoder != challenger.decoder:
        return (
            "its images were split by the pixels of another decoder, which gives other pixels for the same files "
            f"(digest {champion.decoder}, the challenger's {challenger.decoder})"
        )
    return ""


def find_refit(champion: tuple[Path, DeploymentCard], challenger: tuple[Path, DeploymentCard]) -> str:
    """Return why a challenger that is a refit of the champion's file replaces it; "" where it is not a refit.

    Both are given as (folder, card). The refit step has compared the two already; on validation images they cannot be
    compared any more. A champion that is a refit itself must have been trained on fewer labels.
    """
    (champion_folder, champion_card), (challenger_folder, challenger_card) = champion, challenger
    if sha256_of(selected_folder(champion_folder) / MODEL) != sha256_of(selected_folder(challenger_folder) / MODEL):
        return ""
    champion_labels, labels = champion_card.labels.training, challenger_card.labels.training
    if challenger_card.refit is None or labels <= champion_labels:
        return ""
    return (
        f"it is the champion's file, refitted on {labels:,} labels, and the champion was trained on {champion_labels:,}"
    )


def _fractions(split: SplitRule) -> dict[str, float]:
    return split.model_dump(include={"validation_fraction", "test_fraction"})


def _shares(fractions: dict[str, float]) -> str:
    return " and ".join(f"{key} {share:g}" for key, share in fractions.items())


def _few(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
