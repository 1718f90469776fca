"""Build valid records and cards of invented runs; a test gives the values that matter to it.

write_record(folder, make_record("report", report_details(winner="quick"), metrics={"test/images": 30.0}))
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from winnow.records import (
    BenchmarkDetails,
    CandidateCard,
    CandidateDetails,
    DeploymentCard,
    EmbedDetails,
    IngestDetails,
    KnownWeightsDetails,
    PretrainDetails,
    RecordModel,
    RefitDetails,
    ReportDetails,
    SelectionDetails,
    this_machine,
)
from winnow.records.benchmark import BenchmarkConditions, BenchmarkRow, Precision, Runtime
from winnow.records.candidate_file import LabelCounts
from winnow.records.card import CardTensor, ServingSettings
from winnow.records.finetune import ArmComparison, LinearProbe
from winnow.records.ingest import NearDuplicates, SplitCounts
from winnow.records.record_reader import RECORDS
from winnow.records.refit import RefitLabels
from winnow.records.report import Abstention
from winnow.records.selection import ServingSpeeds

LABELS = LabelCounts(training=30, choosing=60)
SIZES = {"parameters_before": 4, "macs_before": 8, "parameters_after": 2, "macs_after": 4}
RESULTS: dict[str, dict[str, Any]] = {
    "finetune": {
        "arms": ArmComparison(linear_probe=LinearProbe(seed=0, top1=0.5), tried=[], gain=None),
        "cross_validation": None,
        "curves": [],
    },
    "prune": {"curves": [], "curves_before": {}, "cuts": [], **SIZES},
    "sparsify": {"curves": [], "masked_share": 0.5, "dense_layers": []},
    "factorize": {"curves": [], "ranks": {}, "energy": 0.9, **SIZES},
    "cluster": {"curves": [], "values": {}},
    "quantize": {"calibration_images": 32},
    "distill": {"curves": [], "teacher": "dense"},
    "probe": {"curves": [], "features": 4},
}
"""Method -> what it adds to the details of a candidate."""


def make_record(step: str, details: RecordModel, **fields: Any) -> Any:
    """Return the record of a step with these details, named after the step unless `fields` names it."""
    empty: dict[str, Any] = {"name": step, "parameters": {}, "inputs": {}, "metrics": {}}
    return RECORDS[step](step=step, details=details, **{**empty, **fields})


def ingest_details(classes: Sequence[str], **changes: Any) -> IngestDetails:
    """Return details of an ungrouped data set without images."""
    values: dict[str, Any] = {
        "source": "photos",
        "classes": list(classes),
        "per_class": {name: SplitCounts(train=0, validation=0, test=0) for name in classes},
        "labels_per_class": None,
        "test_set": "by hash",
        "resize_policy": "crop",
        "resize": "crop",
        "bits": 16,
        "training_size": None,
        "decoder": "c0de",
        "groups": None,
        "groups_by_split": None,
        "ignored_files": 0,
        "rejected": [],
        "near_duplicates": NearDuplicates(looked_at=0, found=0, pairs=[], positions=[]),
    }
    return IngestDetails(**{**values, **changes})


def embed_details(**changes: Any) -> EmbedDetails:
    """There is no teacher."""
    return EmbedDetails(**{"weights": None, "images": 0, "dimension": 0, **changes})


def known_weights_details(**changes: Any) -> KnownWeightsDetails:
    """A ResNet-18 of torchvision."""
    values: dict[str, Any] = {
        "name": "torchvision:resnet18",
        "backbone": "resnet18",
        "sha256": "f37072fd",
        "licence": "BSD-3-Clause",
        "native_size": 224,
        "input_size": 160,
        "mean": (0.5, 0.4, 0.3),
        "std": (0.2, 0.2, 0.2),
        "interpolation": "bilinear",
    }
    return KnownWeightsDetails(**{**values, **changes})


def pretrain_details(**changes: Any) -> PretrainDetails:
    """Return details of a run without pretraining."""
    return PretrainDetails(**{"curves": [], **changes})


def candidate_details(method: str = "finetune", **changes: Any) -> CandidateDetails:
    """Return details of dense, or of a candidate of another method."""
    values = {"method": method, "precision": "f32", "lineage": ["dense"], "labels": LABELS, **RESULTS[method]}
    adapter: TypeAdapter[CandidateDetails] = TypeAdapter(CandidateDetails)
    return adapter.validate_python({**values, **changes})


def benchmark_row(
    candidate: str = "dense",
    runtime: Runtime = "ort",
    precision: Precision = "f32",
    batch: int = 1,
    p50_ms: float = 1.0,
    **changes: Any,
) -> BenchmarkRow:
    """Return a timed file, by default with one thread."""
    values: dict[str, Any] = {
        "layout": "file",
        "threads": 1,
        "p95_ms": None,
        "images_per_s": batch / p50_ms * 1e3,
        "samples": 20,
        "spread": 0.0,
        **changes,
    }
    return BenchmarkRow(candidate=candidate, runtime=runtime, precision=precision, batch=batch, p50_ms=p50_ms, **values)


def benchmark_details(**changes: Any) -> BenchmarkDetails:
    """Return details of a benchmark without rows."""
    list_fields = ("rows", "processes", "executed", "refused", "absent", "identical_graphs", "measurement_error")
    values: dict[str, Any] = {key: [] for key in list_fields}
    values |= {key: {} for key in ("peaks", "peak_share", "candidates", "best", "baselines", "attribution")}
    conditions = BenchmarkConditions(images_checked=60, needed_agreement={}, threads=2, image_size=16)
    return BenchmarkDetails(**{**values, "conditions": conditions, **changes})


def serving_speeds(**changes: Any) -> ServingSpeeds:
    """Return speeds of this machine as the serving machine, without any timing."""
    values: dict[str, Any] = {"machine": this_machine(), "is_target": False, "best": {}, "candidates": {}}
    return ServingSpeeds(**{**values, "measurement_error": [], **changes})


def selection_details(**changes: Any) -> SelectionDetails:
    """Return details of a selection in which dense is the only candidate."""
    values: dict[str, Any] = {"verdicts": [], "winner": None, "why": "no candidate passes every gate", "front": []}
    values |= {"reference": "dense", "competitors": 0, "route": "labels", "controls": []}
    values |= {key: {} for key in ("drops", "macro_f1_drops", "agreement", "quality", "served")}
    return SelectionDetails(**{**values, "speeds": changes.get("speeds") or serving_speeds(), **changes})


def refit_details(**changes: Any) -> RefitDetails:
    """Return details of a step that refitted nothing."""
    labels = RefitLabels(training=LABELS.training, choosing=LABELS.choosing, deployed=LABELS.training)
    values: dict[str, Any] = {"winner": None, "is_refitted": False, "why": "not refitted: refit.when is never"}
    values |= {"labels": labels, "check": None, "curves": [], "trainings": {}}
    return RefitDetails(**{**values, **changes})


def report_details(**changes: Any) -> ReportDetails:
    """Return details of a report in which dense was tested as a file."""
    values: dict[str, Any] = {"test_version": "0" * 16, "winner": None, "source": "photos", "test": {}}
    values |= {"baseline": "dense", "measured_in": "ONNX Runtime, the file as it is", "fallback": ""}
    return ReportDetails(**{**values, "disagreements": [], "abstention": Abstention(), **changes})


def candidate_card(**changes: Any) -> CandidateCard:
    """Return the card of dense, with two classes and 16 pixels."""
    return CandidateCard(**{**_candidate_card(), **changes})


def deployment_card(**changes: Any) -> DeploymentCard:
    """Return the card of dense, registered, on one thread of ONNX Runtime, without a test accuracy."""
    serving = ServingSettings(runtime="ort", precision="f32", threads=1, batch=1, p50_ms=0.5, objective="latency")
    values = {"serving": serving, "speed": {}, "machine": this_machine(), "data_version": "0", "why": "the fastest"}
    return DeploymentCard(**{**_candidate_card(), **values, **changes})


def serve_with(folder: Path, **settings: Any) -> None:
    """Add the fields of a registered card, with these runtime settings, to the card in a candidate's folder."""
    registered = deployment_card()
    changes = CandidateCard.read(folder).content() | {"serving": dict(registered.serving) | settings}
    DeploymentCard(**registered.content() | changes).write(folder)


def _candidate_card() -> dict[str, Any]:
    values: dict[str, Any] = {"name": "dense", "method": "finetune", "lineage": ["dense"], "precision": "f32"}
    values |= {"labels": LABELS, "classes": ["a", "b"], "image_size": 16, "resize_policy": "crop", "metrics": {}}
    values["input"] = CardTensor(name="pixels", type="uint8", shape=["N", 16, 16, 3], note="RGB, not normalised")
    values["output"] = CardTensor(name="logits", type="float32", shape=["N", 2], note="logits")
    return {**values, "temperature": 1.0, "measured_on": "the validation split"}
