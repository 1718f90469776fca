"""Run the whole pipeline with `winnow run --full` on all 60,000 CIFAR-10 images (train/ and test/ of class folders).

    python -m benchmarks.whole_cifar10 FOLDER

A clone of this project runs it, as a user would, with settings for five times as many images as the sample: 25 labels
per class and a fifth of the epochs, so that trainings take as many steps as on the sample. The time is that from the
command to the table, without set-up.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from benchmarks.chain import ROOT, markdown_table, write_results
from benchmarks.projects import call_winnow, clone_project
from tasks.project.paths import ProjectPaths
from tasks.project.run_summary import candidate_table, promotion_lines, training_lines
from winnow.records import FinetuneRecord, read_record

NAME = "whole_cifar10"
SETTINGS = {
    "data.source": "folder",
    "data.labels_per_class": "25",
    "pretrain.epochs": "6",
    "finetune.unlabelled": "{method: propagation, epochs: 4}",
    "candidates.pruned.recovery.epochs": "4",
    "candidates.sparse.recovery.epochs": "4",
    "candidates.dense-kd.recovery.epochs": "4",
    "candidates.student.recovery.epochs": "6",
    "candidates.student-alone.recovery.epochs": "6",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="holds train/ and test/ of class folders")
    folder = parser.parse_args().folder.resolve()
    project = ROOT / ".winnow" / "benchmarks" / NAME
    clone_project(project)
    options = [f"-S{key}={value}" for key, value in {**SETTINGS, "data.path": str(folder)}.items()]
    start = time.monotonic()
    call_winnow(project, "run", "--full", *options)
    minutes = (time.monotonic() - start) / 60
    paths = ProjectPaths(project)
    rows = candidate_table(paths)
    dense = FinetuneRecord.read(paths.artifacts / "candidates" / "dense")
    report = read_record(paths.artifacts / "report")
    images = read_record(paths.artifacts / "data").metrics["data/images"]
    conditions = (
        f"CIFAR-10 (JPEG), {images:,.0f} images, {SETTINGS}; from command to table {minutes:.1f} minutes. "
        "Validation accuracy except where the table says test."
    )
    lines = "\n".join(f"- {line}" for line in (*training_lines(paths), *promotion_lines(paths)))
    figures = {
        "minutes": minutes,
        "table": rows,
        "arms": dense.details.arms.model_dump(mode="json"),
        "test": report.metrics,
    }
    write_results(NAME, conditions, figures, f"{markdown_table(rows)}\n\n{lines}")


if __name__ == "__main__":
    main()
