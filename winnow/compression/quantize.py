"""Int8: weights and activations in 8 bits, from the exported float file; one file for ONNX Runtime and OpenVINO.

static   NNCF's post-training quantization of the ONNX file, calibrated on unlabelled training images, biases corrected
         (winnow/compression/post_training.py). No label is used.
ladder   static, and while more is lost than `max_drop_points` the next rung: ranges from the smallest to the largest
         value, of least error on a histogram, without outliers, full bias correction, the worst layers back in float,
         training under rounding (where `recovery` is given). The first rung that is good enough stays; where none is,
         the best.
controlled  static, and the layers that cost most answers back in float, one by one, until no more is lost than
         `max_drop_points`; labels of the validation split are used
qat      training under rounding at once (fake_quantization.py), then static
dynamic  ONNX Runtime measures ranges at run time. For convolutions this has no fast kernel: smaller, not faster
         (benchmarks/dynamic_int8.py shows it). Not in the shipped tree.

Nagel et al. 2021, A White Paper on Neural Network Quantization (arXiv 2106.08295).
"""

from __future__ import annotations

import dataclasses
import logging
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from winnow.compression.fake_quantization import simulated_int8
from winnow.compression.inputs import Inputs
from winnow.compression.post_training import Recipe, quantize_statically, quantize_with_control
from winnow.compression.recovery import recover
from winnow.config import Quantize
from winnow.data.images import TRAIN, VALIDATION
from winnow.errors import ConfigError, MissingExtra
from winnow.export import export_onnx, float_layers, load_onnx, save_onnx
from winnow.inference import predict_file
from winnow.model_file import MODEL
from winnow.models.attention import take_heads_apart
from winnow.models.backbones import ARCHITECTURE, load_architecture, load_model
from winnow.random_streams import stream_seed
from winnow.records import write_json
from winnow.training import Row

log = logging.getLogger(__name__)


def quantize(settings: Quantize, inputs: Inputs, folder: Path) -> dict[str, Any]:
    """Quantize the parent's file and leave model.onnx in `folder` -> details."""
    write_json(folder / ARCHITECTURE, load_architecture(inputs.parent).model_dump(mode="json"))
    source, target = inputs.parent / MODEL, folder / MODEL
    if settings.scheme == "dynamic":
        _dynamic(source, target)
        return {"calibration_images": 0}
    pixels_NHWC = calibration_images(settings, inputs)
    details: dict[str, Any] = {"calibration_images": len(pixels_NHWC)}
    if settings.scheme == "ladder":
        return details | _climb(settings, inputs, pixels_NHWC, target)
    if settings.scheme == "controlled":
        _controlled(settings, inputs, pixels_NHWC, Judge.of(inputs), target)
        return details | {"float_layers": float_layers(target)}
    if settings.scheme == "qat":
        return details | {"curves": _trained(settings, inputs, pixels_NHWC, recipe_of(settings), target)}
    quantize_statically(source, target, pixels_NHWC, recipe_of(settings))
    return details


def recipe_of(settings: Quantize) -> Recipe:
    """What the settings say of post-training quantization."""
    return Recipe(settings.preset, settings.ranges, settings.bias_correction, settings.overflow_safe)


def calibration_images(settings: Quantize, inputs: Inputs) -> NDArray[np.uint8]:
    """Training images drawn from the seed, labels unseen, uint8 (N, S, S, 3)."""
    pool = inputs.images.indices(TRAIN)
    count = min(settings.calibration_images, len(pool))
    chosen = np.sort(
        np.random.default_rng(stream_seed(settings.seed, "calibration")).choice(pool, count, replace=False)
    )
    return np.ascontiguousarray(inputs.images.images_NHWC[chosen])


@dataclass(frozen=True)
class _Rung:
    """One way to quantize: writes the file it is given -> curves, where it trains."""

    name: str
    make: Callable[[Path], list[Row] | None]


def _climb(settings: Quantize, inputs: Inputs, pixels_NHWC: NDArray[np.uint8], target: Path) -> dict[str, Any]:
    """The first rung that loses no more than it may, or the best of all -> what each lost, in points."""
    judge = Judge.of(inputs)
    rungs = _rungs(settings, inputs, pixels_NHWC, judge)
    told: list[dict[str, Any]] = []
    curves: dict[int, list[Row]] = {}
    with tempfile.TemporaryDirectory(dir=target.parent) as name:
        for rung in rungs:
            file = Path(name) / f"{len(told)}.onnx"
            try:
                learned = rung.make(file)
            except ConfigError as error:
                if rung is rungs[-1] and not any("points_lost" in row for row in told):
                    raise
                told.append({"rung": rung.name, "impossible": str(error)})
                log.info("int8, %s: impossible here", rung.name)
                continue
            if learned:
                curves[len(told)] = learned
            lost = judge.points_lost(file)
            left = float_layers(file)
            told.append({"rung": rung.name, "points_lost": lost, "float_layers": left})
            log.info("int8, %s: %.2f points lost", rung.name, lost)
            if lost <= settings.max_drop_points:
                break
        best = min((at for at in range(len(told)) if "points_lost" in told[at]), key=lambda at: told[at]["points_lost"])
        shutil.move(Path(name) / f"{best}.onnx", target)
    details = {"rungs": told, "chosen": told[best]["rung"], "float_layers": told[best]["float_layers"]}
    return details | ({"curves": curves[best]} if best in curves else {})


def _rungs(settings: Quantize, inputs: Inputs, pixels_NHWC: NDArray[np.uint8], judge: Judge) -> list[_Rung]:
    source, plain = inputs.parent / MODEL, recipe_of(settings)

    def statically(name: str, recipe: Recipe) -> _Rung:
        def make(file: Path) -> None:
            quantize_statically(source, file, pixels_NHWC, recipe)

        return _Rung(name, make)

    rungs = [
        *(statically(name, recipe) for name, recipe in static_rungs(plain).items()),
        _Rung("worst layers in float", lambda file: _controlled(settings, inputs, pixels_NHWC, judge, file)),
    ]
    if settings.recovery:
        rungs.append(_Rung("trained", lambda file: _trained(settings, inputs, pixels_NHWC, plain, file)))
    return rungs


def static_rungs(plain: Recipe) -> dict[str, Recipe]:
    """The rungs of a ladder that need no label: `plain`, and what differs from it."""
    recipes = {
        "static": plain,
        "min-max": dataclasses.replace(plain, ranges="minmax"),
        "histogram": dataclasses.replace(plain, ranges="histogram"),
        "percentile": dataclasses.replace(plain, ranges="percentile"),
        "full bias correction": dataclasses.replace(plain, bias_correction="full"),
    }
    return {name: recipe for name, recipe in recipes.items() if name == "static" or recipe != plain}


@dataclass(frozen=True)
class Judge:
    """What counts as right on the validation split: an image's label; where there is none, what the parent answers."""

    images_NHWC: NDArray[np.uint8]
    """All images, as they lie on disk."""
    indices_V: NDArray[np.int64]
    wanted_V: NDArray[np.int64]
    right: float
    """Share that the parent has right."""

    @classmethod
    def of(cls, inputs: Inputs) -> Judge:
        """From the parent's file."""
        images, indices_V = inputs.images, inputs.images.indices(VALIDATION)
        answers_V = predict_file(inputs.parent / MODEL, images.images_NHWC, indices_V).argmax(1)
        labels_V = images.labels_N[indices_V]
        wanted_V = np.where(labels_V >= 0, labels_V, answers_V)
        return cls(images.images_NHWC, indices_V, wanted_V, float((answers_V == wanted_V).mean()))

    @property
    def pairs(self) -> list[tuple[NDArray[np.uint8], int]]:
        """Every image, read when it is looked at, with the answer that counts as right."""
        return [
            (self.images_NHWC[at : at + 1], int(wanted))
            for at, wanted in zip(self.indices_V, self.wanted_V, strict=True)
        ]

    def points_lost(self, file: Path) -> float:
        """Right answers of the parent less those of the file, in points."""
        answers_V = predict_file(file, self.images_NHWC, self.indices_V).argmax(1)
        return (self.right - float((answers_V == self.wanted_V).mean())) * 100


def _controlled(settings: Quantize, inputs: Inputs, pixels_NHWC: NDArray[np.uint8], judge: Judge, target: Path) -> None:
    allowed = settings.max_drop_points / 100
    quantize_with_control(inputs.parent / MODEL, target, pixels_NHWC, recipe_of(settings), judge.pairs, allowed)


def _trained(
    settings: Quantize, inputs: Inputs, pixels_NHWC: NDArray[np.uint8], recipe: Recipe, target: Path
) -> list[Row]:
    """Train the parent under rounding, export it, quantize that -> curves."""
    assert settings.recovery is not None
    model, architecture = load_model(inputs.parent)
    take_heads_apart(model)
    with simulated_int8(model, overflow_safe=recipe.overflow_safe):
        curves = recover(model, settings.recovery, inputs, "rounding")
    export_onnx(model, architecture, target)
    quantize_statically(target, target, pixels_NHWC, recipe)
    return curves


def _dynamic(source: Path, target: Path) -> None:
    try:
        from onnxruntime.quantization import QuantType, quantize_dynamic
    except ModuleNotFoundError as error:
        raise MissingExtra("onnxruntime", "runtimes") from error
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # it advises pre-processing on the root logger
    try:
        # Given a path, it would write beside the parent's file.
        quantize_dynamic(load_onnx(source), target, weight_type=QuantType.QUInt8)
    finally:
        root.setLevel(level)
    save_onnx(load_onnx(target), target)
