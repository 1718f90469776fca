"""Between this machine and the one that will serve: what is taken there to be timed, and figures that come back."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from tasks.project.paths import ProjectPaths
from winnow.benchmark.target_measurements import TargetMeasurements, read_host, read_target, speeds_on
from winnow.config import ROOT, Config, in_order
from winnow.data.dataset import load_images
from winnow.deploy.bundle import HostCheck
from winnow.deploy.onnx_session import MODEL
from winnow.errors import DataError
from winnow.hardware import cpu_flags
from winnow.records import RECORD, read_record, sha256_of, write_json

TARGET = "data/target.json"
"""Where figures of the machine that will serve lie, once they are taken in."""


def host_check(places: ProjectPaths, config: Config, with_candidates: bool) -> HostCheck:
    """What is exported beside a model; with every candidate of the last run, so that gates can go by their times.

    Only with candidates do validation images go along: who takes a model away does not give pictures away.
    """
    if not with_candidates:
        return HostCheck(config.benchmark, None)
    data = places.artifacts / "data"
    images = load_images(data) if (data / RECORD).is_file() else None
    found = []
    for name in (ROOT, *in_order(dict(config.candidates))):
        folder = places.artifacts / "candidates" / name
        found.append((name, folder / MODEL, str(read_record(folder).details["precision"])))
    return HostCheck(config.benchmark, images, tuple(found))


def import_target(places: ProjectPaths, config: Config, file: Path) -> tuple[TargetMeasurements, dict[str, str]]:
    """Keep what check_host.py wrote as data/target.json -> it, and why present candidates were not timed there.

    Raises DataError where it is something else, or of none of the present candidates.
    """
    host = read_host(file)
    digests = {
        name: sha256_of(places.artifacts / "candidates" / name / MODEL)
        for name in (ROOT, *in_order(dict(config.candidates)))
        if (places.artifacts / "candidates" / name / MODEL).is_file()
    }
    if not digests:
        raise DataError("there is no candidate to compare the figures with; winnow run makes them")
    best = speeds_on(host, digests, config.benchmark.large_batch)["best"]
    missing = {name: _why(host, digests[name]) for name, rows in best.items() if rows["latency"] is None}
    if ROOT in missing:
        raise DataError(
            f"{file} has no times of the present {ROOT} ({missing[ROOT]}), which all others are compared with; "
            "`winnow export DIR --candidates`, and run check_host.py there again"
        )
    write_json(places.root / TARGET, host.model_dump(mode="json"))
    return host, missing


def serving_flags(places: ProjectPaths, config: Config) -> Collection[str]:
    """Of the machine that serves: benchmark.target, or this one."""
    host = target_of(places, config)
    return host.machine.flags if host else cpu_flags()


def is_silent(host: TargetMeasurements) -> bool:
    """Whether that machine's system does not tell what its processor can do."""
    return not host.machine.flags


def _why(host: TargetMeasurements, digest: str) -> str:
    """Why a file has no times: refused there, or never there."""
    reasons = {cell.reason for cell in host.refused if cell.sha256 == digest}
    return "; ".join(sorted(reasons)) or "it was not there"


def target_of(places: ProjectPaths, config: Config) -> TargetMeasurements | None:
    """The machine whose figures gates go by; None: this one."""
    return read_target(config, places.root)
