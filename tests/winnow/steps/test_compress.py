from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import hide_labels, tiny_params
from winnow.config import Config, check_config
from winnow.data.dataset import VALIDATION, ImageSet
from winnow.deploy.batch_inference import predict_file
from winnow.errors import ArtifactError, ConfigError
from winnow.records import CandidateRecord, read_json, read_record, record_digest, sha256_of
from winnow.steps.compress import CandidateFolders, compress

NAMES = list(tiny_params()["candidates"])
FILES = {"model.onnx", "card.json", "validation_logits.npy", "architecture.json"}


@pytest.fixture
def pretrained(tiny_dense: Path) -> Path:
    """Return the folder of pretrain that dense was made from."""
    return tiny_dense.parent.parent / "pretrain"


@pytest.fixture
def candidates(tiny_candidate: Callable[[str], Path], tmp_path: Path) -> Path:
    """Return a folder with the candidates dense and pruned that a test may change."""
    for name in ("dense", "pruned"):
        shutil.copytree(tiny_candidate(name), tmp_path / "candidates" / name)
    return tmp_path / "candidates"


@pytest.mark.thorough
@pytest.mark.parametrize("name", NAMES)
def test_the_record_describes_the_candidate(
    name: str,
    tiny_candidate: Callable[[str], Path],
    tiny_data: Path,
    tiny_dense: Path,
    pretrained: Path,
    tiny_config: Config,
) -> None:
    folder, settings = tiny_candidate(name), tiny_config.candidates[name]
    record, parent = (CandidateRecord.read(candidate) for candidate in (folder, tiny_candidate(settings.parent)))
    assert (record.step, record.name, record.warnings, record.machine) == ("compress", name, (), None)
    assert record.parameters == settings.model_dump(mode="json", by_alias=True)
    assert record.parameters["from"] == settings.parent
    assert record.inputs == {
        "data": record_digest(tiny_data),
        "dense": record_digest(tiny_dense),
        settings.parent: record_digest(tiny_candidate(settings.parent)),
        **({"pretrain": record_digest(pretrained)} if name in ("student", "student-alone") else {}),
    }
    assert record.details.lineage == [*parent.details.lineage, name]
    assert record.details.method == settings.method
    assert record.details.precision == ("int8" if settings.method == "quantize" else "f32")
    # Every candidate has the same metrics, except for those of float networks and of dense.
    expected = {key for key in read_record(tiny_dense).metrics if not key.startswith("pretraining/")}
    is_float = settings.method != "quantize"
    assert set(record.metrics) == (expected if is_float else expected - {"parity/max_abs_difference"})
    assert {a.name for a in record.artifacts} == FILES | ({"weights.safetensors"} if is_float else set())
    assert {path.name for path in folder.iterdir()} == {a.name for a in record.artifacts} | {"record.json"}
    assert all(sha256_of(folder / artifact.name) == artifact.sha256 for artifact in record.artifacts)
    assert ("curves" in read_json(folder / "record.json")["details"]) == is_float
    assert json.loads((folder / "card.json").read_text())["lineage"] == record.details.lineage


@pytest.mark.thorough
@pytest.mark.parametrize("name", NAMES)
def test_metrics_are_those_of_the_file(
    name: str, tiny_candidate: Callable[[str], Path], tiny_dense: Path, tiny_set: ImageSet
) -> None:
    folder, indices = tiny_candidate(name), tiny_set.indices(VALIDATION)
    metrics = read_record(folder).metrics
    predictions = predict_file(folder / "model.onnx", tiny_set.images_NHWC, indices).argmax(1)
    dense = np.load(tiny_dense / "validation_logits.npy").argmax(1)
    assert metrics["quality/top1"] == (predictions == tiny_set.labels_N[indices]).mean()
    assert metrics["quality/agreement"] == (predictions == dense).mean()
    assert metrics["size/mb"] == (folder / "model.onnx").stat().st_size / 1e6


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["pruned-int8", "sparse"])
def test_equal_inputs_give_equal_bytes(
    name: str,
    candidates: Path,
    pretrained: Path,
    tiny_candidate: Callable[[str], Path],
    tiny_data: Path,
    tiny_config: Config,
    tmp_path: Path,
) -> None:
    compress(
        tiny_config,
        name,
        CandidateFolders(tiny_data, pretrained, candidates, tmp_path / "scratch"),
        tmp_path / "again",
    )
    assert (tmp_path / "again" / "record.json").read_text() == (tiny_candidate(name) / "record.json").read_text()


@pytest.mark.thorough
def test_a_trained_step_resumes_without_training(
    candidates: Path, pretrained: Path, tiny_data: Path, tiny_config: Config, tmp_path: Path
) -> None:
    """After a kill during the export, training is not repeated and the bytes are the same."""
    expected = (candidates / "pruned" / "record.json").read_text()
    checkpoint_times = []
    for _ in range(2):
        compress(
            tiny_config,
            "pruned",
            CandidateFolders(tiny_data, pretrained, candidates, tmp_path / "scratch"),
            candidates / "pruned",
        )
        assert (candidates / "pruned" / "record.json").read_text() == expected
        (checkpoint,) = (tmp_path / "scratch").glob("*.safetensors")
        checkpoint_times.append(checkpoint.stat().st_mtime_ns)
    assert checkpoint_times[0] == checkpoint_times[1]
    checkpoint.write_bytes(b"damaged")
    with pytest.raises(ArtifactError, match=r"checkpoint .* is damaged"):
        compress(
            tiny_config,
            "pruned",
            CandidateFolders(tiny_data, pretrained, candidates, tmp_path / "scratch"),
            candidates / "pruned",
        )
    assert (candidates / "pruned" / "record.json").read_text() == expected


@pytest.mark.thorough
def test_labels_outside_the_budget_are_not_used(
    candidates: Path, pretrained: Path, tiny_data: Path, tmp_path: Path
) -> None:
    raw = tiny_params()
    raw["data"]["labels_per_class"] = 5
    config = check_config(raw)
    hidden = hide_labels(tiny_data, tmp_path / "hidden", per_class=5, seed=config.finetune.seeds[0])
    for name, data in (("a", tiny_data), ("b", hidden)):
        compress(
            config,
            "pruned",
            CandidateFolders(data, pretrained, candidates, tmp_path / f"scratch-{name}"),
            tmp_path / name,
        )
    for file in ("weights.safetensors", "record.json"):
        assert sha256_of(tmp_path / "a" / file) == sha256_of(tmp_path / "b" / file), file


@pytest.mark.thorough
def test_the_result_depends_on_the_seed_of_recovery(
    candidates: Path, pretrained: Path, tiny_data: Path, tmp_path: Path
) -> None:
    raw = tiny_params()
    raw["candidates"]["pruned"]["recovery"] = {**raw["candidates"]["pruned"]["recovery"], "seed": 1}
    other_seed = compress(
        check_config(raw),
        "pruned",
        CandidateFolders(tiny_data, pretrained, candidates, tmp_path / "scratch"),
        tmp_path / "out",
    )
    first = CandidateRecord.read(candidates / "pruned")
    assert other_seed.details.curves != first.details.curves
    assert other_seed.metrics["size/parameters"] == first.metrics["size/parameters"]


def test_an_unknown_candidate_lists_the_valid_ones(
    candidates: Path, pretrained: Path, tiny_data: Path, tiny_config: Config, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"there is no candidate 'prunde'; valid: dense-int8, pruned, "):
        compress(
            tiny_config,
            "prunde",
            CandidateFolders(tiny_data, pretrained, candidates, tmp_path / "scratch"),
            tmp_path / "out",
        )


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("pruned-int8", "pruned/model.onnx"),
        ("pruned-int8", "pruned/architecture.json"),
        ("pruned-int8", "pruned/record.json"),
        ("pruned-int8", "pruned/validation_logits.npy"),
        ("pruned-int8", "dense/validation_logits.npy"),
        ("student", "dense/weights.safetensors"),
    ],
)
@pytest.mark.parametrize("content", [None, b"damaged"])
def test_a_damaged_parent_changes_nothing(
    name: str,
    file: str,
    content: bytes | None,
    candidates: Path,
    pretrained: Path,
    tiny_data: Path,
    tiny_config: Config,
    tmp_path: Path,
) -> None:
    (candidates / file).unlink()
    if content is not None:
        (candidates / file).write_bytes(content)
    (candidates / name).mkdir()
    (candidates / name / "old").write_text("kept")
    with pytest.raises(ArtifactError, match=rf"{file} is (missing|damaged)|cannot be read as an ONNX file"):
        compress(
            tiny_config,
            name,
            CandidateFolders(tiny_data, pretrained, candidates, tmp_path / "scratch"),
            candidates / name,
        )
    assert sorted(path.name for path in candidates.iterdir()) == sorted(["dense", "pruned", name])
    assert [path.name for path in (candidates / name).iterdir()] == ["old"]
