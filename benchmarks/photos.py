"""Compare the forecast of `winnow plan` with `winnow run` on 20,000 photographs of 224 pixels, 500 of them labelled.

    python -m benchmarks.photos IMAGES

IMAGES is a folder with train/ of class folders (CIFAR-10 as JPEG, say). The photographs are made from them: enlarged to
256 to 340 pixels, with grain, as JPEG of about 30 kB; 500 keep their label, the others are in unlabelled/. A clone of
this project plans and runs on them, as a user would. Compared are the time from command to table, the bytes in
artifacts/ and in DVC's cache (hard-linked files count once), and the largest peak memory of a step.
"""

from __future__ import annotations

import argparse
import shutil
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.chain import ROOT, markdown_table, write_results
from benchmarks.projects import call_winnow, clone_project
from tasks.project.paths import ProjectPaths
from tasks.project.run_summary import candidate_table, promotion_lines, training_lines
from winnow.eta import format_duration
from winnow.random_streams import stream_seed
from winnow.records import read_json

NAME, COUNT, LABELLED = "photos", 20_000, 500
SIDES = (256, 340)
RECOVERY = {"epochs": "1", "min_steps": "1", "batch_size": "64"}
SETTINGS = {
    "data.source": "folder",
    "data.image_size": "224",
    "pretrain.backbone": "mobilenet_v3_small",
    "pretrain.epochs": "1",
    "pretrain.min_steps": "1",
    "pretrain.batch_size": "32",
    "finetune.seeds": "[0]",
    "finetune.learning_rates": "[0.03]",
    "finetune.epochs": "10",
    "finetune.min_steps": "50",
    "finetune.batch_size": "64",
    "promotion.gates.max_drop_points": "4.0",
    "promotion.gates.max_macro_f1_drop_points": "8.0",
}
TRAINED = ("pruned", "sparse", "student", "student-alone", "dense-kd")


def settings(folder: Path) -> dict[str, str]:
    """Return all keys that differ from the full settings: one epoch everywhere, since only time is measured."""
    changed = {**SETTINGS, "data.path": str(folder)}
    for name in TRAINED:
        changed |= {f"candidates.{name}.recovery.{key}": value for key, value in RECOVERY.items()}
    return changed


def write_photograph(job: tuple[str, str, int]) -> None:
    """Write an enlarged copy of an image with grain. `job`: source, target, seed."""
    source, target, seed = job
    rng = np.random.default_rng(stream_seed(seed, "grain"))
    width, height = (int(side) for side in rng.integers(*SIDES, 2))
    with Image.open(source) as image:
        large = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    grain = rng.normal(0, 6, (height, width, 1)).astype(np.float32)
    pixels = np.clip(np.asarray(large, dtype=np.float32) + grain, 0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(target, "JPEG", quality=88)


def write_photographs(images: Path, out: Path) -> None:
    """Write the folder of photographs, once."""
    if (out / "made").exists():
        return
    shutil.rmtree(out, ignore_errors=True)
    files = sorted((images / "train").rglob("*.jpg"))
    chosen = np.random.default_rng(0).permutation(len(files))[:COUNT]
    jobs = []
    for number, index in enumerate(chosen.tolist()):
        folder = out / "photos" / (files[index].parent.name if number < LABELLED else "unlabelled")
        folder.mkdir(parents=True, exist_ok=True)
        jobs.append((str(files[index]), str(folder / f"{number:05d}.jpg"), number))
    with ProcessPoolExecutor() as pool:
        for _ in pool.map(write_photograph, jobs, chunksize=64):
            pass
    (out / "made").touch()


def disk_gb(*folders: Path) -> float:
    """Return the GB of all files in the folders, each inode once."""
    files = (path.lstat() for folder in folders for path in folder.rglob("*") if path.is_file())
    sizes = {(info.st_dev, info.st_ino): info.st_size for info in files}
    return float(sum(sizes.values())) / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", type=Path, help="holds train/ of class folders of JPEG files")
    folder = ROOT / ".winnow" / "benchmarks" / NAME
    write_photographs(parser.parse_args().images.resolve(), folder)
    project = folder / "project"
    clone_project(project)
    options = [f"-S{key}={value}" for key, value in settings(folder / "photos").items()]
    start = time.monotonic()
    call_winnow(project, "plan", "--full", *options)
    plan_seconds = time.monotonic() - start
    start = time.monotonic()
    call_winnow(project, "run")
    run_seconds = time.monotonic() - start
    paths = ProjectPaths(project)
    planned = read_json(paths.state_dir / "plan.json")
    times = {name: read_json(paths.state_dir / "times" / f"{name}.json") for name in planned["steps"]}
    quantities = {
        "time": (planned["total_seconds"], run_seconds, format_duration),
        "disk, GB": (planned["disk_gb"], disk_gb(paths.artifacts, project / ".dvc" / "cache"), "{:.2f}".format),
        "memory, GB": (
            max(row["memory_mb"] for row in planned["steps"].values()) / 1e3,
            max(row["memory_mb"] for row in times.values()) / 1e3,
            "{:.2f}".format,
        ),
    }
    rows = [
        {"": name, "planned": show(plan), "measured": show(actual), "error": f"{(plan / actual - 1) * 100:+.0f} %"}
        for name, (plan, actual, show) in quantities.items()
    ]
    lines = "\n".join(f"- {line}" for line in (*training_lines(paths), *promotion_lines(paths)))
    conditions = (
        f"{COUNT:,} photographs of 224 pixels, {LABELLED} of them labelled, {SETTINGS}, recoveries of one epoch in "
        f"batches of 64. `winnow plan` took {format_duration(plan_seconds)}."
    )
    figures = {"planned": planned, "times": times, "seconds": run_seconds, "table": candidate_table(paths)}
    write_results(NAME, conditions, figures, f"{markdown_table(rows)}\n\n{lines}")


if __name__ == "__main__":
    main()
