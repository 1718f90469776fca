"""Details of the record of pretrain."""

from __future__ import annotations

from winnow.records.model import CurveRow, RecordModel
from winnow.records.step_record import StepRecord


class PretrainDetails(RecordModel):
    """The curves of pretraining: loss, spread of the embeddings, kNN accuracy."""

    curves: list[CurveRow]
    """One row per epoch: loss, and where it was evaluated, kNN accuracy and the spread of the embeddings."""


PretrainRecord = StepRecord[PretrainDetails]
