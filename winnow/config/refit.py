"""`refit:`: whether the chosen model is trained once more, on training and validation labels, before it is deployed."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from winnow.config.finetune import FEW_LABELS
from winnow.config.section import Number, Section


class Refit(Section):
    """When the winner is trained again, and how much of its answers must stay."""

    when: Literal["auto", "always", "never"] = "auto"
    """auto: with fewer than 500 labelled validation images, and not where data.labels_per_class limits the labels."""
    min_kappa: Annotated[Number, Field(ge=0, lt=1)] = 0.4
    """Least agreement of the refitted and the selected file, corrected for chance (Cohen's kappa: 0 by chance, 1 on
    every image); below it the selected file is deployed."""

    def reason_against(self, choosing: int, label_budget: int | None) -> str:
        """Return why there is no refit with `choosing` labelled validation images; empty where there is one.

        `label_budget`: labels per class that may be used, None where all may.
        """
        if self.when == "never":
            return "refit.when is never"
        if not choosing:
            return "no validation image has a label, so there is no label to add"
        if self.when == "always":
            return ""
        if label_budget is not None:
            return (
                f"data.labels_per_class limits training to {label_budget} labels per class; the {choosing:,} "
                "validation labels would exceed them (refit.when: always uses them all the same)"
            )
        if choosing >= FEW_LABELS:
            return f"{choosing:,} validation images have a label; refit.when: auto takes fewer than {FEW_LABELS}"
        return ""
