"""The number of images and labels that a run will use, and the forecast of a step.

tasks/forecast/step_costs.py times a small part of each step's work and multiplies the cost per unit by the number of
units (images, steps, files) that params.yaml and the data ask for. The forecast leaves out the wait for a GPU slot, the
wait for an approval, and other load on the machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from winnow.config import Config
from winnow.records import IngestRecord


@dataclass(frozen=True)
class Counts:
    """The number of images and labels per split, estimated from the split fractions before the images are ingested."""

    train: int
    validation: int
    test: int
    budget: int
    """Labels of training images, at most data.label_budget per class."""
    choosing: int
    """Labelled validation images."""
    classes: int

    @property
    def images(self) -> int:
        """The number of all images."""
        return self.train + self.validation + self.test


@dataclass(frozen=True)
class Forecast:
    """The forecast of one step."""

    step: str
    """The label of the DVC stage: pretrain, pruned-int8."""
    seconds: float
    memory_mb: float
    """Peak memory in MB, without cached files that the system can free."""
    disk_mb: float
    """Size of the step's outputs in MB."""
    basis: str
    """The units and their cost, for users."""


@dataclass(frozen=True)
class Cost:
    """The time and disk that the work of a step takes, without the start of its process."""

    seconds: float
    disk_mb: float
    basis: str
    """The units and their cost, for users."""


def count_images(config: Config, data: Path | None, scratch: Path) -> Counts:
    """Return the counts in the record of `data`, or `expected_counts` where the data is not up to date (None)."""
    if data is not None:
        record = IngestRecord.read(data)
        counts = {key.removeprefix("data/"): int(value) for key, value in record.metrics.items()}
        return Counts(
            train=counts["train"],
            validation=counts["validation"],
            test=counts["test"],
            budget=counts["label_budget"],
            choosing=counts["labelled_validation"],
            classes=len(record.details.classes),
        )
    return expected_counts(config, scratch)


def expected_counts(config: Config, scratch: Path) -> Counts:
    """Estimate the counts from the source's file list and the fractions in params.yaml, without decoding images."""
    from winnow.data.survey import survey_images

    survey, settings = survey_images(config.data, scratch), config.data
    per_class, unlabelled, test_images = list(survey.labelled.values()), survey.unlabelled, survey.test
    labelled = sum(per_class)
    validation_share, test_share = settings.validation_fraction, 0.0 if test_images else settings.test_fraction
    train_per_class = [round(count * (1 - validation_share - test_share)) for count in per_class]
    budget = (
        sum(train_per_class)
        if settings.label_budget is None
        else sum(min(settings.label_budget, n) for n in train_per_class)
    )
    return Counts(
        train=sum(train_per_class) + round(unlabelled * (1 - validation_share)),
        validation=round((labelled + unlabelled) * validation_share),
        test=test_images or round(labelled * test_share),
        budget=budget,
        choosing=round(labelled * validation_share),
        classes=len(per_class),
    )
