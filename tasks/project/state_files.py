"""The JSON state files in .winnow: one list of them, one format, one way to read and write.

    TRACKED_RUNS.read(paths)            {} where the file is missing, damaged or of another version
    TRACKED_RUNS.write(paths, runs)     atomic
    STEP_TIMES.read(paths, "pretrain")  one file for each key

A file is {"format": 1, "content": ...}; files of earlier versions hold the content alone and are still read. Content
is checked against its type, so that damaged content never reaches the code that uses it. Most files are caches. One
that cannot be recomputed has a `remedy`: damaged, it raises ArtifactError.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from tasks.project.paths import ProjectPaths
from winnow.errors import ArtifactError
from winnow.records import write_json

log = logging.getLogger(__name__)

FORMAT = 1
Content = TypeVar("Content")


@dataclass(frozen=True)
class StateFile(Generic[Content]):
    """A state file: its name below .winnow, where {} stands for a key, the type of its content, and its default."""

    name: str
    kind: Any
    default: Content
    remedy: str = ""
    """Says what to do where the file is damaged and cannot be recomputed; empty for a cache."""

    def path(self, paths: ProjectPaths, key: str = "") -> Path:
        """Return the path of the file."""
        return paths.state_dir / self.name.format(key)

    def read(self, paths: ProjectPaths, key: str = "") -> Content:
        """Return the content, or the default where the file is missing.

        A damaged cache is logged and counts as missing; another damaged file raises ArtifactError with the remedy.
        """
        return self.read_at(self.path(paths, key))

    def read_at(self, path: Path) -> Content:
        """Return the content of the file at `path`, as `read`."""
        try:
            return self._parse(path)
        except ArtifactError as error:
            if self.remedy:
                raise ArtifactError(f"{error}; {self.remedy}") from error
            log.warning("%s; it is ignored and will be written again", error)
            return self.default

    def write(self, paths: ProjectPaths, content: Content, key: str = "") -> None:
        """Replace the content; the file is never half-written."""
        self.write_at(self.path(paths, key), content)

    def write_at(self, path: Path, content: Content) -> None:
        """Replace the content of the file at `path`."""
        path.parent.mkdir(parents=True, exist_ok=True)
        plain = TypeAdapter(self.kind).dump_python(content, mode="json")
        write_json(path, {"format": FORMAT, "content": plain})

    def delete(self, paths: ProjectPaths, key: str = "") -> None:
        """Delete the file, if it exists."""
        self.path(paths, key).unlink(missing_ok=True)

    def _parse(self, path: Path) -> Content:
        try:
            text = path.read_bytes()
        except FileNotFoundError:
            return self.default
        except OSError as error:
            raise ArtifactError(f"{path} cannot be read ({error.strerror})") from error
        try:
            version = _Envelope.validate_json(text, strict=True)
        except ValidationError:
            version = None
        try:
            if version is None:  # written by an earlier version
                content: Content = TypeAdapter(self.kind).validate_json(text, strict=True)
                return content
            if version["format"] != FORMAT:
                raise ArtifactError(f"{path} was written by another version of winnow (format {version['format']})")
            enveloped: Content = TypeAdapter(_envelope_of(self.kind)).validate_json(text, strict=True)["content"]
            return enveloped
        except ValidationError as error:
            problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
            location = ".".join(str(part) for part in problem["loc"]) or "the top"
            raise ArtifactError(f"{path} is damaged (at {location}: {problem['msg']})") from error


class _Version(TypedDict):
    format: int
    content: Any


_Envelope = TypeAdapter(_Version)


def _envelope_of(kind: Any) -> Any:
    """Return the type of a file whose content has this type."""
    return TypedDict("Envelope", {"format": int, "content": kind})  # type: ignore[operator]


class StepTimes(TypedDict):
    """The measurements that `python -m tasks` writes for each step."""

    step: float
    """Seconds of the step itself."""
    process: float
    """Seconds since the start of its process."""
    memory_mb: float
    disk_mb: float


class PlannedStep(TypedDict):
    """The forecast of one step."""

    seconds: float
    memory_mb: float
    disk_mb: float


class SavedForecast(TypedDict):
    """The rough forecast that a run makes when it starts."""

    params: str
    """Digest of params.yaml."""
    seconds: dict[str, float]
    """Step or candidate -> seconds."""


class SavedPlan(TypedDict):
    """The last plan, as far as a run is compared with it."""

    params: str
    """Digest of params.yaml."""
    total_seconds: float
    disk_gb: float
    steps: dict[str, PlannedStep]


class PromotionState(TypedDict):
    """The outcome of the last promotion in this checkout."""

    address: str
    model: str
    select: str
    """Digest of the selection and the refit."""
    sha256: str | None
    """Digest of the winner's file; None without a winner."""
    reasons: list[str]
    waits_until: str
    """The end of the time to approve the winner; empty where it does not wait."""


class KnownVersion(TypedDict):
    """A version of a registered model."""

    number: str
    sha256: str
    candidate: str
    tags: dict[str, str]


class SearchRunState(TypedDict):
    """The run of a search in MLflow, and the trials that it has."""

    run: str
    trials: list[int]


@dataclass(frozen=True)
class AnnouncedServers:
    """The addresses of the servers that `winnow ui` or `winnow up` runs; "" for a team's server, named by the shell."""

    mlflow: str
    """The URL of MLflow's pages."""
    prefect_api: str
    owner: str
    """The process that runs them (tasks.project.run_origin.process_identity)."""


Fingerprint = list[int]
"""Size, modification time in ns, and inode of a file."""


def file_fingerprint(path: Path) -> Fingerprint | None:
    """Return the fingerprint of a file; None where there is none, or a folder."""
    try:
        status = path.stat()
    except OSError:
        return None
    return None if path.is_dir() else [status.st_size, status.st_mtime_ns, status.st_ino]


class KnownVersions(TypedDict):
    """Versions that were looked up in the project's own MLflow store."""

    store: list[Fingerprint]
    """The files of the store at that time."""
    versions: dict[str, KnownVersion]
    """MODEL/ALIAS or MODEL/NUMBER -> version."""


SERVERS: StateFile[AnnouncedServers | None] = StateFile("servers.json", AnnouncedServers | None, None)
STEP_TIMES: StateFile[StepTimes | None] = StateFile("times/{}.json", StepTimes | None, None)
STEP_VERSIONS: StateFile[dict[str, str]] = StateFile("versions/{}.json", dict[str, str], {})
"""Step -> the versions of the libraries that it ran with."""
PLAN: StateFile[SavedPlan | None] = StateFile("plan.json", SavedPlan | None, None)
ROUGH_FORECAST: StateFile[SavedForecast | None] = StateFile("rough-forecast.json", SavedForecast | None, None)
VERIFIED: StateFile[dict[str, Fingerprint]] = StateFile("verified.json", dict[str, Fingerprint], {})
"""MD5 -> fingerprint of the objects in DVC's cache that were read and found right."""
PROMOTED: StateFile[PromotionState | None] = StateFile("promoted.json", PromotionState | None, None)
TRACKED_RUNS: StateFile[dict[str, dict[str, str]]] = StateFile("tracked.json", dict[str, dict[str, str]], {})
"""Address of MLflow -> digest -> run id."""
KNOWN_VERSIONS: StateFile[KnownVersions] = StateFile(
    "known-versions.json", KnownVersions, {"store": [], "versions": {}}
)
DEPLOYED: StateFile[dict[str, list[str]]] = StateFile("deployed.json", dict[str, list[str]], {})
"""Checkout and Prefect server -> names under which its flows are deployed there."""
PREFECT_RUN: StateFile[str | None] = StateFile("prefect-run.json", str | None, None)
"""The id of the flow run that works in this project."""
SEARCH_RUN: StateFile[SearchRunState | None] = StateFile("search/{}/mlflow.json", SearchRunState | None, None)
CHECKED_LABELS: StateFile[dict[str, dict[str, str]]] = StateFile("label-check.json", dict[str, dict[str, str]], {})
"""CSV file of `winnow label check` -> image -> the label that was written there."""
CONFIRMATIONS: StateFile[list[int]] = StateFile(
    "search/{}/confirmations.json",
    list[int],
    [],
    "the number of evaluations on the confirming half is lost; start a new search with another --name",
)
"""Trials of a search that were evaluated on the confirming half."""
