"""The groups of images that data.group_by forms: the name of an image's group, and the key that decides its split."""

from __future__ import annotations

import hashlib
import re


def path_group(path: str, group_by: str) -> str:
    """Return the group of an image by its path; "" where it has none. `group_by`: folder, or a regular expression."""
    if group_by == "folder":
        return path.rpartition("/")[0]
    match = re.search(group_by, path)
    return (match[1] or "") if match else ""


def group_key(group: str) -> bytes:
    """Return the key of a group, 16 bytes, which stands in for the keys of its images."""
    return hashlib.blake2b(group.encode("utf-8", "backslashreplace"), digest_size=16).digest()
