"""ResNet-18 at 32x32 (3x3 stem), trained on all labels of the sample: dense and half its parameters, float and int8.

Accuracy stands beside every speed. Each figure is a ratio within this one run: against PyTorch eager f32 (the better of
its two layouts), against the best float PyTorch, and against dense as the best float of any precision and
runtime; ONNX Runtime's int8 also against its own f32. The cause is named: runtime, precision, structure.
"""

from __future__ import annotations

import math
from typing import Any

from benchmarks.chain import Chain, all_labels, configure, leave, markdown
from winnow.records import BenchmarkRecord, read_record
from winnow.records.benchmark import BenchmarkRow

NAME = "resnet18"
RECOVERY = {
    "epochs": 10,
    "optimiser": {"learning_rate": 0.05},
    "teacher": "dense",
    "temperature": 4.0,
    "teacher_weight": 0.7,
    "images": "all",
    "augmentation": {"crop_scale_min": 0.6},
}
CANDIDATES: dict[str, Any] = {
    "dense-int8": {"from": "dense", "method": "quantize"},
    "pruned": {"from": "dense", "method": "prune", "remove": {"channels": 0.3}, "recovery": RECOVERY},
    "pruned-int8": {"from": "pruned", "method": "quantize"},
}
CHANGES = all_labels("resnet18") | {"finetune.epochs": 30, "benchmark.grid": "full"}


def best(rows: list[BenchmarkRow], batch: int, **wanted: str) -> float:
    """Images per second of the fastest row that fits, over threads and layouts."""
    fitting = [r for r in rows if r.batch == batch and all(getattr(r, k) == v for k, v in wanted.items())]
    return max(1000 * batch / r.p50_ms for r in fitting) if fitting else float("nan")


def told(figure: float, shape: str) -> str:
    """A dash where nothing was timed: OpenVINO's throughput mode has no batch of 1."""
    return "-" if math.isnan(figure) else format(figure, shape)


def headline(chain: Chain, timed: BenchmarkRecord, large: int) -> list[dict[str, str]]:
    """The three speed-ups of every file on its fastest runtime, and the factors of the first."""
    rows = []
    for name in ("dense", *CANDIDATES):
        figures, causes = timed.details.candidates[name], timed.details.attribution[name]
        shares = timed.details.peak_share[name]
        for batch, cause, share in ((1, causes.latency, shares.latency), (large, causes.throughput, shares.throughput)):
            assert cause is not None
            assert share is not None
            speeds = {kind: f"{figures[f'speedup/{kind}_b{batch}']:.1f}" for kind in ("eager", "pytorch", "float")}
            rows.append(
                {
                    "candidate": name,
                    "top-1 %": f"{read_record(chain.candidates / name).metrics['quality/top1'] * 100:.1f}",
                    "batch": str(batch),
                    "fastest on": f"{cause.on} {cause.ends_in}",
                    "x eager f32": speeds["eager"],
                    "x best float PyTorch": speeds["pytorch"],
                    "x best float": speeds["float"],
                    "of peak": f"{share:.0%}",
                    "runtime x structure x precision": " x ".join(
                        f"{factor:.2f}" for factor in (cause.runtime, cause.structure, cause.precision)
                    ),
                }
            )
    return rows


def main() -> None:
    config = configure(CHANGES, CANDIDATES)
    chain = Chain(NAME, config)
    timed = BenchmarkRecord.read(chain.benchmark())
    rows = timed.details.rows
    large = config.benchmark.large_batch
    table_rows = []
    for name in ("dense", *CANDIDATES):
        record = read_record(chain.candidates / name)
        for runtime, precision in sorted({(r.runtime, r.precision) for r in rows if r.candidate == name}):
            speeds = {
                batch: best(rows, batch, candidate=name, runtime=runtime, precision=precision) for batch in (1, large)
            }
            eager = {batch: best(rows, batch, candidate="dense", runtime="eager", precision="f32") for batch in speeds}
            table_rows.append(
                {
                    "candidate": name,
                    "top-1 %": f"{record.metrics['quality/top1'] * 100:.1f}",
                    "parameters": f"{record.metrics['size/parameters'] / 1e6:.2f} M",
                    "MACs": f"{record.metrics['compute/macs'] / 1e6:.0f} M",
                    "MB": f"{record.metrics['size/mb']:.2f}",
                    "runtime": f"{runtime} {precision}",
                    "ms at batch 1": told(1000 / speeds[1], ".2f"),
                    f"images/s at batch {large}": f"{speeds[large]:,.0f}",
                    f"x eager f32 (1 / {large})": " / ".join(told(speeds[b] / eager[b], ".1f") for b in speeds),
                }
            )
    ort = {
        batch: best(rows, batch, candidate="dense-int8", runtime="ort", precision="int8")
        / best(rows, batch, candidate="dense", runtime="ort", precision="f32")
        for batch in (1, large)
    }
    figures = {
        **timed.details.model_dump(mode="json", include={"rows", "candidates", "attribution", "peaks", "peak_share"}),
        "ort_int8_over_its_f32": {str(batch): ratio for batch, ratio in ort.items()},
        "records": {name: read_record(chain.candidates / name).metrics for name in ("dense", *CANDIDATES)},
        "config": config.model_dump(mode="json", by_alias=True),
    }
    conditions = (
        "CIFAR-10 (JPEG) sample, all labels of its training split, validation accuracy, one seed. Times: medians of "
        f"{config.benchmark.rounds} interleaved rounds, uint8 pixels in, logits out. "
        f"ONNX Runtime's int8 against its own f32, dense: {ort[1]:.2f}x at batch 1, {ort[large]:.2f}x at batch {large}."
    )
    table = f"{markdown(headline(chain, timed, large))}\n\nEvery runtime:\n\n{markdown(table_rows)}"
    leave(NAME, conditions, figures, table, timed.machine)


if __name__ == "__main__":
    main()
