"""Between this machine and the one that will serve: what is taken there to be timed, and figures that come back."""

from __future__ import annotations

from pathlib import Path

from tasks.settings import Places
from winnow.config import ROOT, Config, in_order
from winnow.config.section import NOTHING
from winnow.data.images import load_images
from winnow.errors import DataError
from winnow.exporting import HostCheck
from winnow.hosts import Host, read_host, speeds_on
from winnow.model_file import MODEL
from winnow.records import RECORD, read_record, sha256_of, write_json

TARGET = "data/target.json"
"""Where figures of the machine that will serve lie, once they are taken in."""


def host_check(places: Places, config: Config, with_candidates: bool) -> HostCheck:
    """What is exported beside a model; with every candidate of the last run, so that gates can go by their times."""
    data = places.artifacts / "data"
    images = load_images(data) if (data / RECORD).is_file() else None
    if not with_candidates:
        return HostCheck(config.benchmark, images)
    found = []
    for name in (ROOT, *in_order(dict(config.candidates))):
        folder = places.artifacts / "candidates" / name
        found.append((name, folder / MODEL, str(read_record(folder).details["precision"])))
    return HostCheck(config.benchmark, images, tuple(found))


def take_in(places: Places, config: Config, file: Path) -> tuple[Host, list[str]]:
    """Keep what check_host.py wrote as data/target.json -> it, and the present candidates that it did not time.

    Raises DataError where it is something else, ArtifactError where it has not timed the present dense.
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
    write_json(places.root / TARGET, host.model_dump(mode="json"))
    return host, [name for name, rows in best.items() if rows["latency"] is None]


def target_of(places: Places, config: Config) -> Host | None:
    """The machine whose figures gates go by; None: this one."""
    path = config.benchmark.target
    return None if path == NOTHING else read_host(places.root / path)
