"""The card of a registered model: the candidate's card, and what only the whole run knows.

That is its speed, the machine, the runtime that serves it fastest, the accuracy on the test split and the data version.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tasks.project.paths import ProjectPaths
from tasks.registry.registered_models import CARD
from tasks.tracking.run_content import data_version
from winnow.config import Config
from winnow.deploy.inference_runtimes import count_streams
from winnow.errors import ArtifactError
from winnow.evaluation.metrics import drop_metrics_on_test
from winnow.records import RECORD, IngestRecord, ReportRecord, SelectionRecord, read_json, record_digest
from winnow.records.benchmark import BenchmarkRow
from winnow.refit.deployed_folder import REFIT
from winnow.selection.decision import SERVING_METRIC

ACCURACY, TEST_WARNING = "winnow.accuracy", "winnow.test.warning"
"""Tags of a registered version."""


def deployment_card(
    paths: ProjectPaths, config: Config, selection: SelectionRecord, winner: str, folder: Path
) -> dict[str, Any]:
    """Return the candidate's card with speed, machine, serving settings, test accuracy, data version and reason.

    The accuracy on the test split is only shown; nothing is selected by it (decision 0017). Raises ArtifactError where
    the winner was timed on no runtime.
    """
    speeds, objective = selection.details.speeds, config.promotion.objective
    fastest = speeds.best[winner]
    served = fastest.of(SERVING_METRIC[objective])
    if served is None:
        raise ArtifactError(
            f"{winner} was timed on no runtime, so there is no runtime to serve it with; run winnow again"
        )
    serving = _serving_settings(served) | {"p50_ms": served.p50_ms}
    candidate_card = read_json(folder / CARD)
    return {
        **candidate_card,
        # The same values as in the report: those of the runtime that serves.
        "metrics": candidate_card["metrics"] | selection.details.quality[winner],
        "serving": {**serving, "objective": objective},
        "speed": speeds.candidates[winner],
        "fastest": {metric: _serving_settings(row) for metric, row in fastest if row is not None},
        "machine": speeds.machine.model_dump(mode="json"),
        "test": _test_section(paths, winner),
        "data_version": data_version(paths),
        "split": split_rule(IngestRecord.read(paths.artifacts / "data")),
        "pillow": importlib.metadata.version("pillow"),
        "why": selection.details.why,
    }


def _serving_settings(row: BenchmarkRow) -> dict[str, Any]:
    """Return how the file ran: runtime, precision, threads, batch, and streams where there are several."""
    settings: dict[str, Any] = row.model_dump(include={"runtime", "precision"})
    settings |= {"threads": row.threads, "batch": row.batch}
    if (streams := count_streams(row.runtime, row.batch, row.threads)) > 1:
        settings["streams"] = streams
    return settings


def _test_section(paths: ProjectPaths, winner: str) -> dict[str, Any]:
    """Return the report's results on the test split; {} where the report is not of this selection.

    images, groups (with data.group_by); top1, top1_low, top1_high; baseline, drop_points, drop_low, drop_high against
    it; measured_in; warnings; abstention.
    """
    folder = paths.artifacts / "report"
    if not (folder / RECORD).is_file():
        return {}
    report, prefix = ReportRecord.read(folder), "test/winner_"
    is_current = all(report.inputs.get(step) == record_digest(paths.artifacts / step) for step in ("select", REFIT))
    if not is_current or report.details.winner != winner or f"{prefix}top1" not in report.metrics:
        return {}
    baseline = report.details.baseline
    drop = zip(("drop_points", "drop_low", "drop_high"), drop_metrics_on_test(baseline), strict=True)
    return {
        "images": report.metrics["test/images"],
        **({"groups": report.metrics["test/groups"]} if "test/groups" in report.metrics else {}),
        **{key: report.metrics[prefix + key] for key in ("top1", "top1_low", "top1_high")},
        "baseline": baseline,
        **{key: report.metrics[name] for key, name in drop},
        "measured_in": report.details.measured_in,
        "warnings": list(report.warnings),
        "abstention": report.details.abstention.model_dump(mode="json"),
    }


def accuracy_tags(card: Mapping[str, Any]) -> dict[str, str | None]:
    """Return the tags shown to the approver: the accuracy on both splits, and warnings about the test split."""
    test = card["test"]
    shares = [("validation", card["metrics"].get("quality/top1")), ("test", test.get("top1"))]
    accuracy = ", ".join(f"{share * 100:.1f} % top-1 on {split}" for split, share in shares if share is not None)
    return {ACCURACY: accuracy or None, TEST_WARNING: "; ".join(test.get("warnings", [])) or None}


def split_rule(data: IngestRecord) -> dict[str, Any]:
    """Return the rule of the split from the record of ingest.

    The fractions (without test_fraction for a test set of the source), the group key, and the digest of the decoder.
    """
    keys = ["validation_fraction", "group_by"]
    if data.details.test_set != "named by the source":
        keys.insert(1, "test_fraction")
    rule = {key: data.parameters[key] for key in keys if key in data.parameters}
    return rule | {"decoder": data.details.decoder}
