"""The cache folder of torch.compile: in the project, or elsewhere where the compiler cannot handle that path.

Inductor joins the compiler's command to one string and splits it again at spaces and quotes. In a folder called "it's"
or "my photos" nothing compiles, and the fastest PyTorch baseline would silently be eager mode.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from pathlib import Path

PLAIN_PATH = re.compile(r"[A-Za-z0-9_./+=@%:,~-]+")
"""Paths that need no quoting in a compiler's command."""


def compile_cache_folder(folder: Path) -> Path:
    """Return `folder`, or a private folder of this user where the compiler cannot handle that path.

    The first usable one of ~/.cache/winnow and the system's temporary folder; `folder` itself where neither is usable.
    """
    if PLAIN_PATH.fullmatch(str(folder)):
        return folder
    name = hashlib.blake2b(os.fsencode(folder), digest_size=8).hexdigest()
    home = Path(os.path.expanduser("~"))  # noqa: PTH111 pathlib raises for an account without a home
    parents = [home / ".cache" / "winnow"] if home.is_absolute() else []
    for parent in (*parents, Path(tempfile.gettempdir()) / f"winnow-{os.getuid()}"):
        if PLAIN_PATH.fullmatch(str(parent)) and _is_ours(parent):
            return parent / "inductor" / name
    return folder


def _is_ours(folder: Path) -> bool:
    """Create the folder; return whether only this user can write there: others could plant libraries that it loads."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.lstat()
    except OSError:
        return False
    return (
        status.st_uid == os.getuid()
        and not status.st_mode & 0o022
        and folder.is_dir()
        and not folder.is_symlink()
        and os.access(folder, os.W_OK)
    )
