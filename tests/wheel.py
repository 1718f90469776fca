"""Build the wheel of this checkout, from a copy: a build writes into the folder of its source."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.closure import ROOT


def tracked_files() -> list[str]:
    """Return the files in git, relative to the checkout, that exist."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [name for name in listed.splitlines() if (ROOT / name).is_file()]


def build_wheel(folder: Path) -> Path:
    """Build the wheel in a folder and return its path."""
    source = folder / "source"
    for name in tracked_files():
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_symlink():
            target.symlink_to((ROOT / name).readlink())
        else:
            target.write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "uv", "build", "--wheel", "--no-build-isolation", "--out-dir", folder, source]
    subprocess.run(command, capture_output=True, check=True)
    return next(folder.glob("*.whl"))
