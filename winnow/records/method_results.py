"""Results of the compression methods: what each method did. One model for each."""

from __future__ import annotations

from typing import Literal

from winnow.records.model import CurveRow, RecordModel, optional

TeacherKind = Literal["pseudo-labels", "dense", "none"]
"""What a recovery learns beside the labels."""


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
    teacher: TeacherKind | None = optional()
    """What the training learned beside the labels: the pseudo-labels of the large network, the outputs of dense, or
    none; None where nothing was trained."""


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

    start: Start = optional("random")
    """The first weights of the student."""


class ProbeResult(MethodResult):
    """The linear head on the frozen teacher."""

    features: int
    """Width of the features that the head reads."""
