"""What Prefect, DVC and MLflow cost a step, beyond the step itself.

A clone of this project runs the chain on the sample with as little training as there can be. Then every stage is run
again three ways, one after the other, and once under the flow:

    the step itself      its function, in a process that has imported what it needs
    process              `python -m tasks STEP` less that: interpreter and imports, torch above all
    DVC                  `dvc repro --force --single-item STAGE` less that: its own start, hashes, lock, cache
    flow                 the same under `winnow run` less that: Prefect's task, MLflow's run, curves and files

A profile says where DVC's and the flow's shares go. The last row is a run with nothing to do.
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
from tasks.settings import environment
from winnow.config import load_config

NAME = "overhead"
REPEATS = 3
SETTINGS = {
    "pretrain.epochs": 1,
    "pretrain.monitor_every": 1,
    "finetune.epochs": 1,
    "finetune.min_steps": 5,
    "finetune.seeds": "[0]",
    "finetune.learning_rates": "[0.05]",
    "candidates.pruned.recovery.epochs": 1,
    "candidates.sparse.recovery.epochs": 1,
    "candidates.student.recovery.epochs": 1,
    "candidates.student-alone.recovery.epochs": 1,
    "candidates.dense-kd.recovery.epochs": 1,
    "benchmark.samples": 20,
    "benchmark.rounds": 2,
}
FLOW = """
import json, sys
from pathlib import Path
from tasks.settings import Places, apply
apply(Path.cwd())
from flows.pipeline import pipeline
Path(sys.argv[1]).write_text(json.dumps(pipeline(str(Path.cwd()))))
"""
PROFILED = """
import cProfile, pstats, sys
from pathlib import Path
from tasks.settings import apply
apply(Path.cwd())
profile = cProfile.Profile()
profile.enable()
{work}
profile.disable()
pstats.Stats(profile, stream=sys.stderr).sort_stats("tottime").print_stats(15)
"""


def main() -> None:
    project = ROOT / ".winnow" / "benchmarks" / NAME
    shutil.rmtree(project, ignore_errors=True)  # a stage that is there already would not run
    subprocess.run(["git", "clone", "-q", str(ROOT), str(project)], check=True)
    sets = [f"-S{key}={value}" for key, value in SETTINGS.items()]
    _seconds(project, sys.executable, "-m", "flows.cli", "run", *sets)
    unchanged = {
        "winnow run": _median(project, sys.executable, "-m", "flows.cli", "run"),
        "dvc repro": _median(project, sys.executable, "-m", "dvc", "repro"),
    }
    rows, figures = [], []
    from tasks.versioning import stages

    flow = _under_the_flow(project)
    for stage in stages(load_config(project / "params.yaml")):
        step = ["candidate", stage.label] if "@" in stage.name else [stage.name]
        process, own = [], []
        for _ in range(REPEATS):
            process.append(_seconds(project, sys.executable, "-m", "tasks", *step))
            own.append(json.loads((project / ".winnow" / "times" / f"{stage.label}.json").read_text())["step"])
        dvc = _median(project, sys.executable, "-m", "dvc", "repro", "--force", "--single-item", stage.name)
        middle = {"own": statistics.median(own), "process": statistics.median(process), "dvc": dvc}
        figures.append({"step": stage.label, **middle, "flow": flow[stage.label]})
        rows.append(
            {
                "step": stage.label,
                "the step itself, s": f"{middle['own']:.1f}",
                "process": f"{middle['process'] - middle['own']:+.1f}",
                "DVC": f"{dvc - middle['process']:+.1f}",
                "flow": f"{flow[stage.label] - dvc:+.1f}",
                "beyond the step": f"{flow[stage.label] - middle['own']:.1f}",
            }
        )
        print(rows[-1])
    told = "\n".join(f"- `{name}` with nothing to do: {seconds:.1f} s" for name, seconds in unchanged.items())
    profile = _profile(project)
    conditions = f"The sample, {SETTINGS}; medians of {REPEATS}, the flow once. Seconds."
    table = f"{markdown(rows)}\n\n{told}\n\nWhere `dvc repro` of one stage spends its time:\n\n```\n{profile}\n```"
    leave(NAME, conditions, {"rows": figures, "unchanged": unchanged, "profile": profile.splitlines()}, table)


def _seconds(project: Path, *command: str) -> float:
    started = time.monotonic()
    subprocess.run(command, cwd=project, env=_environment(project), check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - started


def _median(project: Path, *command: str) -> float:
    return statistics.median(_seconds(project, *command) for _ in range(REPEATS))


def _environment(project: Path) -> dict[str, str]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return {**environment(project), "PATH": path}


def _under_the_flow(project: Path) -> dict[str, float]:
    """Seconds of every stage's task; all of them are made to run by emptying the lock file and DVC's run cache."""
    (project / "dvc.lock").unlink()
    shutil.rmtree(project / ".dvc" / "cache" / "runs", ignore_errors=True)
    told = project / ".winnow" / "done.json"
    _seconds(project, sys.executable, "-c", FLOW, str(told))
    done: list[dict[str, Any]] = json.loads(told.read_text())
    assert all(row["outcome"] == "ran" for row in done), done
    return {row["stage"]: row["seconds"] for row in done}


def _profile(project: Path) -> str:
    """The functions with most time of their own in DVC's process when it runs one stage."""
    work = "from dvc.cli import main\nmain(['repro', '--force', '--single-item', 'select'])"
    done = subprocess.run(
        [sys.executable, "-c", PROFILED.format(work=work)],
        cwd=project,
        env=_environment(project),
        check=True,
        capture_output=True,
        text=True,
    )
    table = done.stderr[done.stderr.index("ncalls") - 3 :]
    return "\n".join(line[:110] for line in table.strip().splitlines())


if __name__ == "__main__":
    main()
