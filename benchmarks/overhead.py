"""What Prefect, DVC and MLflow cost a step, beyond the step itself, and where that goes.

A clone of this project runs the whole chain on the sample with as little training as there can be, REPEATS times, each
time everything. Per step, in seconds:

    the step itself      its function
    imports              interpreter and imports, torch above all: what `python -m tasks STEP` takes besides
    DVC                  its child process less the step's: its own start, hashes, lock, cache
    MLflow               the step's run: opened, filled with the record, closed; curves are sent beside the training
    Prefect              from the end of the task before to its own begin: states, logs, threads

The last three are what driving and tracking cost. Profiles say where; `winnow run` and `dvc repro` with nothing to do
are timed, too.
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

from benchmarks.chain import ROOT, leave, markdown
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
FLOW = """
import cProfile, io, json, pstats, sys, time
from pathlib import Path
from tasks.project.environment import apply
from tasks.project.paths import ProjectPaths
apply(Path.cwd())
from flows.pipeline import pipeline
from tasks import stage_runner
from tasks.tracking import mlflow_runs

# Seconds of every step's calls: MLflow's, and DVC's child process from its start to its end.
spent, profile = {}, cProfile.Profile()
inner = {name: getattr(mlflow_runs, name) for name in ("open_step", "close_step")}
label, ended, stream, open_execution = [""], [0.0], stage_runner._stream, mlflow_runs.open_execution

def timed(name):
    def call(*arguments):
        started = time.monotonic()
        profile.enable()
        try:
            return inner[name](*arguments)
        finally:
            profile.disable()
            spent[label[0]]["mlflow"] += time.monotonic() - started
            ended[0] = time.monotonic()
    return call

def opened(*arguments):
    run = open_execution(*arguments)
    ended[0] = time.monotonic()
    return run

def child(paths, stage, name, run_id, log):
    started = time.monotonic()
    lines = stream(paths, stage, name, run_id, log)
    spent[label[0]]["child"] = time.monotonic() - started
    return lines

def began(paths, parent, name, step):
    label[0] = name if step == "candidate" else step
    spent[label[0]] = {"mlflow": 0.0, "child": 0.0, "prefect": time.monotonic() - ended[0]}
    return timed("open_step")(paths, parent, name, step)

mlflow_runs.open_execution = opened
mlflow_runs.open_step, mlflow_runs.close_step, stage_runner._stream = began, timed("close_step"), child
started = time.monotonic()
done = pipeline(str(Path.cwd()))
total = time.monotonic() - started
text = io.StringIO()
pstats.Stats(profile, stream=text).strip_dirs().sort_stats("tottime").print_stats(12)
told = {"done": done, "spent": spent, "total": total, "profile": text.getvalue()}
Path(sys.argv[1]).write_text(json.dumps(told))
"""
DVC_PROFILED = """
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
    shutil.rmtree(project, ignore_errors=True)  # a stage that is there already would not run
    subprocess.run(["git", "clone", "-q", str(ROOT), str(project)], check=True)
    sets = [f"-S{key}={value}" for key, value in SETTINGS.items()]
    _seconds(project, sys.executable, "-m", "winnow.cli.main", "run", *sets)
    unchanged = {
        "winnow run": _median(project, sys.executable, "-m", "winnow.cli.main", "run"),
        "dvc repro": _median(project, sys.executable, "-m", "dvc", "repro"),
    }
    runs = [_everything(project) for _ in range(REPEATS)]
    figures = [_of_step(step, runs) for step in runs[0]["spent"]]
    rows = [{name: value if name == "step" else f"{value:.2f}" for name, value in row.items()} for row in figures]
    rest = statistics.median(_beyond(run) for run in runs)
    told = [f"- once a run (Prefect's temporary server, MLflow's import, open, track, promotion, page): {rest:.1f} s"]
    told += [f"- `{name}` with nothing to do: {seconds:.1f} s" for name, seconds in unchanged.items()]
    profiles = {"MLflow, all steps of one run": runs[-1]["profile"], "DVC, one step": _profile_of_dvc(project)}
    shown = "\n\n".join(f"{title}:\n\n```\n{_short(text)}\n```" for title, text in profiles.items())
    conditions = f"The sample, {SETTINGS}; medians of {REPEATS} runs of everything. Seconds."
    results = {"rows": figures, "beyond": rest, "unchanged": unchanged, "profiles": profiles}
    leave(NAME, conditions, results, "\n\n".join([markdown(rows), "\n".join(told), shown]))


def _of_step(step: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the runs, each part's own; what is driven and tracked is their sum in each run."""
    parts = []
    for run in runs:
        times, spent = run["times"][step], run["spent"][step]
        imports, dvc = times["process"] - times["step"], spent["child"] - times["process"]
        beyond = dvc + spent["mlflow"] + spent["prefect"]
        parts.append((times["step"], imports, dvc, spent["mlflow"], spent["prefect"], beyond))
    names = ("the step itself", "imports", "DVC", "MLflow", "Prefect", "DVC + MLflow + Prefect")
    return {"step": step, **dict(zip(names, map(statistics.median, zip(*parts, strict=True)), strict=True))}


def _beyond(run: dict[str, Any]) -> float:
    """Seconds of a run that belong to no step."""
    return float(run["total"] - sum(sum(spent.values()) for spent in run["spent"].values()))


def _everything(project: Path) -> dict[str, Any]:
    """A run of all stages: without the lock file, DVC's run cache and artifacts nothing is up to date."""
    (project / "dvc.lock").unlink()
    for folder in ((project / ".dvc" / "cache" / "runs"), project / "artifacts", project / ".winnow" / "mlflow"):
        shutil.rmtree(folder, ignore_errors=True)
    for memory in ("tracked.json", "promoted.json"):
        (project / ".winnow" / memory).unlink(missing_ok=True)
    told = project / ".winnow" / "told.json"
    _seconds(project, sys.executable, "-c", FLOW, str(told))
    found: dict[str, Any] = json.loads(told.read_text())
    assert all(row["outcome"] == "ran" for row in found["done"]), found["done"]
    times = (project / ".winnow" / "times").glob("*.json")
    return {**found, "times": {path.stem: json.loads(path.read_text()) for path in times}}


def _seconds(project: Path, *command: str) -> float:
    started = time.monotonic()
    subprocess.run(command, cwd=project, env=_environment(project), check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - started


def _median(project: Path, *command: str) -> float:
    return statistics.median(_seconds(project, *command) for _ in range(REPEATS))


def _environment(project: Path) -> dict[str, str]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return {**process_environment(project), "PATH": path, "PYTHONPATH": str(project)}


def _profile_of_dvc(project: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", DVC_PROFILED],
        cwd=project,
        env=_environment(project),
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stderr


def _short(text: str) -> str:
    """The table of a profile, without what stands before it and with short paths."""
    table = text[text.index("ncalls") - 3 :].replace(str(Path(sys.prefix)) + "/lib/", "")
    return "\n".join(line[:110].rstrip() for line in table.strip().splitlines())


if __name__ == "__main__":
    main()
