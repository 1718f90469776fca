"""Step 8, the last: the page of the run, and the one look at the test split.

Only here are test images read, for `dense`, the stronger baseline and the winner alone, after everything has been
chosen (winnow/selection/test_evaluation.py); no step reads what this one leaves, so nothing can be chosen by it; the
card of a promoted model repeats it. Each look is counted for this version of the test split, in a file outside the
step's folder, and the count is printed: a test split that has been read often is no longer unseen. The count is not in
the record, whose bytes follow from its inputs.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import replace
from pathlib import Path

from winnow.benchmark.deployed_answers import IN_ONNX_RUNTIME
from winnow.config import ROOT, Config, in_order
from winnow.data.dataset import TEST, ImageSet, load_images
from winnow.errors import ArtifactError
from winnow.records import StepRecord, describe, publish, record_digest, write_json, write_record
from winnow.reporting import plots
from winnow.reporting.run_page import TestResult, page
from winnow.reporting.run_records import RunRecords, read_facts
from winnow.reporting.thumbnails import pairs_png
from winnow.selection.test_evaluation import TestEvaluation, evaluate_test

log = logging.getLogger(__name__)
PAGE, LEARNING = "report.html", "learning.svg"
VERSION_LENGTH = 16
UNTESTED = "there is no labelled test image: every figure of this run is of the validation split"


def report(config: Config, artifacts: Path, test_readings: Path, out: Path) -> StepRecord:
    """Write report.html for the run in `artifacts`; `test_readings` is the JSON file that counts looks at the test."""
    names = (ROOT, *in_order(dict(config.candidates)))
    facts = read_facts(artifacts, names)
    images = load_images(artifacts / "data")
    positions = facts.data.details.get("near_duplicates", {}).get("positions", [])
    facts = replace(facts, near_duplicates=pairs_png(images.images_NHWC, positions))
    version = version_of(images)
    tested = _look(artifacts, images, facts, test_readings)
    warnings = _warnings(tested, facts.winner)
    at_the_top = warnings if tested.details else ()
    html = page(
        facts, TestResult(version, tested.metrics, tested.baseline, tested.measured_in, at_the_top, tested.abstention)
    )
    folders = {name: artifacts / name for name in ("data", "pretrain", "benchmark", "select", "refit")}
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
            metrics=tested.metrics,
            details={
                "test_version": version,
                "winner": facts.winner,
                "source": facts.source,
                "test": tested.details,
                "baseline": tested.baseline,
                "measured_in": tested.measured_in,
                "fallback": tested.fallback,
                "disagreements": list(tested.disagreements),
                "abstention": tested.abstention,
            },
            warnings=warnings,
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
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ArtifactError(f"{path} is damaged ({error}); delete it: counting begins again") from error
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {**counts, version: count})
    return count


def _look(artifacts: Path, images: ImageSet, facts: RunRecords, test_readings: Path) -> TestEvaluation:
    """Count the reading and evaluate the test split; neither without labelled test images."""
    if len(images.indices(TEST, labelled=True)):
        version = version_of(images)
        count = count_reading(test_readings, version)
        log.info("report: test split read %d time%s (version %s)", count, "" if count == 1 else "s", version)
    return evaluate_test(artifacts, facts.selection.details, images)


def _warnings(tested: TestEvaluation, winner: str | None) -> tuple[str, ...]:
    """Return what a user must know first: that test and validation disagree, then classes that are never recognised,
    probabilities that promise too much, and where the winner was measured."""
    if not tested.details:
        return (UNTESTED,)
    elsewhere = f"{winner} was tested in {IN_ONNX_RUNTIME}, and not as it will serve: {tested.fallback}"
    return (*tested.disagreements, *tested.cautions, *([elsewhere] if tested.fallback else []))
