"""The benchmark target, the machine that will serve: export models for check_host.py, import its measurements."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from tasks.project.paths import ProjectPaths
from winnow.benchmark.target_measurements import TargetMeasurements, read_measurements, read_target, speeds_on_target
from winnow.config import ROOT, Config, topological_order
from winnow.data.dataset import load_images
from winnow.deploy.bundle import HostCheck
from winnow.deploy.onnx_session import MODEL
from winnow.errors import DataError
from winnow.hardware import cpu_flags
from winnow.records import RECORD, CandidateRecord, sha256_of, write_json

TARGET_FILE = "data/target.json"
"""The file of imported measurements, relative to the project's root."""


def build_host_check(paths: ProjectPaths, config: Config, with_candidates: bool) -> HostCheck:
    """Return what to export beside a model: with candidates, every candidate of the last run, so that it can be timed.

    Validation images are exported only with candidates, so that an exported model does not disclose images.
    """
    if not with_candidates:
        return HostCheck(config.benchmark, None)
    data = paths.artifacts / "data"
    validation_images = load_images(data) if (data / RECORD).is_file() else None
    candidates = []
    for name in (ROOT, *topological_order(dict(config.candidates))):
        folder = paths.artifacts / "candidates" / name
        candidates.append((name, folder / MODEL, CandidateRecord.read(folder).details.precision))
    return HostCheck(config.benchmark, validation_images, tuple(candidates))


def import_target(paths: ProjectPaths, config: Config, file: Path) -> tuple[TargetMeasurements, dict[str, str]]:
    """Copy the measurements of check_host.py to data/target.json.

    Returns them, and candidate -> reason for each candidate without a time. Raises DataError where the file holds no
    measurements, or none of the present dense model.
    """
    measurements = read_measurements(file)
    digests = {
        name: sha256_of(paths.artifacts / "candidates" / name / MODEL)
        for name in (ROOT, *topological_order(dict(config.candidates)))
        if (paths.artifacts / "candidates" / name / MODEL).is_file()
    }
    if not digests:
        raise DataError("there are no candidates to compare the measurements with; run winnow first")
    fastest = speeds_on_target(measurements, digests, config.benchmark.large_batch).best
    missing = {name: _why(measurements, digests[name]) for name, rows in fastest.items() if rows.latency is None}
    if ROOT in missing:
        raise DataError(
            f"{file} has no times of the present {ROOT} model ({missing[ROOT]}), the baseline of all others; "
            "run `winnow export DIR --candidates`, and check_host.py on the target again"
        )
    write_json(paths.root / TARGET_FILE, measurements.model_dump(mode="json"))
    return measurements, missing


def serving_flags(paths: ProjectPaths, config: Config) -> Collection[str]:
    """Return the CPU flags of the machine that serves: benchmark.target, or this machine."""
    measurements = read_target(config, paths.root)
    return measurements.machine.flags if measurements else cpu_flags()


def _why(measurements: TargetMeasurements, digest: str) -> str:
    """Return why a file has no times: its failures on the target, or that it was not measured there."""
    reasons = {refusal.reason for refusal in measurements.refused if refusal.sha256 == digest}
    return "; ".join(sorted(reasons)) or "it was not measured there"
