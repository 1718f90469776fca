from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import timm
from numpy.typing import NDArray
from safetensors.torch import save_file

from tests.conftest import tiny_params
from winnow.config import Config, check_config
from winnow.data.dataset import TEST, TRAIN, ImageSet
from winnow.deploy import feature_extraction
from winnow.deploy.batch_inference import embed as embed_in_memory
from winnow.deploy.feature_extraction import embed_images, open_features
from winnow.deploy.teacher_embeddings import load_embeddings
from winnow.errors import ArtifactError, ConfigError
from winnow.models.backbones import load_model
from winnow.records import CandidateCard, EmbedRecord, describe_files, record_digest, write_json, write_record
from winnow.steps import embed as embed_module
from winnow.steps.compress import CandidateFolders, compress
from winnow.steps.embed import embed
from winnow.steps.finetune import finetune
from winnow.steps.pretrain import pretrain

FILE, BACKBONE = "data/weights/teacher.safetensors", "timm:mobilenetv3_small_050"


def taught(**teacher: object) -> Config:
    """tiny_params with a small network of timm as the teacher."""
    return check_config(
        tiny_params() | {"teacher": {"weights": FILE, "backbone": BACKBONE, "input_size": 32, **teacher}}
    )


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the file of the teacher's weights, which is the working directory."""
    (tmp_path / "data/weights").mkdir(parents=True)
    save_file(timm.create_model(BACKBONE.removeprefix("timm:")).state_dict(), tmp_path / FILE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_embeddings_are_the_features_of_the_network(project: Path, tiny_data: Path, tiny_set: ImageSet) -> None:
    record = embed(taught(), tiny_data, project / "embed", project / "scratch", project / "cache")
    assert record == EmbedRecord.read(project / "embed")
    assert record.inputs == {"data": record_digest(tiny_data)}
    weights = record.details.weights
    assert weights is not None
    assert (weights.backbone, weights.input_size, weights.native_size) == (BACKBONE, 32, 224)
    rows_ND = load_embeddings(project / "embed")
    model, architecture = load_model(project / "embed")
    assert architecture.network_size == 32
    assert rows_ND.shape == (len(tiny_set.labels_N), record.details.dimension)
    train = tiny_set.indices(TRAIN)
    expected_ND = embed_in_memory(model, tiny_set.images_NHWC, train).numpy()
    np.testing.assert_allclose(rows_ND[train].astype(np.float32), expected_ND, atol=2e-3, rtol=2e-3)


def test_images_of_the_test_split_are_not_embedded(project: Path, tiny_data: Path, tiny_set: ImageSet) -> None:
    record = embed(taught(), tiny_data, project / "embed", project / "scratch", project / "cache")
    rows_ND = load_embeddings(project / "embed")
    is_test_N = tiny_set.split_N == TEST
    assert is_test_N.any()
    assert np.isnan(rows_ND[is_test_N]).all()
    assert np.isfinite(rows_ND[~is_test_N]).all()
    assert record.details.images == int((~is_test_N).sum())


def test_an_interrupted_computation_goes_on(
    project: Path, tiny_data: Path, tiny_set: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed(taught(), tiny_data, project / "whole", project / "scratch-whole", project / "cache")
    monkeypatch.setattr(feature_extraction, "BATCH", 8)
    monkeypatch.setattr(feature_extraction, "BATCHES_PER_BLOCK", 2)
    calls, compute = [], feature_extraction.make_network_input

    def stops_at_the_seventh(*arguments: object) -> object:
        calls.append(arguments[1])
        if len(calls) == 7:
            raise KeyboardInterrupt
        return compute(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(feature_extraction, "make_network_input", stops_at_the_seventh)
    with pytest.raises(KeyboardInterrupt):
        embed(taught(), tiny_data, project / "embed", project / "scratch", project / "cache")
    assert not (project / "embed").exists()
    first_run = len(calls)
    embed(taught(), tiny_data, project / "embed", project / "scratch", project / "cache")
    whole_ND, resumed_ND = load_embeddings(project / "whole"), load_embeddings(project / "embed")
    np.testing.assert_allclose(resumed_ND.astype(np.float32), whole_ND.astype(np.float32), atol=2e-3, rtol=2e-3)
    # The first call finds the dimension, two blocks of two batches are done, and the seventh call begins another.
    images = int((tiny_set.split_N != TEST).sum())
    assert len(calls) - first_run == -(-images // 8) - 4


def rewrite(folder: Path, name: str, array: np.ndarray) -> None:
    """Replace a file of embed, and its digest in the record."""
    np.save(folder / name, array)
    record = EmbedRecord.read(folder)
    (file,) = describe_files(folder, name)
    artifacts = tuple(file if artifact.name == name else artifact for artifact in record.artifacts)
    write_record(folder, record.model_copy(update={"artifacts": artifacts}))


def mark_reused(folder: Path, rows_N: NDArray[np.int64]) -> None:
    """Set these embeddings to 7, so that they can be told apart from those that are computed again."""
    marked_ND = np.array(load_embeddings(folder))
    marked_ND[rows_N] = 7.0
    rewrite(folder, "embeddings.npy", marked_ND)


def test_embeddings_of_known_pixels_are_reused(
    project: Path, tiny_data: Path, tiny_set: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = (tiny_data, project / "embed", project / "scratch", project / "cache")
    embed(taught(), *folders)
    first_ND = np.array(load_embeddings(project / "embed"))
    train = tiny_set.indices(TRAIN)
    mark_reused(project / "embed", train)
    keys_N16 = np.load(project / "embed/keys.npy")
    keys_N16[train[0]] = 255  # this image has changed
    rewrite(project / "embed", "keys.npy", keys_N16)
    shutil.rmtree(project / "scratch", ignore_errors=True)
    embed(taught(), *folders)
    again_ND = load_embeddings(project / "embed")
    np.testing.assert_allclose(again_ND[train[0]], first_ND[train[0]], atol=2e-3, rtol=2e-3)
    assert (again_ND[train[1:]] == 7.0).all()
    assert np.isnan(again_ND[tiny_set.split_N == TEST]).all()
    monkeypatch.setattr(embed_module, "_code_digest", lambda: "other code")
    shutil.rmtree(project / "scratch", ignore_errors=True)
    embed(taught(), *folders)
    np.testing.assert_allclose(load_embeddings(project / "embed")[train], first_ND[train], atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("change", ["other bytes", "other resize", "other size"])
def test_embeddings_of_other_pixels_or_damaged_ones_are_not_reused(
    project: Path, tiny_data: Path, tiny_set: ImageSet, change: str
) -> None:
    embed(taught(), tiny_data, project / "embed", project / "scratch", project / "cache")
    train, data = tiny_set.indices(TRAIN), project / "data-changed"
    shutil.copytree(tiny_data, data)
    if change == "other bytes":  # the record still holds the digest of the file that embed wrote
        damaged_ND = np.array(load_embeddings(project / "embed"))
        damaged_ND[train] = 7.0
        np.save(project / "embed/embeddings.npy", damaged_ND)
    else:  # the keys are those of the images at full size, so they stay
        mark_reused(project / "embed", train)
        images_NHWC = np.load(tiny_data / "images.npy")
        if change == "other resize":
            write_json(data / "preprocessing.json", {"resize": "pad", "bits": 16})
        else:
            np.save(data / "images.npy", images_NHWC.repeat(2, axis=1).repeat(2, axis=2))
    shutil.rmtree(project / "scratch", ignore_errors=True)
    embed(taught(), data, project / "embed", project / "scratch", project / "cache")
    fresh = (project / "fresh", project / "scratch-fresh", project / "cache")
    embed(taught(), data, *fresh)
    np.testing.assert_array_equal(load_embeddings(project / "embed"), load_embeddings(project / "fresh"))


def test_without_a_teacher_there_is_only_a_record(tiny_data: Path, tmp_path: Path) -> None:
    record = embed(check_config(tiny_params()), tiny_data, tmp_path / "embed", tmp_path / "scratch", tmp_path)
    assert record.details.weights is None
    assert [path.name for path in (tmp_path / "embed").iterdir()] == ["record.json"]
    with pytest.raises(ArtifactError, match=r"embeddings\.npy is missing"):
        load_embeddings(tmp_path / "embed")


def test_a_missing_file_of_weights_is_named(tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArtifactError, match=rf"{FILE} is missing"):
        embed(taught(), tiny_data, tmp_path / "embed", tmp_path / "scratch", tmp_path)
    assert not (tmp_path / "embed").exists()


@pytest.mark.parametrize(
    ("teacher", "problem"),
    [
        ({"weights": "ftp:x"}, r"'ftp:x' must be none, package:NAME"),
        ({"weights": "package:nothing"}, r"there is no package of weights 'nothing'; valid: efficientnet-lite0"),
        ({"weights": "torchvision:resnet8"}, r"'resnet8' is not a classifier of torchvision"),
        ({"weights": "timm:beit_base_patch16_224"}, r"timm's 'beit_base_patch16_224' is not supported"),
        (
            {"weights": "timm:deit_tiny_distilled_patch16_224.fb_in1k"},
            r"'deit_tiny_distilled_patch16_224' has two heads",
        ),
        ({"weights": FILE, "backbone": "timm:deit_tiny_distilled_patch16_224"}, r"has two heads"),
        ({"weights": "mine.pth"}, r"put the file into data/weights/ and write data/weights/mine\.pth"),
        ({"weights": FILE, "backbone": "auto"}, r"does not say which network it belongs to; name it in backbone"),
        ({"weights": "torchvision:resnet50", "backbone": "resnet18"}, r"belongs to resnet50, not to resnet18"),
    ],
)
def test_wrong_weights_are_refused_when_params_are_read(teacher: dict[str, str], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        check_config(tiny_params() | {"teacher": teacher})


def test_distill_needs_a_teacher() -> None:
    raw = tiny_params()
    raw["pretrain"] = {**raw["pretrain"], "method": "distill"}
    with pytest.raises(ConfigError, match=r"pretrain\.method: distill needs a teacher: set teacher\.weights"):
        check_config(raw)


def test_pretraining_learns_the_embeddings(project: Path, tiny_data: Path) -> None:
    raw = tiny_params()
    raw["teacher"] = {"weights": FILE, "backbone": BACKBONE, "input_size": 32}
    raw["pretrain"] = {**raw["pretrain"], "method": "distill", "epochs": 24}
    config = check_config(raw)
    embed(config, tiny_data, project / "embed", project / "scratch", project / "cache")
    record = pretrain(config, tiny_data, project / "pretrain", project / "s", project / "embed", project / "cache")
    losses = [row["loss"] for row in record.details.curves]
    assert losses[-1] < 0.85 < losses[0]  # 1 for predictions that have nothing to do with the targets
    assert record.inputs["embed"] == record_digest(project / "embed")


@pytest.mark.thorough
def test_the_origin_of_weights_stays_with_what_was_made_of_them(project: Path, tiny_data: Path) -> None:
    """The card and the file of dense and of a child name the teacher, from which the backbone learned."""
    raw = tiny_params()
    raw["teacher"] = {"weights": FILE, "backbone": BACKBONE, "input_size": 32}
    raw["pretrain"] = {**raw["pretrain"], "method": "distill"}
    raw["candidates"] = {name: raw["candidates"][name] for name in ("dense-int8", "student")}
    config, candidates = check_config(raw), project / "candidates"
    embedded = embed(config, tiny_data, project / "embed", project / "scratch", project / "cache")
    pretrain(config, tiny_data, project / "pretrain", project / "s", project / "embed", project / "cache")
    finetune(config, tiny_data, project / "pretrain", candidates / "dense", project / "f", project / "embed")
    folders = CandidateFolders(tiny_data, project / "pretrain", candidates, project / "c", None, project / "embed")
    for name in config.candidates:
        compress(config, name, folders, candidates / name)
    for name in ("dense", *config.candidates):
        assert CandidateCard.read(candidates / name).known_weights == [embedded.details.weights]
        assert onnx.load(candidates / name / "model.onnx").metadata_props[0].key == "winnow.known_weights"


def test_the_same_seed_gives_the_same_embeddings(project: Path, tiny_data: Path, tiny_set: ImageSet) -> None:
    embed(taught(), tiny_data, project / "embed", project / "scratch", project / "cache")
    features = open_features(*load_model(project / "embed"), project, len(tiny_set.labels_N))
    selected = np.flatnonzero(tiny_set.split_N != TEST)
    again_ND = embed_images(features, tiny_set, selected, project / "again")
    assert np.array_equal(again_ND, load_embeddings(project / "embed"), equal_nan=True)
