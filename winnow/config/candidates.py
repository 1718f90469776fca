"""`candidates:`: the tree of compressed models. Each names the one it is made `from` and one `method`.

`dense`, the fine-tuned model, is the root. The union below is told apart by `method`; a new method is one model here,
one file in winnow/compression/ named as the method, and one line in that package's dict.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, model_validator

from winnow.config.backbones import Student
from winnow.config.section import Augmentation, Count, Fraction, Number, Optimiser, Positive, Section, Seed

ROOT = "dense"
CONTROL = "dense-kd"
NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
TAKEN = frozenset({"data", "ingest", "pretrain", "finetune", "benchmark", "select", "report"})
"""Steps and their folders: records, checkpoints and runs go by name."""


class Recovery(Section):
    """Training after a change of structure, with a teacher or without."""

    epochs: Count
    """Passes over the images; without a teacher the same number of steps on the labelled ones."""
    batch_size: Count = 128
    optimiser: Optimiser
    teacher: Literal["dense", "none"] = "dense"
    temperature: Positive = 4.0
    teacher_weight: Fraction = 0.9
    """Share of the teacher in the loss; the rest is cross-entropy on the labelled images."""
    images: Literal["all", "labelled"] = "all"
    """all: the unlabelled pool too, where only the teacher speaks."""
    augmentation: Augmentation = Augmentation()
    seed: Seed = 0

    @model_validator(mode="after")
    def _labels_or_teacher(self) -> Recovery:
        if self.teacher == "none" and self.images == "all":
            raise ValueError("without a teacher only labelled images can teach: set images: labelled")
        return self


class Candidate(Section):
    """What all methods share: the parent in the tree."""

    parent: str = Field(alias="from")


class Recovered(Candidate):
    """What the methods that train share."""

    recovery: Recovery


class Prune(Recovered):
    """Remove channels by importance (torch-pruning), then recover."""

    method: Literal["prune"]
    channels: Annotated[Number, Field(gt=0, lt=1)]
    """Share of the channels removed, ranked over the whole network."""
    max_channels: Annotated[Number, Field(gt=0, lt=1)] = 0.75
    """No layer loses more than this share."""
    round_to: Count = 8
    """Channel counts stay multiples of this: odd counts are slow."""


class Sparsify(Recovered):
    """Set the smallest weights and biases to zero and hold them there: smaller when zipped, not faster."""

    method: Literal["sparsify"]
    sparsity: Annotated[Number, Field(gt=0, lt=1)]


class Quantize(Candidate):
    """Int8. static: calibrated on unlabelled training images (NNCF). dynamic: ranges at run time (ONNX Runtime)."""

    method: Literal["quantize"]
    scheme: Literal["static", "dynamic"] = "static"
    calibration_images: Count = 500
    preset: Literal["mixed", "performance"] = "mixed"
    """mixed: asymmetric activations; performance: symmetric ones."""
    seed: Seed = 0


class Distill(Recovered):
    """Teach a student. `student: same` is the parent itself, trained on: the control for every recovery."""

    method: Literal["distill"]
    student: Student = "same"
    """same, or a backbone's name."""
    width: Annotated[Number, Field(gt=0, le=1)] = 1.0
    """Scales the channels of a resnet8 student."""

    @model_validator(mode="after")
    def _width_fits(self) -> Distill:
        if self.width != 1.0 and self.student != "resnet8":
            raise ValueError(f"width: only resnet8 comes in other widths, not {self.student!r}; use width: 1.0")
        return self


AnyCandidate = Annotated[Prune | Sparsify | Quantize | Distill, Field(discriminator="method")]


def tree_errors(candidates: dict[str, Candidate]) -> list[tuple[str, str]]:
    """What is wrong with the tree as a whole: (dotted path, message) pairs, empty when it is sound."""
    found = _control_errors(candidates.get(CONTROL))
    for name, candidate in candidates.items():
        here = f"candidates.{name}"
        if not NAME.fullmatch(name):
            found.append((here, f"{name!r} is no usable name: small letters, digits and single hyphens ([a-z0-9-]+)"))
        if name in TAKEN:
            found.append((here, f"{name!r} is the name of a step or its folder; call the candidate {name}-1, say"))
        if name == ROOT:
            found.append((here, f"{ROOT!r} is the fine-tuned model itself, the root of the tree; choose another name"))
            continue
        if candidate.parent != ROOT and candidate.parent not in candidates:
            choices = ", ".join([ROOT, *candidates])
            found.append((f"{here}.from", f"no candidate is called {candidate.parent!r}; valid: {choices}"))
            continue
        parent = candidates.get(candidate.parent)
        if isinstance(parent, Quantize) and candidate.parent != ROOT:
            found.append(
                (
                    f"{here}.from",
                    f"{candidate.parent!r} is quantized and cannot be changed further; "
                    f"make {name!r} from {parent.parent!r} and quantize last",
                )
            )
        if _in_cycle(name, candidates):
            found.append((f"{here}.from", f"{name!r} descends from itself; every chain must end at {ROOT!r}"))
    return found


def _control_errors(control: Candidate | None) -> list[tuple[str, str]]:
    """Drops are counted against the control, so it must be dense trained on and nothing else."""
    if control is None:
        return []
    here = f"candidates.{CONTROL}"
    why = f"{CONTROL!r} is the control, {ROOT!r} trained on with itself as teacher"
    if not isinstance(control, Distill):
        return [(f"{here}.method", f"{why}: it must be distill; or give the candidate another name")]
    wanted = (
        ("from", control.parent, ROOT),
        ("student", control.student, "same"),
        ("recovery.teacher", control.recovery.teacher, ROOT),
    )
    return [
        (f"{here}.{key}", f"{why}: it must be {needed}, not {value!r}; or give the candidate another name")
        for key, value, needed in wanted
        if value != needed
    ]


def _in_cycle(name: str, candidates: dict[str, Candidate]) -> bool:
    at, seen = name, set[str]()
    while at in candidates and at not in seen:
        seen.add(at)
        at = candidates[at].parent
    return at == name


def in_order(candidates: dict[str, AnyCandidate]) -> list[str]:
    """Names with every parent before its children; otherwise as written."""
    done: list[str] = []

    def place(name: str) -> None:
        if name in candidates and name not in done:
            place(candidates[name].parent)
            done.append(name)

    for name in candidates:
        place(name)
    return done
