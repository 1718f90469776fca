"""Figures of the machine that will serve, where that is another one: what goes there, and what comes back.

    write_check(out, models, pixels_NHWC, settings)      check_host.py and what it times, into an exported folder
    host = read_host(Path("data/host.json"))              what it wrote over there

winnow/check_host.py is copied as it is and imports nothing of winnow. A file is told by its sha256, so figures of a
candidate that has been made anew since count for nothing.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from winnow.benchmarking import NEEDED_AGREEMENT
from winnow.config import ROOT, Benchmark
from winnow.errors import ArtifactError, DataError
from winnow.inference import predict_file
from winnow.records import Machine, sha256_of, write_json
from winnow.runtimes import Precision, Runtime
from winnow.speedups import Row, best, fastest

SCRIPT, CHECK = "check_host.py", "check"
CHECKED_IMAGES = 64


class HostRow(BaseModel):
    """One cell that was timed there."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    candidate: str
    sha256: str
    runtime: Runtime
    precision: Precision
    batch: int
    threads: int
    agreement: float
    p50_ms: float
    p95_ms: float | None
    images_per_s: float
    samples: int
    spread: float


class Host(BaseModel):
    """What check_host.py wrote."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int
    machine: Machine
    large_batch: int
    rows: tuple[HostRow, ...]
    refused: tuple[dict[str, Any], ...]

    def rows_of(self, digests: Mapping[str, str]) -> list[Row]:
        """Rows of those files alone, under their present names; `digests`: candidate -> sha256."""
        names: dict[str, list[str]] = {}
        for name, digest in digests.items():
            names.setdefault(digest, []).append(name)
        return [
            {**row.model_dump(exclude={"sha256", "agreement"}), "candidate": name, "layout": "file"}
            for row in self.rows
            for name in names.get(row.sha256, [])
        ]


def read_host(path: Path) -> Host:
    """Raises DataError when it is not what check_host.py writes."""
    try:
        return Host.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror})") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the top"
        raise DataError(f"{path} is not what check_host.py writes (at {where}: {first['msg']})") from error
    except (ValueError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not what check_host.py writes ({error})") from error


def speeds_on(host: Host, digests: Mapping[str, str], large: int) -> dict[str, Any]:
    """{best, candidates}, as the benchmark's details have them, from that machine's rows alone.

    A candidate that was not timed there has None and {}. Raises ArtifactError where dense was not, or other batches
    were.
    """
    if host.large_batch != large:
        raise ArtifactError(
            f"the figures of {host.machine.cpu} are of batches of {host.large_batch}, benchmark.large_batch is "
            f"{large}; export again and run check_host.py there"
        )
    rows = host.rows_of(digests)
    bests = {name: {"latency": best(rows, name, 1), "throughput": best(rows, name, large)} for name in digests}
    figures = {name: _figures(rows, bests[name], large) for name in digests}
    return {"best": bests, "candidates": figures}


def _figures(rows: list[Row], own: Mapping[str, Row | None], large: int) -> dict[str, float]:
    found: dict[str, float] = {}
    for what, batch, key in (("latency", 1, "p50_ms"), ("throughput", large, "images_per_s")):
        row, base = own[what], _dense(rows, batch)
        if row is None:
            continue
        found["best/latency_ms" if what == "latency" else "best/throughput_ips"] = row[key]
        found[f"speedup/float_b{batch}"] = base["p50_ms"] / row["p50_ms"]
    return found


def _dense(rows: list[Row], batch: int) -> Row:
    """dense as the best float there."""
    row = fastest(rows, lambda row: (row["candidate"], row["batch"]) == (ROOT, batch) and row["precision"] != "int8")
    if row is None:
        raise ArtifactError(
            f"the present {ROOT} was not timed on that machine: `winnow export DIR --candidates`, run check_host.py "
            "there, and `winnow check-host` what it writes"
        )
    return row


def write_check(
    out: Path, models: Sequence[tuple[str, Path, str]], pixels_NHWC: NDArray[np.uint8], settings: Benchmark
) -> None:
    """Leave check_host.py and check/ in `out`. `models`: (name, its file, int8 or f32); those in `out` stay there.

    `pixels_NHWC` are the images on which a model must answer there as it does here.
    """
    folder = out / CHECK
    folder.mkdir()
    shutil.copyfile(Path(__file__).with_name(SCRIPT), out / SCRIPT)
    np.save(folder / "pixels.npy", pixels_NHWC)
    described = []
    for name, path, precision in models:
        if path.parent != out:
            path = Path(shutil.copyfile(path, folder / f"{name}.onnx"))
        answers = predict_file(path, pixels_NHWC, np.arange(len(pixels_NHWC))).argmax(1).tolist()
        file = path.relative_to(out).as_posix()
        row = {"name": name, "file": file, "sha256": sha256_of(path), "precision": precision, "answers": answers}
        described.append(row)
    manifest = {
        "image_size": pixels_NHWC.shape[1],
        **{key: getattr(settings, key) for key in ("large_batch", "samples", "rounds")},
        "needed_agreement": dict(NEEDED_AGREEMENT),
        "models": described,
    }
    write_json(folder / "manifest.json", manifest)
