"""Access to an S3 bucket: list its objects in parallel, download one with retries, errors with a remedy.

Credentials, region and endpoint come from the usual environment, profile or role of boto3 (AWS_ACCESS_KEY_ID,
AWS_PROFILE, AWS_ENDPOINT_URL, ...), never from a tracked file.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from winnow.errors import DataError, MissingExtra

SCHEME = "s3://"
WORKERS = 16
"""Threads that list and download."""
TRIES = 4
PAUSE_SECONDS = 0.5
"""Pause before the second attempt, doubled before each further one. boto3 has its own retries before that."""
CONNECT_SECONDS, READ_SECONDS = 10, 30
BLOCK_BYTES = 1 << 20
LONGEST_NAME = 255
"""The longest file name of common file systems, in bytes."""
ENOUGH_BRANCHES = WORKERS // 2
"""Prefixes that are enough to list in parallel."""


@dataclass(frozen=True)
class RemoteObject:
    """An object in the bucket's listing."""

    key: str
    name: str
    """The path of its file, relative to the folder."""
    etag: str
    size: int


def split_url(url: str) -> tuple[str, str]:
    """Split s3://bucket/prefix into (bucket, prefix with "/" at its end). Raises DataError for another form."""
    bucket, _, prefix = url.removeprefix(SCHEME).partition("/")
    if not url.startswith(SCHEME) or not bucket:
        raise DataError(f"{url!r} is not of the form s3://bucket/prefix")
    return bucket, f"{prefix.strip('/')}/" if prefix.strip("/") else ""


@contextlib.contextmanager
def open_client(bucket: str) -> Iterator[Any]:
    """Open an S3 client. Raises MissingExtra without boto3, DataError with `bucket` for invalid settings."""
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
        session = boto3.session.Session()  # the default session keeps the credentials of its first use
        client = session.client("s3", config=settings)
        if not client.meta.endpoint_url.endswith((".amazonaws.com", ".amazonaws.com.cn")):
            # Other servers expect the bucket in the path.
            client = session.client("s3", config=settings.merge(Config(s3={"addressing_style": "path"})))
    except (BotoCoreError, ValueError) as error:
        raise DataError(
            f"s3://{bucket}: {error}; check AWS_PROFILE, AWS_DEFAULT_REGION and AWS_ENDPOINT_URL"
        ) from error
    with contextlib.closing(client):
        yield client


def list_objects(client: Any, bucket: str, prefix: str, skipped: list[str]) -> Iterator[RemoteObject]:
    """Yield all objects below the prefix that can be files; append a line to `skipped` for each other one.

    Up to three levels of prefixes are collected first, then listed in parallel.
    """
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
            if name.endswith("/") or not name:  # the marker that S3 consoles create for an empty folder
                continue
            if problem := _problem(name):
                skipped.append(f"s3://{bucket}/{row['Key']} {problem}; it is skipped")
                continue
            yield RemoteObject(row["Key"], name, row["ETag"].strip('"'), int(row["Size"]))


def _pages(client: Any, bucket: str, prefix: str, **parameters: str) -> Iterator[dict[str, Any]]:
    with s3_errors(bucket, prefix):
        yield from client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix, **parameters)


def _problem(name: str) -> str:
    """Return why a name cannot be a file; "" where it can."""
    parts = name.split("/")
    if any(part in ("", ".", "..") for part in parts) or "\0" in name:
        return "has a name that is not a valid path"
    if any(len(part.encode("utf-8", "surrogatepass")) > LONGEST_NAME for part in parts):
        return "has a name that is too long for a file"
    return ""


def download(client: Any, bucket: str, key: str, path: Path, stop: threading.Event) -> tuple[str, int]:
    """Download the present version of an object; return (ETag, size). Raises FileNotFoundError where it is gone."""
    from botocore.exceptions import ClientError, HTTPClientError, IncompleteReadError, ResponseStreamingError

    for attempt in itertools.count(1):
        try:
            response = client.get_object(Bucket=bucket, Key=key)
            length, received = int(response["ContentLength"]), 0
            with contextlib.closing(response["Body"]) as body, path.open("wb") as file:
                for block in body.iter_chunks(BLOCK_BYTES):
                    if stop.is_set():
                        raise DataError("stopped")
                    file.write(block)
                    received += len(block)
            if received == length:
                return str(response["ETag"]).strip('"'), received
            problem: Exception = OSError(f"{received} of {length} bytes came")
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


@contextlib.contextmanager
def s3_errors(bucket: str, key: str) -> Iterator[None]:
    """Convert exceptions of boto3 into a DataError with bucket, key and a remedy."""
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError

    location, resume_hint = f"s3://{bucket}/{key}", "fetched objects are kept, and the next run resumes"
    try:
        yield
    except (NoCredentialsError, PartialCredentialsError) as error:
        raise DataError(
            f"{location}: {error}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        ) from error
    except ClientError as error:
        code = error.response["Error"]["Code"]
        status = error.response["ResponseMetadata"].get("HTTPStatusCode")
        if code == "NoSuchBucket":
            remedy = "there is no such bucket; check its name, and AWS_ENDPOINT_URL"
        elif status in (401, 403) or code in ("AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch"):
            remedy = "check AWS_ACCESS_KEY_ID or AWS_PROFILE; it needs the rights to list the bucket and read objects"
        elif status is not None and status >= 500:
            remedy = f"the server is down or overloaded; try again later: {resume_hint}"
        else:
            remedy = f"check bucket, prefix and AWS_ENDPOINT_URL; {resume_hint}"
        raise DataError(f"{location}: {code} ({status}): {remedy}") from error
    except BotoCoreError as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"{location}: {reason}; check that the server is running, and AWS_ENDPOINT_URL; {resume_hint}"
        ) from error
