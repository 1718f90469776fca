"""`candidates:`: the tree of compressed models. Each names the one it is made `from` and one `method`.

`dense`, the fine-tuned model, is the root. The union below is told apart by `method`; a new method is one model here,
one file in winnow/compression/ named as the method, and one line in that package's dict. What holds of the tree as a
whole is in tree.py.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from winnow.config.backbones import IN_WIDTHS, Student
from winnow.config.section import (
    Augmentation,
    Count,
    Fraction,
    Integer,
    Number,
    Optimiser,
    Positive,
    Section,
    Seed,
    steps_of_epoch,
)

ROOT = "dense"
CONTROL = "dense-kd"
NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
NAME_IN_WORDS = "small letters, digits and single hyphens ([a-z0-9-]+)"
TAKEN = frozenset({"data", "ingest", "pretrain", "finetune", "benchmark", "select", "refit", "report"})
"""Steps and their folders: records, checkpoints and runs go by name."""


class Recovery(Section):
    """Training after a change of structure, with a teacher or without."""

    epochs: Count
    """Passes over the images; without a teacher the same number of steps on the labelled ones."""
    min_steps: Count = 600
    """With few images `epochs` would be over at once; at least this many steps are taken, in as many epochs."""
    batch_size: Count = 128
    optimiser: Optimiser
    teacher: Literal["dense", "none"] = "dense"
    temperature: Positive = 4.0
    teacher_weight: Fraction = 0.9
    """Share of the teacher in the loss; the rest is the mean cross-entropy of the labelled images, of which every batch
    holds some."""
    images: Literal["all", "labelled"] = "all"
    """all: the unlabelled pool too, where only the teacher speaks."""
    hint: Literal["none", "features", "attention", "pretrained"] = "none"
    """What is learned from the teacher beside its answers (winnow/compression/feature_distillation.py)."""
    hint_weight: Positive = 1.0
    """Of the hint, beside a loss of weight 1."""
    augmentation: Augmentation = Augmentation()
    seed: Seed = 0

    def steps_for(self, images: int) -> int:
        """Return the steps of a training, with so many training images."""
        return self.epochs * steps_of_epoch(images, self.batch_size, self.epochs, self.min_steps)

    def with_epochs(self, epochs: int) -> Recovery:
        """Return the same training in fewer or more epochs, each of as many steps."""
        return self.model_copy(update={"epochs": epochs, "min_steps": epochs * -(-self.min_steps // self.epochs)})

    @model_validator(mode="after")
    def _labels_or_teacher(self) -> Recovery:
        if self.teacher == "none" and self.images == "all":
            raise ValueError("without a teacher only labelled images can teach: set images: labelled")
        if self.teacher == "none" and self.hint not in ("none", "pretrained"):
            raise ValueError(f"hint: {self.hint} is the teacher's; set teacher: dense, or hint: none")
        return self


class Candidate(Section):
    """What all methods share: the parent in the tree."""

    parent: str = Field(alias="from")


class Recovered(Candidate):
    """What the methods that train share."""

    recovery: Recovery

    @property
    def epochs(self) -> int:
        """Of all its trainings."""
        return self.recovery.epochs

    def steps_for(self, images: int) -> int:
        """Return the steps of all its trainings, with so many training images."""
        return self.recovery.with_epochs(self.epochs).steps_for(images)


Share = Annotated[Number, Field(gt=0, lt=1)]


class Latency(Section):
    """Time of one call on this machine, with all threads, to be reached by removing channels."""

    ms: Positive | None = None
    """Milliseconds, p50."""
    share: Share | None = None
    """Or the share of the parent's own time that is to go, in the same runtime and precision."""
    runtime: Literal["ort", "openvino"] = "openvino"
    precision: Literal["f32", "bf16", "int8"] = "f32"
    """int8: each try is quantized with a few random images, which tell its speed."""
    batch: Count = 1

    @model_validator(mode="after")
    def _one_goal(self) -> Latency:
        if (self.ms is None) == (self.share is None):
            raise ValueError("set one of ms (milliseconds a call) and share (of the parent's time that goes)")
        if self.runtime == "ort" and self.precision == "bf16":
            raise ValueError("ONNX Runtime has no bf16 on the CPU; set runtime: openvino, or precision: f32")
        return self


class Remove(Section):
    """How much goes: one of these. All but `channels` search for the share of channels that reaches it."""

    channels: Share | None = None
    """Share of the channels, ranked over the whole network."""
    parameters: Share | None = None
    macs: Share | None = None
    """Of the multiply-adds."""
    latency: Latency | None = None

    @model_validator(mode="after")
    def _one_of_them(self) -> Remove:
        if len(self.goal) != 1:
            raise ValueError("set exactly one of channels, parameters, macs and latency, as in {macs: 0.5}")
        return self

    @property
    def goal(self) -> dict[str, float | Latency]:
        """What is set: one name and its value."""
        found = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: value for name, value in found.items() if value is not None}


class SparseLearning(Section):
    """Training before the cut that shrinks the channels that will go (group regularisation, Fang et al. 2023)."""

    epochs: Annotated[Integer, Field(ge=0)] = 0
    """0: none. Taught, augmented and optimised as in `recovery`."""
    strength: Positive = 5.0e-4


Importance = Literal["magnitude", "taylor", "bn-scale", "lamp", "fpgm", "hessian", "random"]


class Prune(Recovered):
    """Remove channels by importance (torch-pruning), then recover."""

    method: Literal["prune"]
    remove: Remove
    importance: Importance = "magnitude"
    """How channels are ranked (winnow/compression/channel_importance.py)."""
    max_channels: Share = 0.75
    """No layer loses more than this share."""
    round_to: Count | Literal["measured"] = 8
    """Channel counts stay multiples of this: odd counts are slow. measured: the multiple that keeps most multiply-adds
    within the latency that `remove` asks for."""
    rounds: Count = 1
    """Cuts on the way to the whole amount; after each but the last the network recovers for `round_epochs`."""
    round_epochs: Count = 1
    sparse_learning: SparseLearning = SparseLearning()

    @property
    def epochs(self) -> int:
        """Of all its trainings."""
        return self.recovery.epochs + self.sparse_learning.epochs + (self.rounds - 1) * self.round_epochs

    @model_validator(mode="after")
    def _measured_where_timed(self) -> Prune:
        if self.round_to == "measured" and self.remove.latency is None:
            raise ValueError("round_to: measured goes with remove: {latency: ...}; else name a multiple such as 8")
        return self


def _quoted(value: Any) -> Any:
    """YAML 1.1 reads 2:4 as a number to the base 60."""
    if isinstance(value, int):
        raise ValueError(
            f'YAML reads N:M without quotes as a number, here {value}; write it in quotes, as in pattern: "2:4" '
            """(in a shell: -S 'candidates.NAME.pattern="2:4"')"""
        )
    return value


class Sparsify(Recovered):
    """Set the smallest weights and biases to zero and hold them there: smaller when zipped, not faster."""

    method: Literal["sparsify"]
    sparsity: Share
    """Share of zeros."""
    pattern: Annotated[str, BeforeValidator(_quoted), Field(pattern=r"^(unstructured|[1-9]\d?:[1-9]\d?)$")] = (
        "unstructured"
    )
    """unstructured: over the whole network. N:M, as in "2:4": N of every M weights stay."""
    schedule: Literal["once", "gradual"] = "once"
    """gradual: more and more during the first two thirds of the recovery."""

    @model_validator(mode="after")
    def _pattern_fits(self) -> Sparsify:
        if self.group is None:
            return self
        stay = int(self.pattern.partition(":")[0])
        if stay >= self.group:
            raise ValueError(f"pattern: {self.pattern} leaves nothing out; write how many stay of how many, as in 2:4")
        if abs(self.sparsity - (1 - stay / self.group)) > 1e-3:
            raise ValueError(
                f"pattern: {self.pattern} makes {1 - stay / self.group:.4g} of the weights zero; set sparsity to it"
            )
        return self

    @property
    def group(self) -> int | None:
        """M of N:M."""
        return None if self.pattern == "unstructured" else int(self.pattern.partition(":")[2])


class Factorize(Recovered):
    """Split wide layers into two thin ones of low rank, then recover."""

    method: Literal["factorize"]
    remove: Remove
    """{parameters: share} or {macs: share}."""
    round_to: Count = 8
    """Ranks are multiples of this."""

    @model_validator(mode="after")
    def _countable(self) -> Factorize:
        if not {"parameters", "macs"} & self.remove.goal.keys():
            raise ValueError("factorize removes no channels: set remove to {parameters: ...} or {macs: ...}")
        return self


class Cluster(Recovered):
    """Let all weights of a layer share a few values, then recover: smaller when zipped, not faster."""

    method: Literal["cluster"]
    values: Annotated[Integer, Field(ge=2, le=256)] = 16
    """Of each layer: 16 take 4 bits a weight where a file stores them so."""


class Quantize(Candidate):
    """Int8. static: calibrated on unlabelled training images (NNCF). ladder: static, then what costs more, while too
    much is lost. controlled: static, then layers back to float while too much is lost. qat: trained under rounding
    first. dynamic: ranges at run time (ONNX Runtime)."""

    method: Literal["quantize"]
    scheme: Literal["static", "ladder", "controlled", "qat", "dynamic"] = "static"
    calibration_images: Count = 500
    preset: Literal["mixed", "performance"] = "mixed"
    """mixed: asymmetric activations; performance: symmetric ones."""
    ranges: Literal["mean", "minmax", "histogram", "percentile"] = "mean"
    """Of activations. mean: of each image's smallest and largest value; histogram: of least error; percentile: without
    the outermost 0.01 %."""
    bias_correction: Literal["fast", "full"] = "fast"
    overflow_safe: bool = False
    """Weights in 7 bits, for processors without VNNI, where sums of two products saturate."""
    max_drop_points: Positive = 0.5
    """ladder, controlled: what may be lost against the parent on the validation split."""
    recovery: Recovery | None = None
    """qat, and the last rung of a ladder: the training."""
    seed: Seed = 0

    @model_validator(mode="after")
    def _can_train(self) -> Quantize:
        if self.scheme == "qat" and self.recovery is None:
            raise ValueError("scheme: qat trains: give it a recovery, as prune has")
        if self.scheme in ("static", "controlled", "dynamic") and self.recovery is not None:
            raise ValueError(f"scheme: {self.scheme} trains nothing: remove recovery, or set scheme: qat or ladder")
        ignored = sorted({"preset", "ranges", "bias_correction", "overflow_safe"} & self._changed())
        if self.scheme == "dynamic" and ignored:
            raise ValueError(f"scheme: dynamic has no {', '.join(ignored)}: leave it out, or set scheme: static")
        return self

    def _changed(self) -> set[str]:
        """Settings that are not as they are by default."""
        return {name for name, about in type(self).model_fields.items() if getattr(self, name) != about.default}


def may_train(candidate: Candidate) -> bool:
    """Whether making it trains a network; a ladder does on its last rung alone."""
    return isinstance(candidate, Recovered) or (isinstance(candidate, Quantize) and candidate.recovery is not None)


class Distill(Recovered):
    """Teach a student. `student: same` is the parent itself, trained on: the control for every recovery."""

    method: Literal["distill"]
    student: Student = "same"
    """same, or a backbone's name."""
    width: Annotated[Number, Field(gt=0, le=1)] = 1.0
    """Scales the channels of a student, where its backbone comes in widths (winnow.config.backbones.IN_WIDTHS)."""

    @model_validator(mode="after")
    def _width_fits(self) -> Distill:
        if self.width != 1.0 and self.student not in IN_WIDTHS:
            raise ValueError(f"width: {self.student!r} comes in one width, 1.0; in others come {', '.join(IN_WIDTHS)}")
        return self


AnyCandidate = Annotated[Prune | Sparsify | Factorize | Cluster | Quantize | Distill, Field(discriminator="method")]
