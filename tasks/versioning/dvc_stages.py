"""DVC, by its command line in a child process: its Python functions that run stages are internal, not thread-safe.

DVC alone decides what is stale. `stages` is the graph that the flow draws; a test holds it equal to dvc.yaml's.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from tasks.project.paths import ProjectPaths
from tasks.project.run_origin import process_identity
from tasks.versioning import integrity
from winnow.config import ROOT, Config, in_order
from winnow.config.section import NOTHING
from winnow.data.special_files import refuse_special_files
from winnow.errors import WinnowError

CANDIDATE = "candidate@"
WATCHED = "WINNOW_STARTED_BY"
"""Names the process without which a step ends: of a flow that was killed nothing must go on."""


@dataclass(frozen=True)
class Stage:
    """A DVC stage: `name` as DVC calls it, `label` as people do, `needs` as DVC's names."""

    name: str
    needs: tuple[str, ...]

    @property
    def label(self) -> str:
        """pretrain, pruned-int8, ..."""
        return self.name.removeprefix(CANDIDATE)

    @property
    def out(self) -> str:
        """The folder it writes, relative to artifacts/."""
        if self.name == "finetune":
            return f"candidates/{ROOT}"
        if self.name.startswith(CANDIDATE):
            return f"candidates/{self.label}"
        return "data" if self.name == "ingest" else self.name


def stages(config: Config) -> list[Stage]:
    """Every stage after those it needs."""
    names = in_order(dict(config.candidates))

    def stage_of(candidate: str) -> str:
        return "finetune" if candidate == ROOT else CANDIDATE + candidate

    tree = [
        Stage(
            stage_of(name),
            tuple(dict.fromkeys(("ingest", "pretrain", "finetune", stage_of(config.candidates[name].parent)))),
        )
        for name in names
    ]
    everyone = ("finetune", *(stage.name for stage in tree))
    return [
        Stage("ingest", ()),
        Stage("pretrain", ("ingest",)),
        Stage("finetune", ("ingest", "pretrain")),
        *tree,
        Stage("benchmark", ("ingest", *everyone)),
        Stage("select", ("ingest", *everyone, "benchmark")),
        Stage("refit", ("ingest", "pretrain", *everyone, "select")),
        Stage("report", ("ingest", "pretrain", *everyone, "benchmark", "select", "refit")),
    ]


def command(*arguments: str) -> list[str]:
    """DVC of this very environment."""
    return [sys.executable, "-m", "dvc", *arguments]


def environment() -> dict[str, str]:
    """A stage's `python` must be ours: the environment's folder leads the PATH."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return {**os.environ, "PATH": path}


def stale(root: Path, config: Config) -> dict[str, list[str]]:
    """Stage -> why it has to run, closed over descendants, in the graph's order; empty when all is up to date.

    Raises DataError where data.path holds what DVC cannot hash.
    """
    refuse_special_files(root / config.data.path, has_class_folders=config.data.labels == NOTHING)
    result = subprocess.run(
        command("--wait-for-lock", "status", "--json"),
        cwd=root,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode != 0:
        raise WinnowError(f"dvc status failed in {root}:\n{_last_lines(result.stderr or result.stdout)}")
    changes = json.loads(result.stdout or "{}")
    for entry in integrity.damaged(ProjectPaths(root)):
        name = entry.path.relative_to(root)
        changes.setdefault(entry.stage, []).append(f"its output {name} is damaged: changed in place since it was made")
    never = changes.keys() - _ran(root) if changes else set()
    return closed(changes | {stage: ["it has not run yet", *_missing(changes[stage])] for stage in never}, config)


def _missing(changes: list[object]) -> list[str]:
    """What a stage needs that no other stage makes, and that is not there."""
    reasons = [reason for change in changes for reason in _reasons(change)]
    return [reason for reason in reasons if reason.endswith(": deleted") and "artifacts/" not in reason]


def _ran(root: Path) -> set[str]:
    """Stages that have run here, as dvc.lock has them."""
    try:
        text = (root / "dvc.lock").read_text(encoding="utf-8")
    except FileNotFoundError:
        return set()
    return set((yaml.safe_load(text) or {}).get("stages", {}))


def closed(changes: Mapping[str, list[object]], config: Config) -> dict[str, list[str]]:
    """What DVC says of stages that have changed themselves, in words, and with those that hang on them."""
    found: dict[str, list[str]] = {}
    for stage in stages(config):
        reasons = [reason for change in changes.get(stage.name, []) for reason in _reasons(change)]
        if not reasons:
            reasons = [f"{need.removeprefix(CANDIDATE)} has to run" for need in stage.needs if need in found]
        if reasons:
            found[stage.name] = reasons
    return found


def _reasons(change: object) -> Iterator[str]:
    """One entry of `dvc status --json` in words."""
    if not isinstance(change, dict):
        yield str(change)
        return
    for kind, items in change.items():
        if not isinstance(items, dict):
            yield f"{kind}: {items}"
            continue
        for path, state in items.items():
            if isinstance(state, dict):
                yield from (f"{key}: {how}" for key, how in state.items())
            elif kind == "changed outs":
                yield f"its output {path}: {state}"
            else:
                yield f"{path}: {state}"


def reproduce(root: Path, stage: str) -> subprocess.Popen[str]:
    """Start one stage; its output comes line by line from `stdout`."""
    return subprocess.Popen(
        command("--wait-for-lock", "repro", "--single-item", stage),
        cwd=root,
        env={**environment(), WATCHED: process_identity(os.getpid())},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )


CHATTER = (
    "Running stage",
    "> python -m tasks",
    "Updating lock file",
    "Generating lock file",
    "To track the changes",
    "git add",
    "To enable auto staging",
    "dvc config core.autostage",
    "Use `dvc push`",
    "Stage '",
)


def is_chatter(line: str) -> bool:
    """Lines of DVC and of torch's own log that tell a person nothing."""
    text = line.strip()
    noise = text.startswith("WARNING") and ("is empty." in text or "had been killed" in text)
    return not text or noise or text.startswith(CHATTER) or "No CUDA runtime is found" in text


def outcome(lines: list[str]) -> str:
    """What DVC did, from what it said: ran, restored (from its cache), or unchanged."""
    text = "\n".join(lines)
    if "Running stage" in text:
        return "ran"
    return "restored" if "is cached" in text or "skipping run" in text else "unchanged"


def _last_lines(text: str, count: int = 8) -> str:
    return "\n".join(text.strip().splitlines()[-count:])
