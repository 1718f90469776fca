"""Details of the record of pretrain."""

from __future__ import annotations

from winnow.records.embed import KnownWeightsDetails
from winnow.records.model import CurveRow, RecordModel, optional
from winnow.records.step_record import StepRecord


class PretrainDetails(RecordModel):
    """The curves of pretraining: loss, spread of the embeddings, kNN accuracy."""

    curves: list[CurveRow]
    """One row per epoch: loss, and where it was evaluated, kNN accuracy and the spread of the embeddings."""
    start: KnownWeightsDetails | None = optional()
    """The weights that the backbone started from; None: random ones."""


PretrainRecord = StepRecord[PretrainDetails]
