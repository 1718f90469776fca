"""Measure what dynamic int8 does to size, speed and accuracy of a convolutional network: it does not speed it up.

Three files of the same dense resnet8: float32, static int8 (the default) and dynamic int8 (`scheme: dynamic`).
"""

from __future__ import annotations

from benchmarks.chain import Chain, configure, markdown_table, write_results
from winnow.records import BenchmarkRecord, read_record

NAME = "dynamic_int8"
CANDIDATES = {
    "static": {"from": "dense", "method": "quantize", "scheme": "static"},
    "dynamic": {"from": "dense", "method": "quantize", "scheme": "dynamic"},
}


def main() -> None:
    overrides = {"pretrain": {"method": "none", "backbone": "resnet8", "seed": 0}, "finetune.seeds": [0]}
    chain = Chain(NAME, configure(overrides, CANDIDATES))
    timed_rows = BenchmarkRecord.read(chain.benchmark()).details.rows
    rows = []
    for name in ("dense", *CANDIDATES):
        metrics = read_record(chain.candidates / name).metrics
        ort_rows = [row for row in timed_rows if row.candidate == name and row.runtime == "ort"]
        latency_ms = min((row.p50_ms for row in ort_rows if row.batch == 1), default=float("nan"))
        images_per_s = max((row.images_per_s for row in ort_rows if row.batch > 1), default=float("nan"))
        rows.append(
            {
                "file": name,
                "top-1 %": f"{metrics['quality/top1'] * 100:.1f}",
                "MB": f"{metrics['size/mb']:.2f}",
                "ONNX Runtime, ms at batch 1": f"{latency_ms:.3f}",
                "images/s at the large batch": f"{images_per_s:,.0f}",
            }
        )
    conditions = (
        "CIFAR-10 (JPEG) sample, 25 labels per class, resnet8 from random weights, then trained on pseudo-labels; "
        "validation accuracy; one run."
    )
    figures = {"rows": [row.model_dump(mode="json") for row in timed_rows]}
    write_results(NAME, conditions, figures, markdown_table(rows))


if __name__ == "__main__":
    main()
