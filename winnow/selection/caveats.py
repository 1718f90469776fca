"""What to know before relying on a selection: few labels, missing controls, sums that saturate, gates out of reach."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from winnow.config import CONTROL, FEW_LABELS, ROOT, Config, Distill, Quantize, Recovery, may_train
from winnow.evaluation.accuracy_drop import DropEvidence
from winnow.evaluation.effective_sample_size import LEAST_GROUPS, Clusters, clusters
from winnow.evaluation.intervals import Drop, least_worst_end, simultaneous_confidence
from winnow.evaluation.macro_f1_drop import macro_f1_drop
from winnow.hardware import WIDE_FLAGS, saturates
from winnow.records import Verdict
from winnow.selection.decision import GATES, WORST_END, allowance

FEW_GROUPS = 50
"""Of labelled validation images; with fewer a warning says that groups are what counts."""


@dataclass(frozen=True)
class ValidationImages:
    """What is known of them when candidates are judged."""

    labels_V: NDArray[np.int64]
    """-1: none."""
    dense_V: NDArray[np.int64]
    """What dense answers."""
    classes: Sequence[str]
    groups_V: NDArray[np.int64] | None = None

    @property
    def labelled(self) -> NDArray[np.int64]:
        """Labels (L,) of those that have one."""
        return self.labels_V[self.labels_V >= 0]

    @property
    def labelled_groups(self) -> NDArray[np.int64] | None:
        """Groups (L,) of those that have a label."""
        return None if self.groups_V is None else self.groups_V[self.labels_V >= 0]


def remarks(config: Config, reference: str, dense: DropEvidence, images: ValidationImages) -> tuple[str, ...]:
    """Return the warnings of a selection. `dense`: what it lost against the reference."""
    labels_V = images.labels_V
    found, count, dense_drop = [], int((labels_V >= 0).sum()), dense.labelled
    if not count:
        found.append("no validation image has a label: accuracy is not known, only that answers stay the same")
    elif count < FEW_LABELS:
        found.append(
            f"{count} labelled validation images show little: a loss counts as no larger than the share of all "
            f"{len(labels_V)} validation images, labelled or not, that get another answer"
        )
    if (grouped := clusters(images.labelled_groups)) and grouped.groups < FEW_GROUPS:
        found.append(_told_of_groups(count, grouped))
    trained = [name for name, candidate in config.candidates.items() if may_train(candidate)]
    if trained and CONTROL not in config.candidates:
        found.append(
            f"{CONTROL} is not in the tree: {', '.join(trained)} are trained on, or may be, and are compared with "
            "dense, which is not"
        )
    found += _untold_by_rounding(config)
    if reference != ROOT and dense_drop is not None and dense_drop.low > 0:
        found.append(
            f"training dense on with its own answers as teacher gains {dense_drop.points:.1f} points: dense was not "
            "trained to its end (finetune.epochs), drops are counted against dense-kd"
        )
    return (*found, *_unreachable(config, dense, images))


def _told_of_groups(count: int, grouped: Clusters) -> str:
    told = f"{count} labelled validation images lie in {grouped.groups} groups, and images of a group are alike"
    if grouped.too_few:
        return (
            f"{told}: with fewer than {LEAST_GROUPS} groups no interval can be told, and no drop is shown to be small. "
            "Add groups (photographs, bursts, patients), or raise data.validation_fraction"
        )
    return f"{told}: intervals count groups and are wide. More groups narrow them, more images of the same ones hardly"


def overflowing(config: Config, flags: Collection[str]) -> list[str]:
    """Int8 candidates whose sums of products would saturate on a processor with these flags."""
    if not saturates(flags):
        return []
    return [
        name
        for name, candidate in config.candidates.items()
        if isinstance(candidate, Quantize) and candidate.scheme != "dynamic" and not candidate.overflow_safe
    ]


def overflow_told(unsafe: Sequence[str]) -> str:
    """What that means for these candidates, and the command that mends it."""
    settings = " ".join(f"-S candidates.{name}.overflow_safe=true" for name in unsafe)
    return (
        f"the processor that serves has no VNNI: sums of int8 products saturate there, so {', '.join(unsafe)} may "
        f"answer worse than elsewhere. Weights in 7 bits do not: winnow run {settings}"
    )


def unchecked_remarks(verdicts: Sequence[Verdict]) -> list[str]:
    """Return a warning for each gate that was not checked, and why, with the candidates that it concerns."""
    found: dict[str, list[str]] = {}
    for verdict in verdicts:
        for gate in verdict.gates:
            if not gate.checked:
                found.setdefault(f"{GATES[gate.name]}: {gate.reason}", []).append(verdict.candidate)
    return [f"{told} ({', '.join(names)}); the gate blocks none of them" for told, names in found.items()]


def silent_remarks(config: Config, speeds: Mapping[str, Any]) -> list[str]:
    """Return a warning where nobody knows whether int8 sums saturate: the target's system tells no processor flags.

    `speeds`: what `winnow.benchmark.target_measurements.serving_speeds` returns.
    """
    unsafe, machine = overflowing(config, WIDE_FLAGS), speeds["machine"]
    if machine["flags"] or not speeds["is_target"] or not unsafe:
        return []
    return [
        f"whether sums of int8 products saturate on {machine['cpu']} is not checked: its system does not tell what it "
        f"can do; if it is an x86 processor without VNNI, set overflow_safe: true in {', '.join(unsafe)}"
    ]


def _untold_by_rounding(config: Config) -> list[str]:
    """Int8 candidates that may be trained under rounding, whose float parent was not trained on as long."""
    found = []
    for name, candidate in config.candidates.items():
        if not isinstance(candidate, Quantize) or candidate.recovery is None:
            continue
        wanted = _training(candidate.recovery)
        controls = (
            other
            for other in config.candidates.values()
            if isinstance(other, Distill) and (other.parent, other.student) == (candidate.parent, "same")
        )
        if not any(_training(control.recovery) == wanted for control in controls):
            found.append(
                f"{name} may train {candidate.parent} on for {candidate.recovery.epochs} epochs: what rounding costs "
                f"is not told from what training on gains; the control is {{from: {candidate.parent}, method: distill, "
                "student: same} with that recovery"
            )
    return found


def _training(recovery: Recovery) -> dict[str, object]:
    """What two trainings must share for one to be the other's control: all but the draw."""
    return recovery.model_dump(exclude={"seed"})


def _unreachable(config: Config, judged: DropEvidence, images: ValidationImages) -> list[str]:
    """Gates that not even a file could pass that changes no answer: there are too few images to show it."""
    gates, found = config.promotion.gates, []
    confidence = simultaneous_confidence(judged.candidates)
    labels, allowed = images.labelled, WORST_END * gates.max_macro_f1_drop_points
    deciding = (len(labels), "labelled ", images.labelled_groups)
    count, kind, groups_N = deciding if judged.route == "labels" else (len(images.labels_V), "", images.groups_V)
    worst = least_worst_end(count, confidence, groups_N)
    grouped = clusters(groups_N)
    where = f" in {grouped.groups} groups" if grouped else ""
    if worst > WORST_END * gates.max_drop_points:
        found.append(
            f"no candidate can pass: {count} {kind}validation images{where} show a loss of nothing only to {worst:.1f} "
            f"points, more than the {WORST_END * gates.max_drop_points:g} allowed; add images, with or without labels: "
            f"as few as these show no file to be within promotion.gates.max_drop_points below {_least(worst):g}"
        )

    def unchanged(answers_N: NDArray[np.int64], of_N: NDArray[np.int64] | None) -> float:
        return macro_f1_drop(answers_N, answers_N, answers_N, confidence=confidence, groups_N=of_N).high

    by_answers = unchanged(images.dense_V, images.groups_V)
    by_labels = unchanged(labels, images.labelled_groups) if len(labels) else math.inf
    if by_labels <= allowed:
        return found
    worst = min(by_labels, by_answers)
    start = "no candidate can pass" if worst > allowed else "labels cannot show that macro F1 is kept"
    support = np.bincount(labels, minlength=len(images.classes))
    rarest = min(range(len(images.classes)), key=lambda at: (support[at] == 0, support[at], at))
    name = images.classes[rarest]
    shown = f"to {by_labels:.1f} points, more than the {allowed:g} allowed" if len(labels) else "not at all"
    rest = "; dense's answers stand in for labels" if worst <= allowed else ""
    least = f": as few as these show none within promotion.gates.max_macro_f1_drop_points below {_least(worst):g}"
    found.append(
        f"{start}: {len(labels)} labelled validation images, {support[rarest]} of class {name!r}, show "
        f"a loss of nothing {'only ' if len(labels) else ''}{shown}{rest}. Label more{least if worst > allowed else ''}"
    )
    return found


def _least(worst: float) -> float:
    """The allowance that a loss of nothing with such a worst end stays within."""
    return allowance(Drop(0.0, 0.0, worst))
