from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tasks.step_runners import STEPS
from tests.records import (
    RESULTS,
    benchmark_details,
    benchmark_row,
    candidate_details,
    embed_details,
    ingest_details,
    known_weights_details,
    make_record,
    pretrain_details,
    refit_details,
    report_details,
    selection_details,
    serving_speeds,
)
from winnow import errors
from winnow.errors import ArtifactError, MissingExtra, WinnowError
from winnow.hardware import cores, cpu_flags
from winnow.records import (
    RECORD,
    AnyRecord,
    BenchmarkRecord,
    CandidateRecord,
    Gate,
    IngestRecord,
    Machine,
    RecordModel,
    SelectionRecord,
    Verdict,
    describe_files,
    publish,
    read_json,
    read_record,
    record_digest,
    sha256_of,
    this_machine,
    write_json,
    write_record,
)
from winnow.records.benchmark import (
    AbsentCase,
    Attribution,
    Attributions,
    Baselines,
    BestRows,
    Int8Coverage,
    MeasurementError,
    PeakShares,
    ProcessFootprint,
    RefusedCase,
)
from winnow.records.candidate_file import ClassScores, LabelCounts, ReliabilityBin
from winnow.records.finetune import (
    ArmComparison,
    ArmTraining,
    CrossValidationSummary,
    LinearProbe,
    PretrainingGain,
    TriedTraining,
)
from winnow.records.ingest import NearDuplicates, RejectedFile, SplitCounts
from winnow.records.method_results import PruningCut, PruningTrial, QuantizationRung, RungConfirmation
from winnow.records.model import optional
from winnow.records.record_reader import RECORDS
from winnow.records.refit import RefitCheck, RefitLabels
from winnow.records.report import Abstention, AbstentionCounts
from winnow.records.selection import ControlGain, Drop, DropEvidence

ONE_THIRD = 1 / 3
SCORES = ClassScores(precision=ONE_THIRD, recall=0.5, f1=0.4, support=3)
BY_CLASS: dict[str, Any] = {
    "per_class": {"ü": SCORES},
    "confusion": [[2, 1], [0, 3]],
    "reliability": [ReliabilityBin(confidence=0.9, accuracy=ONE_THIRD, count=3)],
}
CURVES = [{"epoch": 1.0, "loss": ONE_THIRD}, {"epoch": 2.0, "loss": 0.5, "knn": 0.75}]
SPLITS = SplitCounts(train=3, validation=2, test=1)
ARM = ArmTraining(seed=0, learning_rate=0.05, steps=24, top1=ONE_THIRD)
FULL_RESULTS: dict[str, dict[str, Any]] = {
    "finetune": {
        "arms": ArmComparison(
            pretrained=[ARM],
            start=[ARM],
            scratch=[ARM],
            weights=[ARM],
            linear_probe=LinearProbe(seed=0, top1=ONE_THIRD),
            tried=[TriedTraining(arm="scratch", **dict(ARM))],
            gain=PretrainingGain(arm="pretrained", mean=1.5, low=-0.5, high=3.5, pairs=2),
        ),
        "cross_validation": CrossValidationSummary(labels=42, folds=5, per_class={"ü": SCORES}),
        "curves": CURVES,
    },
    "prune": {
        "curves": CURVES,
        "curves_before": {"sparse learning": CURVES},
        "cuts": [
            PruningCut(goal="channels", limit=0.3, before=16, share=0.3, round_to=8, parameters=9),
            PruningCut(
                goal="latency_ms",
                limit=0.5,
                before=ONE_THIRD,
                tried=[
                    PruningTrial(share=0.3, round_to=8, reached=100),
                    PruningTrial(share=ONE_THIRD, round_to=8, reached=0.4, confirmed=0.41),
                ],
                share=0.3,
                round_to=8,
                parameters=9,
            ),
        ],
    },
    "sparsify": {"curves": CURVES, "dense_layers": ["fc"]},
    "factorize": {"curves": CURVES, "ranks": {"stem.0": 4}},
    "cluster": {"curves": CURVES, "values": {"stem.0.weight": 16}},
    "quantize": {
        "rungs": [
            QuantizationRung(rung="static", points_lost=0.0, float_layers=[]),
            QuantizationRung(rung="qat", impossible="no weights"),
        ],
        "chosen": "static",
        "float_layers": [],
        "confirmation": RungConfirmation(rung="qat", points_lost=0.0, static_points_lost=1.5, confirmed=True),
        "curves": CURVES,
    },
    "distill": {"curves": CURVES},
    "probe": {"features": 1280},
}
"""Method -> its result with every optional field set."""


def full_details() -> dict[str, RecordModel]:
    """Return step, or method of a candidate -> details with every field set."""
    row = benchmark_row("quick", round_ms=(0.9, 1.0, 1.1), p95_ms=1.2, inner_spread=0.1)
    screened = benchmark_row("quick", batch=8, screened=True)
    best = {"quick": BestRows(latency=row, throughput=screened), "slow": BestRows(latency=None, throughput=None)}
    factors: dict[str, Any] = {
        "batch": 1,
        "on": "ort",
        "threads": 1,
        "ends_in": "int8",
        "ancestor": "dense",
        "ms": [3.0, 1.0],
    }
    attribution = Attribution(**factors, runtime=3.0, structure=1.0, precision=ONE_THIRD, total=1.0)
    case: dict[str, Any] = {"candidate": "quick", "runtime": "ort", "precision": "int8"}
    error = MeasurementError(
        candidates=("dense", "quick"), runtime="ort", precision="f32", threads=1, batch=1, error=0.02
    )
    drop = DropEvidence(None, Drop(1.0, ONE_THIRD, 3.0, 0.99), "answers", 2, 0.5, 60, 12, "6 images of class 'ü'")
    gates = (
        Gate(name="size", passed=False, reason="too large", needs="max_size_ratio 0.9", shown=False),
        Gate(name="int8", passed=True, reason="not checked here", checked=False),
    )
    counts = AbstentionCounts(images=60, answered=[60, 50], right=[55, 49])
    labels = LabelCounts(training=30, choosing=60, choosing_groups=12)
    candidates: dict[str, RecordModel] = {
        method: candidate_details(method, lineage=["dense", "quick"], labels=labels, **BY_CLASS, **result)
        for method, result in FULL_RESULTS.items()
    }
    return candidates | {
        "ingest": ingest_details(
            ("ü", "b"),
            per_class={"ü": SPLITS, "b": SPLITS},
            labels_per_class=10,
            training_size=24,
            groups=6,
            groups_by_split=SPLITS,
            rejected=[RejectedFile(file="ü.png", reason="damaged")],
            near_duplicates=NearDuplicates(looked_at=3, found=1, pairs=[("a.png", "b.png")], positions=[(0, 3)]),
        ),
        "embed": embed_details(weights=known_weights_details(), images=5, dimension=512),
        "pretrain": pretrain_details(curves=CURVES, start=known_weights_details()),
        "benchmark": benchmark_details(
            rows=[row, screened],
            processes=[ProcessFootprint(**case, import_ms=180.0, load_ms=12.0, first_call_ms=2.5, peak_mb=91.0)],
            executed=[Int8Coverage(**case, int8_share=0.9, kernels={"conv": 0.9})],
            peaks={"f32": 1e11},
            peak_share={"quick": PeakShares(latency=ONE_THIRD), "slow": PeakShares()},
            refused=[RefusedCase(**case, layout="file", batch=1, threads=1, agreement=0.9, needed=0.95, images=60)],
            absent=[AbsentCase(runtime="all", precision="bf16", reason="no such instructions")],
            candidates={"quick": {"best/latency_ms": 1.0, "best/latency_threads": 2}},
            identical_graphs=[("dense", "quick")],
            measurement_error=[error],
            best=best,
            baselines={"b1": Baselines(eager=row, pytorch=row, float=row)},
            attribution={"quick": Attributions(latency=attribution, throughput=None)},
        ),
        "select": selection_details(
            verdicts=[Verdict(candidate="quick", passed=False, gates=gates, on_front=True)],
            front=["dense", "quick"],
            competitors=1,
            route="answers",
            drops={"quick": drop},
            macro_f1_drops={"quick": DropEvidence(Drop(0.0, -1.0, 1.0), Drop(0.0, 0.0, 0.0))},
            agreement={"quick": ONE_THIRD},
            quality={"quick": {"quality/top1": ONE_THIRD}},
            served={"quick": row, "slow": None},
            speeds=serving_speeds(best=best, candidates={"quick": {}}, measurement_error=[error]),
            controls=[
                ControlGain(
                    bought_by="a teacher",
                    candidate="quick",
                    control="slow",
                    points=1.0,
                    low=0.5,
                    high=1.5,
                    confidence=0.95,
                )
            ],
        ),
        "refit": refit_details(
            winner="quick",
            is_refitted=True,
            labels=RefitLabels(**dict(labels), deployed=90),
            check=RefitCheck(60, "training images", 0.9, ONE_THIRD, 1.5, ""),
            curves=CURVES,
            trainings={"dense": CURVES},
        ),
        "report": report_details(
            winner="quick",
            test={"dense": dict(BY_CLASS), "quick": {}},
            disagreements=["the intervals do not overlap"],
            abstention=Abstention(validation=counts, test=counts),
        ),
    }


def records_of(details: dict[str, RecordModel]) -> dict[str, Any]:
    """Return the same keys -> records with these details."""
    return {
        kind: make_record(kind if kind in RECORDS else "compress", detail, name=kind)
        for kind, detail in details.items()
    }


FULL = records_of(full_details())
MINIMAL = records_of(
    {
        **{method: candidate_details(method) for method in RESULTS},
        "ingest": ingest_details(()),
        "embed": embed_details(),
        "pretrain": pretrain_details(),
        "benchmark": benchmark_details(),
        "select": selection_details(),
        "refit": refit_details(),
        "report": report_details(),
    }
)


def record(**changes: Any) -> IngestRecord:
    result: IngestRecord = make_record(
        "ingest", ingest_details(("ü",)), **{"name": "n", "metrics": {"a/b": 0.1}, **changes}
    )
    return result


def optional_fields() -> list[tuple[type[RecordModel], str]]:
    """Return every (model, field) that is declared with `optional()`."""
    models, pending = set[type[RecordModel]](), [RecordModel]
    while pending:
        model = pending.pop()
        models.add(model)
        pending += model.__subclasses__()
    ordered = sorted(models, key=lambda model: model.__name__)
    return [(model, name) for model in ordered for name, field in model.model_fields.items() if field.exclude_if]


def test_a_record_round_trips(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"abc")
    machine = Machine(cpu="c", flags=("avx2",), threads=2, memory_gb=1.5, gpu="", system="s", versions={"numpy": "2"})
    ingest_record = record(
        warnings=("w",),
        artifacts=describe_files(tmp_path, "a.bin"),
        machine=machine,
    )
    write_record(tmp_path, ingest_record)
    assert read_record(tmp_path) == IngestRecord.read(tmp_path) == ingest_record
    assert "ü" in (tmp_path / RECORD).read_text(encoding="utf-8")
    assert ingest_record.artifacts[0].sha256 == hashlib.sha256(b"abc").hexdigest() == sha256_of(tmp_path / "a.bin")
    assert ingest_record.artifacts[0].bytes == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.bin", RECORD]


def test_every_step_has_a_record_and_every_method_its_details() -> None:
    assert set(RECORDS) == {"compress" if step == "candidate" else step for step in STEPS}
    assert set(MINIMAL) == set(FULL) == (set(RECORDS) - {"compress"}) | set(RESULTS)


@pytest.mark.parametrize("records", [MINIMAL, FULL], ids=["plain", "full"])
@pytest.mark.parametrize("kind", FULL)
def test_the_details_of_every_step_round_trip(kind: str, records: dict[str, AnyRecord], tmp_path: Path) -> None:
    record = records[kind]
    write_record(tmp_path, record)
    reread: AnyRecord = RECORDS[record.step].read(tmp_path)
    assert read_record(tmp_path) == reread == record
    assert type(reread.details) is type(record.details)
    content = (tmp_path / RECORD).read_bytes()
    write_record(tmp_path, reread)
    assert (tmp_path / RECORD).read_bytes() == content


@pytest.mark.parametrize("kind", FULL)
def test_an_unknown_key_in_the_details_is_named_with_the_file(kind: str, tmp_path: Path) -> None:
    content = FULL[kind].model_dump(mode="json")
    content["details"]["oddity"] = 1
    write_json(tmp_path / RECORD, content)
    for read in (read_record, RECORDS[FULL[kind].step].read):
        with pytest.raises(ArtifactError) as exc_info:
            read(tmp_path)
        assert str(tmp_path / RECORD) in str(exc_info.value)
        assert re.search(r"\(at details\.(\w+\.)?oddity: Extra inputs are not permitted\)", str(exc_info.value))


@pytest.mark.parametrize(
    ("kind", "path", "message"),
    [
        ("ingest", ("near_duplicates",), r"details\.near_duplicates\.oddity"),
        ("benchmark", ("rows", 0), r"details\.rows\.0\.oddity"),
        ("select", ("drops", "quick"), r"details\.drops\.quick\.oddity"),
        ("select", ("verdicts", 0, "gates", 0), r"details\.verdicts\.0\.gates\.0\.oddity"),
        ("refit", ("check",), r"details\.check\.oddity"),
        ("quantize", ("labels",), r"details\.quantize\.labels\.oddity"),
    ],
)
def test_an_unknown_key_within_the_details_is_named_too(
    kind: str, path: tuple[str | int, ...], message: str, tmp_path: Path
) -> None:
    content = FULL[kind].model_dump(mode="json")
    section = content["details"]
    for key in path:
        section = section[key]
    section["oddity"] = 1
    write_json(tmp_path / RECORD, content)
    with pytest.raises(ArtifactError, match=rf"record\.json .*at {message}"):
        read_record(tmp_path)


@pytest.mark.parametrize("details", [{}, {"curves": []}])
def test_an_unknown_step_is_named_with_the_file(details: dict[str, Any], tmp_path: Path) -> None:
    content = MINIMAL["pretrain"].model_dump(mode="json") | {"step": "candidate", "details": details}
    write_json(tmp_path / RECORD, content)
    with pytest.raises(ArtifactError) as exc_info:
        read_record(tmp_path)
    assert str(tmp_path / RECORD) in str(exc_info.value)
    assert "(at step: there is no step 'candidate')" in str(exc_info.value)


def test_a_record_of_another_step_or_method_is_refused(tmp_path: Path) -> None:
    write_record(tmp_path, MINIMAL["pretrain"])
    with pytest.raises(ArtifactError, match=r"record\.json is damaged.*at details\.source: Field required"):
        IngestRecord.read(tmp_path)
    content = MINIMAL["prune"].model_dump(mode="json")
    content["details"]["method"] = "shrink"
    write_json(tmp_path / RECORD, content)
    with pytest.raises(ArtifactError, match=r"record\.json is damaged.*at details: .*'shrink'"):
        CandidateRecord.read(tmp_path)


def test_records_refuse_nan_and_infinity() -> None:
    for number in (float("nan"), float("inf")):
        with pytest.raises(ValidationError):
            record(metrics={"x": number})
        with pytest.raises(ValidationError):
            benchmark_row(p50_ms=1.0, spread=number)


def test_an_optional_field_is_left_out_where_it_has_its_default() -> None:
    class Example(RecordModel):
        always: int | None
        number: int | None = optional()
        names: list[str] = optional([])

    assert Example(always=None).model_dump(mode="json") == {"always": None}
    assert Example(always=1, number=None, names=[]).model_dump(mode="json") == {"always": 1}
    assert Example(always=1, number=0, names=["a"]).model_dump(mode="json") == {
        "always": 1,
        "number": 0,
        "names": ["a"],
    }
    assert Example.model_validate({"always": 1}) == Example(always=1, number=None, names=[])


@pytest.mark.parametrize(("model", "name"), optional_fields(), ids=lambda value: getattr(value, "__name__", value))
def test_every_optional_field_leaves_out_only_its_default(model: type[RecordModel], name: str) -> None:
    field = model.model_fields[name]
    assert field.exclude_if is not None
    assert not field.is_required()
    assert field.exclude_if(field.default)
    assert not field.exclude_if("something else")


def test_keys_that_are_written_and_left_out(tmp_path: Path) -> None:
    def written_details(records: dict[str, AnyRecord], kind: str) -> dict[str, Any]:
        write_record(tmp_path, records[kind])
        details: dict[str, Any] = read_json(tmp_path / RECORD)["details"]
        return details

    common_keys = {"method", "precision", "lineage", "labels"}
    class_keys = {"per_class", "confusion", "reliability"}
    minimal, complete = written_details(MINIMAL, "quantize"), written_details(FULL, "quantize")
    assert set(minimal) == common_keys | {"calibration_images"}
    assert set(complete) == set(minimal) | class_keys | {"rungs", "chosen", "float_layers", "confirmation", "curves"}
    assert complete["float_layers"] == []  # every layer is int8, which differs from None
    assert complete["rungs"] == [
        {"rung": "static", "points_lost": 0.0, "float_layers": []},
        {"rung": "qat", "impossible": "no weights"},
    ]
    assert (set(minimal["labels"]), set(complete["labels"])) == (
        {"training", "choosing"},
        {"training", "choosing", "choosing_groups"},
    )
    assert set(written_details(MINIMAL, "finetune")["arms"]) == {"linear_probe", "tried", "gain"}
    assert set(written_details(FULL, "finetune")["arms"]) == {
        *("pretrained", "start", "scratch", "weights"),
        *("linear_probe", "tried", "gain"),
    }
    cuts = written_details(FULL, "prune")["cuts"]
    assert "tried" not in cuts[0]
    assert cuts[1]["tried"] == [
        {"share": 0.3, "round_to": 8.0, "reached": 100},
        {"share": ONE_THIRD, "round_to": 8.0, "reached": 0.4, "confirmed": 0.41},
    ]
    benchmark = written_details(FULL, "benchmark")
    assert [row.get("screened") for row in benchmark["rows"]] == [None, True]
    assert repr(benchmark["candidates"]["quick"]) == "{'best/latency_ms': 1.0, 'best/latency_threads': 2}"  # a count
    assert benchmark["peak_share"] == {"quick": {"latency": ONE_THIRD}, "slow": {}}
    assert written_details(MINIMAL, "report")["abstention"] == {}
    assert written_details(FULL, "report")["test"]["quick"] == {}


def test_lookups_in_the_details_by_name() -> None:
    benchmark: BenchmarkRecord = FULL["benchmark"]
    row = benchmark.details.rows[0]
    assert (row.case.candidate, row.case.runtime, row.case.batch, row.case.layout) == ("quick", "ort", 1, "file")
    best, peak_shares = benchmark.details.best["quick"], benchmark.details.peak_share["quick"]
    assert (best.of("latency"), best.of("throughput")) == (row, benchmark.details.rows[1])
    assert (peak_shares.of("latency"), peak_shares.of("throughput")) == (ONE_THIRD, None)
    attribution = benchmark.details.attribution["quick"]
    assert (attribution.of("latency"), attribution.of("throughput")) == (attribution.latency, None)
    assert [SPLITS.of(split) for split in ("train", "validation", "test")] == [3, 2, 1]
    selection: SelectionRecord = FULL["select"]
    assert selection.details.verdict("quick") == selection.details.verdicts[0]
    assert selection.details.verdict("dense") is None
    arms = FULL["finetune"].details.arms
    assert [arms.trainings(arm) for arm in ("pretrained", "start", "scratch", "weights")] == [[ARM]] * 4
    assert MINIMAL["finetune"].details.arms.trainings("scratch") == []


def test_same_record_same_bytes_and_digest(tmp_path: Path) -> None:
    digests = set()
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_record(tmp_path / name, record(metrics={"x": 1 / 3}))
        digests.add(record_digest(tmp_path / name))
    write_record(tmp_path / "two", record(metrics={"x": 1 / 3 + 1e-16}))
    assert len(digests) == 1
    assert record_digest(tmp_path / "two") not in digests


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"record\.json is missing; run the step"),
        ('{"format": 1, "step":', r"record\.json is damaged"),
        (b"\xff\xfe\x00", r"record\.json is damaged"),
        ("[]", r"damaged.*\(at the top"),
        ('{"step": "s"}', "another version of winnow"),
        ('{"format": 99}', "another version of winnow"),
        ('{"format": 1, "step": "ingest"}', r"damaged.*\(at name: Field required"),
        ('{"format": 1, "name": "n"}', r"damaged.*\(at step: Field required"),
        (json.dumps(record().model_dump(mode="json") | {"metrics": {"x": "fast"}}), r"damaged.*\(at metrics\.x"),
        (json.dumps(record().model_dump(mode="json") | {"odd": 1}), r"damaged.*\(at odd"),
    ],
)
def test_a_damaged_record_is_an_error_with_a_remedy(tmp_path: Path, text: str | bytes | None, message: str) -> None:
    if text is not None:
        (tmp_path / RECORD).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ArtifactError, match=message):
        read_record(tmp_path)
    if text is None:
        with pytest.raises(ArtifactError, match=message):
            record_digest(tmp_path)


def test_json_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"ä": [1, 2.5]})
    assert read_json(path) == {"ä": [1, 2.5]}
    assert "ä" in path.read_text(encoding="utf-8")
    for invalid in (float("nan"), {"s": {1, 2}}):
        with pytest.raises((ValueError, TypeError)):
            write_json(path, invalid)
    assert read_json(path) == {"ä": [1, 2.5]}


@pytest.fixture
def disk_calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record the order of fsync and rename calls; both are executed, too."""
    calls: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def logged_fsync(descriptor: int) -> None:
        calls.append(f"flush {Path(f'/proc/self/fd/{descriptor}').readlink().name}")
        fsync(descriptor)

    def logged_replace(path: Path, target: Path) -> Path:
        calls.append(f"rename {path.name}")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", logged_fsync)
    monkeypatch.setattr(Path, "replace", logged_replace)
    return calls


def test_a_file_is_on_the_disk_before_it_takes_its_name(tmp_path: Path, disk_calls: list[str]) -> None:
    """A power cut between fsync and rename would otherwise leave an empty file under the final name."""
    write_json(tmp_path / "x.json", [1])
    name = f".x.json.{os.getpid()}.tmp"
    assert disk_calls == [f"flush {name}", f"rename {name}"]
    disk_calls.clear()
    with publish(tmp_path / "out") as folder:
        (folder / "images.npy").write_bytes(b"1")
    name = f".out.{os.getpid()}.tmp"
    assert disk_calls == ["flush images.npy", f"flush {name}", f"rename {name}"]


@pytest.mark.parametrize("is_published", [True, False], ids=["replaces", "makes"])
def test_publish(tmp_path: Path, is_published: bool) -> None:
    out = tmp_path / "deep" / "out"
    if is_published:
        out.mkdir(parents=True)
        (out / "old").touch()
    with publish(out) as folder:
        (folder / "new").write_text("x")
        assert folder.parent == out.parent
        assert not (out / "new").exists()
        assert (out / "old").exists() == is_published
    assert [path.name for path in out.iterdir()] == ["new"]
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_publish_leaves_no_trace_of_a_failure(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").touch()

    def publish_and_fail() -> None:
        with publish(out) as folder:
            (folder / "half").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        publish_and_fail()
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "old"]


def test_publish_removes_only_leftovers_of_killed_processes(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as killed:
        killed.wait()
    leftover, in_use = (tmp_path / f".out.{process}.tmp" for process in (killed.pid, os.getppid()))
    unrelated = [tmp_path / f".out-int8.{killed.pid}.tmp", tmp_path / ".out.notes.tmp"]
    for folder in (leftover, in_use, *unrelated):
        folder.mkdir()
        (folder / "images.npy").touch()
    with publish(tmp_path / "out"):
        pass
    assert not leftover.exists()
    assert all((folder / "images.npy").exists() for folder in (in_use, *unrelated))


def test_writing_a_file_removes_leftovers_of_killed_processes(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as killed:
        killed.wait()
    leftover, in_use, unrelated = (
        tmp_path / name
        for name in (f".a[1].json.{killed.pid}.tmp", f".a[1].json.{os.getppid()}.tmp", f".b.json.{killed.pid}.tmp")
    )
    for path in (leftover, in_use, unrelated):
        path.touch()
    write_json(tmp_path / "a[1].json", [1])
    assert sorted(tmp_path.iterdir()) == sorted([in_use, unrelated, tmp_path / "a[1].json"])


def test_publish_keeps_the_old_folder_if_the_new_one_cannot_replace_it(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").touch()

    def publish_and_fail() -> None:
        with publish(out) as folder:
            folder.rmdir()  # so that there is nothing to rename

    with pytest.raises(FileNotFoundError):
        publish_and_fail()
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "old"]


KILLED_PUBLISH = """
import os, signal, sys
from pathlib import Path
from winnow.records import publish

rename = Path.replace

def killed(self, target):
    if not self.name.endswith(".old.tmp") and self.suffix == ".tmp":
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(self, target)

Path.replace = killed
with publish(Path(sys.argv[1])) as folder:
    (folder / "new").touch()
"""


@pytest.mark.thorough
@pytest.mark.parametrize("succeeds", [True, False])
def test_publish_restores_the_old_folder_after_a_killed_process(tmp_path: Path, succeeds: bool) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").touch()
    result = subprocess.run([sys.executable, "-c", KILLED_PUBLISH, str(out)], cwd=Path.cwd(), check=False)
    assert result.returncode < 0
    assert [path.suffix for path in tmp_path.iterdir()] == [".tmp", ".tmp"]  # which DVC does not look at

    def publish_again() -> None:
        with publish(out) as folder:
            assert (out / "old").exists()
            (folder / "newer").touch()
            if not succeeds:
                raise KeyboardInterrupt

    if succeeds:
        publish_again()
    else:
        with pytest.raises(KeyboardInterrupt):
            publish_again()
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "newer" if succeeds else "old"]


def test_records_are_frozen_and_closed() -> None:
    gate = Gate(name="size", passed=True, reason="0.4 <= 0.5")
    with pytest.raises(ValidationError):
        gate.passed = False  # type: ignore[misc]
    with pytest.raises(ValidationError):
        Verdict(candidate="x", passed=True, gates=(gate,), on_front=True, extra=1)  # type: ignore[call-arg]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_this_machine() -> None:
    machine = this_machine(gpu="card")
    assert machine == this_machine(gpu="card") != this_machine()
    assert machine.threads == cores()
    assert machine.memory_gb > 0.1
    assert machine.cpu
    assert {"torch", "numpy"} <= set(machine.versions)
    assert set(machine.flags) <= cpu_flags()
    cpuinfo = Path("/proc/cpuinfo").read_text()
    assert all(f" {flag}" in cpuinfo for flag in machine.flags)


def test_every_error_is_a_winnow_error_and_a_value_error() -> None:
    classes = [cls for cls in vars(errors).values() if isinstance(cls, type)]
    assert len(classes) == 6
    assert all(issubclass(cls, WinnowError) and issubclass(cls, ValueError) for cls in classes)
    assert all(cls.__name__ in str(errors.__doc__) for cls in classes)
    for instance in (MissingExtra("openvino", "runtimes"), errors.ConfigError("x")):  # workers send them
        restored = pickle.loads(pickle.dumps(instance))
        assert (type(restored), str(restored)) == (type(instance), str(instance))
    assert "pip install 'winnow-vision[runtimes]'" in str(MissingExtra("openvino", "runtimes"))


def test_a_selection_of_another_version_is_refused(tmp_path: Path) -> None:
    content = MINIMAL["select"].model_dump(mode="json")
    del content["details"]["quality"]
    write_json(tmp_path / RECORD, content)
    message = (
        r"record\.json is damaged, or of another version of winnow \(at details\.quality: Field required\); delete"
    )
    with pytest.raises(ArtifactError, match=message):
        SelectionRecord.read(tmp_path)
