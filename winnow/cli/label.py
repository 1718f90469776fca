"""`winnow label suggest` and `winnow label check`: a CSV file, a contact sheet, and a summary."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tasks.project.paths import ProjectPaths
from tasks.project.state_files import CHECKED_LABELS
from winnow.cli.progress import print_line, show_log
from winnow.config import Config
from winnow.data.dataset import ImageSet
from winnow.data.splits import known_label_indices
from winnow.errors import DataError
from winnow.labels.candidates import Candidates, find_candidates
from winnow.labels.image_features import ImageFeatures, load_data, load_features
from winnow.labels.label_csv import LABEL, PATH, check_replaceable, write_csv
from winnow.labels.label_errors import UNRELIABLE, LabelCheck, check_labels, select_checked
from winnow.labels.suggestion import LabelPool, suggest_images
from winnow.reporting.contact_sheet import MAX_SHOWN, check_sheet_replaceable, draw_sheet, write_sheet
from winnow.reporting.label_findings import CHECK_COLUMNS, draw_findings, finding_rows
from winnow.timing_lock import compute_lock
from winnow.training.label_propagation import unit_components

SUGGESTED_COLUMNS = (PATH, LABEL)
RANDOM_FEATURES = "Note: these weights are random, so the result means little; set pretrain.method or teacher.weights"


def suggest_labels(paths: ProjectPaths, config: Config, request: tuple[int, str, int], out: Path) -> int:
    """Write the images to label next; `request`: how many, by which method, with which seed."""
    count, method, seed = request
    sheet_file = out.with_suffix(".png")
    check_replaceable(out, SUGGESTED_COLUMNS, {})
    check_sheet_replaceable(sheet_file)
    show_log()
    images = load_data(paths.artifacts)
    candidates = find_candidates(config, images, paths.root)
    if not len(candidates.free_F):
        raise DataError(
            f"{paths.artifacts / 'data'}: no training image without a label can be suggested "
            f"({_left_out(candidates) or 'all have one'}); add images to data.path"
        )
    pool_M = np.sort(np.concatenate([candidates.labelled_L, candidates.free_F]))
    features = load_features(config, images, paths.artifacts, pool_M)
    labels_M = np.where(np.isin(pool_M, candidates.labelled_L), images.labels_N[pool_M], -1)
    with compute_lock():
        pool = LabelPool(unit_components(features.rows_MD), labels_M)
        chosen = pool_M[suggest_images(pool, count, method, seed)].tolist()
    write_csv(out, SUGGESTED_COLUMNS, [(images.files[index], "") for index in chosen])
    names = [[images.files[index].rpartition("/")[2]] for index in chosen]
    write_sheet(sheet_file, draw_sheet(images.images_NHWC, chosen, names))
    print_line(
        f"{count} of {len(candidates.free_F)} training images without a label, by {method}; "
        f"{len(candidates.labelled_L)} have one"
    )
    _print_features(features)
    if candidates.hidden:
        print_line(f"Note: {candidates.hidden} of them have labels that data.labels_per_class hides")
    if left_out := _left_out(candidates):
        print_line(f"Left out: {left_out}")
    print_line(f"{out}: type the labels into the second column, then add them to your own (docs/labels.md)")
    _print_sheet(sheet_file, count)
    return 0


def _left_out(candidates: Candidates) -> str:
    """Return how many images cannot be suggested and why, for users; "" where there are none."""
    counts = {
        "copies of other images": candidates.copies,
        "that a label would move into the test split": candidates.future_tests,
    }
    return ", ".join(f"{count} {reason}" for reason, count in counts.items() if count)


def check_labelled(paths: ProjectPaths, config: Config, out: Path) -> int:
    """Write the suspicious labels of training and validation, the most severe first."""
    show_log()
    images = load_data(paths.artifacts)
    indices_L = known_label_indices(images, config.data.label_budget, config.finetune.seeds[0])
    if not len(indices_L):
        raise DataError(f"{paths.artifacts / 'data'}: no image of training or validation has a label to check")
    labels = {images.files[index]: images.classes[images.labels_N[index]] for index in indices_L.tolist()}
    sheet_file = out.with_suffix(".png")
    written, key = CHECKED_LABELS.read(paths), str(out.absolute())
    check_replaceable(out, CHECK_COLUMNS, labels, written.get(key, {}))
    check_sheet_replaceable(sheet_file)
    features = load_features(config, images, paths.artifacts, indices_L)
    checked = select_checked(images, indices_L, features.rows_MD)
    with compute_lock():
        result = check_labels(checked, config.finetune.folds, config.finetune.seeds[0])
    rows = finding_rows(images, checked, result)
    write_csv(out, CHECK_COLUMNS, rows)
    CHECKED_LABELS.write(paths, {**written, key: {path: label for path, label, *_ in rows}})
    if result.findings:
        write_sheet(sheet_file, draw_findings(images, checked, result))
    else:
        sheet_file.unlink(missing_ok=True)  # that of an earlier check
    _print_check(images, result, len(indices_L))
    _print_features(features)
    print_line(f"{out}: the suspicious labels, the most severe first (docs/labels.md)")
    if result.findings:
        _print_sheet(sheet_file, len(result.findings))
    return 0


def _print_check(images: ImageSet, result: LabelCheck, count: int) -> None:
    print_line(
        f"{len(result.findings)} of {count} labels of training and validation are suspicious: "
        f"{result.count('near-duplicate')} near-duplicates of images of another class, "
        f"{result.count('label error')} label errors, {result.count('outlier')} outliers"
    )
    print_line(f"A linear probe predicts {result.agreement:.0%} of the labels correctly without training on them")
    if not result.is_reliable:
        print_line(f"Note: {UNRELIABLE}; rely on the first rows only, or set teacher.weights (docs/known-weights.md)")
    if result.not_judged:
        names = ", ".join(images.classes[label] for label in result.not_judged)
        print_line(f"Note: {names}: too few labels or groups to search for label errors")


def _print_features(features: ImageFeatures) -> None:
    print_line(f"Features of {features.network} (artifacts/{features.folder})")
    if features.is_random:
        print_line(RANDOM_FEATURES)


def _print_sheet(file: Path, count: int) -> None:
    shown = f"the first {MAX_SHOWN} images" if count > MAX_SHOWN else "the images"
    print_line(f"{file}: {shown}, numbered by row")
