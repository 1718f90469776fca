"""Static post-training quantization of an ONNX file by NNCF.

Activations are unsigned after a ReLU (elsewhere signed, which ONNX Runtime shifts to unsigned on x86 itself), one
range a tensor; weights are signed, one scale an output channel; Q/DQ pairs stand in the graph. No label is used, but
by `quantize_with_control`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from winnow.deploy.onnx_export import load_onnx, save_onnx
from winnow.deploy.onnx_session import INPUT, session_of
from winnow.errors import ConfigError, MissingExtra
from winnow.timing_lock import compute_lock

CALIBRATION_BATCH = 1
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Recipe:
    """How a file is quantized; named as in params.yaml."""

    preset: Literal["mixed", "performance"] = "mixed"
    ranges: Literal["mean", "minmax", "histogram", "percentile"] = "mean"
    bias_correction: Literal["fast", "full"] = "fast"
    overflow_safe: bool = False


PLAIN = Recipe()


@compute_lock()
def quantize_statically(source: Path, target: Path, pixels_NHWC: Pixels, recipe: Recipe = PLAIN) -> None:
    """Calibrate on the pixels and write int8; `source` and `target` may be one file.

    Raises ConfigError for a network that NNCF cannot quantize.
    """
    nncf = quantization_library()
    model = load_onnx(source)
    with _refusals(nncf, source, recipe):
        quantized = nncf.quantize(
            model, nncf.Dataset(_batches(pixels_NHWC), _feed), **_settings(nncf, model, recipe, len(pixels_NHWC))
        )
    save_onnx(quantized, target)


@contextmanager
def _refusals(nncf: Any, source: Path, recipe: Recipe) -> Iterator[None]:
    """What NNCF cannot do, said to people."""
    try:
        yield
    except (nncf.ValidationError, nncf.UnsupportedModelError) as error:
        raise ConfigError(f"{source}: NNCF cannot quantize this network ({error}); remove the candidate") from error
    except RuntimeError as error:
        if recipe.bias_correction != "full":
            raise
        # It cuts pieces out of the graph; of some residual networks they are no whole graphs.
        raise ConfigError(
            f"{source}: NNCF's full bias correction cannot follow this network ({' '.join(str(error).split())[:150]}); "
            "use bias_correction: fast"
        ) from error


@compute_lock()
def quantize_with_control(
    source: Path,
    target: Path,
    pixels_NHWC: Pixels,
    recipe: Recipe,
    checked: Sequence[tuple[Pixels, int]],
    max_drop: float,
) -> None:
    """As above; then the layers that cost most answers go back to float, one by one, until few enough are lost.

    `checked`: images (1, S, S, 3), each with the answer that counts as right; `max_drop`: share that may be lost.
    """
    nncf = quantization_library()
    model = load_onnx(source)

    def score(candidate: Any, items: Iterable[tuple[Pixels, int]]) -> tuple[float, list[float]]:
        session = session_of(candidate.SerializeToString())
        hits = [float(session.run(None, {INPUT: pixels})[0].argmax(1)[0] == answer) for pixels, answer in items]
        return float(np.mean(hits)), hits

    settings = _settings(nncf, model, recipe, len(pixels_NHWC))
    advanced = settings.pop("advanced_parameters")
    with _refusals(nncf, source, recipe):
        quantized = nncf.quantize_with_accuracy_control(
            model,
            nncf.Dataset(_batches(pixels_NHWC), _feed),
            nncf.Dataset(checked),
            score,
            max_drop=max_drop,
            drop_type=nncf.DropType.ABSOLUTE,
            advanced_quantization_parameters=advanced,
            **settings,
        )
    save_onnx(quantized, target)


def quantization_library() -> Any:
    """nncf, quiet. Raises MissingExtra."""
    try:
        import nncf
    except ModuleNotFoundError as error:
        raise MissingExtra("nncf", "compress") from error
    nncf.set_log_level(logging.ERROR)
    return nncf


def _batches(pixels_NHWC: Pixels) -> list[Pixels]:
    return [pixels_NHWC[at : at + CALIBRATION_BATCH] for at in range(0, len(pixels_NHWC), CALIBRATION_BATCH)]


def _feed(batch: Pixels) -> dict[str, Pixels]:
    return {INPUT: batch}


def _settings(nncf: Any, model: Any, recipe: Recipe, images: int) -> dict[str, Any]:
    from nncf.quantization.advanced_parameters import QuantizationParameters
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet as Ranges

    presets = {"mixed": nncf.QuantizationPreset.MIXED, "performance": nncf.QuantizationPreset.PERFORMANCE}
    ranges = {
        "mean": Ranges.MEAN_MINMAX,
        "minmax": Ranges.MINMAX,
        "histogram": Ranges.HISTOGRAM,
        "percentile": Ranges.MEAN_QUANTILE,
    }
    attends = any(node.op_type == "Softmax" for node in model.graph.node)
    return {
        "preset": presets[recipe.preset],
        "target_device": nncf.TargetDevice.CPU,
        "subset_size": images,
        "fast_bias_correction": recipe.bias_correction == "fast",
        "model_type": nncf.ModelType.TRANSFORMER if attends else None,
        "advanced_parameters": nncf.AdvancedQuantizationParameters(
            # One range a tensor also before depthwise convolutions: ONNX Runtime's kernel refuses others.
            activations_quantization_params=QuantizationParameters(per_channel=False),
            activations_range_estimator_params=ranges[recipe.ranges],
            overflow_fix=nncf.OverflowFix.ENABLE if recipe.overflow_safe else None,
        ),
    }
