"""Drift detection: compare the champion's outputs on fresh images and on the validation split, and log the result.

Fresh images are those in `drift.path` that the project has not ingested. An image is identified by the digest of its
pixels, so a copy of an ingested image is not fresh.

For a refitted champion, the file before the refit is used: the refitted one was trained on the validation images and
would be more confident on them than on fresh images without any shift. The test split is no alternative: only `report`
reads it.
"""

from __future__ import annotations

import csv
import tempfile
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from tasks.project.paths import ProjectPaths, registered_model_name
from tasks.project.run_origin import origin_tags
from tasks.registry import registered_models
from tasks.registry.registered_models import CHAMPION, ModelVersion
from tasks.tracking import mlflow_runs
from tasks.tracking.run_content import flatten_params
from tasks.tracking.tags import ADVICE_TAG, CHAMPION_TAG, KIND_TAG, NOTE_TAG
from winnow.config import Config
from winnow.config.section import NO_FILE
from winnow.data.dataset import VALIDATION, load_images
from winnow.data.decoding import decode_all
from winnow.data.file_tree import walk_files
from winnow.data.image_items import Item
from winnow.data.preprocessing import Preprocessing
from winnow.deploy.drift_tests import (
    DriftFeatures,
    DriftTestResult,
    Recommendation,
    compute_features,
    recommend_action,
    run_drift_tests,
    select_images_to_label,
)
from winnow.deploy.onnx_session import MODEL
from winnow.errors import ConfigError, DataError
from winnow.printable import markdown, printable, spreadsheet_cell
from winnow.records import DeploymentCard
from winnow.refit.deployed_folder import selected_folder

LIST = "to-label.csv"


class NothingToCompare(DataError):
    """Raised where the fresh images are too few or of another size; a scheduled flow does not fail because of it."""


@dataclass(frozen=True)
class FreshImages:
    """The images of a folder, without those that were ingested and without duplicates."""

    files: list[str]
    """Paths relative to the folder."""
    pixels_NHWC: NDArray[np.uint8]
    rejected: tuple[str, ...]
    known: int
    """The number of images left out because they were ingested before."""
    copies: int
    """The number of images left out because another one has the same pixels."""

    @property
    def left_out(self) -> str:
        """The counts of excluded files, for users; "" where there are none."""
        counts = {
            "ingested before": self.known,
            "copies of others": self.copies,
            "not readable": len(self.rejected),
        }
        return ", ".join(f"{count} {reason}" for reason, count in counts.items() if count)


@dataclass(frozen=True)
class DriftResult:
    """The result of one comparison."""

    images: int
    reference: int
    rejected: tuple[str, ...]
    left_out: str
    """The counts of files that were not compared, for users."""
    champion: ModelVersion
    shifts: tuple[DriftTestResult, ...]
    advice: Recommendation
    to_label: tuple[tuple[str, str, float], ...]
    """(file, predicted class, probability) of the images most worth labelling; empty where no labels are needed."""

    @property
    def is_real(self) -> bool:
        """True where at least one shift is significant and large enough to act on."""
        return any(shift.is_real for shift in self.shifts)


def detect_drift(paths: ProjectPaths, config: Config, path: str | None = None) -> DriftResult:
    """Compare the images below `path` (drift.path by default) with the validation split.

    Raises ConfigError where the folder does not exist, NothingToCompare where there are too few fresh images, DataError
    where the champion was trained with another preprocessing.
    """
    folder = Path(path or config.drift.path)
    if str(folder) == NO_FILE:
        raise ConfigError("drift.path: no folder of fresh images is set; run `winnow drift FOLDER`, or set drift.path")
    folder = folder if folder.is_absolute() else paths.root / folder
    if not folder.is_dir():
        raise ConfigError(f"drift.path: {folder} is not a folder")
    model = registered_model_name(config)
    champion, images = registered_models.get(paths, model, CHAMPION), load_images(paths.artifacts / "data")
    model_folder = registered_models.fetch(paths, model, champion)
    card = DeploymentCard.read(model_folder)
    if card.image_size != images.image_size:
        raise NothingToCompare(
            f"{champion} takes images of {card.image_size} pixels, artifacts/data has {images.image_size}"
        )
    if (preprocessing := Preprocessing.of(card)) != images.preprocessing:
        raise DataError(
            f"{champion} was trained with another preprocessing ({preprocessing.policy}) than that of artifacts/data "
            f"({images.preprocessing.policy}); run winnow again, or set data.resize and data.bits as for the champion"
        )
    ingested_keys = {key.tobytes() for key in images.keys_N16}
    validation_indices, model_file = images.indices(VALIDATION), selected_folder(model_folder) / MODEL
    with tempfile.TemporaryFile() as scratch:
        fresh_images = _read_fresh(folder, card, ingested_keys, scratch)
        if (count := len(fresh_images.files)) < config.drift.min_images:
            exclusions = f" ({fresh_images.left_out})" if fresh_images.left_out else ""
            raise NothingToCompare(
                f"{folder}: {count} fresh images{exclusions}; "
                f"drift.min_images requires at least {config.drift.min_images}"
            )
        fresh_features = compute_features(model_file, fresh_images.pixels_NHWC)
    reference_features = compute_features(model_file, images.images_NHWC, indices=validation_indices)
    shifts = run_drift_tests(reference_features, fresh_features, config.drift)
    recommendation = recommend_action(shifts)
    to_be_labelled = (
        _most_informative(fresh_images.files, fresh_features, card, config.drift.ask_for)
        if recommendation.wants == "labels"
        else ()
    )
    return DriftResult(
        count,
        len(validation_indices),
        fresh_images.rejected,
        fresh_images.left_out,
        champion,
        tuple(shifts),
        recommendation,
        to_be_labelled,
    )


def _read_fresh(folder: Path, card: DeploymentCard, ingested_keys: set[bytes], scratch: IO[bytes]) -> FreshImages:
    """Return the images below `folder` whose digest is not in `ingested_keys`, without duplicates.

    Their pixels are written to `scratch` and mapped. Duplicates are left out because the p values are exact only for
    independent samples.
    """
    files, rejected, ingested, copies = [], [], 0, 0
    side, preprocessing = card.image_size, Preprocessing.of(card)
    fresh_keys: set[bytes] = set()
    paths = [path for path, is_image in walk_files(folder) if is_image]
    items = (Item(printable(str(path.relative_to(folder))), -1, False, str(path)) for path in paths)
    with closing(decode_all(items, len(paths), side, preprocessing=preprocessing)) as stream:
        for batch in stream:
            rejected += [f"{batch.items[index].name}: {reason}" for index, reason in batch.reasons.items()]
            keys = (key.tobytes() for key in batch.keys_K16)
            for index, image_HWC, key in zip(batch.usable, batch.pixels_KHWC, keys, strict=True):
                if key in ingested_keys:
                    ingested += 1
                elif key in fresh_keys:
                    copies += 1
                else:
                    files.append(batch.items[index].name)
                    scratch.write(np.ascontiguousarray(image_HWC).data)
                    fresh_keys.add(key)
    scratch.flush()
    shape = (len(files), side, side, 3)
    pixels_NHWC = np.memmap(scratch, np.uint8, "r", shape=shape) if files else np.zeros(shape, np.uint8)
    return FreshImages(files, pixels_NHWC, tuple(rejected), ingested, copies)


def _most_informative(
    files: list[str], features: DriftFeatures, card: DeploymentCard, count: int
) -> tuple[tuple[str, str, float], ...]:
    """Return (file, predicted class, probability) of the `count` images whose labels would help most."""
    from winnow.evaluation.metrics import softmax

    probabilities_NC = softmax(features.logits_NC, card.temperature)
    return tuple(
        (files[index], card.classes[int(probabilities_NC[index].argmax())], float(probabilities_NC[index].max()))
        for index in select_images_to_label(features, count)
    )


def log_drift(paths: ProjectPaths, config: Config, finding: DriftResult) -> str:
    """Log the result and the list of files to label in an MLflow run of its own; return the run's id."""
    metrics = {"drift/images": float(finding.images), "drift/real": float(finding.is_real)}
    for shift in finding.shifts:
        metrics |= {f"drift/{shift.test}_p": shift.p, f"drift/{shift.test}_effect": shift.effect}
    tags = origin_tags(paths.root) | {
        KIND_TAG: "drift",
        CHAMPION_TAG: finding.champion.number,
        ADVICE_TAG: str(finding.advice),
        NOTE_TAG: "\n".join(report_lines(finding, for_markdown=True)),
    }
    params = flatten_params(config.drift.model_dump(mode="json"), "drift.")
    with tempfile.TemporaryDirectory() as scratch:
        list_path = Path(scratch) / LIST
        if finding.to_label:
            with list_path.open("w", encoding="utf-8", newline="") as list_file:
                rows = [
                    (*map(spreadsheet_cell, (file, name)), probability) for file, name, probability in finding.to_label
                ]
                csv.writer(list_file).writerows([("file", "predicted", "probability"), *rows])
        return mlflow_runs.log_separate_run(
            paths, config, metrics, params, tags, files=[list_path] if finding.to_label else []
        )


def report_lines(finding: DriftResult, for_markdown: bool = False) -> list[str]:
    """Return the result as lines of plain text or Markdown."""
    escape, bold = (markdown, "**") if for_markdown else (str, "")
    headline = "Drift" if finding.is_real else "No drift"
    report = [
        f"{bold}{headline}{bold}: {finding.images} fresh images against {finding.reference} validation images, by "
        f"{finding.champion}. Advice: {finding.advice}."
    ]
    for shift in finding.shifts:
        report.append(f"- {shift.test}{' (real)' if shift.is_real else ''}: {shift.words}, p = {shift.p:.2g}")
    if finding.left_out:
        report.append(f"- not compared: {finding.left_out}")
    if finding.rejected:
        report.append(f"- {len(finding.rejected)} files could not be read: {escape('; '.join(finding.rejected[:3]))}")
    return report
