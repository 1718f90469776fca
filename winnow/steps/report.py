"""Step 8, the last: write the page of the run, check the labels, and evaluate on the test split once.

Test images are read only here, for `dense`, the stronger baseline and the winner alone, after everything has been
chosen (winnow/selection/test_evaluation.py). No step reads this step's results, so nothing can be chosen by them; the
card of a promoted model repeats them. Each reading is counted for this version of the test split, in a file outside the
step's folder, and the count is printed: a test split that has been read often is no longer unseen. The count is not in
the record, whose bytes follow from its inputs.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from winnow.benchmark.deployed_logits import IN_ONNX_RUNTIME
from winnow.config import ROOT, Config, topological_order
from winnow.data.dataset import TEST, TRAIN, VALIDATION, ImageSet, load_images
from winnow.errors import ArtifactError, DataError
from winnow.labels.image_features import read_features
from winnow.labels.label_csv import write_csv
from winnow.labels.label_errors import LabelCheck, check_labels, select_checked, visible_indices
from winnow.records import (
    ReportDetails,
    ReportRecord,
    describe_files,
    publish,
    record_digest,
    write_json,
    write_record,
)
from winnow.reporting import plots
from winnow.reporting.embedding_pictures import MOST_IMAGES, draw_map, draw_neighbours
from winnow.reporting.label_findings import CHECK_COLUMNS, SHOWN_FINDINGS, draw_findings, finding_rows
from winnow.reporting.run_page import TestResult, render_run_page
from winnow.reporting.run_records import RunRecords, read_run_records
from winnow.reporting.thumbnails import draw_pairs
from winnow.selection.test_evaluation import TestEvaluation, evaluate_test
from winnow.timing_lock import compute_lock

log = logging.getLogger(__name__)
PAGE, LEARNING = "report.html", "learning.svg"
MAP, NEIGHBOURS = "embedding_map.png", "neighbours.png"
LABEL_CHECK, SUSPICIOUS = "label_check.csv", "label_check.png"
MOST_COMPARED = 5000
"""Training images that neighbours are searched among, at most; a random part of more."""
MOST_CHECKED = 5000
"""Labels that are checked, at most; `winnow label check` checks all."""
CPU = torch.device("cpu")
"""Embeddings are computed on the CPU, so that a run with a GPU lists the same labels as one without."""
VERSION_LENGTH = 16
UNTESTED = "there is no labelled test image: every figure of this run is of the validation split"


def report(config: Config, artifacts: Path, test_readings: Path, out: Path) -> ReportRecord:
    """Write report.html for the run in `artifacts`. `test_readings`: the JSON file that counts the test split's
    readings.
    """
    names = (ROOT, *topological_order(dict(config.candidates)))
    records = read_run_records(artifacts, names)
    images = load_images(artifacts / "data")
    positions = records.data.details.near_duplicates.positions
    records = replace(records, near_duplicates=draw_pairs(images.images_NHWC, positions))
    records = _with_embeddings(records, config, artifacts, images)
    findings = _check_labels(config, artifacts, images)
    records = replace(records, label_check=findings.check, suspicious=findings.sheet, visible_labels=findings.visible)
    version = digest_test_split(images)
    if len(images.indices(TEST, labelled=True)):
        count = count_reading(test_readings, version)
        log.info("report: test split read %d time%s (version %s)", count, "" if count == 1 else "s", version)
    test_evaluation = evaluate_test(artifacts, records.selection.details, images)
    warnings = _warnings(test_evaluation, records.winner)
    page_warnings = warnings if test_evaluation.details else ()
    test_result = TestResult(
        version,
        test_evaluation.metrics,
        test_evaluation.baseline,
        test_evaluation.measured_in,
        page_warnings,
        test_evaluation.abstention,
    )
    html = render_run_page(records, test_result)
    folders = {name: artifacts / name for name in ("data", "embed", "pretrain", "benchmark", "select", "refit")}
    folders |= {name: artifacts / "candidates" / name for name in names}
    with publish(out) as folder:
        (folder / PAGE).write_text(html, encoding="utf-8")
        files = [PAGE]
        if curves := records.pretrain.details.curves:
            (folder / LEARNING).write_bytes(plots.plot_curve(curves, "loss", "loss of pretraining"))
            files.append(LEARNING)
        pictures = {MAP: records.embedding_map, NEIGHBOURS: records.neighbours, SUSPICIOUS: records.suspicious}
        for name, picture in pictures.items():
            if picture:
                (folder / name).write_bytes(picture)
                files.append(name)
        if findings.rows:
            write_csv(folder / LABEL_CHECK, CHECK_COLUMNS, findings.rows)
            files.append(LABEL_CHECK)
        record = ReportRecord(
            step="report",
            name="report",
            parameters={},
            inputs={name: record_digest(path) for name, path in folders.items()},
            metrics=test_evaluation.metrics | findings.metrics,
            details=ReportDetails(
                test_version=version,
                winner=records.winner,
                source=records.source,
                test=test_evaluation.details,
                baseline=test_evaluation.baseline,
                measured_in=test_evaluation.measured_in,
                fallback=test_evaluation.fallback,
                disagreements=list(test_evaluation.disagreements),
                abstention=test_evaluation.abstention,
            ),
            warnings=warnings,
            artifacts=describe_files(folder, *files),
        )
        write_record(folder, record)
    return record


def _with_embeddings(records: RunRecords, config: Config, artifacts: Path, images: ImageSet) -> RunRecords:
    """Return the records with a map and a sheet of neighbours by the teacher's embeddings, or the backbone's."""
    queries, train = images.indices(VALIDATION), images.indices(TRAIN)
    bank = np.sort(np.random.default_rng(0).permutation(train)[:MOST_COMPARED])
    queries = np.sort(np.random.default_rng(1).permutation(queries)[:MOST_IMAGES])
    indices = np.concatenate([queries, bank])
    features = read_features(config, images, artifacts, indices, CPU)
    return replace(
        records,
        embedding_map=draw_map(features.rows_MD[: len(queries)], images.labels_N[queries], images.classes),
        neighbours=draw_neighbours(images.images_NHWC, indices, len(queries), features.rows_MD),
        embedded_by=features.network,
    )


@dataclass(frozen=True)
class _LabelFindings:
    """What a check of the labels found: for the page, for the CSV, and as metrics."""

    check: LabelCheck | None = None
    sheet: bytes = b""
    rows: Sequence[tuple[str, ...]] = ()
    visible: int = 0
    """Number of labels of which those that were checked are a random part."""

    @property
    def metrics(self) -> dict[str, float]:
        """Return the counts, by the names of winnow/records/metric_names.py; none without a check."""
        if self.check is None:
            return {}
        metrics = {
            "labels/checked": float(self.check.checked),
            "labels/suspicious": float(len(self.check.findings)),
        }
        # Where no label could be judged there is no share of predicted ones.
        return metrics | ({"labels/predicted": self.check.agreement} if math.isfinite(self.check.agreement) else {})


def _check_labels(config: Config, artifacts: Path, images: ImageSet) -> _LabelFindings:
    """Check the labels of training and validation that may be used; of more than MOST_CHECKED a random part."""
    visible_L = visible_indices(config, images)
    indices_L = np.sort(np.random.default_rng(2).permutation(visible_L)[:MOST_CHECKED])
    features = read_features(config, images, artifacts, indices_L, CPU)
    if features.is_random:
        log.info("report: labels were not checked: the features are those of random weights")
        return _LabelFindings()
    checked = select_checked(images, indices_L, features.rows_MD)
    try:
        with compute_lock():
            result = check_labels(checked, config.finetune.folds, config.finetune.seeds[0])
    except DataError as error:
        log.info("report: labels were not checked: %s", error)
        return _LabelFindings()
    if not result.findings or not result.is_reliable:
        return _LabelFindings(result, visible=len(visible_L))
    content = io.BytesIO()
    draw_findings(images, checked, result, SHOWN_FINDINGS).save(content, "PNG")
    return _LabelFindings(result, content.getvalue(), finding_rows(images, checked, result), len(visible_L))


def digest_test_split(images: ImageSet) -> str:
    """Return a digest of the test images' own digests, whatever their order."""
    keys = sorted(key.tobytes() for key in images.keys_N16[images.indices(TEST)])
    return hashlib.sha256(b"".join(keys)).hexdigest()[:VERSION_LENGTH]


def count_reading(path: Path, version: str) -> int:
    """Add one to this version's count and return it. Raises ArtifactError for a damaged file."""
    try:
        counts: dict[str, int] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        count = int(counts.get(version, 0)) + 1
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ArtifactError(f"{path} is damaged ({error}); delete it to restart the count") from error
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {**counts, version: count})
    return count


def _warnings(test_evaluation: TestEvaluation, winner: str | None) -> tuple[str, ...]:
    """Return the warnings in the order of their weight: test and validation disagree, classes that are never
    recognised, overconfidence, and a winner that was not evaluated as it will be served.
    """
    if not test_evaluation.details:
        return (UNTESTED,)
    warnings = (*test_evaluation.disagreements, *test_evaluation.cautions)
    if not test_evaluation.fallback:
        return warnings
    return (
        *warnings,
        f"{winner} was tested in {IN_ONNX_RUNTIME}, and not as it will serve: {test_evaluation.fallback}",
    )
