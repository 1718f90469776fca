"""Details of the record of pretrain."""

from __future__ import annotations

from winnow.records.model import CurveRow, RecordModel
from winnow.records.step_record import StepRecord


class PretrainDetails(RecordModel):
    """The curves of pretraining: loss, spread of the embeddings, kNN accuracy."""

    curves: list[CurveRow]


PretrainRecord = StepRecord[PretrainDetails]
