"""The section `refit:`: when to train the selected model again on training and validation labels before deployment."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from winnow.config.finetune import FEW_LABELS
from winnow.config.section import Number, Section


class Refit(Section):
    """The last training of the winner, on training and validation labels."""

    when: Literal["auto", "always", "never"] = "auto"
    """When to refit. auto: with fewer than 500 labelled validation images, unless data.labels_per_class limits the
    labels."""
    min_kappa: Annotated[Number, Field(ge=0, lt=1)] = 0.4
    """The smallest Cohen's kappa (agreement corrected for chance) of the refitted and the selected file; below it the
    selected file is deployed."""

    def reason_against(self, validation_labels: int, label_budget: int | None) -> str:
        """Return the reason for no refit, given the number of labelled validation images; "" where there is a refit.

        `label_budget` is the number of labels per class that may be used, None for all.
        """
        if self.when == "never":
            return "refit.when is never"
        if not validation_labels:
            return "no validation image has a label, so there is no label to add"
        if self.when == "always":
            return ""
        if label_budget is not None:
            return (
                f"data.labels_per_class limits training to {label_budget} labels per class; the "
                f"{validation_labels:,} validation labels would exceed them (refit.when: always uses them anyway)"
            )
        if validation_labels >= FEW_LABELS:
            return (
                f"{validation_labels:,} validation images have a label; refit.when: auto requires fewer than "
                f"{FEW_LABELS}"
            )
        return ""
