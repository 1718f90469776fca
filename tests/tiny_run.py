"""Write the artifacts/ of a whole run in a second: real images, ONNX files and logits, invented times.

Classes are colours in the shared tiny data, so a network that returns the mean of each channel is right. `damping`
lowers the second channel: at 0.34 all 60 validation images are still right, at 0.36 one is wrong, at 0.38 four, at 0.7
the whole class.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.conftest import SIZE, tiny_params
from tests.records import (
    benchmark_details,
    benchmark_row,
    candidate_details,
    embed_details,
    ingest_details,
    make_record,
    pretrain_details,
)
from winnow.benchmark.speedups import attribute_speedup, baseline_rows, best_row, candidate_metrics
from winnow.config import Config, check_config
from winnow.data.dataset import SPLITS, VALIDATION, ImageSet, load_images
from winnow.deploy.batch_inference import predict_file
from winnow.evaluation.metrics import agreement, benchmark_logits_file, quality_metrics, temperature_metrics
from winnow.models.backbones import Architecture, build_model, save_model
from winnow.records import Machine, RecordModel, describe_files, read_record, record_digest, this_machine, write_record
from winnow.records.benchmark import (
    AbsentCase,
    Attributions,
    BenchmarkRow,
    BestRows,
    PeakShares,
    Precision,
    ProcessFootprint,
    Runtime,
)
from winnow.records.candidate_file import LabelCounts
from winnow.records.finetune import ArmComparison, ArmTraining, LinearProbe, PretrainingGain
from winnow.records.ingest import RejectedFile, SplitCounts
from winnow.steps.refit import refit
from winnow.steps.select import select

DEFAULT_DAMPING = 0.36
LARGE_BATCH = 8
SOURCE = "tiny <shapes>"
CANDIDATES: dict[str, dict[str, Any]] = {
    "dense": {"ms": 2.0, "mb": 2.0},
    "dense-int8": {"ms": 1.2, "mb": 0.6, "method": "quantize", "lineage": ["dense", "dense-int8"]},
    "pruned": {"ms": 1.1, "mb": 0.9, "method": "prune", "lineage": ["dense", "pruned"]},
    "pruned-int8": {"ms": 0.5, "mb": 0.3, "method": "quantize", "lineage": ["dense", "pruned", "pruned-int8"]},
    "sparse": {"ms": 2.0, "mb": 2.0, "method": "sparsify", "lineage": ["dense", "sparse"]},
    "student": {"ms": 0.4, "mb": 0.5, "damping": 0.38, "method": "distill", "lineage": ["dense", "student"]},
    "student-alone": {"ms": 0.4, "mb": 0.5, "damping": 0.7, "method": "distill", "lineage": ["dense", "student-alone"]},
    "dense-kd": {"ms": 2.0, "mb": 2.0, "method": "distill", "lineage": ["dense", "dense-kd"]},
}
"""In the order of tests.conftest.tiny_params; every int8 file is the last of its lineage."""


def build(data: Path, artifacts: Path, changes: dict[str, dict[str, Any]] | None = None) -> Path:
    """Copy `data` and write the artifacts of the steps up to benchmark; `changes` are per candidate."""
    shutil.copytree(data, artifacts / "data")
    images = load_images(artifacts / "data")
    record_data(artifacts / "data", images)
    (artifacts / "embed").mkdir()
    write_record(artifacts / "embed", make_record("embed", embed_details()))
    _record_pretrain(artifacts / "pretrain")
    for name, plan in CANDIDATES.items():
        _candidate(artifacts / "candidates", name, {**plan, **(changes or {}).get(name, {})}, images)
    record_benchmark(artifacts, {name: {**CANDIDATES[name], **(changes or {}).get(name, {})} for name in CANDIDATES})
    return artifacts


def write_network(path: Path, damping: float) -> None:
    """Write an ONNX file that averages each channel, the second one multiplied by 1 - damping."""
    weights = np.diag([1.0, 1.0 - damping, 1.0]).astype(np.float32) / 25
    nodes = [
        helper.make_node("Cast", ["pixels"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["float", "axes"], ["means"], keepdims=0),
        helper.make_node("MatMul", ["means", "weights"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "means",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["N", 16, 16, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 3])],
        [numpy_helper.from_array(weights, "weights"), numpy_helper.from_array(np.array([1, 2]), "axes")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.save(model, path)


def record_data(folder: Path, images: ImageSet) -> None:
    labels, split = np.asarray(images.labels_N), np.asarray(images.split_N)
    counts = {
        name: SplitCounts(**{part: int(((labels == index) & (split == s)).sum()) for s, part in enumerate(SPLITS)})
        for index, name in enumerate(images.classes)
    }
    metrics = {f"data/{part}": float((split == s).sum()) for s, part in enumerate(SPLITS)}
    metrics |= {"data/images": float(len(labels)), "data/left_out": 0.0, "data/rejected": 1.0}
    details = ingest_details(
        images.classes,
        source=SOURCE,
        per_class=counts,
        labels_per_class=10,
        resize_policy=images.preprocessing.policy,
        rejected=[RejectedFile(file="broken & small.jpg", reason="damaged")],
    )
    record = make_record(
        "ingest",
        details,
        parameters=check_config(tiny_params()).data.model_dump(mode="json"),
        metrics=metrics,
        warnings=("only 60 labelled validation images",),
    )
    write_record(folder, record)


def _record_pretrain(folder: Path) -> None:
    folder.mkdir(parents=True)
    architecture = Architecture(backbone="resnet8", num_classes=3, image_size=SIZE, width=0.2)
    save_model(folder, build_model(architecture), architecture)
    curves = [{"epoch": 1.0, "loss": 1.2}, {"epoch": 2.0, "loss": 1.0, "knn": 0.75, "spread": 0.5}]
    parameters = {"method": "rotnet", "backbone": "resnet8", "epochs": 2, "batch_size": 32}
    details = pretrain_details(curves=curves)
    write_record(folder, make_record("pretrain", details, parameters=parameters, metrics={"pretrain/knn": 0.75}))


def arm_training(seed: int, top1: float, learning_rate: float = 0.05) -> ArmTraining:
    return ArmTraining(seed=seed, learning_rate=learning_rate, steps=24, top1=top1)


ARMS = ArmComparison(
    pretrained=[arm_training(0, 0.9), arm_training(1, 0.8)],
    scratch=[arm_training(0, 0.7), arm_training(1, 0.65)],
    linear_probe=LinearProbe(seed=0, top1=0.72),
    gain=PretrainingGain(arm="pretrained", mean=17.5, low=-14.3, high=49.3, pairs=2),
    tried=[],
)
FINETUNE_PARAMETERS = {"seeds": [0, 1], "epochs": 4, "min_steps": 24, "learning_rates": [0.05], "weights": "data/none"}


def _candidate(candidates: Path, name: str, plan: dict[str, Any], images: ImageSet) -> None:
    folder = candidates / name
    folder.mkdir(parents=True)
    write_network(folder / "model.onnx", plan.get("damping", DEFAULT_DAMPING))
    indices = images.indices(VALIDATION)
    logits = predict_file(folder / "model.onnx", images.images_NHWC, indices)
    np.save(folder / "validation_logits.npy", logits)
    labels = np.asarray(images.labels_N[indices])
    is_labelled = labels >= 0
    metrics, by_class = quality_metrics(logits[is_labelled], labels[is_labelled], images.classes)
    dense = np.load(candidates / "dense" / "validation_logits.npy")
    metrics |= temperature_metrics(logits[is_labelled], labels[is_labelled])
    metrics["quality/agreement"] = agreement(dense, logits)
    metrics |= {"size/mb": plan["mb"], "size/zipped_mb": plan["mb"] * 0.9, "size/parameters": 7.5e5}
    metrics |= {"size/nonzero_parameters": 7.5e5 * (0.2 if name == "sparse" else 1.0), "compute/macs": 1.25e7}
    details = candidate_details(
        plan.get("method", "finetune"),
        **dict(by_class),
        precision="int8" if name.endswith("int8") else "f32",
        lineage=plan.get("lineage", ["dense"]),
        labels=LabelCounts(training=30, choosing=int(is_labelled.sum())),
        **({"arms": ARMS} if name == "dense" else {}),
    )
    record = make_record(
        "finetune" if name == "dense" else "compress",
        details,
        name=name,
        parameters=FINETUNE_PARAMETERS if name == "dense" else {},
        metrics=metrics,
        artifacts=describe_files(folder, "model.onnx", "validation_logits.npy"),
    )
    write_record(folder, record)


def _row(name: str, runtime: Runtime, precision: Precision, batch: int, ms: float) -> BenchmarkRow:
    p50 = ms * (batch * 0.5 if batch > 1 else 1.0)
    # Rounds with little spread: small differences between files are significant.
    round_ms = tuple(p50 * (1 + 0.001 * offset) for offset in (-3, -2, -1, 0, 0, 1, 2, 3))
    p95 = p50 * 1.2 if batch == 1 else None
    return benchmark_row(
        *(name, runtime, precision, batch, p50), threads=2, p95_ms=p95, samples=200, round_ms=round_ms, spread=0.006
    )


def record_benchmark(
    artifacts: Path,
    plans: dict[str, dict[str, Any]],
    machine: Machine | None = None,
    rows: list[BenchmarkRow] | None = None,
) -> None:
    """Write the benchmark record: planned times on OpenVINO, twice these on ONNX Runtime, three times on PyTorch."""
    precisions: dict[str, Precision] = {name: "int8" if name.endswith("int8") else "f32" for name in plans}
    timed_rows: list[BenchmarkRow] = []
    for name, plan in plans.items():
        for batch in (LARGE_BATCH, 1):
            if plan["ms"] is not None:
                timed_rows.append(_row(name, "openvino", precisions[name], batch, plan["ms"]))
                timed_rows.append(_row(name, "ort", precisions[name], batch, plan["ms"] * 2))
            if name == "dense":
                timed_rows.append(_row(name, "eager", "f32", batch, plan["ms"] * 3))
    timed_rows = rows or timed_rows
    ancestors = {name: name.removesuffix("-int8") for name in plans}
    start = {"import_ms": 180.0, "load_ms": 12.0, "first_call_ms": 2.5, "peak_mb": 91.0}
    processes = [ProcessFootprint(candidate=name, runtime="ort", precision=precisions[name], **start) for name in plans]
    names = list(plans)
    folder = artifacts / "benchmark"
    folder.mkdir(exist_ok=True)
    digests = {name: record_digest(artifacts / "candidates" / name) for name in names}
    best_rows = {
        n: BestRows(latency=best_row(timed_rows, n, 1), throughput=best_row(timed_rows, n, LARGE_BATCH)) for n in names
    }
    for row in [row for rows in best_rows.values() for row in (rows.latency, rows.throughput) if row is not None]:
        logits_file = artifacts / "candidates" / row.candidate / "validation_logits.npy"
        (folder / benchmark_logits_file(row)).write_bytes(logits_file.read_bytes())
    details = benchmark_details(
        rows=timed_rows,
        processes=processes,
        peaks={"f32": 1e11, "int8": 3e11},
        peak_share={name: PeakShares(latency=0.01, throughput=0.1) for name in names},
        absent=[AbsentCase(runtime="eager-cuda", precision="all", reason="no CUDA device")],
        candidates={name: candidate_metrics(timed_rows, processes, name, LARGE_BATCH) for name in names},
        best=best_rows,
        baselines={f"b{batch}": baseline_rows(timed_rows, batch) for batch in (1, LARGE_BATCH)},
        attribution={
            name: Attributions(
                latency=attribute_speedup(timed_rows, name, ancestors[name], 1),
                throughput=attribute_speedup(timed_rows, name, ancestors[name], LARGE_BATCH),
            )
            for name in names
        },
    )
    record = make_record(
        "benchmark",
        details,
        parameters={"grid": "quick", "large_batch": LARGE_BATCH, "samples": 20, "rounds": 6},
        inputs={"data": record_digest(artifacts / "data"), **digests},
        metrics={"cases/timed": len(timed_rows)},
        machine=machine or this_machine(),
    )
    write_record(folder, record)


def rewrite(folder: Path, **changes: Any) -> None:
    """Replace fields of the record in a folder."""
    write_record(folder, read_record(folder).model_copy(update=changes))


def rewrite_details(folder: Path, **changes: Any) -> None:
    """Replace fields of the details of the record in a folder."""
    details: RecordModel = read_record(folder).details
    rewrite(folder, details=details.model_copy(update=changes))


def select_and_refit(config: Config, artifacts: Path) -> Path:
    """Run select and, as `config.refit` says, refit on the artifacts of `build`."""
    folders = [artifacts / name for name in ("data", "candidates", "benchmark", "select")]
    select(config, *folders, artifacts.parent)
    refit(config, artifacts, artifacts / "refit", artifacts.parent / "scratch")
    return artifacts
