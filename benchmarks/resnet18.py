"""Time ResNet-18 at 32x32 (3x3 stem), trained on all labels of the sample: dense and half of it, float and int8.

The table gives the accuracy beside each speed. All speed-ups are ratios within this run: against PyTorch eager f32 (the
better of its two layouts), against the best float PyTorch, and against dense as the best float of any precision and
runtime; ONNX Runtime's int8 also against its own f32. Each is factorized into runtime, structure and precision.
"""

from __future__ import annotations

import math
from typing import Any

from benchmarks.chain import Chain, all_labels_overrides, configure, markdown_table, write_results
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
OVERRIDES = all_labels_overrides("resnet18") | {"finetune.epochs": 30, "benchmark.grid": "full"}


def max_images_per_s(rows: list[BenchmarkRow], batch: int, candidate: str, runtime: str, precision: str) -> float:
    """Return images per second of the fastest such row, over threads and layouts; NaN if there is none."""
    case = (batch, candidate, runtime, precision)
    matching = [row for row in rows if (row.batch, row.candidate, row.runtime, row.precision) == case]
    return max(1000 * batch / row.p50_ms for row in matching) if matching else float("nan")


def format_figure(figure: float, spec: str) -> str:
    """Return the formatted figure, "-" for NaN: OpenVINO's throughput mode is not timed at batch 1."""
    return "-" if math.isnan(figure) else format(figure, spec)


def speedup_rows(chain: Chain, benchmark: BenchmarkRecord, large: int) -> list[dict[str, str]]:
    """Return a row for each file and batch size: the three speed-ups of its fastest runtime, and their factors."""
    rows = []
    for name in ("dense", *CANDIDATES):
        figures, causes = benchmark.details.candidates[name], benchmark.details.attribution[name]
        shares = benchmark.details.peak_share[name]
        for batch, cause, share in ((1, causes.latency, shares.latency), (large, causes.throughput, shares.throughput)):
            assert cause is not None
            assert share is not None
            speedups = {kind: f"{figures[f'speedup/{kind}_b{batch}']:.1f}" for kind in ("eager", "pytorch", "float")}
            rows.append(
                {
                    "candidate": name,
                    "top-1 %": f"{read_record(chain.candidates / name).metrics['quality/top1'] * 100:.1f}",
                    "batch": str(batch),
                    "fastest on": f"{cause.on} {cause.ends_in}",
                    "x eager f32": speedups["eager"],
                    "x best float PyTorch": speedups["pytorch"],
                    "x best float": speedups["float"],
                    "of peak": f"{share:.0%}",
                    "runtime x structure x precision": " x ".join(
                        f"{factor:.2f}" for factor in (cause.runtime, cause.structure, cause.precision)
                    ),
                }
            )
    return rows


def main() -> None:
    config = configure(OVERRIDES, CANDIDATES)
    chain = Chain(NAME, config)
    benchmark = BenchmarkRecord.read(chain.benchmark())
    rows, large = benchmark.details.rows, config.benchmark.large_batch
    eager = {batch: max_images_per_s(rows, batch, "dense", "eager", "f32") for batch in (1, large)}
    table_rows = []
    for name in ("dense", *CANDIDATES):
        metrics = read_record(chain.candidates / name).metrics
        for runtime, precision in sorted({(r.runtime, r.precision) for r in rows if r.candidate == name}):
            rates = {batch: max_images_per_s(rows, batch, name, runtime, precision) for batch in (1, large)}
            speedups = [format_figure(rates[batch] / eager[batch], ".1f") for batch in rates]
            table_rows.append(
                {
                    "candidate": name,
                    "top-1 %": f"{metrics['quality/top1'] * 100:.1f}",
                    "parameters": f"{metrics['size/parameters'] / 1e6:.2f} M",
                    "MACs": f"{metrics['compute/macs'] / 1e6:.0f} M",
                    "MB": f"{metrics['size/mb']:.2f}",
                    "runtime": f"{runtime} {precision}",
                    "ms at batch 1": format_figure(1000 / rates[1], ".2f"),
                    f"images/s at batch {large}": f"{rates[large]:,.0f}",
                    f"x eager f32 (1 / {large})": " / ".join(speedups),
                }
            )
    ort = {
        batch: max_images_per_s(rows, batch, "dense-int8", "ort", "int8")
        / max_images_per_s(rows, batch, "dense", "ort", "f32")
        for batch in (1, large)
    }
    details = {"rows", "candidates", "attribution", "peaks", "peak_share"}
    figures = {
        **benchmark.details.model_dump(mode="json", include=details),
        "ort_int8_over_its_f32": {str(batch): ratio for batch, ratio in ort.items()},
        "records": {name: read_record(chain.candidates / name).metrics for name in ("dense", *CANDIDATES)},
        "config": config.model_dump(mode="json", by_alias=True),
    }
    conditions = (
        "CIFAR-10 (JPEG) sample, all labels of its training split, validation accuracy, one seed. Times: medians of "
        f"{config.benchmark.rounds} interleaved rounds, uint8 pixels in, logits out. "
        f"ONNX Runtime's int8 against its own f32, dense: {ort[1]:.2f}x at batch 1, {ort[large]:.2f}x at batch {large}."
    )
    table = f"{markdown_table(speedup_rows(chain, benchmark, large))}\n\nEvery runtime:\n\n{markdown_table(table_rows)}"
    write_results(NAME, conditions, figures, table, benchmark.machine)


if __name__ == "__main__":
    main()
