"""Fresh images against the validation split, by the champion's own answers; the finding goes to MLflow.

Fresh images are those in `drift.path` that the project has not ingested: an image is told by the digest of its pixels,
so a picture that was copied over is not taken for news.

Of a champion that was refitted, the file before the refit answers: the refitted one has learned the validation images,
and would be surer of them than of fresh ones that have not shifted. The test split is no way out: `report` alone reads
it.
"""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from tasks.project.paths import ProjectPaths, registered_model_name
from tasks.project.run_origin import origin_tags
from tasks.registry import registered_models
from tasks.registry.registered_models import CARD, CHAMPION, Version
from tasks.tracking import mlflow_runs
from tasks.tracking.run_content import flatten
from winnow.config import Config
from winnow.config.section import NOTHING
from winnow.data.dataset import VALIDATION, load_images
from winnow.data.decoding import Item, decode_all
from winnow.data.file_tree import files_below
from winnow.data.preprocessing import Preprocessing
from winnow.deploy.drift_tests import Advice, DriftFeatures, Shift, advice, answer, compare, to_label
from winnow.deploy.onnx_session import MODEL
from winnow.errors import ConfigError, DataError
from winnow.printable import markdown, printable, spreadsheet_cell
from winnow.records import read_json
from winnow.refit.deployed_folder import selected_folder

LIST = "to-label.csv"


class NothingToCompare(DataError):
    """There are too few fresh images, or they are of another size: no cause to wake somebody."""


@dataclass(frozen=True)
class Fresh:
    """What lies in a folder of fresh images, without those that were ingested and without second copies."""

    files: list[str]
    """Relative to the folder."""
    pixels_NHWC: NDArray[np.uint8]
    rejected: tuple[str, ...]
    known: int
    """Images left out because they were ingested before."""
    copies: int
    """Images left out because another one there is equal in every pixel."""

    @property
    def left_out(self) -> str:
        """In words; "" where nothing was."""
        told = {
            "ingested before": self.known,
            "copies of others": self.copies,
            "not readable": len(self.rejected),
        }
        return ", ".join(f"{count} {why}" for why, count in told.items() if count)


@dataclass(frozen=True)
class Finding:
    """What one look found."""

    images: int
    reference: int
    rejected: tuple[str, ...]
    left_out: str
    """What else lies in the folder and was not compared, in words."""
    champion: Version
    shifts: tuple[Shift, ...]
    advice: Advice
    wanted: tuple[tuple[str, str, float], ...]
    """(file, predicted class, probability) of the images whose labels would teach most; empty where none are wanted."""

    @property
    def is_real(self) -> bool:
        """Whether somebody should act."""
        return any(shift.is_real for shift in self.shifts)


def look(places: ProjectPaths, config: Config, path: str | None = None) -> Finding:
    """Compare the images below `path` (drift.path by default); raises ConfigError or DataError where it cannot."""
    folder = Path(path or config.drift.path)
    if str(folder) == NOTHING:
        raise ConfigError("drift.path: names no folder of fresh images; winnow drift FOLDER, or set drift.path")
    folder = folder if folder.is_absolute() else places.root / folder
    if not folder.is_dir():
        raise ConfigError(f"drift.path: {folder} is no folder")
    model = registered_model_name(config)
    champion, images = registered_models.get(places, model, CHAMPION), load_images(places.artifacts / "data")
    at = registered_models.fetch(places, model, champion)
    card = read_json(at / CARD)
    if card["image_size"] != images.image_size:
        raise NothingToCompare(
            f"{champion} takes images of {card['image_size']} pixels, artifacts/data has {images.image_size}"
        )
    if (preprocessing := Preprocessing.of(card)) != images.preprocessing:
        raise DataError(
            f"{champion} was made with other pixels ({preprocessing.policy}) than artifacts/data holds "
            f"({images.preprocessing.policy}); run winnow again, or set data.resize and data.bits to the champion's"
        )
    known = {key.tobytes() for key in images.keys_N16}
    held_out, file = images.indices(VALIDATION), selected_folder(at) / MODEL
    with tempfile.TemporaryFile() as scratch:
        new = _read(folder, card, known, scratch)
        if (count := len(new.files)) < config.drift.min_images:
            more = f" ({new.left_out})" if new.left_out else ""
            raise NothingToCompare(
                f"{folder}: {count} fresh images{more}; drift.min_images wants {config.drift.min_images} or more"
            )
        fresh = answer(file, new.pixels_NHWC)
    reference = answer(file, images.images_NHWC, indices=held_out)
    shifts = compare(reference, fresh, config.drift)
    told = advice(shifts)
    asked = _wanted(new.files, fresh, card, config.drift.ask_for) if told.wants == "labels" else ()
    return Finding(count, len(held_out), new.rejected, new.left_out, champion, tuple(shifts), told, asked)


def _read(folder: Path, card: Mapping[str, Any], known: set[bytes], scratch: IO[bytes]) -> Fresh:
    """Images below `folder` that are not in `known`, each once; their pixels are written to `scratch`.

    A copy would count as another sample, and fall into both halves of a test whose p value is exact only for
    independent ones.
    """
    files, rejected, old, copies = [], [], 0, 0
    side, preprocessing = card["image_size"], Preprocessing.of(card)
    seen: set[bytes] = set()
    paths = [path for path, is_image in files_below(folder) if is_image]
    items = (Item(printable(str(path.relative_to(folder))), -1, False, str(path)) for path in paths)
    with closing(decode_all(items, len(paths), side, preprocessing=preprocessing)) as stream:
        for part in stream:
            rejected += [f"{part.items[at].name}: {reason}" for at, reason in part.reasons.items()]
            keys = (key.tobytes() for key in part.keys_K16)
            for at, image_HWC, key in zip(part.kept, part.pixels_KHWC, keys, strict=True):
                if key in known:
                    old += 1
                elif key in seen:
                    copies += 1
                else:
                    files.append(part.items[at].name)
                    scratch.write(np.ascontiguousarray(image_HWC).data)
                    seen.add(key)
    scratch.flush()
    shape = (len(files), side, side, 3)
    pixels_NHWC = np.memmap(scratch, np.uint8, "r", shape=shape) if files else np.zeros(shape, np.uint8)
    return Fresh(files, pixels_NHWC, tuple(rejected), old, copies)


def _wanted(
    files: list[str], fresh: DriftFeatures, card: Mapping[str, Any], count: int
) -> tuple[tuple[str, str, float], ...]:
    from winnow.evaluation.metrics import softmax

    classes, chances_NC = card["classes"], softmax(fresh.logits_NC, card.get("temperature", 1.0))
    return tuple(
        (files[at], classes[int(chances_NC[at].argmax())], float(chances_NC[at].max())) for at in to_label(fresh, count)
    )


def track(places: ProjectPaths, config: Config, finding: Finding) -> str:
    """A run in MLflow that holds the finding and, where labels are wanted, the list of files; its number."""
    metrics = {"drift/images": float(finding.images), "drift/real": float(finding.is_real)}
    for shift in finding.shifts:
        metrics |= {f"drift/{shift.test}_p": shift.p, f"drift/{shift.test}_effect": shift.effect}
    tags = origin_tags(places.root) | {
        "winnow.kind": "drift",
        "winnow.champion": finding.champion.number,
        "winnow.advice": str(finding.advice),
        mlflow_runs.NOTE: "\n".join(lines(finding, for_markdown=True)),
    }
    params = flatten(config.drift.model_dump(mode="json"), "drift.")
    with tempfile.TemporaryDirectory() as scratch:
        listed = Path(scratch) / LIST
        if finding.wanted:
            with listed.open("w", encoding="utf-8", newline="") as opened:
                rows = [(*map(spreadsheet_cell, (file, name)), chance) for file, name, chance in finding.wanted]
                csv.writer(opened).writerows([("file", "predicted", "probability"), *rows])
        details = mlflow_runs.Details(metrics, params, tags, files=[listed] if finding.wanted else [])
        return mlflow_runs.log_apart(places, config, "drift", details)


def lines(finding: Finding, for_markdown: bool = False) -> list[str]:
    """For people, as plain text or Markdown."""
    escape, bold = (markdown, "**") if for_markdown else (str, "")
    head = "Drift" if finding.is_real else "No drift"
    told = [
        f"{bold}{head}{bold}: {finding.images} fresh images against {finding.reference} validation images, by "
        f"{finding.champion}. Advice: {finding.advice}."
    ]
    for shift in finding.shifts:
        told.append(f"- {shift.test}{' (real)' if shift.is_real else ''}: {shift.words}, p = {shift.p:.2g}")
    if finding.left_out:
        told.append(f"- not compared: {finding.left_out}")
    if finding.rejected:
        told.append(f"- {len(finding.rejected)} files could not be read: {escape('; '.join(finding.rejected[:3]))}")
    return told
