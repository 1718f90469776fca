"""Count how often each version of the test split has been read."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path

from winnow.data.dataset import TEST, ImageSet
from winnow.errors import ArtifactError
from winnow.records import write_json

log = logging.getLogger(__name__)
VERSION_LENGTH = 16


def count_test_reading(path: Path, images: ImageSet) -> None:
    """Count a reading of the test split in the JSON file `path`, and log the count; nothing without a labelled test
    image. Raises ArtifactError for a damaged file.
    """
    if not len(images.indices(TEST, labelled=True)):
        return
    version = digest_test_split(images)
    count = count_reading(path, version)
    log.info("report: test split read %d time%s (version %s)", count, "" if count == 1 else "s", version)


def digest_test_split(images: ImageSet) -> str:
    """Return a digest of the test images' own digests, whatever their order."""
    keys = sorted(key.tobytes() for key in images.keys_N16[images.indices(TEST)])
    return hashlib.sha256(b"".join(keys)).hexdigest()[:VERSION_LENGTH]


def count_reading(path: Path, version: str) -> int:
    """Add one to this version's count and return it. Raises ArtifactError for a damaged file."""
    try:
        counts: dict[str, int] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        count = int(counts.get(version, 0)) + 1
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ArtifactError(f"{path} is damaged ({error}); delete it to restart the count") from error
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {**counts, version: count})
    return count
