"""Times the models beside this script on the machine that will serve them, and writes host.json: python check_host.py

Needs onnxruntime, numpy and Pillow; OpenVINO is timed too where it is installed. Nothing else of winnow is needed. A
model is timed only where it answers here as it did where it was made. With all candidates beside it (`winnow export DIR
--candidates`), take host.json back and run `winnow check-host host.json` there: from then on speed gates go by this
machine's figures alone.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import pathlib
import platform
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy
import onnxruntime
import PIL

HERE = pathlib.Path(__file__).resolve().parent
PROC, CGROUPS = pathlib.Path("/proc"), pathlib.Path("/sys/fs/cgroup")
CALLS_LARGE, SCREENING_ROUNDS = 3, 3
"""Timed calls of a batch at each visit; rounds that tell where a model is fastest."""
SLICE_SECONDS, IDLE_SHARE, PATIENCE_SECONDS = 0.01, 0.05, 2.0
X86 = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16")
REFERENCE = "dense"
"""Speed gates compare with it: without its figures those of others are no use to them."""
OPENVINO = ("openvino", "openvino-throughput")
"""Its two modes: a call has all threads; streams share them."""
ARM = ("asimd", "asimddp", "i8mm", "bf16", "sve")
Row = dict[str, Any]
Answer = Callable[[Any], Any]
"""Pixels uint8 (batch, S, S, 3) to logits."""


def machine() -> Row:
    """Processor, flags that decide speed, cores that may be used, memory, versions."""
    text = system_text(PROC / "cpuinfo")
    lines = dict(line.split(":", 1) for line in reversed(text.splitlines()) if ":" in line)
    told = {key.strip(): value.strip() for key, value in lines.items()}
    flags = (told.get("flags") or told.get("Features") or "").split()
    versions = {"onnxruntime": onnxruntime.__version__, "numpy": numpy.__version__, "pillow": PIL.__version__}
    if openvino() is not None:
        versions["openvino"] = openvino().__version__.split("-")[0]
    return {
        "cpu": told.get("model name") or told.get("Model") or platform.processor() or platform.machine(),
        "flags": [flag for flag in X86 + ARM if flag in flags],
        "threads": cores(),
        "memory_gb": round(memory_bytes() / 1e9, 1),
        "gpu": "",
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "versions": versions,
    }


def cores(proc: pathlib.Path = PROC, cgroups: pathlib.Path = CGROUPS) -> int:
    """Return how many cores this process may use: those of its affinity, fewer where a container's quota says so."""
    found = [len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1]
    for folder in group_folders(proc, cgroups, "cpu"):
        both = numbers(folder / "cpu.max")
        both = both or numbers(folder / "cpu.cfs_quota_us") + numbers(folder / "cpu.cfs_period_us")
        if len(both) == 2 and min(both) > 0:
            found.append(max(1, both[0] // both[1]))
    return min(found)


def memory_bytes(proc: pathlib.Path = PROC, cgroups: pathlib.Path = CGROUPS) -> int:
    """Return the memory that this process may use, bytes: the physical, or less by a container's limit."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0]
    for folder in group_folders(proc, cgroups, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            found += [size for size in numbers(folder / name)[:1] if size > 0]
    return min(found)


def group_folders(proc: pathlib.Path, cgroups: pathlib.Path, controller: str) -> Iterator[pathlib.Path]:
    """Yield the folders of this process's control group and of all above it, as winnow/hardware.py does."""
    for line in system_text(proc / "self" / "cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":
            mounts = [cgroups, cgroups / "unified"]
        elif controller in controllers.split(","):
            mounts = [cgroups / name for name in dict.fromkeys((controllers, controller))]
        else:
            continue
        parts = [part for part in path.split("/") if part]
        if ".." in parts:  # outside of what this process can see
            parts = []
        for mount in mounts:
            yield from (mount.joinpath(*parts[:depth]) for depth in range(len(parts), -1, -1))


def numbers(path: pathlib.Path) -> list[int]:
    """Return the whole numbers of a control file; none where it is missing, unreadable or unlimited (`max`)."""
    words = system_text(path).split()
    return [int(word) for word in words] if all(word.lstrip("-").isdecimal() for word in words) else []


def system_text(path: pathlib.Path) -> str:
    """Return the text of a file of the system; empty where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def openvino() -> Any:
    """The package, or None."""
    try:
        import openvino as found
    except ImportError:
        return None
    return found


@functools.cache
def openvino_core() -> Any:
    """One Core as long as the process lives: see winnow/deploy/runtimes.py."""
    return openvino().Core()


def opened(path: pathlib.Path, side: int, cell: Row) -> Answer:
    """The model on the cell's runtime."""
    if cell["runtime"] in OPENVINO:
        return in_streams(path, side, cell)
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, cell["threads"]
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda pixels: session.run(["logits"], {"pixels": pixels})[0]


def in_streams(path: pathlib.Path, side: int, cell: Row) -> Answer:
    """The model in OpenVINO: for latency a whole batch, for throughput dealt out to streams side by side."""
    streams = math.gcd(cell["batch"], cell["threads"]) if cell["runtime"] == "openvino-throughput" else 1
    part = cell["batch"] // streams
    core = openvino_core()
    model = core.read_model(str(path))
    model.reshape([part, side, side, 3])
    settings = {"PERFORMANCE_HINT": "THROUGHPUT", "NUM_STREAMS": streams} if streams > 1 else {}
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": cell["threads"], **settings}
    settings["INFERENCE_PRECISION_HINT"] = "bf16" if cell["precision"].endswith("bf16") else "f32"
    compiled = core.compile_model(model, "CPU", settings)
    requests = [compiled.create_infer_request() for _ in range(streams)]
    if streams == 1:
        return lambda pixels: requests[0].infer([pixels], share_inputs=True)[0]

    def answer(pixels: Any) -> Any:
        for at, request in enumerate(requests):
            request.start_async([pixels[at * part : (at + 1) * part]], share_inputs=True)
        for request in requests:
            request.wait()
        return numpy.concatenate([request.get_output_tensor(0).data for request in requests])

    return answer


def cells(models: list[Row], large: int, about: Row) -> Iterator[tuple[Row, Row]]:
    """(model, cell) of everything that is timed."""
    bf16 = openvino() is not None and {"avx512_bf16", "amx_bf16"} & set(about["flags"])
    for batch in (large, 1):
        for threads in sorted({about["threads"], 1}, reverse=True):
            for model in models:
                own = model["precision"]
                modes = OPENVINO[: 2 if math.gcd(batch, threads) > 1 else 1] if openvino() is not None else ()
                kinds = [("ort", own), *((mode, own) for mode in modes)]
                kinds += [(mode, "bf16" if own == "f32" else "int8-bf16") for mode in modes] if bf16 else []
                for runtime, precision in kinds:
                    cell = {"candidate": model["name"], "sha256": model["sha256"], "runtime": runtime}
                    yield model, {**cell, "precision": precision, "batch": batch, "threads": threads}


def agreement(answer: Answer, batch: int, pixels: Any, expected: Any) -> float:
    """Share of the check images that get the answer which the file gave where it was made."""
    count = len(pixels)
    starts = range(0, count, batch)
    answers = [answer(numpy.ascontiguousarray(pixels[numpy.arange(at, at + batch) % count])).argmax(1) for at in starts]
    return float((numpy.concatenate(answers)[:count] == expected).mean())


def open_all(manifest: Row, pixels: Any, about: Row) -> tuple[list[tuple[Row, Answer]], list[Row]]:
    """Cells that answer as they should, with their functions; and those that are refused, with the reason."""
    ready: list[tuple[Row, Answer]] = []
    refused: list[Row] = []
    for model, cell in cells(manifest["models"], manifest["large_batch"], about):
        path = HERE / model["file"]
        if hashlib.sha256(path.read_bytes()).hexdigest() != model["sha256"]:
            sys.exit(f"{path} is not the file that was exported; export again")
        try:
            answer = opened(path, manifest["image_size"], cell)
            share = agreement(answer, cell["batch"], pixels, numpy.array(model["answers"]))
        except Exception as error:  # noqa: BLE001  # whatever a runtime raises on this machine is told over there
            refused.append({**cell, "reason": " ".join(str(error).split())[:300]})
            continue
        if share < manifest["needed_agreement"][cell["precision"]]:
            refused.append({**cell, "reason": f"answers agree on {share:.1%} of {len(pixels)} images"})
        else:
            ready.append(({**cell, "agreement": share}, answer))
    return ready, refused


def settle() -> None:
    """Wait until no thread of this process computes: those of ONNX Runtime spin for a while after a call."""
    until = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < until:
        began, used = time.perf_counter(), time.process_time()
        time.sleep(SLICE_SECONDS)
        if time.process_time() - used < IDLE_SHARE * (time.perf_counter() - began):
            return


def visit(answer: Answer, some: Any, calls: int, warm_up_ms: float) -> list[float]:
    """Seconds of each of so many calls, from rest and after `warm_up_ms` of untimed ones."""
    settle()
    until, untimed = time.perf_counter() + warm_up_ms / 1e3, 0
    while untimed == 0 or time.perf_counter() < until:
        answer(some)
        untimed += 1
    seconds = []
    for _ in range(calls):
        began = time.perf_counter()
        answer(some)
        seconds.append(time.perf_counter() - began)
    return seconds


def time_all(ready: list[tuple[Row, Answer]], manifest: Row, pixels: Any, rounds: int) -> list[Row]:
    """Every cell once in each round, in an order that turns, so that no cell always follows the same."""
    taken: list[list[list[float]]] = [[] for _ in ready]
    started = time.monotonic()
    for number in range(rounds):
        step = -1 if number % 2 else 1
        for at in [(number + step * place) % len(ready) for place in range(len(ready))]:
            cell, answer = ready[at]
            some = numpy.ascontiguousarray(pixels[numpy.arange(cell["batch"]) % len(pixels)])
            calls = -(-manifest["samples"] // manifest["rounds"]) if cell["batch"] == 1 else CALLS_LARGE
            taken[at].append(visit(answer, some, calls, manifest["warm_up_ms"]))
        left = (time.monotonic() - started) / (number + 1) * (rounds - number - 1)
        print(f"round {number + 1} of {rounds}, about {left:.0f} s left", flush=True)  # noqa: T201
    return [summary(cell, taken[at]) for at, (cell, _) in enumerate(ready)]


def shortlist(rows: list[Row]) -> list[int]:
    """Places of the rows that count: each model's fastest of each batch, and all models where the reference is so."""
    best: dict[tuple[str, int], int] = {}
    for at, row in enumerate(rows):
        key = (row["candidate"], row["batch"])
        if key not in best or row["p50_ms"] < rows[best[key]]["p50_ms"]:
            best[key] = at
    kinds = [
        {key: rows[at][key] for key in ("runtime", "batch", "threads", "precision")}
        for (name, _), at in best.items()
        if name == REFERENCE
    ]
    same = {at for at, row in enumerate(rows) if any(kind.items() <= row.items() for kind in kinds)}
    return sorted({*best.values(), *same})


def time_twice(ready: list[tuple[Row, Answer]], manifest: Row, pixels: Any) -> list[Row]:
    """Screen all cells, then compare those that count in rounds of their own; the others are marked."""
    screened = time_all(ready, manifest, pixels, SCREENING_ROUNDS)
    chosen = shortlist(screened)
    again = time_all([ready[at] for at in chosen], manifest, pixels, manifest["rounds"]) if chosen else []
    rows = [{**row, "screened": True} for row in screened]
    for at, row in zip(chosen, again, strict=True):
        rows[at] = row
    return rows


def summary(cell: Row, by_round: list[list[float]]) -> Row:
    """Milliseconds a call, images a second, and how steady they were."""
    every = numpy.concatenate([numpy.array(part) for part in by_round]) * 1e3
    medians = [float(numpy.median(part)) * 1e3 for part in by_round]
    p50 = float(numpy.median(every))
    return {
        **cell,
        "p50_ms": p50,
        "p95_ms": float(numpy.percentile(every, 95)) if len(every) >= 200 else None,
        "images_per_s": cell["batch"] / p50 * 1e3,
        "samples": len(every),
        "round_ms": medians,
        "spread": (max(medians) - min(medians)) / p50,
    }


def main() -> None:
    """Time all cells and write host.json into the current folder."""
    manifest = json.loads((HERE / "check" / "manifest.json").read_text(encoding="utf-8"))
    pixels = numpy.load(HERE / "check" / "pixels.npy", allow_pickle=False)
    about = machine()
    ready, refused = open_all(manifest, pixels, about)
    rows = time_twice(ready, manifest, pixels)
    told = {"format": 2, "machine": about, "large_batch": manifest["large_batch"], "rows": rows, "refused": refused}
    out = pathlib.Path("host.json").resolve()
    out.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    whole = any(model["name"] == REFERENCE for model in manifest["models"])
    then = "take this back" if whole else "gates need all candidates here (winnow export DIR --candidates); figures"
    print(f"{len(rows)} cells timed, {len(refused)} refused; {then}: {out}")  # noqa: T201


if __name__ == "__main__":
    main()
