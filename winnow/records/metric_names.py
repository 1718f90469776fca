"""The names of all metrics in records and in MLflow, with their unit and meaning. {x} stands for one of several words.

`describe_metric("speedup/float_b64_low")` returns the text. A test holds that every metric of a run is listed.
"""

from __future__ import annotations

import re
from functools import cache

QUALITY = {
    "top1": "top-1 accuracy, a fraction",
    "top1_low": "lower end of the 95 % interval of top-1",
    "top1_high": "upper end of the 95 % interval of top-1",
    "macro_precision": "mean precision of the classes, a fraction",
    "macro_recall": "mean recall of the classes, a fraction",
    "macro_f1": "mean F1 of the classes, a fraction",
    "ece": "expected calibration error before temperature scaling, a fraction",
}
DROP_ENDS = {"points": "", "low": ", lower end of its interval", "high": ", upper end of its interval"}
RATIO_ENDS = {
    "": "",
    "_low": ", lower end of its 95 % interval",
    "_high": ", upper end of its 95 % interval",
}
METRICS: dict[str, str] = {
    "data/images": "images that are used",
    "data/{split}": "images in the split train, validation or test",
    "data/unlabelled": "images without a label",
    "data/left_out": "training images that equal a test image, and are left out",
    "data/rejected": "files that were set aside since they cannot be used",
    "data/labelled_{split}": "images of the split train or validation with a label",
    "data/label_budget": "training labels that may be used (data.labels_per_class)",
    "pretrain/loss": "loss of the last epoch of pretraining",
    "pretrain/spread": "spread of the embeddings; near 0 they have collapsed to one point",
    "pretrain/knn": "kNN accuracy with the label budget, a fraction; nothing is selected by it",
    "pretraining/arm_top1": "validation: top-1 from the starting weights of dense, mean over label seeds",
    "pretraining/scratch_top1": "validation: top-1 from random weights, mean over label seeds",
    "pretraining/linear_probe_top1": "validation: top-1 of logistic regression on the frozen features",
    "pretraining/gain_points": "difference of arm_top1 and scratch_top1, points",
    "unlabelled/top1": "validation: top-1 after training on images without labels, mean over label seeds",
    "unlabelled/gain_points": "difference of unlabelled/top1 and pretraining/arm_top1, points",
    "unlabelled/precision": "validation: share of right pseudo-labels among those given, mean over label seeds",
    "unlabelled/coverage": "validation: share of images that were given a pseudo-label, mean over label seeds",
    **{f"quality/{key}": f"validation: {text}" for key, text in QUALITY.items()},
    "quality/temperature": "temperature by which logits are divided before softmax",
    "quality/ece_calibrated": "expected calibration error after temperature scaling, a fraction",
    "quality/agreement": "share of validation images with the same prediction as dense",
    "quality/agreement_parent": "share of validation images with the same prediction as the parent",
    "delta/top1": "top-1 minus that of dense, points",
    **{f"cross_validation/{key}": f"cross-validation: {text}" for key, text in QUALITY.items()},
    "parity/max_abs_difference": "largest difference between logits of the ONNX file and of the PyTorch network",
    "size/mb": "size of model.onnx, MB of 1,000,000 bytes",
    "size/zipped_mb": "size of model.onnx after zip compression (deflate), MB",
    "size/parameters": "number of parameters",
    "size/nonzero_parameters": "number of parameters that are not zero",
    "compute/macs": "multiply-adds for one image",
    "compute/int8_share": "share of the multiply-adds whose weights are int8 in the file",
    "latency/{runtime}_b1_{percentile}_ms": "p50 or p95 of a call with one image, ms",
    "throughput/{runtime}_b{batch}_ips": "images per second in batches of this size",
    "memory/{runtime}_peak_mb": "peak memory of a fresh process that serves the file, MB",
    "start/{runtime}_load_ms": "time to load the file in a fresh process, ms",
    "start/{runtime}_first_call_ms": "time of the first call in a fresh process, ms",
    "best/latency_ms": "p50 of one image on the candidate's fastest runtime, ms",
    "best/latency_threads": "threads per call in that runtime",
    "best/throughput_ips": "images per second in large batches on the candidate's fastest runtime",
    "best/throughput_threads": "threads per call in that runtime",
    **{
        f"speedup/{{baseline}}_b{{batch}}{end}": f"speed-up over dense in this baseline{text}"
        for end, text in RATIO_ENDS.items()
    },
    "error/b{batch}": "largest difference of two files with the same graph, a fraction: the measurement error",
    "cases/timed": "benchmark cases (file, runtime, precision, batch, threads) that were timed",
    "cases/refused": "benchmark cases that were not timed, since their predictions differ from the file's own",
    "select/candidates": "candidates that were judged",
    "select/competitors": "candidates that pass the gates on size, speed and int8",
    "select/on_front": "candidates on the Pareto front",
    "select/passed": "candidates that pass every gate",
    "winner/agreement": "share of validation images on which winner and dense predict the same class",
    "winner/size_ratio": "size of the winner's file as a share of dense's",
    **{
        f"winner/speedup{end}": f"the winner's speed-up over dense in its fastest float precision and runtime{text}"
        for end, text in RATIO_ENDS.items()
    },
    **{f"winner/drop_{end}": f"top-1 that the winner loses, points{text}" for end, text in DROP_ENDS.items()},
    "refit/is_refitted": "1 where the deployed file is a refit, else 0",
    "refit/labels": "number of labels that trained the deployed file",
    "refit/images": "images on which the refitted file was compared with the selected one",
    "refit/agreement": "share of these images with the same prediction",
    "refit/kappa": "Cohen's kappa of the two files' predictions",
    "test/images": "labelled test images",
    "test/groups": "groups of the labelled test images, where data.group_by is set",
    **{f"test/{{role}}_{key}": f"test split: {text}" for key, text in QUALITY.items()},
    **{
        f"test/drop_from_{{reference}}_{end}": f"points of top-1 that the winner loses on test{text}"
        for end, text in DROP_ENDS.items()
    },
    "test/winner_agreement_with_dense": "share of test images on which winner and dense predict the same class",
    "labels/checked": "labels of training and validation that were checked",
    "labels/suspicious": "labels that are probably wrong, or of outliers and contradicting near-duplicates",
    "labels/predicted": "share of labels that a linear classifier predicts without having seen them",
    "drift/images": "fresh images that were compared",
    "drift/real": "1 if a shift is significant and large enough, else 0",
    "drift/{test}_p": "p-value of the test",
    "drift/{test}_effect": "size of the shift, in the unit of its threshold in the section drift: of params.yaml",
    "search/seconds": "time of the trial, s",
    "search/drop_points": "points of top-1 that the trial loses",
    "search/cost": "cost of the trial, in the unit of search.objective",
    "search/trials": "trials that ended, in any state",
    "search/finished": "trials that finished",
    "search/given_up": "trials that were stopped early",
    "search/dense_cost": "cost of dense",
    "search/chosen_drop_points": "points of top-1 that the chosen trial loses",
    "search/chosen_cost": "cost of the chosen trial",
}
PLACEHOLDERS = {
    "split": "train|validation|test",
    "runtime": "ort|ov|ov-streams",
    "percentile": "p50|p95",
    "batch": "[0-9]+",
    "baseline": "eager|pytorch|float",
    "role": "dense|dense-kd|winner|selected",
    "reference": "dense|dense-kd",
    "test": "[a-z0-9_]+",
}
"""Word in braces -> its values, a regular expression."""


@cache
def _patterns() -> tuple[tuple[re.Pattern[str], str], ...]:
    return tuple(
        (re.compile(re.sub(r"\\{(\w+)\\}", lambda match: f"(?:{PLACEHOLDERS[match[1]]})", re.escape(name))), text)
        for name, text in METRICS.items()
    )


def describe_metric(name: str) -> str | None:
    """Return unit and meaning of a metric; None for one that is not listed."""
    return next((text for pattern, text in _patterns() if pattern.fullmatch(name)), None)
