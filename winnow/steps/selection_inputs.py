"""The inputs of the step select, and the check that the benchmark's times are of these files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from winnow.config import ROOT, Config
from winnow.config.section import NO_FILE
from winnow.data.dataset import VALIDATION, ImageSet
from winnow.errors import ArtifactError
from winnow.evaluation.ablations import stronger_baseline
from winnow.evaluation.metrics import correct_predictions
from winnow.records import BenchmarkRecord, CandidateRecord, this_machine
from winnow.records.selection import ServingSpeeds
from winnow.selection.selection_warnings import ValidationImages


@dataclass(frozen=True)
class SelectionInputs:
    """The settings, images and records that decide a selection."""

    config: Config
    images: ImageSet
    names: tuple[str, ...]
    """The candidates, dense first."""
    records: dict[str, CandidateRecord]
    timed: BenchmarkRecord
    speeds: ServingSpeeds
    logits: dict[str, NDArray[np.float32]]
    """(V, C) of each file in ONNX Runtime."""
    served: dict[str, NDArray[np.float32]]
    """(V, C) of each file in the case that would serve, as far as it was run."""

    @cached_property
    def correct(self) -> dict[str, NDArray[np.bool_]]:
        """Return which labelled images each file classifies correctly in ONNX Runtime; empty without labels."""
        return correct_predictions(self.logits, self.images)

    @cached_property
    def reference(self) -> str:
        """Return the stronger of dense and dense-kd."""
        return stronger_baseline(self.correct)

    @cached_property
    def validation(self) -> ValidationImages:
        """Return the labels, dense's predictions and the groups of the validation images."""
        indices_V = self.images.indices(VALIDATION)
        dense_V = self.logits[ROOT].argmax(1).astype(np.int64)
        groups_V = self.images.groups_N[indices_V]
        return ValidationImages(self.images.labels_N[indices_V], dense_V, self.images.classes, groups_V)


def check_benchmark(config: Config, timed: BenchmarkRecord, benchmark: Path, digests: Mapping[str, str]) -> None:
    """Raise ArtifactError unless the times are of these candidates, and of this machine where gates use its times."""
    machine, timed_machine = this_machine(), timed.machine
    if config.benchmark.target == NO_FILE and (timed_machine is None or machine.identity != timed_machine.identity):
        timed_on = timed_machine.identity if timed_machine else "an unknown machine"
        raise ArtifactError(
            f"the times in {benchmark} were measured on {timed_on}; this is {machine.identity}. A gate uses figures of "
            "one machine only: run the benchmark here (dvc repro --force --single-item benchmark) or select there"
        )
    if untimed := [name for name, digest in digests.items() if timed.inputs.get(name) != digest]:
        raise ArtifactError(f"{benchmark} has not timed the present {', '.join(untimed)}; run the benchmark again")
