"""Integrity of DVC's cache: find and remove objects whose content differs from their MD5 in dvc.lock.

DVC trusts every read-only object of its cache. Artifacts and cache share files by hard links where the file system has
no reflinks, so a change in place (by root, by a failing disk) damages both: DVC would restore and push the damaged
object and call it up to date. Here the MD5 of each object is compared with its name. An object whose size, mtime and
inode are those of the last check is not read again.
"""

from __future__ import annotations

import configparser
import contextlib
import hashlib
import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from tasks.project.paths import ProjectPaths
from tasks.project.state_files import VERIFIED, Fingerprint, file_fingerprint
from winnow.errors import ArtifactError

DIRECTORY = ".dir"
"""The suffix of objects that list the files of a folder."""


class LockedOutput(BaseModel):
    """An output in dvc.lock; it has no MD5 where DVC does not cache it."""

    path: str
    md5: str = ""


class LockedStage(BaseModel):
    """A stage in dvc.lock."""

    outs: list[LockedOutput] = []


class LockFile(BaseModel):
    """The part of dvc.lock that is used here."""

    stages: dict[str, Any] = {}

    @property
    def valid_stages(self) -> dict[str, LockedStage]:
        """Return the stages; one whose outputs cannot be read has none."""
        return {name: _locked_stage(content) for name, content in self.stages.items()}


def _locked_stage(content: Any) -> LockedStage:
    try:
        return LockedStage.model_validate(content)
    except ValidationError:
        return LockedStage()


@dataclass(frozen=True)
class CachedFile:
    """A file of a stage's output, and the object in the cache with its content."""

    stage: str
    path: Path
    content: Path

    @property
    def md5(self) -> str:
        """The expected MD5 of the content."""
        return f"{self.content.parent.name}{self.content.name}".removesuffix(DIRECTORY)


def find_damaged(paths: ProjectPaths, full: bool = False) -> list[CachedFile]:
    """Return the entries of dvc.lock whose object in the cache has another content; missing objects are left to DVC.

    `full`: read every object, also those that have not changed since the last check.
    """
    verified = {} if full else VERIFIED.read(paths)
    still_verified: dict[str, Fingerprint] = {}
    damaged_entries = []
    for entry in _entries(paths):
        fingerprint = file_fingerprint(entry.content)
        if fingerprint is None:
            continue
        if verified.get(entry.md5) == fingerprint or md5_of(entry.content) == entry.md5:
            still_verified[entry.md5] = fingerprint
        else:
            damaged_entries.append(entry)
    if still_verified != verified:
        _save_verified(paths, still_verified)
    return damaged_entries


def mark_verified(paths: ProjectPaths, stage: str) -> None:
    """Record the objects of a stage that has just run as verified: DVC has just hashed them."""
    fingerprints = {entry.md5: file_fingerprint(entry.content) for entry in _entries(paths) if entry.stage == stage}
    _save_verified(
        paths,
        VERIFIED.read(paths)
        | {md5: fingerprint for md5, fingerprint in fingerprints.items() if fingerprint is not None},
    )


def remove_damaged(paths: ProjectPaths, entries: Collection[CachedFile]) -> None:
    """Delete damaged objects and the files that share them, so that their stages run again.

    A separate file with the right content stays: DVC adds it to the cache again.
    """
    for entry in entries:
        fingerprint = file_fingerprint(entry.path)
        if fingerprint is not None and md5_of(entry.path) != entry.md5:
            entry.path.unlink()
        entry.content.unlink(missing_ok=True)


def check(paths: ProjectPaths) -> None:
    """Raise ArtifactError where an output is damaged."""
    if entries := find_damaged(paths):
        raise ArtifactError(
            f"{describe_damaged(paths, entries)}: changed in place after it was created; `winnow run` creates it again"
        )


def describe_damaged(paths: ProjectPaths, entries: Collection[CachedFile]) -> str:
    """Return "NAMES is/are damaged" for a message."""
    names = [str(entry.path.relative_to(paths.root)) for entry in entries]
    others = f" and {len(names) - 3} more files" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{others} {'is' if len(names) == 1 else 'are'} damaged"


def _entries(paths: ProjectPaths) -> Iterator[CachedFile]:
    """Yield all files of all outputs in dvc.lock, as far as the cache lists them."""
    cache = read_cache_settings(paths.root)[0] / "files" / "md5"
    for stage, locked in read_lock(paths.root).items():
        for out in locked.outs:
            if not out.md5:
                continue
            object_path, out_path = _object(cache, out.md5), paths.root / out.path
            yield CachedFile(stage, out_path, object_path)
            for row in _listed(object_path) if out.md5.endswith(DIRECTORY) else ():
                yield CachedFile(stage, out_path / row["relpath"], _object(cache, row["md5"]))


def read_lock(root: Path) -> dict[str, LockedStage]:
    """Return the stages in dvc.lock, which have run; {} where the file is missing, or invalid, which DVC reports."""
    try:
        text = (root / "dvc.lock").read_text(encoding="utf-8")
        return LockFile.model_validate(
            yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)) or {}
        ).valid_stages
    except (OSError, ValueError, yaml.YAMLError):
        return {}


def read_cache_settings(root: Path) -> tuple[Path, list[str]]:
    """Return the folder of DVC's cache, and the types of links by which DVC shares its files, the preferred first."""
    settings, folder = configparser.ConfigParser(interpolation=None), root / ".dvc"
    with contextlib.suppress(configparser.Error):  # DVC reports it
        settings.read([folder / "config", folder / "config.local"], encoding="utf-8")
    cache, kinds = (
        settings.get("cache", key, fallback=default).strip("\"'")
        for key, default in (("dir", "cache"), ("type", "reflink,copy"))
    )
    return folder / cache, [kind.strip() for kind in kinds.split(",")]


def _listed(listing: Path) -> list[dict[str, str]]:
    """Return the files in a folder's listing; [] where the listing is missing or damaged."""
    try:
        rows: list[dict[str, str]] = json.loads(listing.read_text(encoding="utf-8"))
        return [{"relpath": row["relpath"], "md5": row["md5"]} for row in rows]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []


def _object(cache: Path, md5: str) -> Path:
    return cache / md5[:2] / md5[2:]


def md5_of(path: Path) -> str:
    """Return the MD5 of a file, as DVC and S3 name a content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _save_verified(paths: ProjectPaths, verified: dict[str, Fingerprint]) -> None:
    """Write the verified objects to verified.json. Where that fails, the next check reads everything again."""
    with contextlib.suppress(OSError):
        VERIFIED.write(paths, verified)
