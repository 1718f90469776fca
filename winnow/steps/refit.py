"""Step 7: the winner trained once more, on training and validation labels, before it is deployed.

Validation labels choose, and the chosen model has learned nothing from them. Where labels are few that is a fifth of
what people labelled by hand. So the chosen settings are trained again on all of them, as scikit-learn's
GridSearchCV(refit=True) does (winnow/refit/training.py). The refitted file is accepted only if it computes what the
measured file computes and answers much like it (winnow/refit/acceptance.py); otherwise the selected file is deployed,
with the reason. The figures of the run stay those of the selected file: on validation images the refitted one would be
flattered.

The test split is not read, and neither are times: a new benchmark with the same winner trains nothing again.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from winnow.config import ROOT, Config
from winnow.config.section import NOTHING
from winnow.data.dataset import VALIDATION, ImageSet, load_images
from winnow.deploy.candidate_card import CARD, PARITY_IMAGES, parity
from winnow.deploy.onnx_session import MODEL
from winnow.errors import TrainingError
from winnow.models.backbones import ARCHITECTURE, WEIGHTS
from winnow.records import (
    StepRecord,
    describe,
    publish,
    read_json,
    read_record,
    record_digest,
    sha256_of,
    write_json,
    write_record,
)
from winnow.refit.acceptance import Check, check_refit
from winnow.refit.deployed_folder import SELECTED, WINNER
from winnow.refit.training import Sources, Trainings, chain_of, known_labels, obstacle, refit_chain
from winnow.training.loop import Row

log = logging.getLogger(__name__)
NOTE = (
    "figures are those of the selected file, before the refit, on the validation split; those on the test split are of "
    "the refitted file; the temperature is the selected file's"
)


@dataclass(frozen=True)
class Attempt:
    """A refit that was tried."""

    trainings: Trainings | None
    """None where a training failed."""
    check: Check | None
    refusal: str
    """Why the selected file is deployed after all; empty where the refitted one is."""


def refit(config: Config, artifacts: Path, out: Path, scratch: Path) -> StepRecord:
    """Train the winner of `artifacts` again where `config.refit` asks for it; leave what may be deployed in `out`.

    Without a refit, or with one that was refused, `out` holds the record alone, with the reason.
    """
    images = load_images(artifacts / "data")
    winner: str | None = read_json(artifacts / "select" / WINNER)["winner"]
    records = _records(artifacts, winner)
    chain = chain_of(config, records[winner].details["lineage"]) if winner else []
    against, attempt = _reason_against(config, images, records, chain), None
    if not against:
        sources = Sources(artifacts / "pretrain", artifacts / "candidates", scratch)
        attempt = _attempt(config, images, records, chain, sources)
    is_refitted = attempt is not None and not attempt.refusal
    labels = _labels(records[ROOT], len(known_labels(config, images)) if is_refitted else 0)
    why = against or _outcome(str(winner), attempt, labels)
    log.info("refit: %s", why)
    with publish(out) as folder:
        files: list[str] = []
        if winner and attempt and attempt.trainings and not attempt.refusal:
            about = {"labels": labels["deployed"], "note": NOTE, "check": _checked(attempt)}
            files = _leave(folder, artifacts / "candidates" / winner, attempt.trainings.folder, about)
        record = StepRecord(
            step="refit",
            name="refit",
            parameters=config.refit.model_dump(mode="json"),
            inputs=_inputs(config, artifacts, records),
            metrics=_metrics(labels, attempt, bool(files)),
            details={
                "winner": winner,
                "is_refitted": bool(files),
                "why": why,
                "labels": labels,
                "check": _checked(attempt),
                "curves": _last_curves(attempt),
                "trainings": attempt.trainings.curves if attempt and attempt.trainings else {},
            },
            warnings=(why,) if attempt and attempt.refusal else (),
            artifacts=describe(folder, *files),
        )
        write_record(folder, record)
    return record


def _records(artifacts: Path, winner: str | None) -> dict[str, StepRecord]:
    """Records of dense and of the winner's whole lineage."""
    names = [ROOT]
    if winner:
        names = list(read_record(artifacts / "candidates" / winner).details["lineage"])
    return {name: read_record(artifacts / "candidates" / name) for name in names}


def _reason_against(config: Config, images: ImageSet, records: Mapping[str, StepRecord], chain: Sequence[str]) -> str:
    """Why nothing is trained; empty where it is."""
    choosing = len(images.indices(VALIDATION, labelled=True))
    if reason := config.refit.reason_against(choosing, config.data.label_budget):
        return f"not refitted: {reason}"
    if not chain:
        return "not refitted: no candidate has won"
    if reason := obstacle(config, records, chain):
        return f"not refitted: {reason}"
    return ""


def _attempt(
    config: Config, images: ImageSet, records: Mapping[str, StepRecord], chain: Sequence[str], at: Sources
) -> Attempt:
    """Train and check."""
    try:
        trainings = refit_chain(config, images, records, chain, at)
    except TrainingError as error:
        return Attempt(None, None, f"its training failed: {error}")
    if (trainings.folder / WEIGHTS).is_file():
        parity(trainings.folder, images, images.indices(VALIDATION)[:PARITY_IMAGES])
    selected, known = at.candidates / chain[-1], known_labels(config, images)
    check = check_refit(images, known, selected / MODEL, trainings.folder / MODEL, config.refit.min_kappa)
    return Attempt(trainings, check, check.refusal)


def _labels(dense: StepRecord, refitted: int) -> dict[str, int]:
    """Labels that trained what was selected, that chose, and that trained the file that is deployed.

    `refitted`: labels of an accepted refit, 0 without one.
    """
    used: dict[str, int] = dense.details["labels"]
    return {**used, "deployed": refitted or used["training"]}


def _outcome(winner: str, attempt: Attempt | None, labels: Mapping[str, int]) -> str:
    """What the attempt ended with, for people."""
    assert attempt is not None
    if attempt.refusal:
        return (
            f"{winner} was refitted, and the refitted file is refused: {attempt.refusal}. The selected file is deployed"
        )
    check = attempt.check
    assert check is not None
    return (
        f"{winner} was refitted on {labels['deployed']:,} labels, {labels['training']:,} of training and "
        f"{labels['choosing']:,} of validation: the same answer as before on {check.agreement * 100:.1f} % of "
        f"{check.images:,} {check.kind} (kappa {check.kappa:.2f})"
    )


def _checked(attempt: Attempt | None) -> dict[str, Any] | None:
    return asdict(attempt.check) if attempt and attempt.check else None


def _last_curves(attempt: Attempt | None) -> list[Row]:
    """Those of the last network that was trained."""
    trainings = attempt.trainings.curves.values() if attempt and attempt.trainings else ()
    return next((rows for rows in reversed(list(trainings)) if rows), [])


def _metrics(labels: Mapping[str, int], attempt: Attempt | None, is_refitted: bool) -> dict[str, float]:
    metrics = {"refit/is_refitted": float(is_refitted), "refit/labels": float(labels["deployed"])}
    if attempt and (check := attempt.check):
        metrics |= {"refit/agreement": check.agreement, "refit/kappa": check.kappa, "refit/images": float(check.images)}
    return metrics


def _inputs(config: Config, artifacts: Path, records: Mapping[str, StepRecord]) -> dict[str, str]:
    inputs = {name: record_digest(artifacts / name) for name in ("data", "pretrain")}
    inputs |= {name: record_digest(artifacts / "candidates" / name) for name in records}
    if config.finetune.weights != NOTHING:
        inputs["weights"] = sha256_of(Path(config.finetune.weights))
    return inputs


def _leave(folder: Path, selected: Path, refitted: Path, about: Mapping[str, Any]) -> list[str]:
    """Copy the refitted file and, below it, the selected one, write the card, and return the names of all files."""
    names = [name for name in (MODEL, WEIGHTS, ARCHITECTURE) if (refitted / name).is_file()]
    for name in names:
        shutil.copyfile(refitted / name, folder / name)
    (folder / SELECTED).mkdir()
    shutil.copyfile(selected / MODEL, folder / SELECTED / MODEL)
    card = read_json(selected / CARD)
    card["labels"] = {**card["labels"], "training": about["labels"]}
    card["measured_on"] = "the validation split, before the refit"
    card["refit"] = {**about, "selected_sha256": sha256_of(selected / MODEL)}
    write_json(folder / CARD, card)
    return [*names, CARD, f"{SELECTED}/{MODEL}"]
