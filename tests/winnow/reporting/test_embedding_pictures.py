from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from winnow.reporting.embedding_pictures import NEIGHBOURS, draw_map, draw_neighbours
from winnow.reporting.thumbnails import GAP, SIDE


def groups(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return features (N, 4) of three groups, and the group of each."""
    rng = np.random.default_rng(0)
    labels_N = np.arange(count) % 3
    return (np.eye(4)[labels_N] + rng.normal(0, 0.05, (count, 4))).astype(np.float32), labels_N


def test_a_map_is_a_picture_and_the_same_each_time() -> None:
    features_ND, labels_N = groups(60)
    labels_N[:5] = -1
    picture = draw_map(features_ND, labels_N, ["$5", "b_c", "long " * 5])
    assert Image.open(io.BytesIO(picture)).size == (1280, 960)
    assert draw_map(features_ND, labels_N, ["$5", "b_c", "long " * 5]) == picture


def test_more_classes_than_colours_and_no_labels_are_drawn() -> None:
    features_ND, _ = groups(60)
    names = [str(label) for label in range(30)]
    assert draw_map(features_ND, np.arange(60) % 30, names).startswith(b"\x89PNG")
    assert draw_map(features_ND, np.full(60, -1), names).startswith(b"\x89PNG")


def test_few_images_have_no_map() -> None:
    features_ND, labels_N = groups(29)
    assert draw_map(features_ND, labels_N, ["a", "b", "c"]) == b""


def test_neighbours_are_the_most_similar_images() -> None:
    features_ND, labels_N = groups(40)
    images_NHWC = np.zeros((50, 8, 8, 3), dtype=np.uint8)
    indices_M = np.arange(10, 50)
    images_NHWC[indices_M] = (labels_N * 100)[:, None, None, None]  # the group is the gray value
    sheet = np.asarray(Image.open(io.BytesIO(draw_neighbours(images_NHWC, indices_M, 4, features_ND))))
    assert sheet.shape == (4 * (SIDE + GAP) - GAP, SIDE * (1 + NEIGHBOURS) + GAP, 3)
    for row in range(4):
        line = sheet[row * (SIDE + GAP) + SIDE // 2, :, 0]
        columns = [SIDE // 2, *(SIDE + GAP + SIDE // 2 + column * SIDE for column in range(NEIGHBOURS))]
        assert {int(line[column]) for column in columns} == {int(labels_N[row]) * 100}


@pytest.mark.parametrize("queries", [0, 40])
def test_without_queries_or_others_there_is_no_sheet(queries: int) -> None:
    features_ND, _ = groups(40)
    assert draw_neighbours(np.zeros((40, 8, 8, 3), dtype=np.uint8), np.arange(40), queries, features_ND) == b""
