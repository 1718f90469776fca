from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from winnow.data.dataset import TRAIN, ImageSet
from winnow.errors import ArtifactError
from winnow.training.stored_pseudo_labels import read_pseudo_labels, write_pseudo_labels


def test_training_images_alone_have_probabilities(tiny_set: ImageSet, tmp_path: Path) -> None:
    assert read_pseudo_labels(tmp_path, tiny_set) is None
    probabilities_NC = np.random.default_rng(0).dirichlet(np.ones(3), size=len(tiny_set.labels_N)).astype(np.float32)
    write_pseudo_labels(tmp_path, probabilities_NC, tiny_set)
    stored_NC = read_pseudo_labels(tmp_path, tiny_set)
    assert stored_NC is not None
    train = tiny_set.indices(TRAIN)
    np.testing.assert_allclose(stored_NC[train], probabilities_NC[train], atol=1e-3)
    assert not stored_NC[tiny_set.split_N != TRAIN].any()


def test_a_damaged_or_foreign_file_is_an_error_that_says_what_to_do(tiny_set: ImageSet, tmp_path: Path) -> None:
    file, advice = tmp_path / "pseudo_labels.npy", "delete the folder and run winnow again"
    file.write_bytes(b"damaged")
    with pytest.raises(ArtifactError, match=f"pseudo_labels.npy is damaged; {advice}"):
        read_pseudo_labels(tmp_path, tiny_set)
    np.save(file, np.zeros((2, 3), dtype=np.float16))
    with pytest.raises(ArtifactError, match=rf"of shape \(2, 3\), expected \({len(tiny_set.labels_N)}, 3\); {advice}"):
        read_pseudo_labels(tmp_path, tiny_set)
