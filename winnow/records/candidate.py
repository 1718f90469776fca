"""Details of the record of a candidate: what was measured on its file, and what its method did.

One model for each method, told apart by `method`. A method returns its `...Result`; the step adds the measurements.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from winnow.records.model import CurveRow, RecordModel, optional
from winnow.records.step_record import StepRecord


class ClassScores(RecordModel):
    """Precision, recall and F1 of one class, fractions, and its number of images."""

    precision: float
    recall: float
    f1: float
    support: int


class ReliabilityBin(RecordModel):
    """One bin of the calibration error: mean confidence, accuracy and number of images."""

    confidence: float
    accuracy: float
    count: int


class ClassDetails(RecordModel):
    """Quality class by class; empty without labelled images."""

    per_class: dict[str, ClassScores] = optional({})
    confusion: list[list[int]] = optional([])
    """Counts, true class by predicted class."""
    reliability: list[ReliabilityBin] = optional([])


class LabelCounts(RecordModel):
    """The labels that trained a candidate, and those that it was measured on."""

    training: int
    choosing: int
    choosing_groups: int | None = optional()
    """Groups of the labelled validation images, where data.group_by is set."""


class CandidateFile(ClassDetails):
    """The measurements and labels that every candidate's record holds."""

    method: str
    precision: Literal["f32", "int8"]
    lineage: list[str]
    """From dense to this candidate."""
    labels: LabelCounts


class ArmTraining(RecordModel):
    """One fine-tuning of one arm; `top1` is a fraction."""

    seed: int
    learning_rate: float
    steps: int
    top1: float


class TriedTraining(RecordModel):
    """A training of the first seed, at one of the learning rates that were tried."""

    arm: str
    seed: int
    learning_rate: float
    steps: int
    top1: float


class LinearProbe(RecordModel):
    """Top-1 of logistic regression on frozen features, a fraction."""

    seed: int
    top1: float


class PretrainingGain(RecordModel):
    """The gain of an arm over scratch, in points, paired by label seed."""

    arm: str
    mean: float
    low: float
    high: float
    pairs: int


class ArmComparison(RecordModel):
    """The arms of fine-tuning: the trainings of each at its chosen rate, by label seed."""

    pretrained: list[ArmTraining] = optional([])
    scratch: list[ArmTraining] = optional([])
    weights: list[ArmTraining] = optional([])
    """From a user's file."""
    linear_probe: LinearProbe
    tried: list[TriedTraining]
    gain: PretrainingGain | None
    """None where nothing was pretrained."""

    def trainings(self, arm: str) -> list[ArmTraining]:
        """Return the trainings of an arm; [] where it was not trained."""
        rows: list[ArmTraining] = getattr(self, arm)
        return rows


class CrossValidationSummary(RecordModel):
    """Cross-validation of dense's recipe over all visible labels."""

    labels: int
    folds: int
    per_class: dict[str, ClassScores]


class FinetuneResult(RecordModel):
    """The trainings of fine-tuning."""

    arms: ArmComparison
    cross_validation: CrossValidationSummary | None
    curves: list[CurveRow]


class PruningTrial(RecordModel):
    """One share of channels that was tried, and the quantity that it reached."""

    share: float
    round_to: float
    reached: int | float | None = optional()
    confirmed: int | float | None = optional()
    """The quantity in a second, longer timing."""


class PruningCut(RecordModel):
    """One round of pruning."""

    goal: str
    """The quantity with an upper limit: channels, parameters, macs, or a latency."""
    limit: int | float
    before: int | float
    tried: list[PruningTrial] = optional([])
    share: float
    """Share of the channels that was removed."""
    round_to: int
    parameters: int
    """Parameters after this round."""


class MethodResult(RecordModel):
    """What a method of compression did."""

    curves: list[CurveRow]
    """Of its last training."""


class PruneResult(MethodResult):
    """The cuts of pruning and the size before and after."""

    curves_before: dict[str, list[CurveRow]]
    """Trainings before the last cut: sparse learning, and short recoveries."""
    cuts: list[PruningCut]
    parameters_before: int
    macs_before: int
    parameters_after: int
    macs_after: int


class SparsifyResult(MethodResult):
    """The zeros of unstructured or N:M sparsity."""

    masked_share: float
    """Share of the maskable weights that is zero."""
    dense_layers: list[str]
    """Layers without a mask."""


class FactorizeResult(MethodResult):
    """The ranks of low-rank factorisation."""

    ranks: dict[str, int]
    energy: float
    """Share of the squared singular values that is kept."""
    parameters_before: int
    macs_before: int
    parameters_after: int
    macs_after: int


class ClusterResult(MethodResult):
    """The shared values of weight clustering."""

    values: dict[str, int]
    """Weight -> number of distinct values."""


class QuantizationRung(RecordModel):
    """One rung of the ladder: its loss on the selecting half, or why it is impossible."""

    rung: str
    points_lost: float | None = optional()
    float_layers: list[str] | None = optional()
    impossible: str | None = optional()


class RungConfirmation(RecordModel):
    """The selected file beside plain static quantization on the confirming half; losses in points."""

    rung: str
    points_lost: float
    static_points_lost: float
    confirmed: bool


class QuantizeResult(MethodResult):
    """The choices of quantization; only what the scheme needs is set."""

    calibration_images: int
    rungs: list[QuantizationRung] = optional([])
    chosen: str = optional("")
    """Rung of the ladder."""
    float_layers: list[str] | None = optional()
    confirmation: RungConfirmation | None = optional()
    curves: list[CurveRow] = optional([])


class DistillResult(MethodResult):
    """The training of a student."""

    teacher: str


class FinetuneDetails(FinetuneResult, CandidateFile):
    """Details of dense."""

    method: Literal["finetune"]


class PruneDetails(PruneResult, CandidateFile):
    """Details of a pruned candidate."""

    method: Literal["prune"]


class SparsifyDetails(SparsifyResult, CandidateFile):
    """Details of a sparse candidate."""

    method: Literal["sparsify"]


class FactorizeDetails(FactorizeResult, CandidateFile):
    """Details of a factorised candidate."""

    method: Literal["factorize"]


class ClusterDetails(ClusterResult, CandidateFile):
    """Details of a clustered candidate."""

    method: Literal["cluster"]


class QuantizeDetails(QuantizeResult, CandidateFile):
    """Details of a quantized candidate."""

    method: Literal["quantize"]


class DistillDetails(DistillResult, CandidateFile):
    """Details of a student."""

    method: Literal["distill"]


CandidateDetails = Annotated[
    FinetuneDetails
    | PruneDetails
    | SparsifyDetails
    | FactorizeDetails
    | ClusterDetails
    | QuantizeDetails
    | DistillDetails,
    Field(discriminator="method"),
]
FinetuneRecord = StepRecord[FinetuneDetails]
CandidateRecord = StepRecord[CandidateDetails]
"""The record of dense or of a compressed candidate."""


def candidate_details(file: CandidateFile, result: MethodResult) -> CandidateDetails:
    """Return the details of a compressed candidate: what was measured on its file, and what its method did."""
    adapter: TypeAdapter[CandidateDetails] = TypeAdapter(CandidateDetails)
    return adapter.validate_python({**dict(file), **dict(result)})
