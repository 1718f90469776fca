"""The whole chain by `winnow run` on a folder of all 60,000 CIFAR-10 images (train/ and test/ of class folders).

    python -m benchmarks.whole_cifar10 FOLDER

A clone of this project runs it, as a user would, with settings for more images than the sample: 25 labels per class,
20 epochs of RotNet, five label seeds. Time counts from the command to the table, set-up apart.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.chain import ROOT, leave
from tasks.project.environment import process_environment
from tasks.project.paths import ProjectPaths
from tasks.project.run_summary import candidate_table, promotion_lines, training_lines
from winnow.records import FinetuneRecord, read_record

NAME = "whole_cifar10"
SETTINGS = {
    "data.source": "folder",
    "data.labels_per_class": "25",
    "pretrain.epochs": "20",
    "finetune.seeds": "[0, 1, 2, 3, 4]",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="holds train/ and test/ of class folders")
    folder = parser.parse_args().folder.resolve()
    project = ROOT / ".winnow" / "benchmarks" / NAME
    shutil.rmtree(project, ignore_errors=True)  # time counts from the command: nothing may be there already
    subprocess.run(["git", "clone", "-q", str(ROOT), str(project)], check=True)
    sets = [f"-S{key}={value}" for key, value in {**SETTINGS, "data.path": str(folder)}.items()]
    started = time.monotonic()
    subprocess.run(
        [sys.executable, "-m", "winnow.cli.main", "run", *sets],
        cwd=project,
        env=process_environment(project),
        check=True,
    )
    minutes = (time.monotonic() - started) / 60
    paths = ProjectPaths(project)
    rows = candidate_table(paths)
    dense = FinetuneRecord.read(paths.artifacts / "candidates" / "dense")
    report = read_record(paths.artifacts / "report")
    images = read_record(paths.artifacts / "data").metrics["data/images"]
    conditions = (
        f"CIFAR-10 (JPEG), {images:,.0f} images, {SETTINGS}; from command to table {minutes:.1f} minutes. "
        "Validation accuracy unless it says test."
    )
    table = "\n".join(
        [
            "| " + " | ".join(rows[0]) + " |",
            "|" + " --- |" * len(rows[0]),
            *("| " + " | ".join(row.values()) + " |" for row in rows),
            "",
            *(f"- {line}" for line in (*training_lines(paths), *promotion_lines(paths))),
        ]
    )
    figures = {
        "minutes": minutes,
        "table": rows,
        "arms": dense.details.arms.model_dump(mode="json"),
        "test": report.metrics,
    }
    leave(NAME, conditions, figures, table)


if __name__ == "__main__":
    main()
