"""Int8: weights and activations in 8 bits, from the exported float file; one file for ONNX Runtime and OpenVINO.

static   NNCF's post-training quantization of the ONNX file, calibrated on unlabelled training images, biases corrected
         (winnow/compression/post_training_quantization.py). No label is used.
ladder   static, and while more is lost than `max_drop_points` the next rung: ranges from the smallest to the largest
         value, of least error on a histogram, without outliers, full bias correction, the worst layers back in float,
         training under rounding (where `recovery` is given). The first rung that is good enough is chosen; where none
         is, the best.
controlled  static, and the layers that cost most answers back in float, one by one, until no more is lost than
         `max_drop_points`; labels of the validation split are used
qat      training under rounding at once (fake_quantization.py), then static
dynamic  ONNX Runtime measures ranges at run time. For convolutions this has no fast kernel: smaller, not faster
         (benchmarks/dynamic_int8.py shows it). Not in the shipped tree.

Rungs and layers are chosen on one half of the validation split (winnow/data/splits.py), and what was chosen takes the
place of plain static only where it loses less on the other half, too: the best of seven looks better than it is.

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
from winnow.compression.ladder_acceptance import Judge, confirm
from winnow.compression.method_inputs import Inputs
from winnow.compression.post_training_quantization import Recipe, quantize_statically, quantize_with_control
from winnow.compression.recovery import recover
from winnow.config import Quantize
from winnow.data.dataset import TRAIN
from winnow.deploy.onnx_export import export_onnx, float_layers, load_onnx, save_onnx
from winnow.deploy.onnx_session import MODEL
from winnow.errors import ConfigError, MissingExtra
from winnow.models.attention import take_heads_apart
from winnow.models.backbones import ARCHITECTURE, load_architecture, load_model
from winnow.random_streams import stream_seed
from winnow.records import write_json
from winnow.training.loop import Row

log = logging.getLogger(__name__)

STATIC, CONTROLLED = "static", "worst layers in float"
"""Names of rungs."""


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
        return details | _controlled_if_confirmed(settings, inputs, pixels_NHWC, target)
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
    """Choose the first rung that loses no more than it may, or the best of all; keep it where it is confirmed.

    Returns what each rung lost on the half that chooses, in points, and what the chosen one and static lost on the
    other.
    """
    judge, confirming = Judge.halves(inputs)
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
        made = [at for at in range(len(told)) if "points_lost" in told[at]]
        best = min(made, key=lambda at: told[at]["points_lost"])
        confirmation: dict[str, Any] = {}
        if best != made[0] and told[made[0]]["rung"] == STATIC:
            files = [Path(name) / f"{at}.onnx" for at in (made[0], best)]
            confirmation = {"confirmation": confirm(confirming, told[best]["rung"], *files)}
            best = best if confirmation["confirmation"]["confirmed"] else made[0]
        shutil.move(Path(name) / f"{best}.onnx", target)
    details = {"rungs": told, "chosen": told[best]["rung"], "float_layers": told[best]["float_layers"], **confirmation}
    return details | ({"curves": curves[best]} if best in curves else {})


def _controlled_if_confirmed(
    settings: Quantize, inputs: Inputs, pixels_NHWC: NDArray[np.uint8], target: Path
) -> dict[str, Any]:
    """Put the worst layers back in float where the half that did not choose them agrees, else leave plain static."""
    choosing, confirming = Judge.halves(inputs)
    with tempfile.TemporaryDirectory(dir=target.parent) as name:
        static, controlled = Path(name) / "static.onnx", Path(name) / "controlled.onnx"
        _controlled(settings, inputs, pixels_NHWC, choosing, controlled)
        if not (layers := float_layers(controlled)):
            shutil.move(controlled, target)
            return {"float_layers": []}
        quantize_statically(inputs.parent / MODEL, static, pixels_NHWC, recipe_of(settings))
        confirmation = confirm(confirming, CONTROLLED, static, controlled)
        shutil.move(controlled if confirmation["confirmed"] else static, target)
    kept = layers if confirmation["confirmed"] else float_layers(target)
    return {"float_layers": kept, "confirmation": confirmation}


def _rungs(settings: Quantize, inputs: Inputs, pixels_NHWC: NDArray[np.uint8], judge: Judge) -> list[_Rung]:
    source, plain = inputs.parent / MODEL, recipe_of(settings)

    def statically(name: str, recipe: Recipe) -> _Rung:
        def make(file: Path) -> None:
            quantize_statically(source, file, pixels_NHWC, recipe)

        return _Rung(name, make)

    rungs = [
        *(statically(name, recipe) for name, recipe in static_rungs(plain).items()),
        _Rung(CONTROLLED, lambda file: _controlled(settings, inputs, pixels_NHWC, judge, file)),
    ]
    if settings.recovery:
        rungs.append(_Rung("trained", lambda file: _trained(settings, inputs, pixels_NHWC, plain, file)))
    return rungs


def static_rungs(plain: Recipe) -> dict[str, Recipe]:
    """The rungs of a ladder that need no label: `plain`, and what differs from it."""
    recipes = {
        STATIC: plain,
        "min-max": dataclasses.replace(plain, ranges="minmax"),
        "histogram": dataclasses.replace(plain, ranges="histogram"),
        "percentile": dataclasses.replace(plain, ranges="percentile"),
        "full bias correction": dataclasses.replace(plain, bias_correction="full"),
    }
    return {name: recipe for name, recipe in recipes.items() if name == STATIC or recipe != plain}


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
