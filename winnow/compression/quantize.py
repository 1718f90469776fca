"""Int8 quantization of the exported float file; one int8 file for ONNX Runtime and OpenVINO.

static   NNCF's post-training quantization of the ONNX file, calibrated on unlabelled training images, with bias
         correction (winnow/compression/post_training_quantization.py). Uses no labels.
ladder   static, and while more than `max_drop_points` is lost the next rung: ranges from the smallest to the largest
         value, from a histogram, from percentiles; full bias correction; the worst layers in float; training under
         rounding (where `recovery` is set). Takes the first rung that is good enough, or else the best one.
controlled  static, then the layers that cost most accuracy return to float, one by one, until no more than
         `max_drop_points` is lost; uses labels of the validation split
qat      training under rounding (fake_quantization.py), then static
dynamic  ONNX Runtime measures ranges at run time. It has no fast kernel for convolutions: smaller files, but not faster
         ones (benchmarks/dynamic_int8.py). Not in the default tree.

Rungs and layers are selected on one half of the validation split (winnow/data/splits.py). The selected file replaces
plain static only where it loses less on the other half too, since the best of seven looks better than it is.

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

import numpy as np
from numpy.typing import NDArray

from winnow.compression.fake_quantization import simulated_int8
from winnow.compression.ladder_acceptance import ValidationHalf, confirm_selection
from winnow.compression.method_inputs import MethodInputs
from winnow.compression.post_training_quantization import Recipe, quantize_statically, quantize_with_accuracy_control
from winnow.compression.recovery import recover
from winnow.config import Quantize
from winnow.data.dataset import TRAIN
from winnow.deploy.onnx_export import export_onnx, float_layers, load_onnx, save_onnx
from winnow.deploy.onnx_session import MODEL
from winnow.errors import ConfigError, MissingExtra
from winnow.models.attention import split_heads
from winnow.models.network import OnnxNetwork
from winnow.random_streams import stream_seed
from winnow.records import CurveRow
from winnow.records.method_results import QuantizationRung, QuantizeResult, RungConfirmation

log = logging.getLogger(__name__)

STATIC, ACCURACY_CONTROLLED = "static", "worst layers in float"
"""Names of rungs."""


def quantize(settings: Quantize, inputs: MethodInputs) -> tuple[OnnxNetwork, QuantizeResult]:
    """Quantize the parent's file; return the int8 file and what was done.

    Raises ConfigError for a network that cannot be quantized this way.
    """
    with tempfile.TemporaryDirectory() as temporary:
        target = Path(temporary) / MODEL
        result = _write_int8(settings, inputs, target)
        return OnnxNetwork(target.read_bytes(), inputs.parent.architecture), result


def _write_int8(settings: Quantize, inputs: MethodInputs, target: Path) -> QuantizeResult:
    source = inputs.parent.onnx_file()
    if settings.scheme == "dynamic":
        _write_dynamic(source, target)
        return QuantizeResult(calibration_images=0)
    pixels_NHWC = calibration_images(settings, inputs)
    if settings.scheme == "ladder":
        return _quantize_by_ladder(settings, inputs, pixels_NHWC, target)
    if settings.scheme == "controlled":
        return _quantize_controlled(settings, inputs, pixels_NHWC, target)
    curves: list[CurveRow] = []
    if settings.scheme == "qat":
        curves = _write_trained(settings, inputs, pixels_NHWC, quantization_recipe(settings), target)
    else:
        quantize_statically(source, target, pixels_NHWC, quantization_recipe(settings))
    return QuantizeResult(calibration_images=len(pixels_NHWC), curves=curves)


def quantization_recipe(settings: Quantize) -> Recipe:
    """Return the options of post-training quantization from the settings."""
    return Recipe(settings.preset, settings.ranges, settings.bias_correction, settings.overflow_safe)


def calibration_images(settings: Quantize, inputs: MethodInputs) -> NDArray[np.uint8]:
    """Return training images drawn from the seed, without their labels, uint8 (N, S, S, 3)."""
    pool = inputs.images.indices(TRAIN)
    count = min(settings.calibration_images, len(pool))
    chosen = np.sort(
        np.random.default_rng(stream_seed(settings.seed, "calibration")).choice(pool, count, replace=False)
    )
    return np.ascontiguousarray(inputs.images.images_NHWC[chosen])


@dataclass(frozen=True)
class _Rung:
    """One quantization variant: `make` writes the int8 file and returns curves if it trains."""

    name: str
    make: Callable[[Path], list[CurveRow] | None]


def _quantize_by_ladder(
    settings: Quantize, inputs: MethodInputs, pixels_NHWC: NDArray[np.uint8], target: Path
) -> QuantizeResult:
    """Use the first rung that loses little enough, or else the best one, if the other half confirms it.

    Returns the points that each rung lost on the selecting half, and those that the chosen rung and static lost on the
    confirming half.
    """
    selecting, confirming = ValidationHalf.halves(inputs)
    rungs = _rungs(settings, inputs, pixels_NHWC, selecting)
    rows: list[QuantizationRung] = []
    losses: dict[int, float] = {}
    curves: dict[int, list[CurveRow]] = {}
    with tempfile.TemporaryDirectory(dir=target.parent) as temporary:
        for rung in rungs:
            file = Path(temporary) / f"{len(rows)}.onnx"
            try:
                rung_curves = rung.make(file)
            except ConfigError as error:
                if rung is rungs[-1] and not losses:
                    raise
                rows.append(QuantizationRung(rung=rung.name, impossible=str(error)))
                log.info("int8, %s: not possible for this network", rung.name)
                continue
            if rung_curves:
                curves[len(rows)] = rung_curves
            points_lost = selecting.points_lost(file)
            in_float = float_layers(file)
            losses[len(rows)] = points_lost
            rows.append(QuantizationRung(rung=rung.name, points_lost=points_lost, float_layers=in_float))
            log.info("int8, %s: %.2f points lost", rung.name, points_lost)
            if points_lost <= settings.max_drop_points:
                break
        first, best = min(losses), min(losses, key=lambda number: losses[number])
        confirmation: RungConfirmation | None = None
        if best != first and rows[first].rung == STATIC:
            files = [Path(temporary) / f"{number}.onnx" for number in (first, best)]
            confirmation = confirm_selection(confirming, rows[best].rung, *files)
            best = best if confirmation.confirmed else first
        shutil.move(Path(temporary) / f"{best}.onnx", target)
    return QuantizeResult(
        calibration_images=len(pixels_NHWC),
        rungs=rows,
        chosen=rows[best].rung,
        float_layers=rows[best].float_layers,
        confirmation=confirmation,
        curves=curves.get(best, []),
    )


def _quantize_controlled(
    settings: Quantize, inputs: MethodInputs, pixels_NHWC: NDArray[np.uint8], target: Path
) -> QuantizeResult:
    """Keep the worst layers in float where the confirming half agrees; otherwise use plain static."""
    selecting, confirming = ValidationHalf.halves(inputs)
    with tempfile.TemporaryDirectory(dir=target.parent) as temporary:
        static, controlled = Path(temporary) / "static.onnx", Path(temporary) / "controlled.onnx"
        _write_controlled(settings, inputs, pixels_NHWC, selecting, controlled)
        if not (layers := float_layers(controlled)):
            shutil.move(controlled, target)
            return QuantizeResult(calibration_images=len(pixels_NHWC), float_layers=[])
        quantize_statically(inputs.parent.onnx_file(), static, pixels_NHWC, quantization_recipe(settings))
        confirmation = confirm_selection(confirming, ACCURACY_CONTROLLED, static, controlled)
        shutil.move(controlled if confirmation.confirmed else static, target)
    in_float = layers if confirmation.confirmed else float_layers(target)
    return QuantizeResult(calibration_images=len(pixels_NHWC), float_layers=in_float, confirmation=confirmation)


def _rungs(
    settings: Quantize, inputs: MethodInputs, pixels_NHWC: NDArray[np.uint8], selecting: ValidationHalf
) -> list[_Rung]:
    """Return all rungs of the ladder in order."""
    source, plain = inputs.parent.onnx_file(), quantization_recipe(settings)

    def statically(name: str, recipe: Recipe) -> _Rung:
        def make(file: Path) -> None:
            quantize_statically(source, file, pixels_NHWC, recipe)

        return _Rung(name, make)

    rungs = [
        *(statically(name, recipe) for name, recipe in static_rungs(plain).items()),
        _Rung(ACCURACY_CONTROLLED, lambda file: _write_controlled(settings, inputs, pixels_NHWC, selecting, file)),
    ]
    if settings.recovery:
        rungs.append(_Rung("trained", lambda file: _write_trained(settings, inputs, pixels_NHWC, plain, file)))
    return rungs


def static_rungs(plain: Recipe) -> dict[str, Recipe]:
    """Return the label-free rungs of the ladder, name -> recipe: `plain` and its variants."""
    recipes = {
        STATIC: plain,
        "min-max": dataclasses.replace(plain, ranges="minmax"),
        "histogram": dataclasses.replace(plain, ranges="histogram"),
        "percentile": dataclasses.replace(plain, ranges="percentile"),
        "full bias correction": dataclasses.replace(plain, bias_correction="full"),
    }
    return {name: recipe for name, recipe in recipes.items() if name == STATIC or recipe != plain}


def _write_controlled(
    settings: Quantize, inputs: MethodInputs, pixels_NHWC: NDArray[np.uint8], selecting: ValidationHalf, target: Path
) -> None:
    """Quantize, with the layers that cost most accuracy in float."""
    max_drop = settings.max_drop_points / 100
    quantize_with_accuracy_control(
        inputs.parent.onnx_file(), target, pixels_NHWC, quantization_recipe(settings), selecting.pairs, max_drop
    )


def _write_trained(
    settings: Quantize, inputs: MethodInputs, pixels_NHWC: NDArray[np.uint8], recipe: Recipe, target: Path
) -> list[CurveRow]:
    """Train the parent under rounding, export and quantize it, and return the curves."""
    assert settings.recovery is not None
    parent = inputs.parent.load()
    model, architecture = parent.model, parent.architecture
    split_heads(model)
    with simulated_int8(model, overflow_safe=recipe.overflow_safe):
        curves = recover(model, settings.recovery, inputs, "rounding")
    export_onnx(model, architecture, target)
    quantize_statically(target, target, pixels_NHWC, recipe)
    return curves


def _write_dynamic(source: Path, target: Path) -> None:
    """Quantize weights; activation ranges are measured at run time."""
    try:
        from onnxruntime.quantization import QuantType, quantize_dynamic
    except ModuleNotFoundError as error:
        raise MissingExtra("onnxruntime", "runtimes") from error
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # onnxruntime logs a pre-processing hint on the root logger
    try:
        # Given a path, onnxruntime would write beside the parent's file.
        quantize_dynamic(load_onnx(source), target, weight_type=QuantType.QUInt8)
    finally:
        root.setLevel(level)
    save_onnx(load_onnx(target), target)
