"""`card.json` beside a `model.onnx`: what the model is, how to feed it, and what was measured on it.

A candidate's card is written by its step, and by refit where the refitted file is deployed. The card of a registered
model adds the speed, the machine that was timed, the runtime that serves and the result on the test split.

    CandidateCard.read(folder).classes
    DeploymentCard.read(folder).serving.runtime

A deployed model may be older or newer than the code that reads its card. So unknown keys are ignored, and what earlier
versions did not write has a default here. Such a key stays absent when the card is written again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import SerializerFunctionWrapHandler, ValidationError, field_serializer, field_validator

from winnow.errors import ArtifactError
from winnow.records.artifact_files import read_json, write_json
from winnow.records.benchmark import ByMetric, Precision, Runtime
from winnow.records.candidate_file import LabelCounts
from winnow.records.embed import KnownWeightsDetails
from winnow.records.machine import Machine
from winnow.records.model import RecordModel, describe_first_error, optional
from winnow.records.refit import RefitCheck
from winnow.records.report import Abstention

CARD = "card.json"


class CardTensor(RecordModel):
    """The input or the output of the ONNX file."""

    name: str
    """Name in the graph."""
    type: str
    """Element type."""
    shape: list[int | str]
    """Shape; N is the batch, of any size."""
    note: str
    """What the values mean."""


class CardRefit(RecordModel):
    """The refit of a deployed file."""

    labels: int
    """Number of labels that trained the refitted file, validation labels included."""
    note: str
    """Which figures of the card are those of the selected file."""
    check: RefitCheck
    """Comparison of the refitted file with the selected one."""
    selected_sha256: str
    """Digest of the selected file, on which these figures were measured."""


class CandidateCard(RecordModel):
    """The card of a candidate, or of its refit."""

    _remedy: ClassVar[str] = "delete its folder and run winnow again"

    name: str
    """Name of the candidate."""
    method: str
    """The compression method; finetune for dense."""
    lineage: list[str]
    """Names of all candidates from dense to this one."""
    precision: Literal["f32", "int8"]
    """Precision of the weights in the file."""
    labels: LabelCounts
    """Labels that trained it, and labels that select."""
    classes: list[str]
    """Names of the classes, in the order of the logits."""
    image_size: int
    """Side of the input square in pixels."""
    resize: Literal["crop", "pad", "stretch"] = "crop"
    """The value of data.resize."""
    bits: int = 16
    """Bits in use of 16-bit gray images."""
    resize_policy: str
    """How an image becomes a square, in words."""
    input: CardTensor
    """Input of the ONNX file."""
    output: CardTensor
    """Output of the ONNX file."""
    temperature: float = 1.0
    """Probabilities are softmax(logits / temperature)."""
    metrics: dict[str, float]
    """The same metrics as in the record."""
    measured_on: str
    """The images on which the metrics were measured."""
    refit: CardRefit | None = optional()
    """The refit; None where the selected file is deployed."""
    known_weights: list[KnownWeightsDetails] = optional([])
    """The known weights that the network started from, and those of its teacher, with their licences."""

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Return the card in a model's folder. Raises ArtifactError when it is missing, damaged or lacks a key."""
        raw = read_json(folder / CARD)
        try:
            return cls.model_validate(raw, extra="ignore")
        except ValidationError as error:
            raise ArtifactError(
                f"{folder / CARD} is damaged, or of another version of winnow ({describe_first_error(error)}); "
                f"{cls._remedy}"
            ) from error

    def content(self) -> dict[str, Any]:
        """Return the content of the file, as JSON holds it."""
        return self.model_dump(mode="json", exclude_unset=True)

    def write(self, folder: Path) -> None:
        """Write the card into a model's folder."""
        write_json(folder / CARD, self.content())


class RuntimeSettings(RecordModel):
    """The settings with which a file ran in the benchmark."""

    runtime: Runtime
    """Runtime."""
    precision: Precision
    """Precision in which the runtime computes."""
    threads: int
    """Threads of a call."""
    batch: int
    """Images per call."""
    streams: int | None = optional()
    """Number of parallel streams that share batch and threads; None for one."""


class ServingSettings(RuntimeSettings):
    """The settings with which the model is served: its fastest runtime for the objective."""

    p50_ms: float
    """Median of all timed calls, ms."""
    objective: str
    """The value of promotion.objective."""


class FastestSettings(ByMetric[RuntimeSettings]):
    """The settings of the fastest rows."""

    latency: RuntimeSettings | None = optional()
    """Fastest with one image per call."""
    throughput: RuntimeSettings | None = optional()
    """Fastest with large batches."""


class CardTest(RecordModel):
    """The result on the test split. Shares are fractions; drops are points of top-1 below `baseline`."""

    images: float
    """Number of labelled test images."""
    groups: float | None = optional()
    """Number of groups of these images; None without data.group_by."""
    top1: float
    """Top-1 of the deployed file on the test split."""
    top1_low: float
    """Lower end of the 95 % interval."""
    top1_high: float
    """Upper end of the 95 % interval."""
    baseline: str = ""
    """The candidate from which the drop is counted: dense or dense-kd. Empty on cards of earlier versions."""
    drop_points: float | None = None
    """Top-1 that the deployed file loses against the baseline."""
    drop_low: float | None = None
    """Lower end of the 95 % interval."""
    drop_high: float | None = None
    """Upper end of the 95 % interval."""
    measured_in: str = ""
    """Runtime and precision in which it was measured."""
    warnings: tuple[str, ...] = ()
    """Warnings about the test split."""
    abstention: Abstention = Abstention()
    """Answered and correct images by threshold of confidence."""


class SplitRule(RecordModel):
    """The rule that assigned images to splits. None: not known, or not part of the rule."""

    validation_fraction: float | None = optional()
    """The value of data.validation_fraction."""
    test_fraction: float | None = optional()
    """The value of data.test_fraction; None where the source names its test images."""
    group_by: str | None = optional()
    """The value of data.group_by."""
    decoder: str | None = optional()
    """Digest of the pixels that the decoder makes of three fixed images."""


class DeploymentCard(CandidateCard):
    """The card of a registered model."""

    _remedy: ClassVar[str] = "update winnow, or promote the model again and export it again"

    serving: ServingSettings
    """Runtime and settings that serve the model."""
    speed: dict[str, int | float]
    """Metrics of speed: best/latency_ms, speedup/float_b1, ..."""
    fastest: FastestSettings = FastestSettings()
    """Fastest settings for both metrics of speed."""
    machine: Machine
    """The machine on which the speed was measured."""
    test: CardTest | None = None
    """Result on the test split; None, or {} in the file, without a report of this selection."""
    data_version: str
    """DVC's hash of artifacts/data."""
    split: SplitRule = SplitRule()
    """Rule that assigned images to splits."""
    pillow: str = ""
    """Version of Pillow, which decoded the images."""
    why: str
    """Reason for the selection, in words."""

    @field_validator("test", mode="before")
    @classmethod
    def _read_test(cls, value: object) -> object:
        return value or None

    @field_serializer("test", mode="wrap")
    def _write_test(self, value: CardTest | None, write: SerializerFunctionWrapHandler) -> Any:
        return write(value) or {}
