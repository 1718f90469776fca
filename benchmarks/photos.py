"""20,000 photographs of 224 pixels, 500 of them labelled, by `winnow plan` and `winnow run`: is it as planned?

    python -m benchmarks.photos IMAGES

IMAGES is a folder with train/ of class folders (CIFAR-10 as JPEG, say). Photographs are made of them: enlarged to 256
to 340 pixels, with grain, as JPEG of some 30 kB; 500 keep their label, the others lie in unlabelled/. A clone of this
project plans and runs on them, as a user would. What is compared: time from command to table, bytes in artifacts/ and
in DVC's cache (files that both link to count once), and the largest peak of a step's memory.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.chain import ROOT, leave, markdown
from tasks.project.environment import process_environment
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
    """All keys that differ from params.yaml: one epoch everywhere, since not accuracy is measured here but time."""
    found = {**SETTINGS, "data.path": str(folder)}
    for name in TRAINED:
        found |= {f"candidates.{name}.recovery.{key}": value for key, value in RECOVERY.items()}
    return found


def photograph(job: tuple[str, str, int]) -> None:
    """One enlarged copy with grain."""
    source, target, seed = job
    rng = np.random.default_rng(stream_seed(seed, "grain"))
    width, height = (int(side) for side in rng.integers(*SIDES, 2))
    with Image.open(source) as image:
        large = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    grain = rng.normal(0, 6, (height, width, 1)).astype(np.float32)
    pixels = np.clip(np.asarray(large, dtype=np.float32) + grain, 0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(target, "JPEG", quality=88)


def make(images: Path, out: Path) -> None:
    """The folder of photographs, once."""
    if (out / "made").exists():
        return
    shutil.rmtree(out, ignore_errors=True)
    files = sorted((images / "train").rglob("*.jpg"))
    chosen = np.random.default_rng(0).permutation(len(files))[:COUNT]
    jobs = []
    for number, at in enumerate(chosen.tolist()):
        folder = out / "photos" / (files[at].parent.name if number < LABELLED else "unlabelled")
        folder.mkdir(parents=True, exist_ok=True)
        jobs.append((str(files[at]), str(folder / f"{number:05d}.jpg"), number))
    with ProcessPoolExecutor() as pool:
        for _ in pool.map(photograph, jobs, chunksize=64):
            pass
    (out / "made").touch()


def on_disk_gb(*folders: Path) -> float:
    """Bytes of all files below, each inode once."""
    seen = {(info.st_dev, info.st_ino): info.st_size for at in folders for info in _infos(at)}
    return float(sum(seen.values())) / 1e9


def _infos(folder: Path) -> list:  # type: ignore[type-arg]
    return [path.lstat() for path in folder.rglob("*") if path.is_file()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", type=Path, help="holds train/ of class folders of JPEG files")
    folder = ROOT / ".winnow" / "benchmarks" / NAME
    make(parser.parse_args().images.resolve(), folder)
    project = folder / "project"
    shutil.rmtree(project, ignore_errors=True)
    subprocess.run(["git", "clone", "-q", str(ROOT), str(project)], check=True)
    sets = [f"-S{key}={value}" for key, value in settings(folder / "photos").items()]
    winnow = [sys.executable, "-m", "winnow.cli.main"]
    began = time.monotonic()
    subprocess.run([*winnow, "plan", *sets], cwd=project, env=process_environment(project), check=True)
    planning = time.monotonic() - began
    began = time.monotonic()
    subprocess.run([*winnow, "run"], cwd=project, env=process_environment(project), check=True)
    total = time.monotonic() - began
    paths = ProjectPaths(project)
    planned = read_json(paths.state_dir / "plan.json")
    times = {name: read_json(paths.state_dir / "times" / f"{name}.json") for name in planned["steps"]}
    pairs = {
        "time": (planned["total_seconds"], total, format_duration),
        "disk, GB": (planned["disk_gb"], on_disk_gb(paths.artifacts, project / ".dvc" / "cache"), "{:.2f}".format),
        "memory, GB": (
            max(row["memory_mb"] for row in planned["steps"].values()) / 1e3,
            max(row["memory_mb"] for row in times.values()) / 1e3,
            "{:.2f}".format,
        ),
    }
    rows = [
        {"": what, "planned": show(one), "it was": show(other), "off by": f"{(one / other - 1) * 100:+.0f} %"}
        for what, (one, other, show) in pairs.items()
    ]
    lines = "\n".join(f"- {line}" for line in (*training_lines(paths), *promotion_lines(paths)))
    conditions = (
        f"{COUNT:,} photographs of 224 pixels, {LABELLED} of them labelled, {SETTINGS}, recoveries of one epoch in "
        f"batches of 64. `winnow plan` took {format_duration(planning)}."
    )
    figures = {"planned": planned, "times": times, "seconds": total, "table": candidate_table(paths)}
    leave(NAME, conditions, figures, f"{markdown(rows)}\n\n{lines}")


if __name__ == "__main__":
    main()
