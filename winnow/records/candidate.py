"""Details of the record of a candidate: what was measured on its file, and what its method did.

One model for each method, distinguished by `method`. A method returns its `...Result`; the step adds the measurements.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from winnow.records.model import CurveRow, RecordModel, optional
from winnow.records.step_record import StepRecord


class ClassScores(RecordModel):
    """Precision, recall and F1 of one class as fractions, and its number of images."""

    precision: float
    """Share of the images predicted as this class that belong to it."""
    recall: float
    """Share of the images of this class that are predicted as it."""
    f1: float
    """Harmonic mean of precision and recall."""
    support: int
    """Number of images of this class."""


class ReliabilityBin(RecordModel):
    """One bin of the calibration error: mean confidence, accuracy and number of images."""

    confidence: float
    """Mean confidence."""
    accuracy: float
    """Share of correct predictions."""
    count: int
    """Number of images."""


class ClassDetails(RecordModel):
    """Quality class by class; empty without labelled images."""

    per_class: dict[str, ClassScores] = optional({})
    """Class -> scores."""
    confusion: list[list[int]] = optional([])
    """Number of images by true class (row) and predicted class (column)."""
    reliability: list[ReliabilityBin] = optional([])
    """Confidence and accuracy in bins of the confidence, from which the calibration error is computed."""


class LabelCounts(RecordModel):
    """Numbers of labelled images."""

    training: int
    """Number of labelled images that trained it."""
    choosing: int
    """Number of labelled validation images, which select."""
    choosing_groups: int | None = optional()
    """Number of groups of the labelled validation images; None without data.group_by."""


class CandidateFile(ClassDetails):
    """The measurements and labels that every candidate's record holds."""

    method: str
    """The compression method; finetune for dense."""
    precision: Literal["f32", "int8"]
    """Precision of the weights in the file."""
    lineage: list[str]
    """Names of all candidates from dense to this one."""
    labels: LabelCounts
    """Labels that trained it, and labels that select."""


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


class PruningTrial(RecordModel):
    """One share of channels that was tried, and the quantity that it reached."""

    share: float
    """Share of the channels that was removed."""
    round_to: float
    """Multiple that channel counts were rounded to."""
    reached: int | float | None = optional()
    """The quantity that is left; None where only `confirmed` was measured."""
    confirmed: int | float | None = optional()
    """The quantity in a second, longer timing; None where it was not timed again."""


class PruningCut(RecordModel):
    """One round of pruning."""

    goal: str
    """The quantity with an upper limit: channels, parameters, macs, or a latency."""
    limit: int | float
    """Upper limit of the quantity after this round."""
    before: int | float
    """The quantity before this round."""
    tried: list[PruningTrial] = optional([])
    """Shares of channels that were tried."""
    share: float
    """Share of the channels that was removed."""
    round_to: int
    """Multiple that channel counts were rounded to."""
    parameters: int
    """Number of parameters after this round."""


class MethodResult(RecordModel):
    """The results that all compression methods share."""

    curves: list[CurveRow]
    """One row per epoch of the last training: loss and metrics."""


class PruneResult(MethodResult):
    """The cuts of pruning and the size before and after."""

    curves_before: dict[str, list[CurveRow]]
    """Curves of the trainings before the last round: sparse learning, and recoveries between rounds."""
    cuts: list[PruningCut]
    """Rounds of pruning."""
    parameters_before: int
    """Number of parameters of the parent."""
    macs_before: int
    """Multiply-adds of the parent for one image."""
    parameters_after: int
    """Number of parameters."""
    macs_after: int
    """Multiply-adds for one image."""


class SparsifyResult(MethodResult):
    """The zeros of unstructured or N:M sparsity."""

    masked_share: float
    """Share of the maskable weights that is zero."""
    dense_layers: list[str]
    """Layers without a mask."""


class FactorizeResult(MethodResult):
    """The ranks of low-rank factorisation."""

    ranks: dict[str, int]
    """Layer -> rank of the pair that replaced it."""
    energy: float
    """Share of the squared singular values that is kept."""
    parameters_before: int
    """Number of parameters of the parent."""
    macs_before: int
    """Multiply-adds of the parent for one image."""
    parameters_after: int
    """Number of parameters."""
    macs_after: int
    """Multiply-adds for one image."""


class ClusterResult(MethodResult):
    """The shared values of weight clustering."""

    values: dict[str, int]
    """Weight tensor -> number of distinct values."""


class QuantizationRung(RecordModel):
    """One rung of the ladder, and its loss on one half of the validation split, which selects."""

    rung: str
    """Name of the rung."""
    points_lost: float | None = optional()
    """Top-1 that is lost against the parent on the selecting half, in points."""
    float_layers: list[str] | None = optional()
    """Layers that stay in float."""
    impossible: str | None = optional()
    """Reason why this rung could not be built; None where it could."""


class RungConfirmation(RecordModel):
    """Comparison of the selected file with plain static quantization on the other half of the validation split."""

    rung: str
    """Name of the selected rung."""
    points_lost: float
    """Top-1 that the selected file loses against the parent, in points."""
    static_points_lost: float
    """Top-1 that plain static quantization loses, in points."""
    confirmed: bool
    """True where the selected file loses less, and so replaces the static one."""


class QuantizeResult(MethodResult):
    """The choices of quantization; only what the scheme needs is set."""

    calibration_images: int
    """Number of images that set the activation ranges."""
    rungs: list[QuantizationRung] = optional([])
    """Rungs of the ladder that were tried."""
    chosen: str = optional("")
    """Name of the selected rung; empty without a ladder."""
    float_layers: list[str] | None = optional()
    """Layers that stay in float."""
    confirmation: RungConfirmation | None = optional()
    """Comparison of the selected file with plain static quantization; None without a selection."""
    curves: list[CurveRow] = optional([])
    """One row per epoch of quantization-aware training; empty without it."""


Start = Literal["random", "pretrain", "parent"]
"""The first weights of a student: random, of the step pretrain, or with `student: same` of its parent."""


class DistillResult(MethodResult):
    """The training of a student."""

    teacher: str
    """Name of the teacher."""
    start: Start = optional("random")
    """The first weights of the student."""


class ProbeResult(MethodResult):
    """The linear head on the frozen teacher."""

    features: int
    """Width of the features that the head reads."""


class FinetuneDetails(FinetuneResult, CandidateFile):
    """Details of dense, the fine-tuned network."""

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


class ProbeDetails(ProbeResult, CandidateFile):
    """Details of the teacher with a linear head."""

    method: Literal["probe"]


CandidateDetails = Annotated[
    FinetuneDetails
    | PruneDetails
    | SparsifyDetails
    | FactorizeDetails
    | ClusterDetails
    | QuantizeDetails
    | DistillDetails
    | ProbeDetails,
    Field(discriminator="method"),
]
FinetuneRecord = StepRecord[FinetuneDetails]
CandidateRecord = StepRecord[CandidateDetails]
"""The record of dense or of a compressed candidate."""


def candidate_details(file: CandidateFile, result: MethodResult) -> CandidateDetails:
    """Return the details of a compressed candidate: what was measured on its file, and what its method did."""
    adapter: TypeAdapter[CandidateDetails] = TypeAdapter(CandidateDetails)
    return adapter.validate_python({**dict(file), **dict(result)})
