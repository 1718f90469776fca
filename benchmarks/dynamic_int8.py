"""Dynamic int8 is no way to speed up a convolutional network: what it does to size, speed and accuracy.

The same dense resnet8, three files: float32, static int8 (the shipped way), dynamic int8 (`scheme: dynamic`).
"""

from __future__ import annotations

from benchmarks.chain import Chain, configure, leave, markdown
from winnow.records import BenchmarkRecord, read_record

NAME = "dynamic_int8"
CANDIDATES = {
    "static": {"from": "dense", "method": "quantize", "scheme": "static"},
    "dynamic": {"from": "dense", "method": "quantize", "scheme": "dynamic"},
}


def main() -> None:
    changes = {"pretrain": {"method": "none", "backbone": "resnet8", "seed": 0}, "finetune.seeds": [0]}
    chain = Chain(NAME, configure(changes, CANDIDATES))
    timed = BenchmarkRecord.read(chain.benchmark()).details.rows
    rows = []
    for name in ("dense", *CANDIDATES):
        record = read_record(chain.candidates / name)
        ort = [r for r in timed if r.candidate == name and r.runtime == "ort"]
        one = min((r.p50_ms for r in ort if r.batch == 1), default=float("nan"))
        large = max((r.images_per_s for r in ort if r.batch > 1), default=float("nan"))
        rows.append(
            {
                "file": name,
                "top-1 %": f"{record.metrics['quality/top1'] * 100:.1f}",
                "MB": f"{record.metrics['size/mb']:.2f}",
                "ONNX Runtime, ms at batch 1": f"{one:.3f}",
                "images/s at the large batch": f"{large:,.0f}",
            }
        )
    conditions = "CIFAR-10 (JPEG) sample, 25 labels per class, resnet8 from scratch; validation accuracy; one run."
    leave(NAME, conditions, {"rows": timed}, markdown(rows))


if __name__ == "__main__":
    main()
