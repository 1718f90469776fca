"""Step 8, the last: write the page of the run, check the labels, and evaluate on the test split once.

Test images are read only here, for `dense`, the stronger baseline and the winner alone, after everything has been
chosen (winnow/selection/test_evaluation.py). No step reads this step's results, so nothing can be chosen by them; the
card of a promoted model repeats them. Each reading of a version of the test split is counted outside the step's folder
(winnow/selection/test_readings.py), and the count is printed: a test split that has been read often is no longer
unseen. The count is not in the record, whose bytes follow from its inputs.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from winnow.benchmark.deployed_logits import IN_ONNX_RUNTIME
from winnow.config import ROOT, Config, topological_order
from winnow.data.dataset import TRAIN, VALIDATION, ImageSet, load_images
from winnow.data.splits import known_label_indices
from winnow.errors import DataError
from winnow.labels.image_features import ImageFeatures, read_features
from winnow.labels.label_csv import csv_text
from winnow.labels.label_errors import LabelCheck, check_labels, select_checked
from winnow.records import (
    ReportDetails,
    ReportRecord,
    describe_files,
    publish,
    record_digest,
    write_record,
)
from winnow.reporting import plots
from winnow.reporting.candidates_section import trade_off_points
from winnow.reporting.embedding_pictures import MOST_IMAGES, draw_map, draw_neighbours
from winnow.reporting.label_findings import CHECK_COLUMNS, SHOWN_FINDINGS, draw_findings, finding_rows
from winnow.reporting.run_page import TestResult, render_run_page
from winnow.reporting.run_records import RunRecords, read_run_records
from winnow.reporting.thumbnails import draw_pairs, png_bytes
from winnow.selection.test_evaluation import TestEvaluation, evaluate_test
from winnow.selection.test_readings import digest_test_split
from winnow.timing_lock import compute_lock

log = logging.getLogger(__name__)
PAGE, TRADE_OFF, LEARNING = "report.html", "pareto.png", "learning.svg"
MAP, NEIGHBOURS = "embedding_map.png", "neighbours.png"
LABEL_CHECK, SUSPICIOUS = "label_check.csv", "label_check.png"
MOST_COMPARED = 5000
"""Training images that neighbours are searched among, at most; a random part of more."""
MOST_CHECKED = 5000
"""Labels that are checked, at most; `winnow label check` checks all."""
CPU = torch.device("cpu")
"""Embeddings are computed on the CPU, so that a run with a GPU lists the same labels as one without."""
UNTESTED = "there is no labelled test image: every figure of this run is of the validation split"


def report(config: Config, artifacts: Path, out: Path) -> ReportRecord:
    """Write report.html for the run in `artifacts`. The caller counts the reading of the test split."""
    names = (ROOT, *topological_order(dict(config.candidates)))
    records = read_run_records(artifacts, names)
    records = replace(records, trade_off=plots.plot_pareto(trade_off_points(records)))
    images = load_images(artifacts / "data")
    positions = records.data.details.near_duplicates.positions
    records = replace(records, near_duplicates=draw_pairs(images.images_NHWC, positions))
    shown = _read_shown(config, artifacts, images)
    records = _with_embeddings(records, images, shown)
    findings = _check_labels(config, images, shown)
    records = replace(records, label_check=findings.check, suspicious=findings.sheet, visible_labels=shown.visible)
    version = digest_test_split(images)
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
        (folder / TRADE_OFF).write_bytes(records.trade_off)
        files = [PAGE, TRADE_OFF]
        if curves := records.pretrain.details.curves:
            (folder / LEARNING).write_bytes(plots.plot_curve(curves, "loss", "loss of pretraining"))
            files.append(LEARNING)
        pictures = {MAP: records.embedding_map, NEIGHBOURS: records.neighbours, SUSPICIOUS: records.suspicious}
        for name, picture in pictures.items():
            if picture:
                (folder / name).write_bytes(picture)
                files.append(name)
        if findings.rows:
            (folder / LABEL_CHECK).write_text(csv_text(CHECK_COLUMNS, findings.rows), encoding="utf-8", newline="")
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


@dataclass(frozen=True)
class _Shown:
    """The images whose features the report needs, and these features, which are computed once."""

    queries_Q: NDArray[np.int64]
    """Validation images of the map and of the sheet of neighbours."""
    bank_K: NDArray[np.int64]
    """Training images among which neighbours are searched."""
    visible: int
    """Number of labels that may be used."""
    checked_L: NDArray[np.int64]
    """Images whose labels are checked: all of these, or a random part of many."""
    indices_M: NDArray[np.int64]
    """The images of all three, each once, in ascending order."""
    features: ImageFeatures

    def rows(self, some_K: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the features (K, D) of some of these images."""
        return self.features.rows_MD[np.searchsorted(self.indices_M, some_K)]


def _read_shown(config: Config, artifacts: Path, images: ImageSet) -> _Shown:
    queries = _draw(images.indices(VALIDATION), MOST_IMAGES, np.random.default_rng(1))
    bank = _draw(images.indices(TRAIN), MOST_COMPARED, np.random.default_rng(0))
    visible = known_label_indices(images, config.data.label_budget, config.finetune.seeds[0])
    checked = _draw(visible, MOST_CHECKED, np.random.default_rng(2))
    indices = np.unique(np.concatenate([queries, bank, checked]))
    return _Shown(queries, bank, len(visible), checked, indices, read_features(config, images, artifacts, indices, CPU))


def _draw(indices: NDArray[np.int64], most: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return the indices in ascending order, of more than `most` a random part."""
    return np.sort(rng.permutation(indices)[:most])


def _with_embeddings(records: RunRecords, images: ImageSet, shown: _Shown) -> RunRecords:
    """Return the records with a map and a sheet of neighbours by the teacher's embeddings, or the backbone's."""
    queries, indices = shown.queries_Q, np.concatenate([shown.queries_Q, shown.bank_K])
    return replace(
        records,
        embedding_map=draw_map(shown.rows(queries), images.labels_N[queries], images.classes),
        neighbours=draw_neighbours(images.images_NHWC, indices, len(queries), shown.rows(indices)),
        embedded_by=shown.features.network,
    )


@dataclass(frozen=True)
class _LabelFindings:
    """The findings of a check of the labels: for the page, for the CSV, and as metrics."""

    check: LabelCheck | None = None
    sheet: bytes = b""
    rows: Sequence[tuple[str, ...]] = ()

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


def _check_labels(config: Config, images: ImageSet, shown: _Shown) -> _LabelFindings:
    """Check the labels of training and validation that may be used."""
    if shown.features.is_random:
        log.info("report: labels were not checked: the features are those of random weights")
        return _LabelFindings()
    checked = select_checked(images, shown.checked_L, shown.rows(shown.checked_L))
    try:
        with compute_lock():
            result = check_labels(checked, config.finetune.folds, config.finetune.seeds[0])
    except DataError as error:
        log.info("report: labels were not checked: %s", error)
        return _LabelFindings()
    if not result.findings or not result.is_reliable:
        return _LabelFindings(result)
    sheet = png_bytes(draw_findings(images, checked, result, SHOWN_FINDINGS))
    return _LabelFindings(result, sheet, finding_rows(images, checked, result))


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
