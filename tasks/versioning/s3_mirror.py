"""A folder that follows a prefix in an S3 bucket: listed and fetched in parallel, resumed, nothing fetched twice.

    s3://bucket/photos/cat/a.jpg   ->   photos/cat/a.jpg, for mirror("s3://bucket/photos", Path("photos"), ...)

What was fetched stands in an index (SQLite) with the object's ETag and size: an object is fetched again when either has
changed, or when the file was. An object arrives under a hidden name and is renamed when all its bytes are there, so a
half download is never taken for a whole one, and a run that was cut off goes on. Files that were not fetched are
neither overwritten nor removed.

Credentials, region and endpoint come from the usual environment, profile or role of boto3 (AWS_ACCESS_KEY_ID,
AWS_PROFILE, AWS_ENDPOINT_URL, ...), never from a tracked file.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from winnow.errors import DataError, MissingExtra
from winnow.eta import duration

log = logging.getLogger(__name__)

SCHEME = "s3://"
WORKERS = 16
UNDER_WAY = 4 * WORKERS
TRIES = 4
PAUSE_SECONDS = 0.5
"""Before the second try; twice as long before each further one. boto3 has tried before, too."""
CONNECT_SECONDS, READ_SECONDS = 10, 30
BLOCK_BYTES = 1 << 20
LONGEST_NAME = 255
"""Bytes of a file's name on common file systems."""
SHOWN = 3
SECONDS_BETWEEN_LINES = 4.0
ENOUGH_BRANCHES = WORKERS // 2


@dataclass(frozen=True)
class Remote:
    """An object as the bucket lists it."""

    key: str
    name: str
    """Of its file, relative to the folder."""
    etag: str
    size: int


@dataclass
class Mirrored:
    """What was done."""

    fetched: int = 0
    unchanged: int = 0
    removed: int = 0
    bytes: int = 0
    skipped: list[str] = field(default_factory=list)
    """Objects that cannot be a file here, with the reason."""


def split(url: str) -> tuple[str, str]:
    """(bucket, prefix) of s3://bucket/prefix. Raises DataError for another address."""
    bucket, _, prefix = url.removeprefix(SCHEME).partition("/")
    if not url.startswith(SCHEME) or not bucket:
        raise DataError(f"{url!r} is no address of the form s3://bucket/prefix")
    return bucket, f"{prefix.strip('/')}/" if prefix.strip("/") else ""


def mirror(url: str, folder: Path, index: Path) -> Mirrored:
    """Bring `folder` up to what lies below `url`; `index` remembers what was fetched.

    Raises DataError, which names bucket and key and says what to do; what was fetched until then stays.
    """
    bucket, prefix = split(url)
    done = Mirrored()
    folder.mkdir(parents=True, exist_ok=True)
    index.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.closing(sqlite3.connect(index)) as known, _client(bucket) as client:
        known.execute("CREATE TABLE IF NOT EXISTS files (name TEXT PRIMARY KEY, etag TEXT, size INTEGER, seen INTEGER)")
        known.execute("CREATE TEMP TABLE listed (name TEXT PRIMARY KEY)")
        wanted, total = [], 0
        for remote in _listed(client, bucket, prefix, done):
            known.execute("INSERT OR IGNORE INTO listed VALUES (?)", (remote.name,))
            if _is_here(known, folder, remote):
                done.unchanged += 1
            else:
                wanted.append(remote)
                total += remote.size
        if not (wanted or done.unchanged):
            raise DataError(f"{url} holds no object; see bucket and prefix (they end in no *)")
        _check_foreign(known, folder, wanted, url)
        _fetch_all(client, bucket, folder, wanted, total, known, done)
        _remove_gone(known, folder, done)
        known.commit()
    for skipped in done.skipped[:SHOWN]:
        log.warning("fetch: %s", skipped)
    log.info("fetch: %d new or changed, %d unchanged, %d removed", done.fetched, done.unchanged, done.removed)
    return done


@contextlib.contextmanager
def _client(bucket: str) -> Iterator[Any]:
    try:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError
    except ImportError as error:
        raise MissingExtra("boto3", "orchestrate") from error
    settings = Config(
        connect_timeout=CONNECT_SECONDS,
        read_timeout=READ_SECONDS,
        max_pool_connections=WORKERS,
        retries={"mode": "standard", "max_attempts": TRIES},
        response_checksum_validation="when_required",
    )
    try:
        session = boto3.session.Session()  # the default one would keep the credentials of its first use
        client = session.client("s3", config=settings)
        if not client.meta.endpoint_url.endswith((".amazonaws.com", ".amazonaws.com.cn")):
            # Other servers know buckets by their path.
            client = session.client("s3", config=settings.merge(Config(s3={"addressing_style": "path"})))
    except (BotoCoreError, ValueError) as error:
        raise DataError(f"s3://{bucket}: {error}; see AWS_PROFILE, AWS_DEFAULT_REGION and AWS_ENDPOINT_URL") from error
    with contextlib.closing(client):
        yield client


def _listed(client: Any, bucket: str, prefix: str, done: Mirrored) -> Iterator[Remote]:
    """All objects below the prefix that can be files; several prefixes are listed at once."""
    branches, objects = [prefix], []
    for _ in range(3):
        if len(branches) >= ENOUGH_BRANCHES:
            break
        deeper = []
        for branch in branches:
            for page in _pages(client, bucket, branch, Delimiter="/"):
                deeper += [common["Prefix"] for common in page.get("CommonPrefixes", ())]
                objects += page.get("Contents", ())
        branches = deeper
        if not branches:
            break
    with ThreadPoolExecutor(WORKERS) as pool:
        pages = pool.map(
            lambda branch: [row for page in _pages(client, bucket, branch) for row in page.get("Contents", ())],
            branches,
        )
        for row in itertools.chain(objects, *pages):
            name = row["Key"][len(prefix) :]
            if name.endswith("/") or not name:  # what a console makes for an empty folder
                continue
            if problem := _problem(name):
                done.skipped.append(f"s3://{bucket}/{row['Key']} {problem}; it is passed over")
                continue
            yield Remote(row["Key"], name, row["ETag"].strip('"'), int(row["Size"]))


def _pages(client: Any, bucket: str, prefix: str, **more: str) -> Iterator[dict[str, Any]]:
    with _told(bucket, prefix):
        yield from client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix, **more)


def _problem(name: str) -> str:
    parts = name.split("/")
    if any(part in ("", ".", "..") for part in parts) or "\0" in name:
        return "has a name that is no path"
    if any(len(part.encode("utf-8", "surrogatepass")) > LONGEST_NAME for part in parts):
        return "has a name that is too long for a file"
    return ""


def _is_here(known: sqlite3.Connection, folder: Path, remote: Remote) -> bool:
    row = known.execute("SELECT etag, size, seen FROM files WHERE name = ?", (remote.name,)).fetchone()
    if row is None or tuple(row[:2]) != (remote.etag, remote.size):
        return False
    try:
        about = (folder / remote.name).stat()
    except OSError:
        return False
    return (about.st_size, about.st_mtime_ns) == (remote.size, row[2])


def _check_foreign(known: sqlite3.Connection, folder: Path, wanted: Sequence[Remote], url: str) -> None:
    """Raise DataError before a file is overwritten that was not fetched."""
    for remote in wanted:
        fetched = known.execute("SELECT 1 FROM files WHERE name = ?", (remote.name,)).fetchone()
        if not fetched and (folder / remote.name).exists():
            raise DataError(
                f"{folder / remote.name} is there and was not fetched from {url}; move it away, or set data.path to a "
                "folder of its own"
            )


def _fetch_all(
    client: Any,
    bucket: str,
    folder: Path,
    wanted: Sequence[Remote],
    total: int,
    known: sqlite3.Connection,
    done: Mirrored,
) -> None:
    started = said = time.monotonic()
    stop = threading.Event()
    left, under_way = iter(wanted), dict[Future[tuple[str, int, int] | str], Remote]()
    with ThreadPoolExecutor(WORKERS) as pool:
        try:
            while True:
                for remote in itertools.islice(left, UNDER_WAY - len(under_way)):
                    under_way[pool.submit(_fetch, client, bucket, remote, folder, stop)] = remote
                if not under_way:
                    return
                for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                    _note(known, under_way.pop(future), future.result(), bucket, done)
                if time.monotonic() - said >= SECONDS_BETWEEN_LINES:
                    said = time.monotonic()
                    known.commit()
                    rate = max(done.bytes, 1) / (said - started)
                    log.info(
                        "fetch: %d of %d objects, %.1f MB/s, %s left",
                        *(done.fetched, len(wanted), rate / 1e6, duration(max(0, total - done.bytes) / rate)),
                    )
        except BaseException:
            stop.set()
            known.commit()
            pool.shutdown(cancel_futures=True)
            raise


def _note(
    known: sqlite3.Connection, remote: Remote, got: tuple[str, int, int] | str, bucket: str, done: Mirrored
) -> None:
    if isinstance(got, str):
        done.skipped.append(f"s3://{bucket}/{remote.key} {got}; it is passed over")
        return
    known.execute("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)", (remote.name, *got))
    done.fetched += 1
    done.bytes += got[1]


def _fetch(client: Any, bucket: str, remote: Remote, folder: Path, stop: threading.Event) -> tuple[str, int, int] | str:
    """ETag, size and time of the file that now stands there; or why there is none."""
    path = folder / remote.name
    temporary = path.with_name(f".{path.name[:100]}.{threading.get_ident()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:  # an object a beside an object a/b
        return f"cannot be a file in {folder} ({error.strerror})"
    try:
        with _told(bucket, remote.key):
            etag, size = _download(client, bucket, remote.key, temporary, stop)
        temporary.replace(path)
        return etag, size, path.stat().st_mtime_ns
    except FileNotFoundError:
        return "is gone since it was listed"
    except IsADirectoryError:
        return f"cannot be a file in {folder}: a folder is there"
    finally:
        temporary.unlink(missing_ok=True)


def _download(client: Any, bucket: str, key: str, path: Path, stop: threading.Event) -> tuple[str, int]:
    """Its ETag and size, once all of it is there. An object that changed since it was listed arrives as it is now."""
    from botocore.exceptions import ClientError, HTTPClientError, IncompleteReadError, ResponseStreamingError

    for attempt in itertools.count(1):
        try:
            answer = client.get_object(Bucket=bucket, Key=key)
            length, got = int(answer["ContentLength"]), 0
            with contextlib.closing(answer["Body"]) as body, path.open("wb") as file:
                for block in body.iter_chunks(BLOCK_BYTES):
                    if stop.is_set():
                        raise DataError("stopped")
                    file.write(block)
                    got += len(block)
            if got == length:
                return str(answer["ETag"]).strip('"'), got
            problem: Exception = OSError(f"{got} of {length} bytes came")
        except ClientError as error:
            if error.response["Error"]["Code"] in ("NoSuchKey", "404"):
                raise FileNotFoundError(key) from error
            raise
        except (HTTPClientError, IncompleteReadError, ResponseStreamingError) as error:
            problem = error
        if attempt == TRIES or stop.is_set():
            raise problem
        time.sleep(PAUSE_SECONDS * 2 ** (attempt - 1))
    raise AssertionError("unreachable")


def _remove_gone(known: sqlite3.Connection, folder: Path, done: Mirrored) -> None:
    """Take away files that were fetched and whose objects are no more."""
    gone = known.execute("SELECT name, etag, size FROM files WHERE name NOT IN (SELECT name FROM listed)").fetchall()
    for name, etag, size in gone:
        if _is_here(known, folder, Remote("", name, etag, size)):  # else somebody has changed it: it stays
            (folder / name).unlink()
            _remove_empty(folder / name, folder)
            done.removed += 1
        known.execute("DELETE FROM files WHERE name = ?", (name,))


def _remove_empty(file: Path, folder: Path) -> None:
    """Take away the folders above a file that hold nothing any more."""
    for above in file.parents:
        if above == folder or any(above.iterdir()):
            return
        above.rmdir()


@contextlib.contextmanager
def _told(bucket: str, key: str) -> Iterator[None]:
    """Turns what boto3 raises into a DataError that names bucket and key and says what to do."""
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError

    where, kept = f"s3://{bucket}/{key}", "what was fetched stays, and the next run goes on from there"
    try:
        yield
    except (NoCredentialsError, PartialCredentialsError) as error:
        raise DataError(f"{where}: {error}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE") from error
    except ClientError as error:
        code = error.response["Error"]["Code"]
        status = error.response["ResponseMetadata"].get("HTTPStatusCode")
        if code == "NoSuchBucket":
            todo = "there is no such bucket; see its name, and AWS_ENDPOINT_URL"
        elif status in (401, 403) or code in ("AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch"):
            todo = (
                "see AWS_ACCESS_KEY_ID or AWS_PROFILE; it takes the rights to list the bucket and to read its objects"
            )
        elif status is not None and status >= 500:
            todo = f"the server is down or too busy; try again later: {kept}"
        else:
            todo = f"see bucket, prefix and AWS_ENDPOINT_URL; {kept}"
        raise DataError(f"{where}: {code} ({status}): {todo}") from error
    except BotoCoreError as error:
        told = " ".join(str(error).split())
        raise DataError(f"{where}: {told}; see that the server is up, and AWS_ENDPOINT_URL; {kept}") from error
