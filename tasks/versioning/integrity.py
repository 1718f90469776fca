"""Whether what DVC keeps is still what dvc.lock says. DVC trusts every read-only object of its cache without a look.

Artifacts and cache share their files by hard links where the file system has no reflinks. So bytes that are changed in
place (by an account that may do everything, by a disk) change both, and DVC would put the damaged object back, share
it and call it up to date. Here an object's content is compared with its name, which is its MD5: fully where its
size, time or inode differ from those of the last look, else by these alone.
"""

from __future__ import annotations

import configparser
import contextlib
import hashlib
import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml
from pydantic import BaseModel

from tasks.project.paths import ProjectPaths
from tasks.project.state_files import read_memory
from winnow.errors import ArtifactError
from winnow.records import write_json

DIRECTORY = ".dir"
"""How the names of objects end that list the files of a folder."""

Seen = list[int]
"""size, mtime_ns, inode of an object whose content was right."""


class Out(BaseModel):
    """An output in dvc.lock; without an MD5 where DVC does not keep it."""

    path: str
    md5: str = ""


class Locked(BaseModel):
    """A stage in dvc.lock."""

    outs: list[Out] = []


class Lock(BaseModel):
    """What is read of dvc.lock."""

    stages: dict[str, Locked] = {}


@dataclass(frozen=True)
class Entry:
    """A file of a stage's output, and the object of the cache that holds its content."""

    stage: str
    path: Path
    content: Path

    @property
    def md5(self) -> str:
        """What its content has to hash to."""
        return f"{self.content.parent.name}{self.content.name}".removesuffix(DIRECTORY)


def damaged(places: ProjectPaths, full: bool = False) -> list[Entry]:
    """Return what dvc.lock names and whose object in the cache has another content. Missing objects are DVC's matter.

    `full`: read every object, also those that look as they did at the last look.
    """
    seen = {} if full else _seen(places)
    known: dict[str, Seen] = {}
    found = []
    for entry in _entries(places):
        look = _look(entry.content)
        if look is None:
            continue
        if seen.get(entry.md5) == look or _md5(entry.content) == entry.md5:
            known[entry.md5] = look
        else:
            found.append(entry)
    if known != seen:
        _keep(places, known)
    return found


def accept(places: ProjectPaths, stage: str) -> None:
    """Take the objects of a stage that has just run for right: DVC has hashed them a moment ago."""
    fresh = {entry.md5: _look(entry.content) for entry in _entries(places) if entry.stage == stage}
    _keep(places, _seen(places) | {md5: look for md5, look in fresh.items() if look is not None})


def repair(places: ProjectPaths, found: Collection[Entry]) -> None:
    """Remove damaged objects and the files that share them, so that their stages run again.

    A file of its own, with the right content, stays: DVC takes it back into the cache.
    """
    for entry in found:
        look = _look(entry.path)
        if look is not None and _md5(entry.path) != entry.md5:
            entry.path.unlink()
        entry.content.unlink(missing_ok=True)


def check(places: ProjectPaths) -> None:
    """Raise ArtifactError where something is damaged that a step might read."""
    if found := damaged(places):
        raise ArtifactError(
            f"{told(places, found)}: changed in place since the step that made it; `winnow run` makes it again"
        )


def told(places: ProjectPaths, found: Collection[Entry]) -> str:
    """Return the damaged files by name, for a sentence."""
    names = [str(entry.path.relative_to(places.root)) for entry in found]
    more = f" and {len(names) - 3} more files" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more} {'is' if len(names) == 1 else 'are'} damaged"


def _entries(places: ProjectPaths) -> Iterator[Entry]:
    """All files of all outputs that dvc.lock names and the cache can list."""
    try:
        text = (places.root / "dvc.lock").read_text(encoding="utf-8")
        lock = Lock.model_validate(yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)) or {})
    except (OSError, ValueError, yaml.YAMLError):  # absent, or DVC says what is wrong with it
        return
    cache = _cache(places) / "files" / "md5"
    for stage, locked in lock.stages.items():
        for out in locked.outs:
            if not out.md5:
                continue
            listing, at = _object(cache, out.md5), places.root / out.path
            yield Entry(stage, at, listing)
            for row in _listed(listing) if out.md5.endswith(DIRECTORY) else ():
                yield Entry(stage, at / row["relpath"], _object(cache, row["md5"]))


def _listed(listing: Path) -> list[dict[str, str]]:
    """Return the files of a folder; none where the listing is missing or damaged itself."""
    try:
        rows: list[dict[str, str]] = json.loads(listing.read_text(encoding="utf-8"))
        return [{"relpath": row["relpath"], "md5": row["md5"]} for row in rows]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []


def _object(cache: Path, md5: str) -> Path:
    return cache / md5[:2] / md5[2:]


def _cache(places: ProjectPaths) -> Path:
    """Return the folder of DVC's cache: .dvc/cache, or what cache.dir of its settings names."""
    settings = configparser.ConfigParser(interpolation=None)
    try:
        settings.read([places.root / ".dvc" / name for name in ("config", "config.local")], encoding="utf-8")
    except configparser.Error:
        return places.root / ".dvc" / "cache"
    named = settings.get("cache", "dir", fallback="").strip("\"'")
    return (places.root / ".dvc" / named) if named else places.root / ".dvc" / "cache"


def _look(path: Path) -> Seen | None:
    try:
        about = path.stat()
    except OSError:
        return None
    return None if path.is_dir() else [about.st_size, about.st_mtime_ns, about.st_ino]


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _file_of(places: ProjectPaths) -> Path:
    return places.state_dir / "verified.json"


def _keep(places: ProjectPaths, known: dict[str, Seen]) -> None:
    """Write down what was right. Where that cannot be written, the next look reads everything again."""
    with contextlib.suppress(OSError):
        places.state_dir.mkdir(parents=True, exist_ok=True)
        write_json(_file_of(places), known)


def _seen(places: ProjectPaths) -> dict[str, Seen]:
    """Return what was right at the last look, by MD5; nothing where that is not known any more."""
    return read_memory(_file_of(places), dict[str, Seen], {})
