"""Write a project whose embeddings are given, so that nothing has to be trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml

from tests.conftest import tiny_params
from tests.records import embed_details, ingest_details, make_record
from winnow.config import Config, check_config
from winnow.data.dataset import TEST, load_images
from winnow.deploy.teacher_embeddings import EMBEDDINGS_FILE
from winnow.records import record_digest, write_record

TEACHER = {"weights": "package:efficientnet-lite0"}


def taught_params(**data: Any) -> dict[str, Any]:
    """Return `tiny_params` with a teacher, and these keys of `data`."""
    params = tiny_params()
    return {**params, "teacher": TEACHER, "data": {**params["data"], **data}}


def write_project(root: Path, params: dict[str, Any]) -> Config:
    """Write params.yaml and an empty dvc.yaml; return the checked config."""
    (root / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    (root / "dvc.yaml").touch()
    return check_config(params)


def write_embeddings(artifacts: Path, config: Config, features_ND: np.ndarray | None = None) -> np.ndarray:
    """Write artifacts/embed for artifacts/data; by default the colours of each image, which tell the classes apart."""
    images = load_images(artifacts / "data")
    if features_ND is None:
        pixels_NHWC = np.asarray(images.images_NHWC, dtype=np.float32) / 255
        cells_NC = pixels_NHWC.reshape(len(pixels_NHWC), 4, 4, 4, 4, 3).mean((2, 4)).reshape(len(pixels_NHWC), -1)
        features_ND = cells_NC
    rows_ND = features_ND.astype(np.float16)
    rows_ND[images.split_N == TEST] = np.nan
    folder = artifacts / "embed"
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / EMBEDDINGS_FILE, rows_ND)
    details = embed_details(images=len(rows_ND), dimension=rows_ND.shape[1])
    parameters, inputs = config.teacher.model_dump(mode="json"), {"data": record_digest(artifacts / "data")}
    write_record(folder, make_record("embed", details, parameters=parameters, inputs=inputs))
    return features_ND


def name_test_set(data: Path) -> None:
    """Rewrite the record of a data set: its test set is named by the source, so no label moves an image."""
    details = ingest_details(load_images(data).classes, test_set="named by the source")
    write_record(data, make_record("ingest", details))
