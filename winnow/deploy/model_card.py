"""Describe a deployed model for people: a model card in Markdown (Mitchell et al. 2019, arXiv 1810.03993)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from winnow.config.export_formats import OPENVINO, TORCH
from winnow.evaluation.effective_sample_size import in_groups
from winnow.records import DeploymentCard
from winnow.records.card import CardTest, FastestSettings, RuntimeSettings

FORMAT_NOTES = {
    OPENVINO: """
`openvino/model.xml` is the same model for OpenVINO, with batch 1. For another batch reshape it to a fixed one: with
a free batch int8 is computed wrongly. `INFERENCE_PRECISION_HINT: f32` gives the logits of `model.onnx`.
""",
    TORCH: """
`torch/model.pt2` is the same model for PyTorch: `torch.export.load("torch/model.pt2").module()`.
""",
}
"""Format -> how to use it."""


def render_model_card(card: DeploymentCard, title: str, formats: Sequence[str] = ()) -> str:
    """Return the model card in Markdown. `formats`: those beside ONNX that are in the same folder."""
    metrics, labels, classes = card.metrics, card.labels, card.classes
    listing = ", ".join(classes[:20]) + (f" and {len(classes) - 20} more (labels.txt)" if len(classes) > 20 else "")
    return f"""# {title}

An image classifier: one of {len(classes)} classes for each image. {listing}.

| | |
|---|---|
| made by | winnow: {" > ".join(card.lineage)}, {card.precision} |
| size | {metrics["size/mb"]:.2f} MB, {metrics["size/parameters"] / 1e6:.2f} M parameters |
| input | `{card.input.name}`: uint8 RGB, {json.dumps(card.input.shape)}. {card.resize_policy} |
| output | `{card.output.name}`: float32 {card.output.note}, {json.dumps(card.output.shape)} |
| serve with | {describe_serving(card.serving)} |

{card.input.note}.

## Quality

{_test_warnings(card.test)}Measured on {card.measured_on}, which was also used to select it:
{labels.choosing} labelled images{in_groups(labels.choosing_groups)}.
Trained on {labels.training} labels.
{_refit_section(card)}
{_quality_table(metrics, card.test)}
{_test_result(card.test)}
The model also classifies images unlike its training images, with the same confidence. `winnow drift` detects them.

## Speed

| | |
|---|---|
{_speed_rows(card.speed, card.fastest)}
On {card.machine.cpu}, {card.machine.threads} threads, {card.machine.system}; other machines give other numbers.

## Origin

Data version `{card.data_version}`. Reason for the selection: {card.why}.

## Usage

    pip install onnxruntime numpy pillow
    python predict.py IMAGE ...
    python check_host.py            measure the speed on this machine, also with OpenVINO if it is installed
{"".join(FORMAT_NOTES[name] for name in formats)}"""


def describe_serving(serving: RuntimeSettings) -> str:
    """Return a description of the runtime, precision and threads of a card."""
    runtime: str = serving.runtime
    if serving.streams is not None:
        stream_batch = serving.batch // serving.streams
        runtime = f"openvino (PERFORMANCE_HINT THROUGHPUT, {serving.streams} streams of {stream_batch} images each)"
    threads = "1 thread" if serving.threads == 1 else f"{serving.threads} threads"
    return f"{runtime}, {serving.precision}, {threads}"


def _quality_table(metrics: Mapping[str, float], test: CardTest | None) -> str:
    """Return a table of the metrics on validation, with top-1 on the test split beside them."""
    rows = []
    test_top1 = f"{test.top1 * 100:.1f} % ({test.top1_low * 100:.1f} to {test.top1_high * 100:.1f})" if test else ""
    if "quality/top1" in metrics:
        low, high = metrics["quality/top1_low"] * 100, metrics["quality/top1_high"] * 100
        top1 = f"{metrics['quality/top1'] * 100:.1f} % (95 % interval {low:.1f} to {high:.1f})"
        rows = [
            f"| top-1 accuracy | {top1} | {test_top1} |",
            f"| macro F1 | {metrics['quality/macro_f1'] * 100:.1f} % | |",
            f"| difference of top-1 to the uncompressed model, in points | {metrics['delta/top1']:+.1f} | |",
        ]
    if "quality/ece_calibrated" in metrics:
        rows.append(
            f"| expected calibration error, in ONNX Runtime | {metrics['quality/ece_calibrated'] * 100:.1f} % | |"
        )
    rows.append(f"| same prediction as the uncompressed model | {metrics['quality/agreement'] * 100:.1f} % | |")
    return "\n".join(["| | validation | test |", "|---|---|---|", *rows]) + "\n"


def _test_result(test: CardTest | None) -> str:
    """Return the result on the test split, or ""."""
    if test is None:
        return ""
    low, high = test.top1_low * 100, test.top1_high * 100
    text = (
        f"On {test.images:.0f} test images{in_groups(test.groups)}, not used for any selection: "
        f"{test.top1 * 100:.1f} % top-1 (95 % interval {low:.1f} to {high:.1f})"
    )
    if test.baseline:
        text += (
            f", measured in {test.measured_in}; {test.drop_points:.1f} points below {test.baseline} "
            f"({test.drop_low:.1f} to {test.drop_high:.1f})"
        )
    return f"{text}.\n"


def _test_warnings(test: CardTest | None) -> str:
    """Return the warnings of the test split in Markdown."""
    return "".join(f"**Warning:** {warning}.\n\n" for warning in (test.warnings if test else ()))


def _refit_section(card: DeploymentCard) -> str:
    """Return a paragraph on the refit, or ""."""
    if card.refit is None:
        return ""
    check = card.refit.check
    return (
        f"\nRefitted after its selection, on {card.labels.training} labels (training and validation): "
        f"{card.refit.note}. It gives the same prediction as before on {check.agreement * 100:.1f} % of "
        f"{check.images} {check.kind}.\n"
    )


def _speed_rows(speed: Mapping[str, float], fastest: FastestSettings) -> str:
    rows_by_metric = {
        "best/latency_ms": ("p50 latency, one image", "{:.3g} ms"),
        "best/throughput_ips": ("throughput", "{:.0f} images/s"),
        "speedup/eager_b1": ("speedup for one image over PyTorch eager float32", "{:.1f} times"),
        "speedup/pytorch_b1": ("speedup for one image over the fastest float PyTorch", "{:.1f} times"),
        "speedup/float_b1": ("speedup for one image over the uncompressed model at its fastest", "{:.1f} times"),
    }
    settings = {"best/latency_ms": fastest.latency, "best/throughput_ips": fastest.throughput}
    rows = []
    for key, (title, template) in rows_by_metric.items():
        if key in speed:
            timed = settings.get(key)
            conditions = f" ({describe_serving(timed)}, batch {timed.batch})" if timed else ""
            rows.append(f"| {title} | {template.format(speed[key])}{conditions} |\n")
    return "".join(rows)
