from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import tiny_params
from tests.winnow.labels.embedded_project import taught_params, write_embeddings
from winnow.config import check_config
from winnow.data.dataset import TEST, TRAIN, ImageSet
from winnow.deploy.batch_inference import embed
from winnow.errors import ArtifactError
from winnow.labels.image_features import load_data, load_features
from winnow.models.backbones import load_backbone
from winnow.records import write_json
from winnow.steps.embed import embed as embed_step
from winnow.steps.pretrain import pretrain


@pytest.fixture
def artifacts(tiny_data: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny_data, tmp_path / "artifacts" / "data")
    return tmp_path / "artifacts"


def test_with_a_teacher_they_are_its_embeddings(artifacts: Path, tiny_set: ImageSet) -> None:
    config = check_config(taught_params())
    rows_ND = write_embeddings(artifacts, config)
    indices = tiny_set.indices(TRAIN)[::7]
    features = load_features(config, load_data(artifacts), artifacts, indices)
    np.testing.assert_allclose(features.rows_MD, rows_ND[indices], atol=1e-3)
    assert features.rows_MD.dtype == np.float32
    assert (features.network, features.folder) == ("the teacher package:efficientnet-lite0", "embed")


def test_without_a_teacher_they_are_those_of_the_backbone(artifacts: Path, tiny_set: ImageSet, tmp_path: Path) -> None:
    params = tiny_params()
    params["pretrain"] = {"method": "none", "backbone": "resnet8"}
    config = check_config(params)
    pretrain(config, artifacts / "data", artifacts / "pretrain", tmp_path / "scratch")
    indices = tiny_set.indices(TRAIN)[:20]
    features = load_features(config, load_data(artifacts), artifacts, indices)
    expected_MD = embed(load_backbone(artifacts / "pretrain"), tiny_set.images_NHWC, indices).numpy()
    np.testing.assert_allclose(features.rows_MD, expected_MD, atol=1e-5)
    assert features.network == "the backbone resnet8 before fine-tuning (random weights)"
    assert features.is_random


def test_images_of_the_test_split_have_none(artifacts: Path, tiny_set: ImageSet) -> None:
    config = check_config(taught_params())
    write_embeddings(artifacts, config)
    with pytest.raises(ValueError, match="only the report reads them"):
        load_features(config, load_data(artifacts), artifacts, tiny_set.indices(TEST)[:1])


def test_missing_artifacts_name_the_command(artifacts: Path, tiny_set: ImageSet, tmp_path: Path) -> None:
    indices = tiny_set.indices(TRAIN)
    with pytest.raises(ArtifactError, match=r"embed does not exist .* run `dvc repro embed`, or `winnow run`"):
        load_features(check_config(taught_params()), tiny_set, artifacts, indices)
    with pytest.raises(ArtifactError, match=r"pretrain does not exist .* run `dvc repro pretrain`, or `winnow run`"):
        load_features(check_config(tiny_params()), tiny_set, artifacts, indices)
    with pytest.raises(ArtifactError, match=r"data does not exist or is incomplete; run `dvc repro ingest`"):
        load_data(tmp_path / "nothing")


def test_features_of_other_settings_or_images_are_refused(artifacts: Path, tiny_set: ImageSet, tmp_path: Path) -> None:
    indices, config = tiny_set.indices(TRAIN), check_config(taught_params())
    embed_step(check_config(tiny_params()), artifacts / "data", artifacts / "embed", tmp_path / "s", tmp_path / "w")
    with pytest.raises(ArtifactError, match=r"other settings than params.yaml has now \(teacher.weights\)"):
        load_features(config, tiny_set, artifacts, indices)
    write_embeddings(artifacts, config)
    load_features(config, tiny_set, artifacts, indices)
    (artifacts / "embed" / "embeddings.npy").unlink()
    with pytest.raises(ArtifactError, match=r"embeddings.npy is missing; run `dvc repro embed`"):
        load_features(config, tiny_set, artifacts, indices)
    write_embeddings(artifacts, config)
    write_json(artifacts / "data" / "record.json", {"other": "images"})
    with pytest.raises(ArtifactError, match="was made from other images than"):
        load_features(config, tiny_set, artifacts, indices)
