from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torchvision.transforms import v2

from winnow.data.augmentation import MEAN, STD
from winnow.data.dataset import VALIDATION, ImageSet
from winnow.deploy.batch_inference import embed, predict_file, predict_torch
from winnow.errors import ArtifactError
from winnow.models.backbones import Architecture, build_model, load_model
from winnow.models.classifier_head import head_path

TORCHVISION_PREPROCESSING = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])


def random_pixels(count: int, side: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def tiny_model(backbone: str = "resnet8", side: int = 16) -> torch.nn.Module:
    return build_model(Architecture(backbone=backbone, num_classes=3, image_size=side), seed=1)


def test_preprocessing_equals_torchvision() -> None:
    model, images = tiny_model().train(), random_pixels(6, 16)
    logits = predict_torch(model, images, np.array([4, 0, 2]))
    assert not model.training
    with torch.inference_mode():
        expected = torch.cat([model(TORCHVISION_PREPROCESSING(images[index])[None]) for index in (4, 0, 2)])
    np.testing.assert_allclose(logits, expected.numpy(), atol=1e-5)
    assert logits.dtype == np.float32


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_logits_do_not_depend_on_the_batch_size(batch_size: int) -> None:
    model, images = tiny_model(), random_pixels(9, 16)
    expected = predict_torch(model, images, np.arange(9), batch_size=9)
    np.testing.assert_allclose(predict_torch(model, images, np.arange(9), batch_size), expected, atol=1e-5)
    np.testing.assert_array_equal(predict_torch(model, images, np.arange(9), batch_size=9), expected)


@pytest.mark.thorough
@pytest.mark.parametrize(("backbone", "width"), [("resnet8", 192), ("mobilenet_v3_small", 1024), ("vit_b_32", 768)])
def test_embeddings_are_the_input_of_the_head(backbone: str, width: int) -> None:
    model, images = tiny_model(backbone, 32).train(), random_pixels(5, 32)
    state_before = {name: value.clone() for name, value in model.state_dict().items()}
    features = embed(model, images, np.arange(5), batch_size=2)
    assert features.shape == (5, width)
    assert model.training
    assert all(torch.equal(value, state_before[name]) for name, value in model.state_dict().items())
    expected = predict_torch(model, images, np.arange(5))
    head = model.get_submodule(head_path(model))
    np.testing.assert_allclose(head(features).detach().numpy(), expected, atol=1e-4)


def test_logits_of_the_file_equal_those_of_its_network(tiny_dense: Path, tiny_set: ImageSet) -> None:
    indices = tiny_set.indices(VALIDATION)
    model, _ = load_model(tiny_dense)
    expected = predict_torch(model, tiny_set.images_NHWC, indices)
    for batch_size in (7, 256):
        logits = predict_file(tiny_dense / "model.onnx", tiny_set.images_NHWC, indices, batch_size)
        assert logits.dtype == np.float32
        np.testing.assert_allclose(logits, expected, atol=1e-3)


def damage_bytes(source: bytes, damage: str) -> bytes:
    return {
        "empty": b"",
        "text": b"no ONNX file at all",
        "cut": source[: len(source) // 2],
        "short": source[:10],
        "name": source.replace(b"pixels", b"p\xff\xfeels", 1),
        "operator": source.replace(b"Gemm", b"Gamm"),
    }[damage]


@pytest.mark.parametrize("damage", ["missing", "empty", "text", "cut", "short", "name", "operator"])
def test_a_damaged_file_is_an_error_with_a_remedy(tiny_dense: Path, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "model.onnx"
    if damage != "missing":
        path.write_bytes(damage_bytes((tiny_dense / "model.onnx").read_bytes(), damage))
    with pytest.raises(ArtifactError, match=r"model\.onnx is (missing; run the step|damaged .* delete its folder)"):
        predict_file(path, random_pixels(2, 16), np.arange(2))


def test_logits_that_are_nan_are_refused(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["pixels"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "broken",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["N", 4, 4, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 2])],
        [numpy_helper.from_array(np.full((48, 2), np.nan, np.float32), "weights")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "m.onnx")
    with pytest.raises(ArtifactError, match="not finite numbers"):
        predict_file(tmp_path / "m.onnx", random_pixels(2, 4), np.arange(2))
