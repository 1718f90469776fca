"""The section `candidates:`: the tree of compressed models. Each names its parent (`from`) and one `method`.

`dense`, the fine-tuned model, is the root. `method` discriminates the union below; a new method is one model here, one
file in winnow/compression/ named after the method, and one line in that package's dict. candidate_tree.py checks the
tree as a whole.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, model_validator

from winnow.config.backbones import SCALABLE_BACKBONES, Student
from winnow.config.candidate_names import ROOT
from winnow.config.pruning_amount import Remove, Share
from winnow.config.recovery import Recovery
from winnow.config.section import (
    Count,
    Integer,
    Number,
    Positive,
    Section,
    Seed,
)


class Candidate(Section):
    """A candidate of any method, with its parent in the tree."""

    parent: str = Field(alias="from")
    """The parent: the candidate that this one is made from. dense is the fine-tuned network."""

    @property
    def training(self) -> Recovery | None:
        """Return the settings of its recovery; None where it has none."""
        return getattr(self, "recovery", None)


class TrainedCandidate(Candidate):
    """A candidate of a method that trains."""

    recovery: Recovery
    """The training after the change."""

    @property
    def epochs(self) -> int:
        """Return the epochs of all its trainings."""
        return self.recovery.epochs

    def steps_for(self, images: int) -> int:
        """Return the steps of all its trainings on this many images."""
        return self.recovery.with_epochs(self.epochs).steps_for(images)


class SparseLearning(Section):
    """Training before pruning that shrinks the channels to remove (group regularisation, Fang et al. 2023)."""

    epochs: Annotated[Integer, Field(ge=0)] = 0
    """The epochs of this training, with teacher, augmentation and optimiser as in `recovery`; 0 for none."""
    strength: Positive = 5.0e-4
    """The strength of the penalty."""


Importance = Literal["magnitude", "taylor", "bn-scale", "lamp", "fpgm", "hessian", "random"]


class Prune(TrainedCandidate):
    """Remove channels by importance, then recover."""

    method: Literal["prune"]
    """Remove channels."""
    remove: Remove
    """The amount to remove."""
    importance: Importance = "magnitude"
    """The criterion that ranks channels; see Compression for each."""
    max_channels: Share = 0.75
    """The largest share of channels to remove from a layer."""
    round_to: Count | Literal["measured"] = 8
    """Channel counts are rounded to multiples of this, since odd counts are slow. measured: the multiple that keeps the
    most multiply-adds within the latency in `remove`."""
    rounds: Count = 1
    """The number of pruning rounds; the network recovers for `round_epochs` after each but the last."""
    round_epochs: Count = 1
    """The epochs of recovery after each round but the last."""
    sparse_learning: SparseLearning = SparseLearning()
    """Training with a penalty on the channels to remove, before they are removed."""

    @property
    def epochs(self) -> int:
        """Return the epochs of all its trainings."""
        return self.recovery.epochs + self.sparse_learning.epochs + (self.rounds - 1) * self.round_epochs

    @model_validator(mode="after")
    def _check_rounding(self) -> Prune:
        if self.round_to == "measured" and self.remove.latency is None:
            raise ValueError("round_to: measured needs remove: {latency: ...}; else set a multiple such as 8")
        return self


def _check_quoted(value: Any) -> Any:
    """Raise ValueError for a number: YAML 1.1 reads 2:4 as a number to the base 60."""
    if isinstance(value, int):
        raise ValueError(
            f'YAML reads N:M without quotes as a number, here {value}; write it in quotes, as in pattern: "2:4" '
            """(in a shell: -S 'candidates.NAME.pattern="2:4"')"""
        )
    return value


class Sparsify(TrainedCandidate):
    """Set the smallest weights and biases to zero during recovery. The zipped file gets smaller; no runtime gets
    faster."""

    method: Literal["sparsify"]
    """Set weights to zero."""
    sparsity: Share
    """The share of zeros."""
    pattern: Annotated[str, BeforeValidator(_check_quoted), Field(pattern=r"^(unstructured|[1-9]\d?:[1-9]\d?)$")] = (
        "unstructured"
    )
    """unstructured: ranked over the whole network. N:M, such as "2:4": N of every M weights stay."""
    schedule: Literal["once", "gradual"] = "once"
    """once: all zeros at the start. gradual: the share of zeros grows during the first two thirds of the recovery."""

    @model_validator(mode="after")
    def _check_pattern(self) -> Sparsify:
        if self.group is None:
            return self
        nonzero = int(self.pattern.partition(":")[0])
        if nonzero >= self.group:
            raise ValueError(f"pattern: {self.pattern} sets no weight to zero; write N:M with N below M, as in 2:4")
        zero_share = 1 - nonzero / self.group
        if abs(self.sparsity - zero_share) > 1e-3:
            raise ValueError(
                f"pattern: {self.pattern} makes {zero_share:.4g} of the weights zero; set sparsity to this value"
            )
        return self

    @property
    def group(self) -> int | None:
        """Return M of N:M; None for an unstructured pattern."""
        return None if self.pattern == "unstructured" else int(self.pattern.partition(":")[2])


class Factorize(TrainedCandidate):
    """Replace wide layers by two thin ones of low rank, then recover."""

    method: Literal["factorize"]
    """Replace layers by pairs of low rank."""
    remove: Remove
    """The amount to remove: {parameters: share} or {macs: share}."""
    round_to: Count = 8
    """The number that ranks are multiples of."""

    @model_validator(mode="after")
    def _check_goal(self) -> Factorize:
        if not {"parameters", "macs"} & self.remove.goal.keys():
            raise ValueError("factorize removes no channels: set remove to {parameters: ...} or {macs: ...}")
        return self


class Cluster(TrainedCandidate):
    """Restrict the weights of each layer to a few values, then recover. The zipped file gets smaller; no runtime gets
    faster."""

    method: Literal["cluster"]
    """Restrict weights to a few values."""
    values: Annotated[Integer, Field(ge=2, le=256)] = 16
    """The number of distinct values per layer. 16 values need 4 bits per weight in the zipped file."""


class Quantize(Candidate):
    """Quantize to int8.

    static: calibrated on training images without their labels (NNCF). ladder: static, then costlier schemes while the
    drop is too large. controlled: static, then layers return to float while the drop is too large. qat:
    quantization-aware training. dynamic: activation ranges at run time (ONNX Runtime).
    """

    method: Literal["quantize"]
    """Store weights and compute in int8."""
    scheme: Literal["static", "ladder", "controlled", "qat", "dynamic"] = "static"
    """The way to quantize; see above."""
    calibration_images: Count = 500
    """The training images that set the ranges of activations; their labels are not used."""
    preset: Literal["mixed", "performance"] = "mixed"
    """mixed: asymmetric activations; performance: symmetric ones."""
    ranges: Literal["mean", "minmax", "histogram", "percentile"] = "mean"
    """The estimate of activation ranges. mean: the mean of each image's minimum and maximum; histogram: least error;
    percentile: without the outermost 0.01 %."""
    bias_correction: Literal["fast", "full"] = "fast"
    """The correction of the mean error of each layer; full is slower and more exact."""
    overflow_safe: bool = False
    """True: weights in 7 bits, for processors without VNNI, where sums of two products saturate."""
    max_drop_points: Positive = 0.5
    """For ladder and controlled: the largest drop from the parent on the validation split, in points."""
    recovery: Recovery | None = None
    """The training of scheme qat, and of the last rung of a ladder."""
    seed: Seed = 0
    """The seed of the draw of the calibration images."""

    @model_validator(mode="after")
    def _check_scheme(self) -> Quantize:
        if self.scheme == "qat" and self.recovery is None:
            raise ValueError("scheme: qat needs a recovery, as prune does")
        if self.scheme in ("static", "controlled", "dynamic") and self.recovery is not None:
            raise ValueError(f"scheme: {self.scheme} does not train: remove recovery, or set scheme: qat or ladder")
        ignored = sorted({"preset", "ranges", "bias_correction", "overflow_safe"} & self._changed_settings())
        if self.scheme == "dynamic" and ignored:
            raise ValueError(f"scheme: dynamic has no {', '.join(ignored)}: leave it out, or set scheme: static")
        return self

    def _changed_settings(self) -> set[str]:
        """Return the names of the settings that differ from their defaults."""
        return {name for name, field in type(self).model_fields.items() if getattr(self, name) != field.default}


def may_train(candidate: Candidate) -> bool:
    """Return whether the candidate's method may train a network; a ladder trains on its last rung only."""
    return isinstance(candidate, TrainedCandidate) or (
        isinstance(candidate, Quantize) and candidate.recovery is not None
    )


class Distill(TrainedCandidate):
    """Train a student on the outputs of a teacher. `student: same` trains the parent further, as a control for other
    trainings."""

    method: Literal["distill"]
    """Train a student on the outputs of a teacher."""
    student: Student = "same"
    """The backbone of the student; same: the parent itself."""
    width: Annotated[Number, Field(gt=0, le=1)] = 1.0
    """The factor that scales the student's channels. Only resnet8, resnet20, resnet56, mobilenet_v2, mobilenet_v3_large
    and mobilenet_v3_small accept another value than 1."""
    start: Literal["auto", "random"] = "auto"
    """The first weights of a student of another backbone or width than dense. auto: those of the step pretrain where
    its network has the same shapes, else random ones; also random ones where the pretrained network enlarges images."""

    @model_validator(mode="after")
    def _check_width(self) -> Distill:
        if self.width != 1.0 and self.student not in SCALABLE_BACKBONES:
            raise ValueError(
                f"width: {self.student!r} has width 1.0 only; choose one of {', '.join(SCALABLE_BACKBONES)}"
            )
        return self


class Probe(Candidate):
    """Fit a linear head on the frozen teacher of the section `teacher`: the large network as a candidate."""

    method: Literal["probe"]
    """Fit a linear head on the frozen teacher."""
    inverse_regularisation: Positive = 0.001
    """The parameter C of logistic regression on standardised features; smaller values regularise more."""

    @model_validator(mode="after")
    def _check_parent(self) -> Probe:
        if self.parent != ROOT:
            raise ValueError(f"method probe cannot start from {self.parent!r}: set from: {ROOT}")
        return self


AnyCandidate = Annotated[
    Prune | Sparsify | Factorize | Cluster | Quantize | Distill | Probe, Field(discriminator="method")
]
_UNION, _ = get_args(AnyCandidate)
METHOD_SETTINGS: dict[str, type[Candidate]] = {
    get_args(settings.model_fields["method"].annotation)[0]: settings for settings in get_args(_UNION)
}
"""Method -> its settings."""
