"""Write the artifacts of a finished run without running it: data, candidates with real ONNX files, verdicts.

The images of `tests.conftest.write_set` differ in their brightest colour, so a file that averages each channel is
always right. Keywords of `write_model` change that: `never_predicted` suppresses one class, `ballast` makes the file
slow, `salt` changes its bytes only.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import yaml
from onnx import TensorProto, helper, numpy_helper

from tasks.project.paths import ProjectPaths
from tasks.registry import registered_models
from tests.conftest import CLASSES, SIZE, tiny_params, write_set
from tests.records import (
    benchmark_details,
    benchmark_row,
    candidate_card,
    candidate_details,
    embed_details,
    make_record,
    pretrain_details,
    refit_details,
    report_details,
    selection_details,
    serving_speeds,
)
from winnow.config import Config, check_config
from winnow.data.dataset import VALIDATION, load_images
from winnow.deploy.batch_inference import predict_file
from winnow.records import (
    CandidateCard,
    CandidateRecord,
    Gate,
    RecordModel,
    Verdict,
    describe_files,
    record_digest,
    sha256_of,
    this_machine,
    write_json,
    write_record,
)
from winnow.records.benchmark import BestRows, PeakShares
from winnow.records.candidate_file import LabelCounts
from winnow.records.card import CardRefit
from winnow.records.refit import RefitCheck, RefitLabels
from winnow.records.selection import Drop, DropEvidence
from winnow.steps.refit import NOTE

DATA_VERSION = "0123456789abcdef0123456789abcdef.dir"
MODEL = "photos"
"""Name of the registered model."""
LABELS = LabelCounts(training=110, choosing=60)
CURVES = [{"epoch": epoch, "loss": 1.0 / (1 + epoch)} for epoch in range(3)]


def write_model(
    path: Path, *, side: int = SIZE, never_predicted: int | None = None, ballast: int = 0, salt: float = 0.0
) -> None:
    """Write an ONNX file from pixels uint8 (N, S, S, 3) to logits float32 (N, 3)."""
    bias = np.full(3, salt, np.float32)
    if never_predicted is not None:
        bias[never_predicted] = -1e6
    nodes = [
        helper.make_node("Cast", ["pixels"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["x", "axes"], ["means"], keepdims=0),
    ]
    weights = {"axes": np.array([1, 2], np.int64), "bias": bias}
    output_name = "means"
    if ballast:
        weights |= {
            "wide": np.full((3, ballast), 1e-9, np.float32),
            "square": np.full((ballast, ballast), 1e-9, np.float32),
            "narrow": np.full((ballast, 3), 1e-9, np.float32),
        }
        nodes.append(helper.make_node("MatMul", ["means", "wide"], ["h0"]))
        nodes += [helper.make_node("MatMul", [f"h{index}", "square"], [f"h{index + 1}"]) for index in range(4)]
        nodes.append(helper.make_node("MatMul", ["h4", "narrow"], ["nothing"]))
        nodes.append(helper.make_node("Add", ["means", "nothing"], ["sum"]))
        output_name = "sum"
    nodes.append(helper.make_node("Add", [output_name, "bias"], ["logits"]))
    graph = helper.make_graph(
        nodes,
        "handmade",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["N", side, side, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 3])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())


def write_run(root: Path, winner: str | None = "quick", models: dict[str, dict[str, Any]] | None = None) -> Config:
    """Write all artifacts of a run of dense, quick and wrong to `root`; `models` are keywords of `write_model`."""
    variants = {"dense": {"ballast": 200}, "quick": {}, "wrong": {"never_predicted": 0}} | (models or {})
    params = tiny_params()
    quantize = {"from": "dense", "method": "quantize", "calibration_images": 32}
    params["candidates"] = {name: quantize for name in variants if name != "dense"}
    (root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    (root / "dvc.yaml").write_text("stages: {}\n")
    outs = [{"path": "artifacts/data", "hash": "md5", "md5": DATA_VERSION}]
    (root / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": {"ingest": {"outs": outs}}}))
    config, artifacts = check_config(params), root / "artifacts"
    if not (artifacts / "data").is_dir():
        write_set(artifacts / "data")
    _record(artifacts / "embed", "embed", embed_details())
    _record(
        artifacts / "pretrain",
        "pretrain",
        pretrain_details(curves=CURVES),
        metrics={"pretrain/loss": CURVES[-1]["loss"]},
    )
    for name, variant in variants.items():
        write_candidate(artifacts, name, variant)
    write_verdicts(artifacts, config, list(variants), winner)
    _record(artifacts / "report", "report", report_details(), metrics={"test/top1": 1.0})
    (artifacts / "report" / "report.html").write_text("<html>report</html>")
    return config


def write_named_files(root: Path) -> None:
    """Write what the params.yaml of `write_run` names, as the command line requires."""
    for name in ("photos", "data"):
        (root / name).mkdir(exist_ok=True)
    (root / "data" / "none").touch()


def write_candidate(artifacts: Path, name: str, variant: dict[str, Any]) -> None:
    """Write artifacts/candidates/NAME as the steps do, with the file of `write_model(**variant)`."""
    folder = artifacts / "candidates" / name
    folder.mkdir(parents=True, exist_ok=True)
    write_model(folder / "model.onnx", **variant)
    images = load_images(artifacts / "data")
    indices = images.indices(VALIDATION)
    logits = predict_file(folder / "model.onnx", images.images_NHWC, indices)
    np.save(folder / "validation_logits.npy", logits)
    top1 = float((logits.argmax(1) == images.labels_N[indices]).mean())
    size_mb = (folder / "model.onnx").stat().st_size / 1e6
    metrics = {f"quality/{key}": top1 for key in ("top1", "top1_low", "top1_high", "agreement")}
    metrics |= {"size/mb": size_mb, "size/zipped_mb": size_mb, "size/parameters": 12.0, "compute/macs": 9.0}
    is_dense = name == "dense"
    details = candidate_details(
        "finetune" if is_dense else "quantize",
        lineage=list(dict.fromkeys(["dense", name])),
        labels=LABELS,
        **({"curves": CURVES} if is_dense else {}),
    )
    candidate_card(
        name=name,
        **details.model_dump(include={"method", "precision", "lineage", "labels"}),
        classes=list(CLASSES),
        image_size=SIZE,
        metrics=metrics,
    ).write(folder)
    parameters = {"epochs": 4, "optimiser": {"learning_rate": 0.05}, "seeds": [0, 1]}
    step = "finetune" if is_dense else "compress"
    _record(folder, step, details, name=name, parameters=parameters, metrics=metrics)


def write_verdicts(
    artifacts: Path, config: Config, names: list[str], winner: str | None, latency_ms: float = 0.5
) -> None:
    """Write the artifacts of benchmark, select and refit for the candidates in `artifacts`."""
    digests = {name: record_digest(artifacts / "candidates" / name) for name in names}
    figures = {
        "best/latency_ms": latency_ms,
        "best/throughput_ips": 2000.0,
        **{f"speedup/{kind}_b1": 2.0 for kind in ("eager", "pytorch", "float")},
        **{f"speedup/{kind}_b1_low": 1.9 for kind in ("eager", "pytorch", "float")},
        **{f"speedup/{kind}_b1_high": 2.1 for kind in ("eager", "pytorch", "float")},
    }
    best_rows = {
        name: BestRows(
            latency=benchmark_row(name, p50_ms=latency_ms), throughput=benchmark_row(name, batch=8, p50_ms=latency_ms)
        )
        for name in names
    }
    candidates = dict.fromkeys(names, figures)
    _record(
        artifacts / "benchmark",
        "benchmark",
        benchmark_details(candidates=candidates, best=best_rows, peak_share=dict.fromkeys(names, PeakShares())),
        inputs=digests,
        parameters=config.benchmark.model_dump(mode="json"),
        machine=this_machine(),
    )
    verdicts = []
    for name in names[1:]:
        passed = name != "wrong"
        reason = "drop 0.0 points is within 1" if passed else "drop 33.3 points exceeds 1"
        gates = (Gate(name="drop", passed=passed, reason=reason),)
        verdicts.append(Verdict(candidate=name, passed=passed, gates=gates, on_front=passed))
    metrics = {name: CandidateRecord.read(artifacts / "candidates" / name).metrics for name in names}
    quality = {name: {key: value for key, value in metrics[name].items() if "quality/" in key} for name in names}
    winner_reason = f"{winner} is the fastest" if winner else "no candidate passes every gate"
    speeds = serving_speeds(best=best_rows, candidates=candidates)
    drops = dict.fromkeys(names, DropEvidence(None, Drop(0.0, 0.0, 1.0)))
    _record(
        artifacts / "select",
        "select",
        selection_details(
            winner=winner, why=winner_reason, verdicts=verdicts, speeds=speeds, quality=quality, drops=drops
        ),
        inputs={"benchmark": record_digest(artifacts / "benchmark"), **digests},
        metrics={"select/passed": 1.0},
    )
    write_json(artifacts / "select" / "winner.json", {"winner": winner})
    shutil.rmtree(artifacts / "refit", ignore_errors=True)
    labels = RefitLabels(**dict(LABELS), deployed=LABELS.training)
    _record(artifacts / "refit", "refit", refit_details(winner=winner, labels=labels), inputs=digests)


def write_refit(artifacts: Path, winner: str, variant: dict[str, Any]) -> None:
    """Write artifacts/refit as the step does when it accepts the refitted file `write_model(**variant)`."""
    folder, selected = artifacts / "refit", artifacts / "candidates" / winner
    (folder / "selected").mkdir(parents=True, exist_ok=True)
    write_model(folder / "model.onnx", **variant)
    shutil.copyfile(selected / "model.onnx", folder / "selected" / "model.onnx")
    check = RefitCheck(110, "training images", agreement=0.9, kappa=0.85, gain_on_labels=1.5, refusal="")
    digest = sha256_of(selected / "model.onnx")
    changes = {
        "labels": LabelCounts(training=170, choosing=60),
        "refit": CardRefit(labels=170, note=NOTE, check=check, selected_sha256=digest),
        "measured_on": "the validation split, before the refit",
    }
    CandidateCard.read(selected).model_copy(update=changes).write(folder)
    labels = RefitLabels(**dict(LABELS), deployed=170)
    details = refit_details(winner=winner, is_refitted=True, why=f"{winner} was refitted on 170 labels", labels=labels)
    _record(folder, "refit", details, inputs={winner: record_digest(selected)})


def _record(folder: Path, step: str, details: RecordModel, **fields: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    files = [name for name in ("model.onnx", "card.json", "validation_logits.npy") if (folder / name).is_file()]
    artifacts = describe_files(folder, *files)
    write_record(folder, make_record(step, details, artifacts=artifacts, **{"name": folder.name, **fields}))


def clear_local_state(paths: ProjectPaths) -> None:
    """Remove everything in .winnow but the MLflow store, as on another machine."""
    for path in paths.state_dir.iterdir():
        if path.name != "mlflow":
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def aliases(paths: ProjectPaths) -> dict[str, str]:
    """Return alias -> number of its version."""
    versions = {alias: registered_models.find(paths, MODEL, alias) for alias in ("champion", "challenger", "previous")}
    return {alias: version.number for alias, version in versions.items() if version}


def tag(paths: ProjectPaths, number: str, key: str) -> str:
    """Return the value of a version's tag, "" where it has none."""
    version = registered_models.find(paths, MODEL, number)
    assert version is not None
    return version.tags.get(key, "")


def with_size_objective(config: Config) -> Config:
    """Return the config with the objective size, which does not depend on timings."""
    return config.model_copy(update={"promotion": config.promotion.model_copy(update={"objective": "size"})})


def fetch_version(paths: ProjectPaths, version: str) -> Path:
    """Return the folder with the files of a version, by its number or alias."""
    return registered_models.fetch(paths, MODEL, registered_models.get(paths, MODEL, version))
