"""Ingest of 10,000 to 1,000,000 small images: the rate per image and the peak memory must not depend on their number.

    python -m benchmarks.ingest_scale IMAGES

IMAGES is a folder with train/ of class folders (CIFAR-10 as JPEG, say). A million files are made of them, each with
other pixels (cropped, shifted in brightness), 5,000 to a folder; the smaller sets are copies of such folders. Each
ingest runs in a process of its own, the page cache warm. Takes 5 GB of disk and a quarter of an hour.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.chain import ROOT, leave, markdown
from winnow.random_streams import stream_seed

NAME = "ingest_scale"
COUNTS = (10_000, 100_000, 1_000_000)
PER_FOLDER = 5_000
CLASSES = 10


def fill(job: tuple[str, int, list[str]]) -> None:
    """One folder of images, each its own."""
    folder, number, sources = job
    rng, at = np.random.default_rng(stream_seed(number, "folder")), Path(folder)
    at.mkdir(parents=True, exist_ok=True)
    for index in range(PER_FOLDER):
        data = Path(sources[int(rng.integers(len(sources)))]).read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            pixels = np.asarray(image.convert("RGB"), dtype=np.int16)
        left, top = rng.integers(0, 5, 2)
        cut = pixels[top : top + 28, left : left + 28] + int(rng.integers(-25, 26))
        Image.fromarray(np.clip(cut, 0, 255).astype(np.uint8)).save(at / f"{index:04d}.jpg", quality=85)


def make(images: Path, out: Path) -> None:
    """set-N/CLASS/PART/*.jpg; the smaller sets are copies of folders of the largest."""
    if (out / "made").exists():
        return
    shutil.rmtree(out, ignore_errors=True)
    files = [str(path) for path in sorted((images / "train").rglob("*.jpg"))[:5000]]
    largest = out / f"set-{max(COUNTS)}"
    jobs = []
    for number in range(max(COUNTS) // PER_FOLDER):
        jobs.append((str(largest / f"class{number % CLASSES}" / f"part{number // CLASSES:03d}"), number, files))
    with ProcessPoolExecutor() as pool:
        for done, _ in enumerate(pool.map(fill, jobs), start=1):
            if done % 20 == 0:
                print(f"{done * PER_FOLDER:,} files made", flush=True)
    for count in COUNTS[:-1]:
        needed = max(2, count // PER_FOLDER)
        for number in range(needed):
            target = out / f"set-{count}" / f"class{number % CLASSES}"
            target.mkdir(parents=True, exist_ok=True)
            shutil.copytree(
                largest / f"class{number % CLASSES}" / f"part{number // CLASSES:03d}",
                target / f"part{number // CLASSES:03d}",
            )
    (out / "made").touch()


CHILD = """
import json, sys, time
from pathlib import Path
from benchmarks.chain import configure
from winnow.random_streams import stream_seed
import tasks.project.peak_memory
from winnow.steps.ingest import ingest

if __name__ == "__main__":
    config = configure({"data.source": "folder", "data.path": sys.argv[1]})
    began = time.monotonic()
    with tasks.project.peak_memory.measure_peak_memory(every=0.1) as peak:
        record = ingest(config, Path(sys.argv[2]), Path(sys.argv[2]).parent)
    told = {"seconds": time.monotonic() - began, "peak_mb": peak.mb, "images": record.metrics["data/images"]}
    print(json.dumps(told))
"""


def measured(folder: Path, count: int) -> dict[str, float]:
    """Seconds and peak memory of one ingest in a process of its own."""
    script, out = folder / "child.py", folder / "out"
    script.write_text(CHILD, encoding="utf-8")
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, str(script), str(folder / f"set-{count}"), str(out)]
    done = subprocess.run(command, cwd=ROOT, env=_environment(), capture_output=True, text=True, check=True)
    shutil.rmtree(out)
    told: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return told


def _environment() -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": str(ROOT)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", type=Path, help="holds train/ of class folders of JPEG files")
    folder = ROOT / ".winnow" / "benchmarks" / NAME
    began = time.monotonic()
    make(parser.parse_args().images.resolve(), folder)
    print(f"files made in {time.monotonic() - began:.0f} s", flush=True)
    rows, figures = [], {}
    for count in COUNTS:
        measured(folder, count)  # brings the files into the page cache
        runs = [measured(folder, count) for _ in range(3 if count < 1_000_000 else 1)]
        told = sorted(runs, key=lambda run: run["seconds"])[len(runs) // 2]
        figures[str(count)] = runs
        rate = told["images"] / told["seconds"]
        rows.append(
            {
                "images": f"{count:,}",
                "seconds": f"{told['seconds']:.1f}",
                "images/s": f"{rate:,.0f}",
                "us an image": f"{1e6 / rate:.0f}",
                "peak memory, MB": f"{told['peak_mb']:.0f}",
            }
        )
    conditions = (
        "Small JPEG files (28 pixels, cut from CIFAR-10 images and changed in brightness) in class folders, to arrays "
        "of 32 pixels: listing, decoding, hashing, splitting, near-duplicates, writing. Median of three; the million "
        "once. "
        "Memory is of the main process and its decoders together, less pages of files."
    )
    leave(NAME, conditions, {"runs": figures}, markdown(rows))


if __name__ == "__main__":
    main()
