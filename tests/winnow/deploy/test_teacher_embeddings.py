"""The teacher's embeddings as targets; winnow/steps/embed.py, which writes them, has tests of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from winnow.data.dataset import TEST, TRAIN, ImageSet
from winnow.deploy import teacher_embeddings
from winnow.deploy.teacher_embeddings import EMBEDDINGS_FILE, load_targets


def write(folder: Path, images: ImageSet, offset: float) -> np.ndarray:
    rows_ND = np.random.default_rng(0).normal(size=(len(images.labels_N), 12)).astype(np.float16)
    rows_ND += np.float16(offset)
    rows_ND[images.split_N == TEST] = np.nan
    np.save(folder / EMBEDDINGS_FILE, rows_ND)
    return rows_ND.astype(np.float32)


def test_targets_are_centred_by_the_training_images(tiny_set: ImageSet, tmp_path: Path) -> None:
    rows_ND = write(tmp_path, tiny_set, 20)
    targets, train = load_targets(tmp_path, tiny_set), tiny_set.indices(TRAIN)
    selected_BD = targets.select(torch.from_numpy(train)).numpy()
    np.testing.assert_allclose(selected_BD, rows_ND[train] - rows_ND[train].mean(0), atol=1e-4)
    cosines = selected_BD @ selected_BD.T / np.outer(*[np.linalg.norm(selected_BD, axis=1)] * 2)
    assert abs(np.mean(cosines[~np.eye(len(train), dtype=bool)])) < 0.05  # 0.99 without centring
    assert targets.width == 12


def test_the_mean_is_that_of_all_blocks(tiny_set: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, tiny_set, 3)
    whole = load_targets(tmp_path, tiny_set).mean_D
    monkeypatch.setattr(teacher_embeddings, "ROWS_AT_ONCE", 7)
    np.testing.assert_allclose(load_targets(tmp_path, tiny_set).mean_D, whole, rtol=1e-6)
