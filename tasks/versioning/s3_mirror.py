"""Mirror a prefix of an S3 bucket to a folder: parallel, resumable, incremental.

    s3://bucket/photos/cat/a.jpg   ->   photos/cat/a.jpg, for mirror("s3://bucket/photos", Path("photos"), ...)

An SQLite index holds the ETag and size of each fetched object: an object is fetched again when either has changed, or
when its file has. A download goes to a temporary name and is renamed when it is complete, so an interrupted download is
never used, and an interrupted run resumes. Files that were not fetched are neither overwritten nor removed, unless they
have the content of their object (its ETag is the MD5 where it was uploaded in one part): so a lost index is made again.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tasks.project.paths import ProjectPaths
from tasks.versioning.integrity import md5_of
from tasks.versioning.s3_bucket import WORKERS, RemoteObject, download, list_objects, open_client, s3_errors, split_url
from winnow.config import Config
from winnow.errors import DataError
from winnow.eta import ProgressTimer

log = logging.getLogger(__name__)

QUEUED = 4 * WORKERS
"""Downloads submitted to the thread pool at a time."""
SHOWN = 3
"""Skipped objects that are logged by name."""
SECONDS_BETWEEN_LINES = 4.0


@dataclass
class MirrorResult:
    """The result of a mirror run: numbers of objects, and bytes."""

    fetched: int = 0
    unchanged: int = 0
    removed: int = 0
    bytes: int = 0
    skipped: list[str] = field(default_factory=list)
    """A line per object that cannot be a file, with the reason."""


def fetch(paths: ProjectPaths, config: Config) -> MirrorResult | None:
    """Mirror data.fetch to data.path, before DVC checks what is stale; return what was done, None where it is `none`.

    Raises DataError; objects that were fetched before the error stay. The index of fetched objects lies beside the
    folder, whose content DVC hashes.
    """
    if config.data.fetch == "none":
        return None
    folder = paths.root / config.data.path
    return mirror(config.data.fetch, folder, folder.with_name(f".{folder.name}.fetched.db"))


def mirror(url: str, folder: Path, index: Path) -> MirrorResult:
    """Mirror the objects below `url` to `folder`; `index` is the path of the SQLite index.

    Raises DataError with bucket, key and a remedy; objects that were fetched before stay.
    """
    bucket, prefix = split_url(url)
    summary = MirrorResult()
    folder.mkdir(parents=True, exist_ok=True)
    index.parent.mkdir(parents=True, exist_ok=True)
    with _open_index(index) as index_db, open_client(bucket) as client:
        to_fetch = []
        for remote in list_objects(client, bucket, prefix, summary.skipped):
            index_db.execute("INSERT OR IGNORE INTO listed VALUES (?)", (remote.name,))
            if _is_current(index_db, folder, remote) or _adopt(index_db, folder, remote):
                summary.unchanged += 1
            else:
                to_fetch.append(remote)
        if not (to_fetch or summary.unchanged):
            raise DataError(f"{url} holds no object; check bucket and prefix (without *)")
        _check_foreign(index_db, folder, to_fetch, url)
        _fetch_all(client, bucket, folder, to_fetch, index_db, summary)
        _remove_gone(index_db, folder, summary)
        index_db.commit()
    for skipped in summary.skipped[:SHOWN]:
        log.warning("fetch: %s", skipped)
    log.info("fetch: %d new or changed, %d unchanged, %d removed", summary.fetched, summary.unchanged, summary.removed)
    return summary


@contextlib.contextmanager
def _open_index(index: Path) -> Iterator[sqlite3.Connection]:
    """Open the index, with an empty table `listed` for the present objects. Raises DataError where it is damaged."""
    with contextlib.closing(sqlite3.connect(index)) as index_db:
        try:
            index_db.execute(
                "CREATE TABLE IF NOT EXISTS files (name TEXT PRIMARY KEY, etag TEXT, size INTEGER, seen INTEGER)"
            )
            index_db.execute("CREATE TEMP TABLE listed (name TEXT PRIMARY KEY)")
            yield index_db
        except sqlite3.OperationalError:  # a full disk
            raise
        except sqlite3.DatabaseError as error:
            raise DataError(
                f"{index}, the index of fetched files, is damaged ({error}); delete it: files that equal their object "
                "are not fetched again"
            ) from error


def _is_current(index_db: sqlite3.Connection, folder: Path, remote: RemoteObject) -> bool:
    fetched = index_db.execute("SELECT etag, size, seen FROM files WHERE name = ?", (remote.name,)).fetchone()
    if fetched is None or tuple(fetched[:2]) != (remote.etag, remote.size):
        return False
    try:
        status = (folder / remote.name).stat()
    except OSError:
        return False
    return (status.st_size, status.st_mtime_ns) == (remote.size, fetched[2])


def _adopt(index_db: sqlite3.Connection, folder: Path, remote: RemoteObject) -> bool:
    """Add the file of an object to the index where it has the object's content already; return whether it has."""
    path = folder / remote.name
    if not path.is_file() or path.stat().st_size != remote.size or md5_of(path) != remote.etag:
        return False
    row = (remote.name, remote.etag, remote.size, path.stat().st_mtime_ns)
    index_db.execute("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)", row)
    return True


def _check_foreign(index_db: sqlite3.Connection, folder: Path, to_fetch: Sequence[RemoteObject], url: str) -> None:
    """Raise DataError where a download would overwrite a file that was not fetched."""
    for remote in to_fetch:
        fetched = index_db.execute("SELECT 1 FROM files WHERE name = ?", (remote.name,)).fetchone()
        if not fetched and (folder / remote.name).exists():
            raise DataError(
                f"{folder / remote.name} exists and was not fetched from {url}; move it away, or set data.path to a "
                "folder of its own"
            )


def _fetch_all(
    client: Any,
    bucket: str,
    folder: Path,
    to_fetch: Sequence[RemoteObject],
    index_db: sqlite3.Connection,
    summary: MirrorResult,
) -> None:
    timer = ProgressTimer(sum(remote.size for remote in to_fetch), SECONDS_BETWEEN_LINES)
    stop = threading.Event()
    remaining, running = iter(to_fetch), dict[Future[tuple[str, int, int] | str], RemoteObject]()
    with ThreadPoolExecutor(WORKERS) as pool:
        try:
            while True:
                for remote in itertools.islice(remaining, QUEUED - len(running)):
                    running[pool.submit(_fetch, client, bucket, remote, folder, stop)] = remote
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    _note(index_db, running.pop(future), future.result(), bucket, summary)
                if timer.is_due():
                    index_db.commit()
                    counts = f"{summary.fetched} of {len(to_fetch)} objects"
                    rate, left = timer.rate(summary.bytes), timer.left(summary.bytes)
                    log.info("fetch: %s, %.1f MB/s, %s left", counts, rate / 1e6, left)
        except BaseException:
            stop.set()
            index_db.commit()
            pool.shutdown(cancel_futures=True)
            raise


def _note(
    index_db: sqlite3.Connection,
    remote: RemoteObject,
    result: tuple[str, int, int] | str,
    bucket: str,
    summary: MirrorResult,
) -> None:
    if isinstance(result, str):
        summary.skipped.append(f"s3://{bucket}/{remote.key} {result}; it is skipped")
        return
    index_db.execute("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)", (remote.name, *result))
    summary.fetched += 1
    summary.bytes += result[1]


def _fetch(
    client: Any, bucket: str, remote: RemoteObject, folder: Path, stop: threading.Event
) -> tuple[str, int, int] | str:
    """Download an object; return (ETag, size, mtime_ns) of its file, or the reason why there is no file."""
    path = folder / remote.name
    temporary = path.with_name(f".{path.name[:100]}.{threading.get_ident()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:  # there is an object a beside an object a/b
        return f"cannot be a file in {folder} ({error.strerror})"
    try:
        with s3_errors(bucket, remote.key):
            etag, size = download(client, bucket, remote.key, temporary, stop)
        temporary.replace(path)
        return etag, size, path.stat().st_mtime_ns
    except FileNotFoundError:
        return "was deleted after it was listed"
    except IsADirectoryError:
        return f"cannot be a file in {folder}: a folder has its name"
    finally:
        temporary.unlink(missing_ok=True)


def _remove_gone(index_db: sqlite3.Connection, folder: Path, summary: MirrorResult) -> None:
    """Remove fetched files whose objects no longer exist."""
    gone = index_db.execute("SELECT name, etag, size FROM files WHERE name NOT IN (SELECT name FROM listed)").fetchall()
    for name, etag, size in gone:
        if _is_current(index_db, folder, RemoteObject("", name, etag, size)):  # a changed file stays
            (folder / name).unlink()
            _remove_empty(folder / name, folder)
            summary.removed += 1
        index_db.execute("DELETE FROM files WHERE name = ?", (name,))


def _remove_empty(file: Path, folder: Path) -> None:
    """Remove the empty folders above a file."""
    for parent in file.parents:
        if parent == folder or any(parent.iterdir()):
            return
        parent.rmdir()
