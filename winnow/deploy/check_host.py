"""Time the models beside this script on the target machine and write host.json: python check_host.py

It needs onnxruntime, numpy and Pillow, but not winnow; OpenVINO is timed, too, where it is installed. A model is timed
only where it predicts the same classes as on the machine that exported it. With all candidates beside the script
(`winnow export DIR --candidates`), copy host.json back and run `winnow check-host host.json` there: from then on speed
gates use this machine's measurements only.
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
CALLS_LARGE, SCREENING_ROUNDS = 3, 2
"""The timed calls of a large batch in each round; the rounds of the screening that finds each model's fastest case."""
SLICE_SECONDS, IDLE_SHARE, PATIENCE_SECONDS = 0.01, 0.05, 2.0
X86 = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16")
REFERENCE = "dense"
"""The model that speed gates compare with; without its measurements they cannot judge the others."""
REPEATED_REFERENCE = "dense (repeated)"
"""The name under which the reference is timed a second time: the difference is the measurement error."""
OPENVINO_RUNTIMES = ("openvino", "openvino-throughput")
"""OpenVINO's two modes: one call uses all threads; parallel streams share them."""
CASE_KEYS = ("sha256", "runtime", "precision", "batch", "threads", "agreement")
ARM = ("asimd", "asimddp", "i8mm", "bf16", "sve")
Row = dict[str, Any]
Predict = Callable[[Any], Any]
"""A function from pixels uint8 (batch, S, S, 3) to logits."""


def describe_machine() -> Row:
    """Return the processor, its relevant flags, the usable cores and memory, and the versions of packages."""
    text = read_system_file(PROC / "cpuinfo")
    lines = dict(line.split(":", 1) for line in reversed(text.splitlines()) if ":" in line)
    cpuinfo = {key.strip(): value.strip() for key, value in lines.items()}
    flags = (cpuinfo.get("flags") or cpuinfo.get("Features") or "").split()
    versions = {"onnxruntime": onnxruntime.__version__, "numpy": numpy.__version__, "pillow": PIL.__version__}
    if openvino() is not None:
        versions["openvino"] = openvino().__version__.split("-")[0]
    return {
        "cpu": cpuinfo.get("model name") or cpuinfo.get("Model") or platform.processor() or platform.machine(),
        "flags": [flag for flag in X86 + ARM if flag in flags],
        "threads": cores(),
        "memory_gb": round(memory_bytes() / 1e9, 1),
        "gpu": "",
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "versions": versions,
    }


def cores(proc: pathlib.Path = PROC, cgroups: pathlib.Path = CGROUPS) -> int:
    """Return the number of cores this process may use: its affinity's, or fewer where a container has a CPU quota."""
    limits = [len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1]
    for folder in control_group_folders(proc, cgroups, "cpu"):
        quota_and_period = read_integers(folder / "cpu.max")
        if not quota_and_period:
            quota_and_period = read_integers(folder / "cpu.cfs_quota_us") + read_integers(folder / "cpu.cfs_period_us")
        if len(quota_and_period) == 2 and min(quota_and_period) > 0:
            limits.append(max(1, quota_and_period[0] // quota_and_period[1]))
    return min(limits)


def memory_bytes(proc: pathlib.Path = PROC, cgroups: pathlib.Path = CGROUPS) -> int:
    """Return the bytes of memory this process may use: the physical memory, or a container's smaller limit."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0]
    for folder in control_group_folders(proc, cgroups, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            limits += [size for size in read_integers(folder / name)[:1] if size > 0]
    return min(limits)


def control_group_folders(proc: pathlib.Path, cgroups: pathlib.Path, controller: str) -> Iterator[pathlib.Path]:
    """Yield the folders of this process's control group and of its parents, as winnow/hardware.py does."""
    for line in read_system_file(proc / "self" / "cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":
            mounts = [cgroups, cgroups / "unified"]
        elif controller in controllers.split(","):
            mounts = [cgroups / name for name in dict.fromkeys((controllers, controller))]
        else:
            continue
        parts = [part for part in path.split("/") if part]
        if ".." in parts:  # the group is outside this process's namespace
            parts = []
        for mount in mounts:
            yield from (mount.joinpath(*parts[:depth]) for depth in range(len(parts), -1, -1))


def read_integers(path: pathlib.Path) -> list[int]:
    """Return the integers of a control file; [] where it is missing, unreadable or unlimited (`max`)."""
    words = read_system_file(path).split()
    return [int(word) for word in words] if all(word.lstrip("-").isdecimal() for word in words) else []


def read_system_file(path: pathlib.Path) -> str:
    """Return the text of a system file; "" where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def openvino() -> Any:
    """Return the package openvino, or None."""
    try:
        import openvino as package
    except ImportError:
        return None
    return package


@functools.cache
def openvino_core() -> Any:
    """Return one Core for the lifetime of the process: see winnow/deploy/openvino_inference.py."""
    return openvino().Core()


def open_model(path: pathlib.Path, side: int, case: Row) -> Predict:
    """Open the model in the runtime of the benchmark case."""
    if case["runtime"] in OPENVINO_RUNTIMES:
        return open_openvino(path, side, case)
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, case["threads"]
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda pixels: session.run(["logits"], {"pixels": pixels})[0]


def open_openvino(path: pathlib.Path, side: int, case: Row) -> Predict:
    """Open the model in OpenVINO: for latency with the whole batch, for throughput with parallel streams."""
    streams = math.gcd(case["batch"], case["threads"]) if case["runtime"] == "openvino-throughput" else 1
    stream_batch = case["batch"] // streams
    core = openvino_core()
    model = core.read_model(str(path))
    model.reshape([stream_batch, side, side, 3])
    settings = {"PERFORMANCE_HINT": "THROUGHPUT", "NUM_STREAMS": streams} if streams > 1 else {}
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": case["threads"], **settings}
    settings["INFERENCE_PRECISION_HINT"] = "bf16" if case["precision"].endswith("bf16") else "f32"
    compiled = core.compile_model(model, "CPU", settings)
    requests = [compiled.create_infer_request() for _ in range(streams)]
    inputs = [request.get_input_tensor(0).data for request in requests]

    def predict(pixels: Any) -> Any:
        inputs[0][...] = pixels
        requests[0].infer(share_outputs=True)
        return requests[0].get_output_tensor(0).data.copy()

    def predict_in_streams(pixels: Any) -> Any:
        for request, stream_input, share in zip(requests, inputs, numpy.split(pixels, streams), strict=True):
            stream_input[...] = share
            request.start_async()
        for request in requests:
            request.wait()
        return numpy.concatenate([request.get_output_tensor(0).data for request in requests])

    return predict if streams == 1 else predict_in_streams


def list_cases(models: list[Row], large_batch: int, hardware: Row) -> Iterator[tuple[Row, Row]]:
    """Yield (model, case) for everything to time."""
    has_bf16 = openvino() is not None and {"avx512_bf16", "amx_bf16"} & set(hardware["flags"])
    for batch in (large_batch, 1):
        for threads in sorted({hardware["threads"], 1}, reverse=True):
            for model in models:
                precision = model["precision"]
                modes = OPENVINO_RUNTIMES[: 2 if math.gcd(batch, threads) > 1 else 1] if openvino() is not None else ()
                variants = [("ort", precision), *((mode, precision) for mode in modes)]
                in_bf16 = "bf16" if precision == "f32" else "int8-bf16"
                variants += [(mode, in_bf16) for mode in modes] if has_bf16 else []
                for runtime, variant in variants:
                    case = {"candidate": model["name"], "sha256": model["sha256"], "runtime": runtime}
                    yield model, {**case, "precision": variant, "batch": batch, "threads": threads}


def agreement(predict: Predict, batch: int, pixels: Any, expected: Any) -> float:
    """Return the share of the check images with the expected class, the one predicted at the export."""
    count = len(pixels)
    batches = [numpy.ascontiguousarray(pixels[numpy.arange(i, i + batch) % count]) for i in range(0, count, batch)]
    predictions = numpy.concatenate([predict(pixels_NHWC).argmax(1) for pixels_NHWC in batches])[:count]
    return float((predictions == expected).mean())


def open_cases(manifest: Row, pixels: Any, hardware: Row) -> tuple[list[tuple[Row, Predict]], list[Row]]:
    """Return the cases with correct outputs and their functions, and the refused cases with the reason."""
    ready: list[tuple[Row, Predict]] = []
    refused: list[Row] = []
    for model, case in list_cases(manifest["models"], manifest["large_batch"], hardware):
        path = HERE / model["file"]
        if hashlib.sha256(path.read_bytes()).hexdigest() != model["sha256"]:
            sys.exit(f"{path} is not the file that was exported; export again")
        try:
            predict = open_model(path, manifest["image_size"], case)
            share = agreement(predict, case["batch"], pixels, numpy.array(model["answers"]))
        except Exception as error:  # noqa: BLE001  # host.json reports whatever a runtime raises
            refused.append({**case, "reason": " ".join(str(error).split())[:300]})
            continue
        if share < manifest["needed_agreement"][case["precision"]]:
            refused.append({**case, "reason": f"predictions agree on {share:.1%} of {len(pixels)} images"})
        else:
            ready.append(({**case, "agreement": share}, predict))
    return ready, refused


def wait_until_idle() -> None:
    """Wait until no thread of this process computes: those of ONNX Runtime spin for a while after a call."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        wall_start, cpu_start = time.perf_counter(), time.process_time()
        time.sleep(SLICE_SECONDS)
        if time.process_time() - cpu_start < IDLE_SHARE * (time.perf_counter() - wall_start):
            return


def time_calls(predict: Predict, batch_NHWC: Any, calls: int, warm_up_ms: float, timed_ms: float) -> list[float]:
    """Return the seconds of each call, on an idle process after `warm_up_ms` of untimed calls.

    At least `calls` calls are timed, and more until `timed_ms` have passed.
    """
    wait_until_idle()
    deadline, untimed = time.perf_counter() + warm_up_ms / 1e3, 0
    while untimed == 0 or time.perf_counter() < deadline:
        predict(batch_NHWC)
        untimed += 1
    seconds: list[float] = []
    timed_end = time.perf_counter() + timed_ms / 1e3
    while len(seconds) < calls or time.perf_counter() < timed_end:
        start = time.perf_counter()
        predict(batch_NHWC)
        seconds.append(time.perf_counter() - start)
    return seconds


def time_cases(ready: list[tuple[Row, Predict]], manifest: Row, pixels: Any, rounds: int) -> list[Row]:
    """Time each case once per round. The order rotates and reverses, so that no case always follows the same one."""
    seconds_by_case: list[list[list[float]]] = [[] for _ in ready]
    start = time.monotonic()
    for number in range(rounds):
        step = -1 if number % 2 else 1
        for index in [(number + step * position) % len(ready) for position in range(len(ready))]:
            case, predict = ready[index]
            batch_NHWC = numpy.ascontiguousarray(pixels[numpy.arange(case["batch"]) % len(pixels)])
            calls = -(-manifest["samples"] // manifest["rounds"]) if case["batch"] == 1 else CALLS_LARGE
            durations = manifest["warm_up_ms"], manifest.get("timed_ms", 0.0)
            seconds_by_case[index].append(time_calls(predict, batch_NHWC, calls, *durations))
        remaining = (time.monotonic() - start) / (number + 1) * (rounds - number - 1)
        print(f"round {number + 1} of {rounds}, about {remaining:.0f} s left", flush=True)  # noqa: T201
    return [summarize(case, seconds_by_case[index]) for index, (case, _) in enumerate(ready)]


def shortlist(rows: list[Row]) -> list[int]:
    """Return the indices of each model's fastest row per batch, and of all models in the reference's fastest cases."""
    fastest: dict[tuple[str, int], int] = {}
    for index, row in enumerate(rows):
        key = (row["candidate"], row["batch"])
        if key not in fastest or row["p50_ms"] < rows[fastest[key]]["p50_ms"]:
            fastest[key] = index
    reference_cases = [
        {key: rows[index][key] for key in ("runtime", "batch", "threads", "precision")}
        for (name, _), index in fastest.items()
        if name == REFERENCE
    ]
    comparable = {
        index for index, row in enumerate(rows) if any(case.items() <= row.items() for case in reference_cases)
    }
    return sorted({*fastest.values(), *comparable})


def repeat_reference(rows: list[Row], manifest: Row) -> list[tuple[Row, Predict]]:
    """Return the reference's fastest case of each batch, opened again under another name."""
    slowest_first = sorted(rows, key=lambda row: row["p50_ms"], reverse=True)
    fastest = {row["batch"]: row for row in slowest_first if row["candidate"] == REFERENCE}
    path = next((HERE / model["file"] for model in manifest["models"] if model["name"] == REFERENCE), HERE)
    cases = [{**{key: row[key] for key in CASE_KEYS}, "candidate": REPEATED_REFERENCE} for row in fastest.values()]
    repeated = []
    for case in cases:
        try:
            repeated.append((case, open_model(path, manifest["image_size"], case)))
        except Exception as error:  # noqa: BLE001  # then there is no measurement error, but all other figures
            sys.stderr.write(f"{REPEATED_REFERENCE} in {case['runtime']} could not be opened: {error}\n")
    return repeated


def screen_and_time(ready: list[tuple[Row, Predict]], manifest: Row, pixels: Any) -> list[Row]:
    """Screen all cases, then time the shortlisted ones again in full, and the reference twice; mark the others as
    screened.
    """
    screened = time_cases(ready, manifest, pixels, SCREENING_ROUNDS)
    selected = shortlist(screened)
    if not selected:
        return []
    repeated = repeat_reference(screened, manifest)
    final = time_cases([*(ready[index] for index in selected), *repeated], manifest, pixels, manifest["rounds"])
    rows = [{**row, "screened": True} for row in screened]
    for index, row in zip(selected, final[: len(selected)], strict=True):
        rows[index] = row
    return rows + final[len(selected) :]


def summarize(case: Row, seconds_by_round: list[list[float]]) -> Row:
    """Return ms per call, images per second, and the spread of the rounds. All rounds count with as many calls."""
    calls = min(len(seconds) for seconds in seconds_by_round)
    calls_ms = numpy.concatenate([numpy.array(seconds[:calls]) for seconds in seconds_by_round]) * 1e3
    medians = [float(numpy.median(seconds)) * 1e3 for seconds in seconds_by_round]
    p50 = float(numpy.median(calls_ms))
    return {
        **case,
        "p50_ms": p50,
        "p95_ms": float(numpy.percentile(calls_ms, 95)) if len(calls_ms) >= 200 else None,
        "images_per_s": case["batch"] / p50 * 1e3,
        "samples": len(calls_ms),
        "round_ms": medians,
        "spread": (max(medians) - min(medians)) / p50,
    }


def main() -> None:
    """Time all cases and write host.json into the current folder."""
    manifest = json.loads((HERE / "check" / "manifest.json").read_text(encoding="utf-8"))
    pixels = numpy.load(HERE / "check" / "pixels.npy", allow_pickle=False)
    hardware = describe_machine()
    ready, refused = open_cases(manifest, pixels, hardware)
    rows = screen_and_time(ready, manifest, pixels)
    large_batch = manifest["large_batch"]
    document = {"format": 2, "machine": hardware, "large_batch": large_batch, "rows": rows, "refused": refused}
    out = pathlib.Path("host.json").resolve()
    out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    has_reference = any(model["name"] == REFERENCE for model in manifest["models"])
    hint = "copy this file back" if has_reference else "gates need all candidates (winnow export DIR --candidates)"
    print(f"{len(rows)} cases timed, {len(refused)} refused; {hint}: {out}")  # noqa: T201


if __name__ == "__main__":
    main()
