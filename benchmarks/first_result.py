"""Measure how long users wait: a first run, each step beside its own work, and the start of commands.

    python -m benchmarks.first_result                        # this commit
    python -m benchmarks.first_result --before REVISION      # and an earlier one, side by side
    python -m benchmarks.first_result --sample               # also the shipped settings on the sample

Every revision is cloned and runs in the same environment, in turn, REPEATS times. The trivial run has 2,000 JPEG files
of the sample, 200 of each class, and one epoch and step everywhere. Candidates and benchmark are those that the
revision ships; its gates let every candidate pass, so that a model is promoted. Per run: total seconds, and those that
its steps took beside their own work (process, DVC, MLflow, Prefect).
"""

from __future__ import annotations

import argparse
import re
import shutil
import statistics
import subprocess
import tarfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from benchmarks.chain import ROOT, SAMPLE, markdown_table, write_results
from benchmarks.projects import call_winnow, clone_project

NAME = "first_result"
REPEATS = 3
IMAGES_PER_CLASS = 200
FOLDER = ROOT / ".winnow" / "benchmarks" / NAME
STEP_ROW = re.compile(r"^ (?P<step>\S+) +ran +(?P<seconds>[\d.]+) +(?P<own>[\d.]+)", re.MULTILINE)
OUTSIDE_ROW = re.compile(r"^ flow, tracking and servers +(?P<seconds>[\d.]+)", re.MULTILINE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", metavar="REVISION", help="an earlier commit to compare with")
    parser.add_argument("--sample", action="store_true", help="also run the shipped settings on the sample")
    arguments = parser.parse_args()
    photos = _write_photos()
    revisions = {"now": "HEAD", **({"before": arguments.before} if arguments.before else {})}
    projects = {name: FOLDER / name for name in revisions}
    for name, project in projects.items():
        clone_project(project, revisions[name])
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in projects}
    commands: dict[str, list[dict[str, float]]] = {name: [] for name in projects}
    for _ in range(REPEATS):
        for name, project in projects.items():
            _clear(project)
            _write_trivial_params(project, photos)
            runs[name].append(_run(project))
            commands[name].append(_time_commands(project, photos))
    samples: dict[str, list[dict[str, Any]]] = {name: [] for name in projects}
    for _ in range(REPEATS if arguments.sample else 0):
        for name, project in projects.items():
            _clear(project)
            subprocess.run(["git", "checkout", "-q", "params.yaml"], cwd=project, check=True)
            samples[name].append(_run(project))
    commits = {name: _commit(project) for name, project in projects.items()}
    conditions = (
        f"Trivial run: {IMAGES_PER_CLASS} JPEG files of each class of the sample, one epoch everywhere. Medians of "
        f"{REPEATS} runs. Commits: {commits}. Seconds."
    )
    table = markdown_table(_summary(runs, commands, samples))
    steps = "\n\n".join(f"Steps, {name}:\n\n{markdown_table(_step_rows(of))}" for name, of in runs.items())
    write_results(NAME, conditions, {"runs": runs, "commands": commands, "samples": samples}, f"{table}\n\n{steps}")


def _write_photos() -> Path:
    """Write the images as FOLDER/photos/CLASS/NUMBER.jpg and return the folder."""
    photos, unfinished = FOLDER / "photos", FOLDER / "photos.tmp"
    if photos.is_dir():
        return photos
    shutil.rmtree(unfinished, ignore_errors=True)
    of_class: Counter[str] = Counter()
    with tarfile.open(ROOT / SAMPLE["data.path"]) as archive:
        for member in archive:
            split, _, rest = member.name.partition("/")
            name = rest.partition("/")[0]
            if split == "train" and member.isfile() and of_class[name] < IMAGES_PER_CLASS:
                of_class[name] += 1
                archive.extract(member, unfinished, filter="data")
    (unfinished / "train").rename(photos)
    return photos


def _commit(project: Path) -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, cwd=project, check=True, capture_output=True, text=True).stdout.strip()


def _clear(project: Path) -> None:
    """Remove all results, so that every stage runs again and no model is promoted yet."""
    for folder in ("artifacts", ".winnow", ".dvc/cache"):
        shutil.rmtree(project / folder, ignore_errors=True)
    (project / "dvc.lock").unlink(missing_ok=True)


def _write_trivial_params(project: Path, photos: Path) -> None:
    path = project / "params.yaml"
    params = yaml.safe_load(path.read_text(encoding="utf-8"))
    _shorten(params)
    params["data"] |= {"source": "folder", "path": str(photos)}
    params["promotion"]["gates"] |= {
        "max_drop_points": 100.0,
        "max_macro_f1_drop_points": 100.0,
        "min_agreement": 0.0,
        "max_size_ratio": 1.0,
        "min_int8_share": 0.0,
        "min_speedup": 0.1,
    }
    path.write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")


def _shorten(section: dict[str, Any]) -> None:
    """Set one epoch and step in every training of a section and the sections in it, except those that are off (0)."""
    for key, value in section.items():
        if isinstance(value, dict):
            _shorten(value)
        elif key in ("epochs", "min_steps") and value:
            section[key] = 1
        elif key in ("seeds", "learning_rates"):
            section[key] = value[:1]


def _run(project: Path) -> dict[str, Any]:
    """Run all steps; return the seconds of the command, and those of each step and of its own work."""
    start = time.monotonic()
    output = _call(project, "run")
    seconds = time.monotonic() - start
    rows = [match.groupdict() for match in STEP_ROW.finditer(output)]
    outside = OUTSIDE_ROW.search(output)
    if not rows or outside is None:
        raise SystemExit(f"the run in {project} printed no times:\n{output}")
    steps = {row["step"]: {"seconds": float(row["seconds"]), "own": float(row["own"])} for row in rows}
    return {"seconds": seconds, "steps": steps, "outside steps": float(outside["seconds"])}


def _time_commands(project: Path, photos: Path) -> dict[str, float]:
    """Return command -> seconds; each is called once before, so that files are in the system's cache."""
    image = next(photos.rglob("*.jpg"))
    commands = {
        "winnow --help": ["--help"],
        "winnow run, nothing to do": ["run"],
        "winnow predict IMAGE": ["predict", str(image)],
    }
    seconds = {}
    for name, arguments in commands.items():
        _call(project, *arguments)
        start = time.monotonic()
        _call(project, *arguments)
        seconds[name] = time.monotonic() - start
    return seconds


def _call(project: Path, *arguments: str) -> str:
    """Call the revision's `winnow` and return its output."""
    output: str = call_winnow(project, *arguments, env={"COLUMNS": "200"}, stdout=subprocess.PIPE, text=True).stdout
    return output


def _summary(
    runs: dict[str, list[dict[str, Any]]],
    commands: dict[str, list[dict[str, float]]],
    samples: dict[str, list[dict[str, Any]]],
) -> list[dict[str, str]]:
    """Return a row per figure with a column per revision."""
    figures: dict[str, dict[str, float]] = {}
    for name, of_revision in runs.items():
        beside = [[step["seconds"] - step["own"] for step in run["steps"].values()] for run in of_revision]
        figures[name] = {
            "trivial run": _median(run["seconds"] for run in of_revision),
            "steps of it": float(len(of_revision[0]["steps"])),
            "a step beside its own work, mean": _median(statistics.mean(run) for run in beside),
            "a step beside its own work, largest": _median(max(run) for run in beside),
            "flow, tracking and servers": _median(run["outside steps"] for run in of_revision),
            **{command: _median(row[command] for row in commands[name]) for command in commands[name][0]},
        }
        if samples[name]:
            figures[name]["sample, shipped settings"] = _median(run["seconds"] for run in samples[name])
    first = next(iter(figures.values()))
    return [{"figure": figure, **{name: f"{of[figure]:.1f}" for name, of in figures.items()}} for figure in first]


def _step_rows(runs: list[dict[str, Any]]) -> list[dict[str, str]]:
    return [
        {
            "step": step,
            "the step itself": f"{_median(run['steps'][step]['own'] for run in runs):.1f}",
            "beside it": f"{_median(run['steps'][step]['seconds'] - run['steps'][step]['own'] for run in runs):.1f}",
        }
        for step in runs[0]["steps"]
    ]


def _median(values: Any) -> float:
    return float(statistics.median(values))


if __name__ == "__main__":
    main()
