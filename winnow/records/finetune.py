"""Details of the record of dense, the fine-tuned network: trainings from each kind of starting weights (arms), training
on images without labels, and cross-validation.
"""

from __future__ import annotations

from typing import Literal

from winnow.records.candidate_file import CandidateFile, ClassScores
from winnow.records.model import CurveRow, RecordModel, optional
from winnow.records.step_record import StepRecord


class ArmTraining(RecordModel):
    """One fine-tuning from one kind of starting weights."""

    seed: int
    """The label seed (finetune.seeds)."""
    learning_rate: float
    """The learning rate."""
    steps: int
    """Number of training steps."""
    top1: float
    """Top-1 on the validation split, a fraction."""


class TriedTraining(RecordModel):
    """A training of the first seed, at one of the learning rates that were tried."""

    arm: str
    """Starting weights: pretrained, scratch (random) or weights (a user's file)."""
    seed: int
    """The label seed (finetune.seeds)."""
    learning_rate: float
    """The learning rate."""
    steps: int
    """Number of training steps."""
    top1: float
    """Top-1 on the validation split, a fraction."""


class LinearProbe(RecordModel):
    """Top-1 of logistic regression on frozen features, a fraction."""

    seed: int
    """The label seed (finetune.seeds)."""
    top1: float
    """Top-1 on the validation split, a fraction."""


class PretrainingGain(RecordModel):
    """Gain of an arm in points of top-1, paired by label seed."""

    arm: str
    """Starting weights: pretrained, start or weights, against random ones; or unlabelled, against labels alone."""
    mean: float
    """Mean gain over the label seeds."""
    low: float
    """Lower end of the 95 % interval."""
    high: float
    """Upper end of the 95 % interval."""
    pairs: int
    """Number of label seeds."""


class ArmComparison(RecordModel):
    """Trainings from each kind of starting weights (arm) at its selected learning rate, one for each label seed."""

    pretrained: list[ArmTraining] = optional([])
    """Trainings from the pretrained backbone."""
    start: list[ArmTraining] = optional([])
    """Trainings from known weights (pretrain.start), without pretraining."""
    scratch: list[ArmTraining] = optional([])
    """Trainings from random weights."""
    weights: list[ArmTraining] = optional([])
    """Trainings from the user's file (finetune.weights)."""
    linear_probe: LinearProbe
    """Logistic regression on the frozen features."""
    tried: list[TriedTraining]
    """Trainings that selected the learning rate."""
    gain: PretrainingGain | None
    """Gain over random weights; None where nothing was pretrained."""

    def trainings(self, arm: str) -> list[ArmTraining]:
        """Return the trainings of an arm; [] where it was not trained."""
        rows: list[ArmTraining] = getattr(self, arm)
        return rows


class CrossValidationSummary(RecordModel):
    """Cross-validation of dense's training over all labels that may be used."""

    labels: int
    """Number of labelled images."""
    folds: int
    """Number of folds, each of which trained one network."""
    per_class: dict[str, ClassScores]
    """Class -> scores."""


class UnlabelledRow(RecordModel):
    """One training on images without labels, after the fine-tuning with the same label seed."""

    seed: int
    """The label seed (finetune.seeds)."""
    steps: int
    """Number of training steps."""
    top1: float
    """Top-1 on the validation split, a fraction."""
    precision: float | None
    """Share of right pseudo-labels among those given to labelled validation images; None where none was given."""
    coverage: float
    """Share of those images that were given a pseudo-label."""


class UnlabelledComparison(RecordModel):
    """Training on images without labels (finetune.unlabelled), compared with fine-tuning alone."""

    method: str
    """The method."""
    kept: bool
    """True: dense is the network after this training, since its mean top-1 is higher."""
    trainings: list[UnlabelledRow]
    """One for each label seed."""
    gain: PretrainingGain
    """Gain over fine-tuning alone."""


class FinetuneResult(RecordModel):
    """The trainings of fine-tuning."""

    arms: ArmComparison
    """Trainings from each kind of starting weights."""
    unlabelled: UnlabelledComparison | None = optional()
    """Training on images without labels; None where there was none."""
    cross_validation: CrossValidationSummary | None
    """Accuracy of dense over all labels; None where it was not cross-validated."""
    curves: list[CurveRow]
    """One row per epoch: loss and metrics."""


class FinetuneDetails(FinetuneResult, CandidateFile):
    """Details of dense, the fine-tuned network."""

    method: Literal["finetune"]


FinetuneRecord = StepRecord[FinetuneDetails]
