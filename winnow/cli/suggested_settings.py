"""Settings of params.yaml that fit a set of images, each with its reason, for `winnow init`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import yaml

from tasks.project.templates import template
from winnow.cli.presets import FULL
from winnow.config import FEW_LABELS, Config
from winnow.data.survey import Survey
from winnow.evaluation.intervals import simultaneous_confidence, smallest_upper_end
from winnow.evaluation.macro_f1_drop import macro_f1_drop
from winnow.records.selection import Drop
from winnow.selection.gates import needed_allowance

SIZES = (32, 48, 64, 96, 128)
"""Values of data.image_size from which one is suggested."""
LARGEST_ON_CPU = 64
SMALL_BACKBONE_UP_TO = 64
"""The largest data.image_size for which the backbone resnet8 is kept."""
PHOTO_BACKBONE = "mobilenet_v3_small"


@dataclass(frozen=True)
class Setting:
    """A value for a key of params.yaml, and the reason for it."""

    key: str
    value: Any
    reason: str


def suggest_settings(survey: Survey, config: Config, has_gpu: bool) -> list[Setting]:
    """Return the settings that differ from those of `config` for these images."""
    size = _image_size(survey, has_gpu)
    settings = [size] if size.value != config.data.image_size else []
    if size.value > SMALL_BACKBONE_UP_TO:
        reason = f"resnet8 is made for images of up to {SMALL_BACKBONE_UP_TO} pixels"
        settings.append(Setting("pretrain.backbone", PHOTO_BACKBONE, reason))
    return settings + _gates(survey, config)


def _image_size(survey: Survey, has_gpu: bool) -> Setting:
    """Return the largest size that enlarges few images; on a CPU not above LARGEST_ON_CPU."""
    allowed = [size for size in SIZES if has_gpu or size <= LARGEST_ON_CPU]
    fitting = [size for size in allowed if size <= survey.shorter_side]
    size = max(fitting, default=min(SIZES))
    reason = f"the median of the shorter sides is {survey.shorter_side} pixels"
    if size < survey.shorter_side:
        reason += "; a larger size may be more accurate, and costs more time"
    return Setting("data.image_size", size, reason)


def _gates(survey: Survey, config: Config) -> list[Setting]:
    """Return wider gates where there are too few validation images to show what the present ones demand."""
    gates, share = config.promotion.gates, config.data.validation_fraction
    names = {*config.candidates, *yaml.safe_load(template(FULL))["to"]["candidates"]}
    confidence = simultaneous_confidence(len(names))  # the gates are to hold with --full, too
    per_class = [round(count * share) for count in survey.labelled.values()]
    labelled = sum(per_class)
    images = labelled + round(survey.unlabelled * share)
    deciding = labelled if labelled >= FEW_LABELS else images
    settings = []
    drop = _allowance(smallest_upper_end(max(1, deciding), confidence))
    if drop > gates.max_drop_points:
        reason = f"about {deciding} validation images cannot show a smaller loss; more images allow a smaller limit"
        settings.append(Setting("promotion.gates.max_drop_points", drop, reason))
    labels_N = np.repeat(np.arange(len(per_class)), np.maximum(per_class, 1))
    f1_drop = _allowance(macro_f1_drop(labels_N, labels_N, labels_N, confidence=confidence).high)
    if f1_drop > gates.max_macro_f1_drop_points:
        reason = f"the rarest class has about {min(per_class)} labelled validation images"
        settings.append(Setting("promotion.gates.max_macro_f1_drop_points", f1_drop, reason))
    return settings


def _allowance(upper_end: float) -> float:
    """Return the smallest allowance within which a file that loses nothing passes, in points."""
    return needed_allowance(Drop(0.0, 0.0, upper_end))
