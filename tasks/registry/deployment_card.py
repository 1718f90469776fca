"""The card of a registered model: the candidate's card, and what only the whole run knows.

That is its speed, the machine, the runtime that serves it fastest, the accuracy on the test split and the data version.
"""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

from tasks.project.paths import ProjectPaths
from tasks.tracking.run_content import data_version
from tasks.tracking.tags import ACCURACY_TAG, TEST_WARNING_TAG
from winnow.config import Config
from winnow.deploy.runtime_properties import count_streams
from winnow.errors import ArtifactError
from winnow.evaluation.metrics import drop_metrics_on_test
from winnow.records import (
    RECORD,
    CandidateCard,
    DeploymentCard,
    IngestRecord,
    ReportRecord,
    SelectionRecord,
    record_digest,
)
from winnow.records.benchmark import BenchmarkRow
from winnow.records.card import CardTest, FastestSettings, RuntimeSettings, ServingSettings, SplitRule
from winnow.refit.deployed_folder import REFIT
from winnow.selection.decision import SERVING_METRIC


def deployment_card(
    paths: ProjectPaths, config: Config, selection: SelectionRecord, winner: str, folder: Path
) -> DeploymentCard:
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
    candidate = CandidateCard.read(folder)
    return DeploymentCard(
        **candidate.model_dump(exclude={"metrics"}, exclude_unset=True),
        # The same values as in the report: those of the runtime that serves.
        metrics=candidate.metrics | selection.details.quality[winner],
        serving=ServingSettings(**dict(_runtime_settings(served)), p50_ms=served.p50_ms, objective=objective),
        speed=speeds.candidates[winner],
        fastest=FastestSettings(**{metric: _runtime_settings(row) for metric, row in fastest if row is not None}),
        machine=speeds.machine,
        test=_test_section(paths, winner),
        data_version=data_version(paths),
        split=split_rule(IngestRecord.read(paths.artifacts / "data")),
        pillow=importlib.metadata.version("pillow"),
        why=selection.details.why,
    )


def _runtime_settings(row: BenchmarkRow) -> RuntimeSettings:
    """Return how the file of a row ran."""
    streams = count_streams(row.runtime, row.batch, row.threads)
    return RuntimeSettings(
        runtime=row.runtime,
        precision=row.precision,
        threads=row.threads,
        batch=row.batch,
        streams=streams if streams > 1 else None,
    )


def _test_section(paths: ProjectPaths, winner: str) -> CardTest | None:
    """Return the report's results on the test split; None where the report is not of this selection."""
    folder = paths.artifacts / "report"
    if not (folder / RECORD).is_file():
        return None
    report, prefix = ReportRecord.read(folder), "test/winner_"
    is_current = all(report.inputs.get(step) == record_digest(paths.artifacts / step) for step in ("select", REFIT))
    if not is_current or report.details.winner != winner or f"{prefix}top1" not in report.metrics:
        return None
    baseline = report.details.baseline
    drop = zip(("drop_points", "drop_low", "drop_high"), drop_metrics_on_test(baseline), strict=True)
    return CardTest(
        images=report.metrics["test/images"],
        groups=report.metrics.get("test/groups"),
        **{key: report.metrics[prefix + key] for key in ("top1", "top1_low", "top1_high")},
        baseline=baseline,
        **{key: report.metrics[name] for key, name in drop},
        measured_in=report.details.measured_in,
        warnings=report.warnings,
        abstention=report.details.abstention,
    )


def accuracy_tags(card: DeploymentCard) -> dict[str, str | None]:
    """Return the tags shown to the approver: the accuracy on both splits, and warnings about the test split."""
    test = card.test
    shares = [("validation", card.metrics.get("quality/top1")), ("test", test.top1 if test else None)]
    accuracy = ", ".join(f"{share * 100:.1f} % top-1 on {split}" for split, share in shares if share is not None)
    return {ACCURACY_TAG: accuracy or None, TEST_WARNING_TAG: "; ".join(test.warnings if test else ()) or None}


def split_rule(data: IngestRecord) -> SplitRule:
    """Return the rule of the split from the record of ingest.

    The fractions (without test_fraction for a test set of the source), the group key, and the digest of the decoder.
    """
    keys = ["validation_fraction", "group_by"]
    if data.details.test_set != "named by the source":
        keys.insert(1, "test_fraction")
    rule = {key: data.parameters[key] for key in keys if key in data.parameters}
    return SplitRule(**rule, decoder=data.details.decoder)
