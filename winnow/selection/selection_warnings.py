"""Warnings about a selection: few labels, missing controls, sums that saturate, gates out of reach."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from winnow.config import CONTROL, FEW_LABELS, ROOT, Config, Distill, Quantize, Recovery, may_train
from winnow.evaluation.effective_sample_size import MIN_GROUPS, ImageGroups, image_groups
from winnow.evaluation.intervals import simultaneous_confidence, smallest_upper_end
from winnow.evaluation.macro_f1_drop import macro_f1_drop
from winnow.hardware import X86_FLAGS, int8_sums_saturate
from winnow.records import Verdict
from winnow.records.selection import Drop, DropEvidence, ServingSpeeds
from winnow.selection.gates import GATES, WORST_END_ALLOWANCES, needed_allowance

FEW_GROUPS = 50
"""Groups of labelled validation images; below this a warning says that groups decide the width of intervals."""


@dataclass(frozen=True)
class ValidationImages:
    """The validation images as far as the warnings need them."""

    labels_V: NDArray[np.int64]
    """-1 where there is no label."""
    dense_V: NDArray[np.int64]
    """The predictions of dense."""
    classes: Sequence[str]
    groups_V: NDArray[np.int64] | None = None

    @property
    def labelled(self) -> NDArray[np.int64]:
        """Return the labels (L,) of the labelled images."""
        return self.labels_V[self.labels_V >= 0]

    @property
    def labelled_groups(self) -> NDArray[np.int64] | None:
        """Return the groups (L,) of the labelled images."""
        return None if self.groups_V is None else self.groups_V[self.labels_V >= 0]


def selection_warnings(
    config: Config, reference: str, dense: DropEvidence, images: ValidationImages
) -> tuple[str, ...]:
    """Return the warnings of a selection. `dense`: what dense lost against the reference."""
    labels_V = images.labels_V
    warnings, count, dense_drop = [], int((labels_V >= 0).sum()), dense.labelled
    if not count:
        warnings.append("no validation image has a label: accuracy is not measured, only agreement with dense")
    elif count < FEW_LABELS:
        warnings.append(
            f"only {count} labelled validation images: the loss is also bounded by the share of all {len(labels_V)} "
            "validation images, labelled or not, whose prediction changes"
        )
    if (groups := image_groups(images.labelled_groups)) and groups.groups < FEW_GROUPS:
        warnings.append(_groups_warning(count, groups))
    trained_candidates = [name for name, candidate in config.candidates.items() if may_train(candidate)]
    if trained_candidates and CONTROL not in config.candidates:
        warnings.append(
            f"{CONTROL} is not among the candidates: {', '.join(trained_candidates)} are, or may be, trained further, "
            "and are compared with dense, which is not; `winnow run --full` adds it"
        )
    warnings += _missing_rounding_controls(config)
    if reference != ROOT and dense_drop is not None and dense_drop.low > 0:
        warnings.append(
            f"training dense further with the recovery of the candidates gains {dense_drop.points:.1f} points, so "
            "drops are counted against dense-kd; longer training of dense (finetune.epochs, or the epochs of "
            "finetune.unlabelled) would make it more accurate, too"
        )
    return (*warnings, *_unreachable_gates(config, dense, images))


def _groups_warning(count: int, groups: ImageGroups) -> str:
    start = f"{count} labelled validation images are in {groups.groups} groups, and images of a group are similar"
    if groups.too_few:
        return (
            f"{start}: with fewer than {MIN_GROUPS} groups no interval can be computed, and no drop is shown to be "
            "small. Add groups (photographs, bursts, patients), or raise data.validation_fraction"
        )
    return f"{start}: intervals count groups and are wide. Add groups: more images of the same ones hardly help"


def overflowing_candidates(config: Config, flags: Collection[str]) -> list[str]:
    """Return the int8 candidates whose sums of products would saturate on a processor with these flags."""
    if not int8_sums_saturate(flags):
        return []
    return [
        name
        for name, candidate in config.candidates.items()
        if isinstance(candidate, Quantize) and candidate.scheme != "dynamic" and not candidate.overflow_safe
    ]


def describe_overflow(unsafe: Sequence[str]) -> str:
    """Return the warning for these candidates, with the command that fixes it."""
    settings = " ".join(f"-S candidates.{name}.overflow_safe=true" for name in unsafe)
    return (
        f"the serving processor has no VNNI: sums of int8 products saturate there, so {', '.join(unsafe)} may "
        f"be less accurate than elsewhere. Weights in 7 bits avoid that: winnow run {settings}"
    )


def unchecked_gate_warnings(verdicts: Sequence[Verdict]) -> list[str]:
    """Return a warning for each gate that was not checked, with the reason and the candidates."""
    candidates_of_reason: dict[str, list[str]] = {}
    for verdict in verdicts:
        for gate in verdict.gates:
            if not gate.checked:
                candidates_of_reason.setdefault(f"{GATES[gate.name]}: {gate.reason}", []).append(verdict.candidate)
    return [
        f"{reason} ({', '.join(names)}); the gate blocks none of them" for reason, names in candidates_of_reason.items()
    ]


def unknown_flag_warnings(config: Config, speeds: ServingSpeeds) -> list[str]:
    """Return a warning where int8 sums may saturate: the target's system does not list the processor's flags."""
    unsafe, machine = overflowing_candidates(config, X86_FLAGS), speeds.machine
    if machine.flags or not speeds.is_target or not unsafe:
        return []
    return [
        f"whether sums of int8 products saturate on {machine.cpu} is not checked: its system does not list "
        f"processor flags; if it is an x86 processor without VNNI, set overflow_safe: true in {', '.join(unsafe)}"
    ]


def _missing_rounding_controls(config: Config) -> list[str]:
    """Return warnings for int8 candidates trained with rounding whose float parent was not trained as long."""
    warnings = []
    for name, candidate in config.candidates.items():
        if not isinstance(candidate, Quantize) or candidate.recovery is None:
            continue
        settings = _comparable_settings(candidate.recovery)
        controls = (
            control
            for control in config.candidates.values()
            if isinstance(control, Distill) and (control.parent, control.student) == (candidate.parent, "same")
        )
        if not any(_comparable_settings(control.recovery) == settings for control in controls):
            warnings.append(
                f"{name} may train {candidate.parent} for {candidate.recovery.epochs} more epochs: the loss by "
                f"rounding cannot be separated from the gain by training; the control is {{from: "
                f"{candidate.parent}, method: distill, student: same}} with that recovery"
            )
    return warnings


def _comparable_settings(recovery: Recovery) -> dict[str, object]:
    """Return what two trainings must share for one to be the other's control: all but the seed."""
    return recovery.model_dump(exclude={"seed"})


def _unreachable_gates(config: Config, dense: DropEvidence, images: ValidationImages) -> list[str]:
    """Return warnings for gates that not even an unchanged file could pass, because there are too few images."""
    gates, warnings = config.promotion.gates, []
    confidence = simultaneous_confidence(dense.candidates)
    labels, allowed = images.labelled, WORST_END_ALLOWANCES * gates.max_macro_f1_drop_points
    deciding = (len(labels), "labelled ", images.labelled_groups)
    count, kind, groups_N = deciding if dense.route == "labels" else (len(images.labels_V), "", images.groups_V)
    upper_end = smallest_upper_end(count, confidence, groups_N)
    groups = image_groups(groups_N)
    where = f" in {groups.groups} groups" if groups else ""
    if upper_end > WORST_END_ALLOWANCES * gates.max_drop_points:
        warnings.append(
            f"no candidate can pass: with {count} {kind}validation images{where}, the interval of a file that loses "
            f"nothing reaches {upper_end:.1f} points, more than the {WORST_END_ALLOWANCES * gates.max_drop_points:g} "
            "allowed; add images, with or without labels, or set promotion.gates.max_drop_points to at least "
            f"{_least_allowance(upper_end):g}"
        )

    def unchanged(answers_N: NDArray[np.int64], of_N: NDArray[np.int64] | None) -> float:
        return macro_f1_drop(answers_N, answers_N, answers_N, confidence=confidence, groups_N=of_N).high

    by_answers = unchanged(images.dense_V, images.groups_V)
    by_labels = unchanged(labels, images.labelled_groups) if len(labels) else math.inf
    if by_labels <= allowed:
        return warnings
    upper_end = min(by_labels, by_answers)
    conclusion = "no candidate can pass" if upper_end > allowed else "labels cannot show that macro F1 is preserved"
    support = np.bincount(labels, minlength=len(images.classes))
    rarest = min(range(len(images.classes)), key=lambda at: (support[at] == 0, support[at], at))
    name = images.classes[rarest]
    bound = f"reaches {by_labels:.1f} points, more than the {allowed:g} allowed" if len(labels) else "is not known"
    fallback = "; dense's predictions replace labels" if upper_end <= allowed else ""
    hint = ""
    if upper_end > allowed:
        hint = f", or set promotion.gates.max_macro_f1_drop_points to at least {_least_allowance(upper_end):g}"
    warnings.append(
        f"{conclusion}: with {len(labels)} labelled validation images, {support[rarest]} of class {name!r}, the "
        f"interval of a file that loses nothing {bound}{fallback}. Label more images{hint}"
    )
    return warnings


def _least_allowance(worst: float) -> float:
    """Return the smallest allowance within which a loss of 0 with this upper end of its interval passes."""
    return needed_allowance(Drop(0.0, 0.0, worst))
