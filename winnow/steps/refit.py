"""Step 7: train the winner once more, on training and validation labels, before it is deployed.

Validation labels choose, and the chosen model has learned nothing from them. Where labels are few that is a fifth of
the labelled images. So the selected settings are trained again on all of them, as scikit-learn's
GridSearchCV(refit=True) does (winnow/refit/training.py). The refitted file is accepted only if it computes what the
measured file computes and agrees with it (winnow/refit/acceptance.py); otherwise the selected file is deployed, with
the reason. The figures of the run stay those of the selected file: on validation images those of the refitted one would
be too good.

The test split is not read, and neither are times: a new benchmark with the same winner trains nothing again.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from winnow.config import ROOT, Config
from winnow.config.section import NO_FILE
from winnow.data.dataset import VALIDATION, ImageSet, load_images
from winnow.deploy.candidate_card import PARITY_IMAGES, check_parity
from winnow.deploy.onnx_session import MODEL
from winnow.errors import TrainingError
from winnow.models.backbones import ARCHITECTURE_FILE, WEIGHTS_FILE
from winnow.records import (
    CARD,
    CandidateCard,
    CandidateRecord,
    CurveRow,
    RefitDetails,
    RefitRecord,
    describe_files,
    publish,
    record_digest,
    sha256_of,
    write_record,
)
from winnow.records.card import CardRefit
from winnow.records.refit import RefitCheck, RefitLabels
from winnow.refit.acceptance import check_refit
from winnow.refit.deployed_folder import SELECTED, read_winner
from winnow.refit.training import RefitFolders, RefitResult, refit_chain, refit_indices, refit_obstacle, refit_order

log = logging.getLogger(__name__)
NOTE = (
    "figures are those of the selected file, before the refit, on the validation split; those on the test split are of "
    "the refitted file; the temperature is the selected file's"
)


@dataclass(frozen=True)
class RefitAttempt:
    """The result of a refit that was tried."""

    trainings: RefitResult | None
    """None where a training failed."""
    check: RefitCheck | None
    refusal: str
    """Why the selected file is deployed instead; empty where the refitted one is."""


def refit(config: Config, artifacts: Path, out: Path, scratch: Path) -> RefitRecord:
    """Train the winner of `artifacts` again where `config.refit` asks for it; write what may be deployed to `out`.

    Without a refit, or with one that was refused, `out` holds the record alone, with the reason.
    """
    images = load_images(artifacts / "data")
    winner = read_winner(artifacts / "select")
    records = _records(artifacts, winner)
    chain = refit_order(config, records[winner].details.lineage) if winner else []
    obstacle_text, attempt = _obstacle(config, images, records, chain), None
    if not obstacle_text:
        sources = RefitFolders(artifacts / "pretrain", artifacts / "candidates", scratch, artifacts / "embed")
        attempt = _attempt(config, images, records, chain, sources)
    is_refitted = attempt is not None and not attempt.refusal
    labels = _labels(records[ROOT], len(refit_indices(config, images)) if is_refitted else 0)
    reason = obstacle_text or _describe_outcome(str(winner), attempt, labels)
    log.info("refit: %s", reason)
    with publish(out) as folder:
        files: list[str] = []
        if winner and attempt and attempt.trainings and attempt.check and not attempt.refusal:
            selected, refitted = artifacts / "candidates" / winner, attempt.trainings.folder
            files = _write_refit(folder, selected, refitted, labels.deployed, attempt.check)
        record = RefitRecord(
            step="refit",
            name="refit",
            parameters=config.refit.model_dump(mode="json"),
            inputs=_inputs(config, artifacts, records),
            metrics=_metrics(labels, attempt, bool(files)),
            details=RefitDetails(
                winner=winner,
                is_refitted=bool(files),
                why=reason,
                labels=labels,
                check=attempt.check if attempt else None,
                curves=_last_curves(attempt),
                trainings=attempt.trainings.curves if attempt and attempt.trainings else {},
            ),
            warnings=(reason,) if attempt and attempt.refusal else (),
            artifacts=describe_files(folder, *files),
        )
        write_record(folder, record)
    return record


def _records(artifacts: Path, winner: str | None) -> dict[str, CandidateRecord]:
    """Return the records of dense and of the winner's whole lineage."""
    names = [ROOT]
    if winner:
        names = CandidateRecord.read(artifacts / "candidates" / winner).details.lineage
    return {name: CandidateRecord.read(artifacts / "candidates" / name) for name in names}


def _obstacle(config: Config, images: ImageSet, records: Mapping[str, CandidateRecord], chain: Sequence[str]) -> str:
    """Return why nothing is trained; empty where something is."""
    choosing = len(images.indices(VALIDATION, labelled=True))
    if reason := config.refit.reason_against(choosing, config.data.label_budget):
        return f"not refitted: {reason}"
    if not chain:
        return "not refitted: no candidate has won"
    if reason := refit_obstacle(config, records, chain):
        return f"not refitted: {reason}"
    return ""


def _attempt(
    config: Config,
    images: ImageSet,
    records: Mapping[str, CandidateRecord],
    chain: Sequence[str],
    sources: RefitFolders,
) -> RefitAttempt:
    """Train the chain again and check the refitted file."""
    try:
        trainings = refit_chain(config, images, records, chain, sources)
    except TrainingError as error:
        return RefitAttempt(None, None, f"its training failed: {error}")
    if (trainings.folder / WEIGHTS_FILE).is_file():
        check_parity(trainings.folder, images, images.indices(VALIDATION)[:PARITY_IMAGES])
    selected, known = sources.candidates / chain[-1], refit_indices(config, images)
    check = check_refit(images, known, selected / MODEL, trainings.folder / MODEL, config.refit.min_kappa)
    return RefitAttempt(trainings, check, check.refusal)


def _labels(dense: CandidateRecord, refitted: int) -> RefitLabels:
    """Return the numbers of labels that trained the selection, that chose, and that trained the deployed file.

    `refitted`: labels of an accepted refit, 0 without one.
    """
    labels = dense.details.labels
    return RefitLabels(**dict(labels), deployed=refitted or labels.training)


def _describe_outcome(winner: str, attempt: RefitAttempt | None, labels: RefitLabels) -> str:
    """Return the result of the attempt, for users."""
    assert attempt is not None
    if attempt.refusal:
        return (
            f"{winner} was refitted, and the refitted file is refused: {attempt.refusal}. The selected file is deployed"
        )
    check = attempt.check
    assert check is not None
    return (
        f"{winner} was refitted on {labels.deployed:,} labels, {labels.training:,} of training and "
        f"{labels.choosing:,} of validation: the same prediction as before on {check.agreement * 100:.1f} % of "
        f"{check.images:,} {check.kind} (kappa {check.kappa:.2f})"
    )


def _last_curves(attempt: RefitAttempt | None) -> list[CurveRow]:
    """Return the curves of the network that was trained last."""
    trainings = attempt.trainings.curves.values() if attempt and attempt.trainings else ()
    return next((rows for rows in reversed(list(trainings)) if rows), [])


def _metrics(labels: RefitLabels, attempt: RefitAttempt | None, is_refitted: bool) -> dict[str, float]:
    metrics = {"refit/is_refitted": float(is_refitted), "refit/labels": float(labels.deployed)}
    if attempt and (check := attempt.check):
        metrics |= {"refit/agreement": check.agreement, "refit/kappa": check.kappa, "refit/images": float(check.images)}
    return metrics


def _inputs(config: Config, artifacts: Path, records: Mapping[str, CandidateRecord]) -> dict[str, str]:
    inputs = {name: record_digest(artifacts / name) for name in ("data", "pretrain")}
    inputs |= {name: record_digest(artifacts / "candidates" / name) for name in records}
    if config.finetune.weights != NO_FILE:
        inputs["weights"] = sha256_of(Path(config.finetune.weights))
    return inputs


def _write_refit(folder: Path, selected: Path, refitted: Path, labels: int, check: RefitCheck) -> list[str]:
    """Copy the refitted file and, below it, the selected one, write the card, and return the names of all files."""
    names = [name for name in (MODEL, WEIGHTS_FILE, ARCHITECTURE_FILE) if (refitted / name).is_file()]
    for name in names:
        shutil.copyfile(refitted / name, folder / name)
    (folder / SELECTED).mkdir()
    shutil.copyfile(selected / MODEL, folder / SELECTED / MODEL)
    card = CandidateCard.read(selected)
    changes = {
        "labels": card.labels.model_copy(update={"training": labels}),
        "measured_on": "the validation split, before the refit",
        "refit": CardRefit(labels=labels, note=NOTE, check=check, selected_sha256=sha256_of(selected / MODEL)),
    }
    card.model_copy(update=changes).write(folder)
    return [*names, CARD, f"{SELECTED}/{MODEL}"]
