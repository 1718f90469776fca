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
from winnow.records.candidate import LabelCounts
from winnow.records.machine import Machine
from winnow.records.model import RecordModel, describe_first_error, optional
from winnow.records.refit import RefitCheck
from winnow.records.report import Abstention

CARD = "card.json"


class CardTensor(RecordModel):
    """The input or the output of the ONNX file."""

    name: str
    type: str
    shape: list[int | str]
    """"N" is the batch, of any size."""
    note: str


class CardRefit(RecordModel):
    """The refit of a deployed file."""

    labels: int
    """Labels that trained the refitted file, those of validation included."""
    note: str
    """Which figures of the card are of the selected file."""
    check: RefitCheck
    selected_sha256: str
    """Digest of the selected file, which was measured."""


class CandidateCard(RecordModel):
    """The card of a candidate, or of its refit."""

    _remedy: ClassVar[str] = "delete its folder and run winnow again"

    name: str
    method: str
    lineage: list[str]
    """From dense to this candidate."""
    precision: Literal["f32", "int8"]
    labels: LabelCounts
    classes: list[str]
    """In the order of the logits."""
    image_size: int
    """The side of the square in pixels."""
    resize: Literal["crop", "pad", "stretch"] = "crop"
    bits: int = 16
    """Bits in use of 16-bit gray."""
    resize_policy: str
    """The preprocessing, for people."""
    input: CardTensor
    output: CardTensor
    temperature: float = 1.0
    """softmax(logits / temperature) are probabilities."""
    metrics: dict[str, float]
    measured_on: str
    """The images that the metrics are of."""
    refit: CardRefit | None = optional()

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
    precision: Precision
    threads: int
    batch: int
    streams: int | None = optional()
    """Streams that share batch and threads; None for a single one."""


class ServingSettings(RuntimeSettings):
    """The settings with which the model is served: its fastest runtime for the objective."""

    p50_ms: float
    """Median of all timed calls."""
    objective: str
    """promotion.objective."""


class FastestSettings(ByMetric[RuntimeSettings]):
    """The settings of the fastest row for both metrics of speed."""

    latency: RuntimeSettings | None = optional()
    throughput: RuntimeSettings | None = optional()


class CardTest(RecordModel):
    """The result on the test split; shares are fractions, drops are points below `baseline`."""

    images: float
    groups: float | None = optional()
    """Groups of these images, where data.group_by is set."""
    top1: float
    top1_low: float
    top1_high: float
    baseline: str = ""
    """dense or dense-kd; empty on a card of an earlier version, which has no drop."""
    drop_points: float | None = None
    drop_low: float | None = None
    drop_high: float | None = None
    measured_in: str = ""
    """Runtime and precision."""
    warnings: tuple[str, ...] = ()
    abstention: Abstention = Abstention()


class SplitRule(RecordModel):
    """The rule by which images got their split; None: not known, or not part of the rule."""

    validation_fraction: float | None = optional()
    test_fraction: float | None = optional()
    """None where the source names its test images."""
    group_by: str | None = optional()
    decoder: str | None = optional()
    """Digest of the decoder, whose pixels decide."""


class DeploymentCard(CandidateCard):
    """The card of a registered model."""

    _remedy: ClassVar[str] = "update winnow, or promote the model again and export it again"

    serving: ServingSettings
    speed: dict[str, int | float]
    """best/latency_ms, speedup/float_b1, ..."""
    fastest: FastestSettings = FastestSettings()
    machine: Machine
    """The machine on which the speed was measured."""
    test: CardTest | None = None
    """None, {} in the file, where no report is of this selection."""
    data_version: str
    split: SplitRule = SplitRule()
    pillow: str = ""
    """Version of the library that decoded the images."""
    why: str
    """The reason for the selection."""

    @field_validator("test", mode="before")
    @classmethod
    def _read_test(cls, value: object) -> object:
        return value or None

    @field_serializer("test", mode="wrap")
    def _write_test(self, value: CardTest | None, write: SerializerFunctionWrapHandler) -> Any:
        return write(value) or {}
