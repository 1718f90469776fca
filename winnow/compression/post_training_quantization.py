"""Static post-training quantization of an ONNX file with NNCF.

Activations are unsigned after a ReLU and signed elsewhere (ONNX Runtime shifts signed ones to unsigned on x86), with
one range per tensor. Weights are signed, with one scale per output channel. The graph holds Q/DQ pairs. Only
`quantize_with_accuracy_control` uses labels.
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
from winnow.deploy.onnx_session import INPUT, create_session
from winnow.errors import ConfigError, MissingExtra
from winnow.timing_lock import compute_lock

CALIBRATION_BATCH = 1
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Recipe:
    """Options of post-training quantization, named as in params.yaml."""

    preset: Literal["mixed", "performance"] = "mixed"
    ranges: Literal["mean", "minmax", "histogram", "percentile"] = "mean"
    bias_correction: Literal["fast", "full"] = "fast"
    overflow_safe: bool = False


DEFAULT_RECIPE = Recipe()


@compute_lock()
def quantize_statically(source: Path, target: Path, pixels_NHWC: Pixels, recipe: Recipe = DEFAULT_RECIPE) -> None:
    """Calibrate on the pixels and write the int8 file; `source` and `target` may be the same path.

    Raises ConfigError for a network that NNCF cannot quantize.
    """
    nncf = import_nncf()
    model = load_onnx(source)
    with _config_errors(nncf, source, recipe):
        quantized = nncf.quantize(
            model, nncf.Dataset(_batches(pixels_NHWC), _feed), **_settings(nncf, model, recipe, len(pixels_NHWC))
        )
    save_onnx(quantized, target)


@contextmanager
def _config_errors(nncf: Any, source: Path, recipe: Recipe) -> Iterator[None]:
    """Raise ConfigError, with advice, for what NNCF cannot quantize."""
    try:
        yield
    except (nncf.ValidationError, nncf.UnsupportedModelError) as error:
        raise ConfigError(f"{source}: NNCF cannot quantize this network ({error}); remove the candidate") from error
    except RuntimeError as error:
        if recipe.bias_correction != "full":
            raise
        # It extracts subgraphs, which are not valid graphs for some residual networks.
        raise ConfigError(
            f"{source}: NNCF's full bias correction does not support this network "
            f"({' '.join(str(error).split())[:150]}); use bias_correction: fast"
        ) from error


@compute_lock()
def quantize_with_accuracy_control(
    source: Path,
    target: Path,
    pixels_NHWC: Pixels,
    recipe: Recipe,
    checked: Sequence[tuple[Pixels, int]],
    max_drop: float,
) -> None:
    """Quantize, then return the layers that cost most accuracy to float, one by one, until the drop is small enough.

    `checked`: images (1, S, S, 3), each with its target class; `max_drop`: fraction of these images that may be lost.
    Raises ConfigError for a network that NNCF cannot quantize.
    """
    nncf = import_nncf()
    model = load_onnx(source)

    def score(candidate: Any, items: Iterable[tuple[Pixels, int]]) -> tuple[float, list[float]]:
        session = create_session(candidate.SerializeToString())
        hits = [float(session.run(None, {INPUT: pixels})[0].argmax(1)[0] == target) for pixels, target in items]
        return float(np.mean(hits)), hits

    settings = _settings(nncf, model, recipe, len(pixels_NHWC))
    advanced = settings.pop("advanced_parameters")
    with _config_errors(nncf, source, recipe):
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


def import_nncf() -> Any:
    """Import and return nncf, with its log at errors. Raises MissingExtra."""
    try:
        import nncf
    except ModuleNotFoundError as error:
        raise MissingExtra("nncf", "compress") from error
    nncf.set_log_level(logging.ERROR)
    return nncf


def _batches(pixels_NHWC: Pixels) -> list[Pixels]:
    return [pixels_NHWC[start : start + CALIBRATION_BATCH] for start in range(0, len(pixels_NHWC), CALIBRATION_BATCH)]


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
    has_attention = any(node.op_type == "Softmax" for node in model.graph.node)
    return {
        "preset": presets[recipe.preset],
        "target_device": nncf.TargetDevice.CPU,
        "subset_size": images,
        "fast_bias_correction": recipe.bias_correction == "fast",
        "model_type": nncf.ModelType.TRANSFORMER if has_attention else None,
        "advanced_parameters": nncf.AdvancedQuantizationParameters(
            # One range per tensor also before depthwise convolutions: ONNX Runtime's kernel needs it.
            activations_quantization_params=QuantizationParameters(per_channel=False),
            activations_range_estimator_params=ranges[recipe.ranges],
            overflow_fix=nncf.OverflowFix.ENABLE if recipe.overflow_safe else None,
        ),
    }
