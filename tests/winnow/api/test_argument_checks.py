"""Check that what a caller passes by mistake is one message that says what to pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import winnow
from winnow.data.dataset import ImageSet
from winnow.errors import ConfigError, DataError
from winnow.models.backbones import Architecture, build_model

SHORT_TRAINING: dict[str, Any] = {"epochs": 1, "min_steps": 1}
LABELS_N = np.arange(30) % 3


@pytest.fixture(scope="module")
def int8(network: winnow.Network, tiny_set: ImageSet) -> winnow.OnnxNetwork:
    """Return the network as an int8 file."""
    return winnow.quantize(network, tiny_set, calibration_images=8)


@pytest.fixture(scope="module")
def five_classes() -> winnow.Network:
    """Return a network of five classes with random weights."""
    architecture = Architecture(backbone="resnet8", num_classes=5, image_size=16, width=0.25)
    return winnow.Network(build_model(architecture).eval(), architecture)


def pixels(count: int = 30, size: int = 16) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


@pytest.mark.parametrize("is_int8", [False, True])
@pytest.mark.parametrize(
    "wrong",
    [pixels() / 255.0, pixels()[..., :1], pixels(size=8), pixels()[0], pixels().transpose(0, 3, 1, 2)],
    ids=["floats", "one channel", "8 pixels", "one image", "channels first"],
)
def test_pixels_that_do_not_fit_are_refused(
    network: winnow.Network, int8: winnow.OnnxNetwork, wrong: Any, is_int8: bool
) -> None:
    with pytest.raises(DataError, match=r"takes pixels uint8 of shape \(images, 16, 16, 3\), not"):
        winnow.predict(int8 if is_int8 else network, wrong)


def test_no_images_have_no_logits(network: winnow.Network, int8: winnow.OnnxNetwork) -> None:
    for either in (network, int8):
        assert winnow.predict(either, pixels()[:0]).shape == (0, 3)


def test_evaluate_refuses_other_classes_sizes_and_splits(network: winnow.Network, tiny_set: ImageSet) -> None:
    with pytest.raises(DataError, match="evaluate: the network has 3 classes, the images have 5"):
        winnow.evaluate(network, winnow.images_from_arrays(pixels(), np.arange(30) % 5))
    with pytest.raises(DataError, match="evaluate: the network takes images of 16 pixels, these have 8"):
        winnow.evaluate(network, winnow.images_from_arrays(pixels(size=8), LABELS_N))
    with pytest.raises(ConfigError, match="split: 'val' is not one of train, validation, test"):
        winnow.evaluate(network, tiny_set, "val")  # type: ignore[arg-type]


def test_methods_refuse_networks_of_other_classes_and_kinds(
    network: winnow.Network, five_classes: winnow.Network, int8: winnow.OnnxNetwork, tiny_set: ImageSet
) -> None:
    student: dict[str, Any] = {"student": "resnet8", "width": 0.5, "recovery": SHORT_TRAINING}
    with pytest.raises(DataError, match="distill: the network has 5 classes, the images have 3"):
        winnow.distill(five_classes, tiny_set, **student)
    with pytest.raises(DataError, match="teacher: the network has 5 classes"):
        winnow.distill(network, tiny_set, teacher=five_classes, **student)
    with pytest.raises(ConfigError, match="teacher: an ONNX file cannot be trained"):
        winnow.distill(network, tiny_set, teacher=int8, **student)
    with pytest.raises(ConfigError, match=r"teacher: expected a winnow\.Network, not Teacher"):
        winnow.distill(network, tiny_set, teacher=winnow.Teacher(Path()), **student)
    with pytest.raises(ConfigError, match="backbone: expected"):
        winnow.distill(network, tiny_set, backbone="resnet18", **student)
    with pytest.raises(ConfigError, match="finetune: an ONNX file cannot be trained"):
        winnow.finetune(int8, tiny_set)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["validation_fraction", "test_fraction"])
@pytest.mark.parametrize("value", [float("nan"), -0.1, 0.6, 2, "0.2", True, None])
def test_shares_of_splits_are_checked(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"images_from_arrays has 1 mistake:\n  {name}: "):
        winnow.images_from_arrays(pixels(), LABELS_N, **{name: value})


def test_a_caller_may_keep_the_test_images_apart() -> None:
    images = winnow.images_from_arrays(pixels(), LABELS_N, test_fraction=0)
    assert np.bincount(images.split_N, minlength=3)[2] == 0


def test_labels_that_are_ids_are_refused() -> None:
    """Each number below the largest would get a class: names of two thousand million classes fill the memory."""
    with pytest.raises(DataError, match=r"label 2000000000 is not below the number of images, 30: labels count"):
        winnow.images_from_arrays(pixels(), LABELS_N * 10**9)
    names, labels = np.unique(LABELS_N * 10**9, return_inverse=True)
    images = winnow.images_from_arrays(pixels(), labels, [str(name) for name in names])
    assert images.classes == ("0", "1000000000", "2000000000")


def test_two_classes_of_one_name_are_refused() -> None:
    with pytest.raises(DataError, match="two classes have the name 'cat'"):
        winnow.images_from_arrays(pixels(), LABELS_N, ["cat", "dog", "cat"])


@pytest.mark.parametrize("per_class", [0, -1, 1.5, "3", None])
def test_limits_of_labels_are_checked(tiny_set: ImageSet, per_class: Any) -> None:
    with pytest.raises(ConfigError, match=r"limit_labels has 1 mistake:\n  per_class: "):
        winnow.limit_labels(tiny_set, per_class)


def test_one_image_is_too_few_to_train_on() -> None:
    with pytest.raises(DataError, match="no image is in the training split"):
        winnow.pretrain(winnow.images_from_arrays(pixels(1)), **SHORT_TRAINING)


@pytest.mark.parametrize("below", ["", "below/it"])
def test_a_file_in_place_of_a_folder_is_named(
    network: winnow.Network, tiny_set: ImageSet, tmp_path: Path, below: str
) -> None:
    file = tmp_path / "file"
    file.write_text("text", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"checkpoints: .*file is a file; name a folder"):
        winnow.pretrain(tiny_set, checkpoints=file / below, **SHORT_TRAINING)
    with pytest.raises(ConfigError, match=r"save: .*file is a file; name a folder"):
        winnow.save(network, file / below)
    assert file.read_text(encoding="utf-8") == "text"


@pytest.mark.parametrize(
    "settings", [{"batch_sizes": (0,)}, {"batch_sizes": ()}, {"batch_sizes": (1.5,)}, {"threads": 0}]
)
def test_cases_to_time_are_checked(network: winnow.Network, tiny_set: ImageSet, settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="time_networks has 1 mistake"):
        winnow.time_networks({"dense": network}, tiny_set, **settings)


def test_networks_to_time_are_checked(network: winnow.Network, tiny_set: ImageSet) -> None:
    with pytest.raises(ConfigError, match="pass at least one network"):
        winnow.time_networks({}, tiny_set)
    with pytest.raises(DataError, match="time_networks, dense: the network takes images of 16 pixels"):
        winnow.time_networks({"dense": network}, winnow.images_from_arrays(pixels(size=8), LABELS_N))


@pytest.mark.thorough
def test_names_of_timed_networks_are_no_paths(network: winnow.Network, tiny_set: ImageSet, tmp_path: Path) -> None:
    outside = str(tmp_path / "outside")
    rows = winnow.time_networks({outside: network}, tiny_set, batch_sizes=(1,), samples=20, rounds=6, timed_ms=1.0)
    assert {row.candidate for row in rows} == {outside}
    assert not Path(outside).exists()


def test_the_last_saved_network_is_loaded(network: winnow.Network, int8: winnow.OnnxNetwork, tmp_path: Path) -> None:
    for saved in (network, int8, network):
        winnow.save(saved, tmp_path)
        loaded = winnow.load(tmp_path)
        assert type(loaded) is type(saved)
        assert np.array_equal(winnow.predict(loaded, pixels()), winnow.predict(saved, pixels()))
        assert len(list(tmp_path.iterdir())) == (3 if saved is network else 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"labels": "l.xlsx"}, "data.labels: 'l.xlsx' must end in"),
        ({"group_by": "("}, "not a valid regular expression"),
    ],
)
def test_settings_that_contradict_each_other_have_a_message(tmp_path: Path, call: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        winnow.read_images(tmp_path, tmp_path / "store", **call)


def test_other_sections_have_messages(network: winnow.Network, tiny_set: ImageSet, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"sparsify has 1 mistake:\n  [^:]"):
        winnow.sparsify(network, tiny_set, sparsity=0.5, pattern="5:4")
    with pytest.raises(ConfigError, match=r"pretrain has 1 mistake:\n  [^:]"):
        winnow.pretrain(tiny_set, "none", start="timm:resnet18", backbone="resnet18")
    with pytest.raises(ConfigError, match=r"embed has 1 mistake:\n  [^:]"):
        winnow.embed(tiny_set, tmp_path / "e", weights="models:/a@b")
    with pytest.raises(ConfigError, match=r"finetune has 1 mistake:\n  unlabelled\.neighbours: "):
        winnow.finetune(network, tiny_set, unlabelled={"method": "propagation", "neighbours": 0})


@pytest.mark.parametrize("function", ["quantize", "prune", "finetune"])
def test_images_of_another_size_are_refused(network: winnow.Network, function: str) -> None:
    others = winnow.images_from_arrays(pixels(size=24), LABELS_N)
    with pytest.raises(DataError, match=rf"{function}: the network takes images of 16 pixels, these have 24"):
        getattr(winnow, function)(network, others, **({"remove": {"channels": 0.3}} if function == "prune" else {}))


def test_a_module_of_torch_is_no_network(network: winnow.Network, tiny_set: ImageSet, tmp_path: Path) -> None:
    calls: dict[str, Any] = {
        "predict": lambda: winnow.predict(network.model, pixels()),  # type: ignore[arg-type]
        "evaluate": lambda: winnow.evaluate("x", tiny_set),  # type: ignore[arg-type]
        "save": lambda: winnow.save(network.model, tmp_path / "saved"),  # type: ignore[arg-type]
        "time_networks, a": lambda: winnow.time_networks({"a": network.model}, tiny_set),  # type: ignore[dict-item]
    }
    for name, call in calls.items():
        with pytest.raises(ConfigError, match=rf"{name}: expected a network that a function of winnow returned, not "):
            call()
    assert not (tmp_path / "saved").exists()


def test_a_list_of_pixels_is_an_array(network: winnow.Network) -> None:
    as_lists: Any = pixels(2).tolist()
    with pytest.raises(DataError, match="not int64"):
        winnow.predict(network, as_lists)
    assert np.array_equal(winnow.predict(network, list(pixels(2))), winnow.predict(network, pixels(2)))  # type: ignore[arg-type]
