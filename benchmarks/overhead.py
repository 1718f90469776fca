"""Measure what Prefect, DVC and MLflow add to the time of each step, and profile it.

A clone of this project runs all stages on the sample with as little training as possible, REPEATS times, with nothing
up to date. Per step, in seconds:

    the step itself      its function
    imports              the rest of `python -m tasks STEP`: interpreter and imports, mostly torch
    DVC                  its child process less that of the step: its own start, hashes, lock, cache
    MLflow               opening the step's run, logging the record, closing; curves are logged during the training
    Prefect              from the end of the previous task to the start of this one: states, logs, threads

The last three are the overhead of orchestration and tracking. `winnow run` and `dvc repro` are also timed with every
stage up to date.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.chain import ROOT, markdown_table, write_results
from benchmarks.projects import clone_project
from tasks.project.environment import process_environment

NAME = "overhead"
REPEATS = 3
SETTINGS = {
    "pretrain.epochs": 1,
    "pretrain.min_steps": 1,
    "pretrain.monitor_every": 1,
    "finetune.epochs": 1,
    "finetune.min_steps": 5,
    "finetune.seeds": "[0]",
    "finetune.learning_rates": "[0.05]",
    "candidates.pruned.recovery.epochs": 1,
    "candidates.pruned.recovery.min_steps": 1,
    "candidates.sparse.recovery.epochs": 1,
    "candidates.sparse.recovery.min_steps": 1,
    "candidates.student.recovery.epochs": 1,
    "candidates.student.recovery.min_steps": 1,
    "candidates.student-alone.recovery.epochs": 1,
    "candidates.student-alone.recovery.min_steps": 1,
    "candidates.dense-kd.recovery.epochs": 1,
    "candidates.dense-kd.recovery.min_steps": 1,
    "benchmark.samples": 20,
    "benchmark.rounds": 6,
}
TIMED_FLOW = """
import cProfile, io, json, pstats, sys, time
from pathlib import Path
from tasks.project.environment import apply
from tasks.project.paths import ProjectPaths
apply(Path.cwd())
from flows.pipeline import pipeline
from tasks import stage_runner
from tasks.tracking import mlflow_runs

# Seconds of every step: MLflow's calls, DVC's child process from its start to its end, and Prefect.
seconds, profile = {}, cProfile.Profile()
original = {name: getattr(mlflow_runs, name) for name in ("open_step", "close_step")}
label, last_end = [""], [0.0]
stream, open_execution = stage_runner._stream, mlflow_runs.open_execution

def profiled(name):
    def call(*arguments):
        start = time.monotonic()
        profile.enable()
        try:
            return original[name](*arguments)
        finally:
            profile.disable()
            seconds[label[0]]["mlflow"] += time.monotonic() - start
            last_end[0] = time.monotonic()
    return call

def timed_open_execution(*arguments):
    run = open_execution(*arguments)
    last_end[0] = time.monotonic()
    return run

def timed_stream(paths, stage, name, run_id, log):
    start = time.monotonic()
    lines = stream(paths, stage, name, run_id, log)
    seconds[label[0]]["child"] = time.monotonic() - start
    return lines

def timed_open_step(paths, parent, name, step):
    label[0] = name if step == "candidate" else step
    seconds[label[0]] = {"mlflow": 0.0, "child": 0.0, "prefect": time.monotonic() - last_end[0]}
    return profiled("open_step")(paths, parent, name, step)

mlflow_runs.open_execution = timed_open_execution
mlflow_runs.open_step, mlflow_runs.close_step = timed_open_step, profiled("close_step")
stage_runner._stream = timed_stream
start = time.monotonic()
stages = pipeline(str(Path.cwd()))
total = time.monotonic() - start
text = io.StringIO()
pstats.Stats(profile, stream=text).strip_dirs().sort_stats("tottime").print_stats(12)
result = {"stages": stages, "seconds": seconds, "total": total, "profile": text.getvalue()}
Path(sys.argv[1]).write_text(json.dumps(result))
"""
DVC_PROFILE = """
import cProfile, pstats, sys
from pathlib import Path
from tasks.project.environment import apply
apply(Path.cwd())
profile = cProfile.Profile()
profile.enable()
from dvc.cli import main
main(["repro", "--force", "--single-item", "select"])
profile.disable()
pstats.Stats(profile, stream=sys.stderr).strip_dirs().sort_stats("tottime").print_stats(12)
"""


def main() -> None:
    project = ROOT / ".winnow" / "benchmarks" / NAME
    clone_project(project)
    options = [f"-S{key}={value}" for key, value in SETTINGS.items()]
    _time_command(project, sys.executable, "-m", "winnow.cli.main", "run", "--full", *options)
    up_to_date = {
        "winnow run": _median_time(project, sys.executable, "-m", "winnow.cli.main", "run"),
        "dvc repro": _median_time(project, sys.executable, "-m", "dvc", "repro"),
    }
    runs = [_run_all_stages(project) for _ in range(REPEATS)]
    figures = [_step_row(step, runs) for step in runs[0]["seconds"]]
    rows = [{name: value if name == "step" else f"{value:.2f}" for name, value in row.items()} for row in figures]
    once = statistics.median(_seconds_outside_steps(run) for run in runs)
    lines = [f"- once a run (Prefect's temporary server, MLflow's import, open, track, promotion, page): {once:.1f} s"]
    lines += [f"- `{command}` with every stage up to date: {seconds:.1f} s" for command, seconds in up_to_date.items()]
    profiles = {"MLflow, all steps of one run": runs[-1]["profile"], "DVC, one step": _profile_dvc(project)}
    shown = "\n\n".join(f"{title}:\n\n```\n{_shorten_profile(text)}\n```" for title, text in profiles.items())
    conditions = f"The sample, {SETTINGS}; medians of {REPEATS} runs of all stages. Seconds."
    results = {"rows": figures, "beyond": once, "unchanged": up_to_date, "profiles": profiles}
    write_results(NAME, conditions, results, "\n\n".join([markdown_table(rows), "\n".join(lines), shown]))


def _step_row(step: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the median seconds of each part over the runs; the last part is the overhead, summed in each run."""
    parts = []
    for run in runs:
        times, seconds = run["times"][step], run["seconds"][step]
        imports, dvc = times["process"] - times["step"], seconds["child"] - times["process"]
        overhead = dvc + seconds["mlflow"] + seconds["prefect"]
        parts.append((times["step"], imports, dvc, seconds["mlflow"], seconds["prefect"], overhead))
    names = ("the step itself", "imports", "DVC", "MLflow", "Prefect", "DVC + MLflow + Prefect")
    return {"step": step, **dict(zip(names, map(statistics.median, zip(*parts, strict=True)), strict=True))}


def _seconds_outside_steps(run: dict[str, Any]) -> float:
    """Return the seconds of a run that belong to no step."""
    return float(run["total"] - sum(sum(seconds.values()) for seconds in run["seconds"].values()))


def _run_all_stages(project: Path) -> dict[str, Any]:
    """Run all stages and return their times; no lock file, run cache or artifact is left that makes one up to date."""
    (project / "dvc.lock").unlink()
    for folder in ((project / ".dvc" / "cache" / "runs"), project / "artifacts", project / ".winnow" / "mlflow"):
        shutil.rmtree(folder, ignore_errors=True)
    for state_file in ("tracked.json", "promoted.json"):
        (project / ".winnow" / state_file).unlink(missing_ok=True)
    result_file = project / ".winnow" / "result.json"
    _time_command(project, sys.executable, "-c", TIMED_FLOW, str(result_file))
    result: dict[str, Any] = json.loads(result_file.read_text())
    assert all(stage["outcome"] == "ran" for stage in result["stages"]), result["stages"]
    times = (project / ".winnow" / "times").glob("*.json")
    return {**result, "times": {path.stem: json.loads(path.read_text()) for path in times}}


def _time_command(project: Path, *command: str) -> float:
    """Run a command in the project and return its seconds."""
    start = time.monotonic()
    subprocess.run(command, cwd=project, env=_environment(project), check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - start


def _median_time(project: Path, *command: str) -> float:
    return statistics.median(_time_command(project, *command) for _ in range(REPEATS))


def _environment(project: Path) -> dict[str, str]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return {**process_environment(project), "PATH": path, "PYTHONPATH": str(project)}


def _profile_dvc(project: Path) -> str:
    process = subprocess.run(
        [sys.executable, "-c", DVC_PROFILE],
        cwd=project,
        env=_environment(project),
        check=True,
        capture_output=True,
        text=True,
    )
    return process.stderr


def _shorten_profile(text: str) -> str:
    """Return the table of a profile without its header, with short paths."""
    table = text[text.index("ncalls") - 3 :].replace(str(Path(sys.prefix)) + "/lib/", "")
    return "\n".join(line[:110].rstrip() for line in table.strip().splitlines())


if __name__ == "__main__":
    main()
