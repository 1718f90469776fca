"""Ingest 10,000 to 1,000,000 small images: neither the time per image nor the peak memory may grow with their number.

    python -m benchmarks.ingest_scale IMAGES

IMAGES is a folder with train/ of class folders (CIFAR-10 as JPEG, say). A million files with different pixels are made
from them (cropped, brightness changed), 5,000 to a folder; the smaller sets are copies of such folders. Each ingest
runs in its own process with a warm page cache. Takes 5 GB of disk and 15 minutes.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.chain import ROOT, markdown_table, write_results
from winnow.random_streams import stream_seed

NAME = "ingest_scale"
COUNTS = (10_000, 100_000, 1_000_000)
PER_FOLDER = 5_000
CLASSES = 10


def write_folder(job: tuple[str, int, list[str]]) -> None:
    """Write a folder of PER_FOLDER different images. `job`: folder, its number (the seed), source files."""
    folder, number, sources = job
    rng, target = np.random.default_rng(stream_seed(number, "folder")), Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    for index in range(PER_FOLDER):
        data = Path(sources[int(rng.integers(len(sources)))]).read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            pixels = np.asarray(image.convert("RGB"), dtype=np.int16)
        left, top = rng.integers(0, 5, 2)
        crop = pixels[top : top + 28, left : left + 28] + int(rng.integers(-25, 26))
        Image.fromarray(np.clip(crop, 0, 255).astype(np.uint8)).save(target / f"{index:04d}.jpg", quality=85)


def write_sets(images: Path, out: Path) -> None:
    """Write set-N/CLASS/PART/*.jpg, once; the smaller sets are copies of folders of the largest."""
    if (out / "made").exists():
        return
    shutil.rmtree(out, ignore_errors=True)
    files = [str(path) for path in sorted((images / "train").rglob("*.jpg"))[:5000]]
    largest = out / f"set-{max(COUNTS)}"
    jobs = []
    for number in range(max(COUNTS) // PER_FOLDER):
        jobs.append((str(largest / f"class{number % CLASSES}" / f"part{number // CLASSES:03d}"), number, files))
    with ProcessPoolExecutor() as pool:
        for folders, _ in enumerate(pool.map(write_folder, jobs), start=1):
            if folders % 20 == 0:
                print(f"{folders * PER_FOLDER:,} files written", flush=True)
    for count in COUNTS[:-1]:
        for number in range(max(2, count // PER_FOLDER)):
            part = Path(f"class{number % CLASSES}") / f"part{number // CLASSES:03d}"
            shutil.copytree(largest / part, out / f"set-{count}" / part)
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
    start = time.monotonic()
    with tasks.project.peak_memory.measure_peak_memory(every=0.1) as peak:
        record = ingest(config, Path(sys.argv[2]), Path(sys.argv[2]).parent)
    seconds = time.monotonic() - start
    print(json.dumps({"seconds": seconds, "peak_mb": peak.mb, "images": record.metrics["data/images"]}))
"""


def measure_ingest(folder: Path, count: int) -> dict[str, float]:
    """Return seconds, peak_mb and images of one ingest in its own process."""
    script, out = folder / "child.py", folder / "out"
    script.write_text(CHILD, encoding="utf-8")
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, str(script), str(folder / f"set-{count}"), str(out)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    shutil.rmtree(out)
    run: dict[str, float] = json.loads(process.stdout.strip().splitlines()[-1])
    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", type=Path, help="holds train/ of class folders of JPEG files")
    folder = ROOT / ".winnow" / "benchmarks" / NAME
    start = time.monotonic()
    write_sets(parser.parse_args().images.resolve(), folder)
    print(f"files written in {time.monotonic() - start:.0f} s", flush=True)
    rows, figures = [], {}
    for count in COUNTS:
        measure_ingest(folder, count)  # warms the page cache
        runs = [measure_ingest(folder, count) for _ in range(3 if count < 1_000_000 else 1)]
        median = sorted(runs, key=lambda run: run["seconds"])[len(runs) // 2]
        figures[str(count)] = runs
        rate = median["images"] / median["seconds"]
        rows.append(
            {
                "images": f"{count:,}",
                "seconds": f"{median['seconds']:.1f}",
                "images/s": f"{rate:,.0f}",
                "µs per image": f"{1e6 / rate:.0f}",
                "peak memory, MB": f"{median['peak_mb']:.0f}",
            }
        )
    conditions = (
        "Small JPEG files (28 pixels, cropped from CIFAR-10 images and changed in brightness) in class folders, to "
        "arrays of 32 pixels: listing, decoding, hashing, splitting, near-duplicates, writing. Median of three runs; "
        "one run of the million. Memory: the main process and its decoders together, without cached file pages."
    )
    write_results(NAME, conditions, {"runs": figures}, markdown_table(rows))


if __name__ == "__main__":
    main()
