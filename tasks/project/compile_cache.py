"""Where torch.compile keeps what it builds: in the project, or beside it where a compiler cannot be given that path.

Inductor joins the compiler's command to one text and splits it at spaces and quotes again, so a folder called "it's" or
"my photos" never compiles, and "the best float PyTorch" would be eager without anybody noticing.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from pathlib import Path

PLAIN = re.compile(r"[A-Za-z0-9_./+=@%:,~-]+")
"""Paths that a compiler's command may hold as they are."""


def compile_cache(own: Path) -> Path:
    """Return `own`, or a folder of this user's for it alone where a compiler cannot be given `own`.

    That is below ~/.cache/winnow, or below the system's temporary folder where there is no such home, or it cannot be
    written or be given either, and nobody else owns the place. `own` stays where there is none of these.
    """
    if PLAIN.fullmatch(str(own)):
        return own
    name = hashlib.blake2b(os.fsencode(own), digest_size=8).hexdigest()
    home = Path(os.path.expanduser("~"))  # noqa: PTH111 pathlib raises for an account without a home
    places = [home / ".cache" / "winnow"] if home.is_absolute() else []
    for place in (*places, Path(tempfile.gettempdir()) / f"winnow-{os.getuid()}"):
        if PLAIN.fullmatch(str(place)) and _is_ours(place):
            return place / "inductor" / name
    return own


def _is_ours(folder: Path) -> bool:
    """Whether the folder is this user's alone: whoever writes there has this user run his libraries."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        about = folder.lstat()
    except OSError:
        return False
    return (
        about.st_uid == os.getuid()
        and not about.st_mode & 0o022
        and folder.is_dir()
        and not folder.is_symlink()
        and os.access(folder, os.W_OK)
    )
