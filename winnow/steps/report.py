"""Step 7, the last: the page of the run, and the one look at the test split.

Only here are test images read, for `dense` and the winner alone, after everything has been chosen; no step reads what
this one leaves, so nothing can be chosen by it; the card of a promoted model repeats it. Each look is counted for this
version of the test split, in a file outside the step's folder, and the count is printed: a test split that has been
read often is no longer unseen. The count is not in the record, whose bytes follow from its inputs.
"""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np

from winnow.config import ROOT, Config, in_order
from winnow.data.images import TEST, ImageSet, load_images
from winnow.errors import ArtifactError
from winnow.evaluation import agreement, quality
from winnow.inference import predict_file
from winnow.intervals import paired_drop
from winnow.model_file import MODEL
from winnow.records import StepRecord, describe, publish, record_digest, write_json, write_record
from winnow.reporting import plots
from winnow.reporting.facts import Facts, read_facts
from winnow.reporting.page import LastLook, page

log = logging.getLogger(__name__)
PAGE, LEARNING = "report.html", "learning.svg"
VERSION_LENGTH = 16
UNTESTED = "there is no labelled test image: every figure of this run is of the validation split"


def report(config: Config, artifacts: Path, test_readings: Path, out: Path) -> StepRecord:
    """Write report.html for the run in `artifacts`; `test_readings` is the JSON file that counts looks at the test."""
    names = (ROOT, *in_order(dict(config.candidates)))
    facts = read_facts(artifacts, names)
    images = load_images(artifacts / "data")
    version = version_of(images)
    metrics, details = _look(config, artifacts, images, facts, test_readings)
    html = page(facts, LastLook(version, metrics))
    folders = {name: artifacts / name for name in ("data", "pretrain", "benchmark", "select")}
    folders |= {name: artifacts / "candidates" / name for name in names}
    with publish(out) as folder:
        (folder / PAGE).write_text(html, encoding="utf-8")
        files = [PAGE]
        if curves := facts.pretrain.details["curves"]:
            (folder / LEARNING).write_bytes(plots.curves(curves, "loss", "loss of pretraining"))
            files.append(LEARNING)
        record = StepRecord(
            step="report",
            name="report",
            parameters={},
            inputs={name: record_digest(path) for name, path in folders.items()},
            metrics=metrics,
            details={"test_version": version, "winner": facts.winner, "source": facts.source, "test": details},
            warnings=() if details else (UNTESTED,),
            artifacts=describe(folder, *files),
        )
        write_record(folder, record)
    return record


def version_of(images: ImageSet) -> str:
    """Digest of the test images' own digests, whatever their order."""
    keys = sorted(key.tobytes() for key in images.keys_N16[images.indices(TEST)])
    return hashlib.sha256(b"".join(keys)).hexdigest()[:VERSION_LENGTH]


def count_reading(path: Path, version: str) -> int:
    """Add one to this version's count and return it. Raises ArtifactError for a damaged file."""
    try:
        counts: dict[str, int] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        count = int(counts.get(version, 0)) + 1
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{path} is damaged ({error}); delete it: counting begins again") from error
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {**counts, version: count})
    return count


def _look(
    config: Config, artifacts: Path, images: ImageSet, facts: Facts, test_readings: Path
) -> tuple[dict[str, float], dict[str, Any]]:
    """Quality on the test split of dense and the winner -> (metrics, details per candidate); nothing without images."""
    indices = images.indices(TEST, labelled=True)
    if len(indices) == 0:
        return {"test/images": 0.0}, {}
    version = version_of(images)
    count = count_reading(test_readings, version)
    log.info("report: test split read %d time%s (version %s)", count, "" if count == 1 else "s", version)
    labels_N = images.labels_N[indices]
    metrics, details = {"test/images": float(len(indices))}, {}
    right, logits = {}, {}
    for who, name in (("dense", ROOT), ("winner", facts.winner)):
        if name is None:
            continue
        logits[who] = predict_file(artifacts / "candidates" / name / MODEL, images.images_NHWC, indices)
        told, details[name] = quality(logits[who], labels_N, images.classes)
        metrics |= {f"test/{who}_{key.removeprefix('quality/')}": value for key, value in told.items()}
        right[who] = np.asarray(logits[who].argmax(1) == labels_N)
    if "winner" in right:
        drop = paired_drop(right["dense"], right["winner"])
        metrics |= {"test/drop_points": drop.points, "test/drop_low": drop.low, "test/drop_high": drop.high}
        metrics["test/winner_agreement"] = agreement(logits["dense"], logits["winner"])
    return metrics, details
