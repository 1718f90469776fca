"""Fixtures for all tests: an environment without telemetry and tiny data. Nothing is mocked or downloaded."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

# Before any library is imported: caches and telemetry of the tests go to a folder that is removed at exit.
_STATE_DIR = Path(tempfile.mkdtemp(prefix="winnow-tests-"))
_OWNER = os.getpid()


def _remove_state_dir() -> None:
    """Remove the folder at the end of the process that created it, not in a fork of it."""
    if os.getpid() == _OWNER:
        shutil.rmtree(_STATE_DIR, ignore_errors=True)


atexit.register(_remove_state_dir)

# Tiny networks gain nothing from a second thread, and two busy processes with two each would spin on one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from tasks.project import environment  # noqa: E402

environment.apply(_STATE_DIR)

import numpy as np  # noqa: E402
import pytest  # noqa: E402
from PIL import Image  # noqa: E402

from tests.records import ingest_details, make_record  # noqa: E402
from winnow.config import Config, check_config  # noqa: E402
from winnow.data.dataset import TEST, TRAIN, VALIDATION, ImageSet, load_images  # noqa: E402
from winnow.records import write_json, write_record  # noqa: E402

if TYPE_CHECKING:
    from winnow.compression.method_inputs import MethodInputs


def pytest_configure(config: pytest.Config) -> None:
    """Hide the GPU except under `pytest -m gpu`, so that a test gives the same numbers with and without one."""
    if "gpu" not in config.getoption("markexpr").replace("not gpu", ""):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.fixture(autouse=True)
def _leave_the_checkout_alone() -> Iterator[None]:
    """Fail where a test writes into the top folder of the checkout: what it leaves there would be committed."""
    root = Path(__file__).parents[1]
    before = {path.name for path in root.iterdir()}
    yield
    created = {path.name for path in root.iterdir() if not path.name.startswith(".")} - before - {"artifacts", "build"}
    assert not created, f"tests wrote into the checkout: {', '.join(sorted(created))}"


CLASSES = ("disc", "stripes", "wedge")
SIZE = 16


def draw(label: int, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Return an image uint8 (H, W, 3) of a class: pattern, colour and noise that a tiny network can learn."""
    height, width = size
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    shift = rng.uniform(-0.1, 0.1)
    pattern = [
        ((x - 0.5 - shift) ** 2 + (y - 0.5) ** 2 < 0.08),
        (np.floor((x + shift) * 6) % 2 == 0),
        (x + shift > y),
    ][label]
    colour = np.eye(3)[label] * 90 + 80
    image = np.where(pattern[..., None], colour, 60) + rng.normal(0, 20, (height, width, 3))
    return image.clip(0, 255).astype(np.uint8)


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """Return class folders with 12 images each, 40x30 to 48x48 pixels, JPEG and PNG."""
    return write_folder(tmp_path / "photos")


def write_folder(root: Path) -> Path:
    """Write the class folders of `image_folder` to `root`."""
    rng = np.random.default_rng(0)
    for label, name in enumerate(CLASSES):
        (root / name).mkdir(parents=True)
        for index in range(12):
            size = (int(rng.integers(30, 48)), int(rng.integers(40, 48)))
            suffix = "png" if index % 4 == 0 else "jpg"
            Image.fromarray(draw(label, size, rng)).save(root / name / f"{index:02d}.{suffix}")
    return root


def write_set(folder: Path, train: int = 120, validation: int = 60, test: int = 30, unlabelled: int = 10) -> None:
    """Write an ingested data set as the step does; the last `unlabelled` training images have no label."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(7)
    split = np.repeat([TRAIN, VALIDATION, TEST], [train, validation, test]).astype(np.uint8)
    labels = np.arange(len(split), dtype=np.int64) % len(CLASSES)
    images = np.stack([draw(int(label), (SIZE, SIZE), rng) for label in labels])
    labels[train - unlabelled : train] = -1
    np.save(folder / "images.npy", images)
    np.save(folder / "labels.npy", labels)
    np.save(folder / "split.npy", split)
    np.save(folder / "keys.npy", rng.integers(0, 256, (len(split), 16), dtype=np.uint8))
    (folder / "files.txt").write_text("".join(f'"{index}.png"\n' for index in range(len(split))))
    write_json(folder / "classes.json", list(CLASSES))
    write_record(folder, make_record("ingest", ingest_details(CLASSES)))


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of `tiny_set`."""
    folder = tmp_path_factory.mktemp("tiny") / "data"
    write_set(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_set(tiny_data: Path) -> ImageSet:
    """Return 3 learnable classes: 120 training (10 without label), 60 validation, 30 test images of 16x16."""
    return load_images(tiny_data)


def hide_labels(data: Path, copy: Path, per_class: int, seed: int) -> Path:
    """Copy `data` to `copy` without the labels of training images outside the label budget."""
    from winnow.data.splits import draw_label_budget

    shutil.copytree(data, copy)
    images = load_images(data)
    hidden = np.setdiff1d(images.indices(TRAIN, labelled=True), draw_label_budget(images, per_class, seed))
    labels = np.array(images.labels_N)
    assert len(hidden) > len(images.classes) * per_class
    labels[hidden] = -1
    np.save(copy / "labels.npy", labels)
    return copy


OPTIMISER = {"learning_rate": 0.05, "momentum": 0.9, "weight_decay": 5e-4, "warmup": 0.1}
RECOVERY = {"epochs": 2, "min_steps": 1, "batch_size": 32, "optimiser": OPTIMISER}


def params_without_control() -> dict:
    """Return `tiny_params` without dense-kd, so that dense is the only reference of a search."""
    params = tiny_params()
    del params["candidates"]["dense-kd"]
    return params


def tiny_params() -> dict:
    """Return a params.yaml that runs in seconds, with every section and every method."""
    recovery_without_teacher = {**RECOVERY, "teacher": "none", "images": "labelled"}
    return {
        "data": {
            "source": "folder",
            "path": "photos",
            "labels": "data/none",
            "image_size": SIZE,
            "labels_per_class": "auto",
        },
        "teacher": {"weights": "none"},
        "pretrain": {
            "method": "rotnet",
            "epochs": 2,
            "min_steps": 1,
            "batch_size": 32,
            "optimiser": OPTIMISER,
            "augmentation": {},
            "monitor_every": 1,
        },
        "finetune": {
            "epochs": 4,
            "min_steps": 24,
            "batch_size": 32,
            "learning_rates": [0.05],
            "seeds": [0, 1],
            "cross_validation": "never",
            "weights": "data/none",
        },
        "candidates": {
            "dense-int8": {"from": "dense", "method": "quantize", "calibration_images": 32},
            "pruned": {"from": "dense", "method": "prune", "remove": {"channels": 0.3}, "recovery": RECOVERY},
            "pruned-int8": {"from": "pruned", "method": "quantize", "calibration_images": 32},
            "sparse": {"from": "dense", "method": "sparsify", "sparsity": 0.5, "recovery": RECOVERY},
            "student": {"from": "dense", "method": "distill", "student": "resnet8", "width": 0.5, "recovery": RECOVERY},
            "student-alone": {
                "from": "dense",
                "method": "distill",
                "student": "resnet8",
                "width": 0.5,
                "recovery": recovery_without_teacher,
            },
            "dense-kd": {"from": "dense", "method": "distill", "student": "same", "recovery": RECOVERY},
        },
        "benchmark": {
            "grid": "quick",
            "target": "data/none",
            "large_batch": 8,
            "samples": 20,
            "rounds": 6,
            "warm_up_ms": 0,
            "timed_ms": 0,
        },
        # 60 images: the intervals are wide
        "promotion": {"gates": {"max_drop_points": 4.99, "max_macro_f1_drop_points": 8.0}},
        "refit": {"when": "never"},
    }


@pytest.fixture
def tiny_config() -> Config:
    """Return `tiny_params` as a checked config."""
    return check_config(tiny_params())


@pytest.fixture(scope="session")
def tiny_dense(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return artifacts/candidates/dense of a quickly pretrained and fine-tuned resnet8."""
    from winnow.steps.finetune import finetune
    from winnow.steps.pretrain import pretrain

    config = check_config(tiny_params())
    root = tmp_path_factory.mktemp("dense")
    pretrain(config, tiny_data, root / "pretrain", root / "scratch")
    finetune(config, tiny_data, root / "pretrain", root / "candidates" / "dense", root / "scratch")
    return root / "candidates" / "dense"


@pytest.fixture(scope="session")
def tiny_candidate(
    tiny_data: Path, tiny_dense: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """Return a function from a name in `tiny_params` to that candidate's folder, computed at the first call."""
    from winnow.steps.compress import CandidateFolders, compress

    config = check_config(tiny_params())
    root = tmp_path_factory.mktemp("tree")
    shutil.copytree(tiny_dense, root / "dense")

    def make_candidate(name: str) -> Path:
        if not (root / name).exists():
            make_candidate(config.candidates[name].parent)
            pretrained = tiny_dense.parent.parent / "pretrain"
            folders = CandidateFolders(tiny_data, pretrained, root, root / "scratch" / name)
            compress(config, name, folders, root / name)
        return root / name

    return make_candidate


@pytest.fixture
def tiny_inputs(tiny_set: ImageSet, tiny_dense: Path, tmp_path: Path) -> MethodInputs:
    """Return inputs of a compression method: all training labels are visible, the parent is `dense`."""
    from winnow.compression.method_inputs import MethodInputs, NetworkFolder
    from winnow.data.splits import visible_labels
    from winnow.models.backbones import load_backbone

    budget = tiny_set.indices(TRAIN, labelled=True)
    labels_N = visible_labels(tiny_set, budget)
    dense = NetworkFolder(tiny_dense)
    backbone = partial(load_backbone, tiny_dense.parent.parent / "pretrain")
    return MethodInputs(tiny_set, budget, labels_N, dense, dense, backbone, tmp_path / "scratch")
