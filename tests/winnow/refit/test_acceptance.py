"""Check the reasons to refuse a refitted file: another graph, a larger file, other predictions, a lower accuracy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests.handmade import write_model
from winnow.data.dataset import VALIDATION, ImageSet
from winnow.refit.acceptance import check_refit, comparison_images, graph_difference


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    paths = tmp_path / "selected.onnx", tmp_path / "refitted.onnx"
    write_model(paths[0], salt=0.5)
    write_model(paths[1], salt=0.25)
    return paths


def test_other_weights_have_the_same_graph(files: tuple[Path, Path]) -> None:
    assert files[0].read_bytes() != files[1].read_bytes()
    assert graph_difference(*files) == ""


def test_another_graph_is_named(files: tuple[Path, Path]) -> None:
    write_model(files[1], ballast=3)
    assert "its graph differs from the measured one: operation 3 is MatMul" in graph_difference(*files)
    assert "was MatMul" in graph_difference(files[1], files[0])


def test_a_weight_of_another_shape_or_type_is_another_graph(files: tuple[Path, Path]) -> None:
    for array in (np.zeros(1, np.float32), np.zeros(3, np.float64)):
        model = onnx.load(files[0])
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "bias")
        tensor.CopyFrom(numpy_helper.from_array(array, "bias"))
        files[1].write_bytes(model.SerializeToString())
        assert "operation 3 is Add" in graph_difference(*files)


def test_a_larger_file_is_refused(files: tuple[Path, Path]) -> None:
    model = onnx.load(files[0])
    model.doc_string = "x" * 1000
    files[1].write_bytes(model.SerializeToString())
    assert "that of the measured file" in graph_difference(*files)


def test_agreement_and_labels_decide(tiny_set: ImageSet, files: tuple[Path, Path]) -> None:
    labelled = tiny_set.indices(VALIDATION)
    equal_check = check_refit(tiny_set, labelled, *files, 0.4)
    assert (equal_check.agreement, equal_check.kappa, equal_check.gain_on_labels, equal_check.refusal) == (
        1.0,
        1.0,
        0.0,
        "",
    )
    write_model(files[1], never_predicted=0)
    worse_check = check_refit(tiny_set, labelled, *files, 0.4)
    assert worse_check.kappa < 1
    assert worse_check.gain_on_labels == pytest.approx(-100 / 3)
    assert "its accuracy is 33.3 points lower than that of the selected file" in worse_check.refusal
    better_check = check_refit(tiny_set, labelled, files[1], files[0], 0.4)
    assert better_check.refusal == ""
    assert "less than refit.min_kappa 0.9" in check_refit(tiny_set, labelled, files[1], files[0], 0.9).refusal


def test_only_training_images_are_compared(tiny_set: ImageSet) -> None:
    indices, kind = comparison_images(tiny_set)
    assert (kind, set(tiny_set.split_N[indices])) == ("training images", {0})
