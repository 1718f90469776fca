"""Files of known weights: find them in the user's caches, download what is in none, and check their digests.

A file of torchvision is looked for in torch's cache, one of timm in that of the Hugging Face hub; what is in neither is
downloaded to winnow's own folder. Files of torchvision and of the hub are checked against the digest that their
publisher names.
"""

from __future__ import annotations

import contextlib
import re
import urllib.error
from pathlib import Path

import torch

from winnow.errors import ArtifactError
from winnow.records import sha256_of
from winnow.stall_limit import stall_limit


def user_caches() -> list[Path]:
    """Return the user's own folder of caches, which winnow's processes do not use; [] without a home."""
    try:
        return [Path.home() / ".cache"]
    except RuntimeError:
        return []


def download_torchvision(url: str, file: Path, digest: str) -> Path:
    """Return the file, from torch's cache where it is there, else downloaded with a progress bar."""
    for folder in (Path(torch.hub.get_dir()), *(cache / "torch" / "hub" for cache in user_caches())):
        if (path := folder / "checkpoints" / file.name).is_file():
            return path
    if file.is_file():
        return file
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        with stall_limit():
            torch.hub.download_url_to_file(url, str(file), hash_prefix=digest, progress=True)
    except (urllib.error.URLError, OSError, RuntimeError) as error:
        raise ArtifactError(f"{url} cannot be downloaded ({error}); download it elsewhere to {file}") from error
    return file


def download_hub_file(repository: str, file_name: str, cache: Path) -> Path:
    """Return a file of the Hugging Face hub, from its cache where it is there, else downloaded with a progress bar."""
    import huggingface_hub
    from huggingface_hub.errors import (  # type: ignore[attr-defined]
        HTTPError,  # of its HTTP library: a read that takes too long is no HfHubHTTPError
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
    )

    # None: where HF_HOME says.
    for folder in (None, *(user_cache / "huggingface" / "hub" for user_cache in user_caches())):
        with contextlib.suppress(LocalEntryNotFoundError):
            return Path(huggingface_hub.hf_hub_download(repository, file_name, cache_dir=folder, local_files_only=True))
    try:
        return Path(huggingface_hub.hf_hub_download(repository, file_name, cache_dir=cache))
    except (HTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ArtifactError(
            f"{repository}/{file_name} cannot be downloaded from the Hugging Face hub ({reason}); on a machine that "
            f"reaches it run `hf download {repository} {file_name}`, and copy the folder it names to the same place "
            "below ~/.cache/huggingface here; or set HF_HOME to a copy of that cache"
        ) from error


def digest_of_blob(file: Path) -> str:
    """Return the sha256 by which the hub's cache names a large file; "" where it names none."""
    name = file.resolve().name
    return name if re.fullmatch(r"[0-9a-f]{64}", name) else ""


def check_digest(file: Path, start: str) -> str:
    """Return the file's sha256. Raises ArtifactError where the file is missing or its digest does not begin so."""
    if not file.is_file():
        raise ArtifactError(f"{file} is missing; install its package again")
    digest = sha256_of(file)
    if not digest.startswith(start):
        raise ArtifactError(
            f"{file} is damaged: its sha256 begins with {digest[:8]}, not {start[:8]}; delete it and run winnow again"
        )
    return digest
