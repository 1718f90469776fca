"""Plan the cases of a benchmark: each candidate's runtimes, precisions and layouts, by batch and number of threads."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from winnow.config import ROOT, Benchmark
from winnow.deploy.runtime_properties import list_cpu_runtimes
from winnow.hardware import has_fast_bf16
from winnow.records.benchmark import BenchmarkCase, Layout, Precision, Runtime


def plan_cases(
    int8: Mapping[str, bool], settings: Benchmark, threads: int, cuda: bool, networks: Collection[str] | None = None
) -> list[BenchmarkCase]:
    """Return all cases, group by group: those of one batch and number of threads.

    In the grid `quick` large batches and compiled PyTorch run with all threads only.
    `int8`: candidate -> is its file int8; `threads`: all threads of this machine; `networks`: candidates with weights
    for PyTorch, by default all that are not int8 (a quantized candidate that ended in float has none).
    """
    networks = {name for name, is_int8 in int8.items() if not is_int8} if networks is None else networks
    cases, is_full = [], settings.grid == "full"
    for batch in (settings.large_batch, 1):
        for thread_count in sorted({threads, 1}, reverse=True):
            has_all_threads = thread_count == threads
            if batch > 1 and not (has_all_threads or is_full):
                continue
            for name, is_int8 in int8.items():
                kinds = _file_kinds(is_int8, batch, thread_count, cuda and has_all_threads)
                if name in networks and (name == ROOT or is_full):
                    kinds += _eager_kinds()
                    if has_all_threads or is_full:
                        kinds += _compiled_kinds(autotune=name == ROOT and is_full)
                    if cuda and has_all_threads:
                        kinds += [("eager-cuda", "f32", "channels_last"), ("eager-cuda", "bf16", "channels_last")]
                cases += [BenchmarkCase(name, *kind, batch=batch, threads=thread_count) for kind in kinds]
    return cases


def _file_kinds(is_int8: bool, batch: int, threads: int, cuda: bool) -> list[tuple[Runtime, Precision, Layout]]:
    kinds = list_cpu_runtimes("int8" if is_int8 else "f32", batch, threads)
    if cuda and not is_int8:
        kinds += [("ort-cuda", "f32"), ("ort-tensorrt", "f32")]
    return [(runtime, precision, "file") for runtime, precision in kinds]


def _eager_kinds() -> list[tuple[Runtime, Precision, Layout]]:
    layouts: tuple[Layout, ...] = ("contiguous", "channels_last")
    return [("eager", precision, layout) for precision in _torch_precisions() for layout in layouts]


def _compiled_kinds(autotune: bool) -> list[tuple[Runtime, Precision, Layout]]:
    """Return the kinds of compiled PyTorch; `autotune` adds the mode of torch.compile that takes minutes."""
    modes: tuple[Runtime, ...] = ("compile", "compile-autotune") if autotune else ("compile",)
    return [(mode, precision, "channels_last") for mode in modes for precision in _torch_precisions()]


def _torch_precisions() -> list[Precision]:
    return ["f32", "bf16"] if has_fast_bf16() else ["f32"]
