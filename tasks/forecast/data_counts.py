"""What a run will take: how many images there are, and what each step will need of time, memory and disk.

tasks/forecast/step_costs.py does the work of each step in small; what it measured per unit is multiplied by the units
that params.yaml and the images ask for. Left out: a wait for a GPU slot, a person's approval, and a machine that others
slow down.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from winnow.config import Config
from winnow.records import read_record


@dataclass(frozen=True)
class Counts:
    """What is known of the images before they are decoded; shares where the split is not known yet."""

    train: int
    validation: int
    test: int
    budget: int
    """Training labels that may be used."""
    choosing: int
    """Labelled validation images."""
    classes: int

    @property
    def images(self) -> int:
        """All of them."""
        return self.train + self.validation + self.test


@dataclass(frozen=True)
class Forecast:
    """Of one step."""

    step: str
    """As people call it: pretrain, pruned-int8."""
    seconds: float
    memory_mb: float
    """Peak, less what the system can take back (files in its cache)."""
    disk_mb: float
    """Of what it leaves."""
    counted: str
    """What was multiplied, in words."""


def counts_of(config: Config, data: Path | None, scratch: Path) -> Counts:
    """From the stored images in `data`, or, where they are not up to date (None), by listing the source."""
    if data is not None:
        record = read_record(data)
        told = {key.removeprefix("data/"): int(value) for key, value in record.metrics.items()}
        return Counts(
            train=told["train"],
            validation=told["validation"],
            test=told["test"],
            budget=told["label_budget"],
            choosing=told["labelled_validation"],
            classes=len(record.details["classes"]),
        )
    return expected(config, scratch)


def expected(config: Config, scratch: Path) -> Counts:
    """What the shares of params.yaml make of the source's files; nothing is decoded."""
    from winnow.data.sources import open_source

    source, settings = open_source(config.data, scratch), config.data
    named = unlabelled = 0
    per_class = [0] * len(source.classes)
    for item in source.items():
        if item.is_test:
            named += 1
        elif item.label < 0:
            unlabelled += 1
        else:
            per_class[item.label] += 1
    labelled = sum(per_class)
    chosen, tested = settings.validation_fraction, 0.0 if named else settings.test_fraction
    trained = [round(count * (1 - chosen - tested)) for count in per_class]
    budget = sum(trained) if settings.label_budget is None else sum(min(settings.label_budget, n) for n in trained)
    return Counts(
        train=sum(trained) + round(unlabelled * (1 - chosen)),
        validation=round((labelled + unlabelled) * chosen),
        test=named or round(labelled * tested),
        budget=budget,
        choosing=round(labelled * chosen),
        classes=len(source.classes),
    )
