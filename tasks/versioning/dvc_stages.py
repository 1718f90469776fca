"""DVC stages, through DVC's command line in a child process: its Python functions are internal and not thread-safe.

Only DVC decides what is stale. `stages` is the graph of dvc.yaml; a test compares the two.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tasks.project.paths import ProjectPaths
from tasks.project.run_origin import process_identity
from tasks.versioning import installed_code, integrity
from winnow.config import ROOT, Config, topological_order
from winnow.config.section import NO_FILE
from winnow.data.special_files import check_special_files
from winnow.errors import ConfigError, WinnowError

CANDIDATE_PREFIX = installed_code.CANDIDATE_PREFIX
SHOWN_FILES = 3
STARTER_VARIABLE = "WINNOW_STARTED_BY"
"""The variable with the identity of the flow's process; a step ends when that process is gone."""


@dataclass(frozen=True)
class Stage:
    """A DVC stage: `name` and `needs` are names in dvc.yaml, `label` is the name for users."""

    name: str
    needs: tuple[str, ...]

    @property
    def label(self) -> str:
        """The name for users: pretrain, pruned-int8, ..."""
        return self.name.removeprefix(CANDIDATE_PREFIX)

    @property
    def out(self) -> str:
        """The output folder, relative to artifacts/."""
        if self.name == "finetune":
            return f"candidates/{ROOT}"
        if self.name.startswith(CANDIDATE_PREFIX):
            return f"candidates/{self.label}"
        return "data" if self.name == "ingest" else self.name


def stages(config: Config) -> list[Stage]:
    """Return all stages in topological order."""
    names = topological_order(dict(config.candidates))

    def stage_of(candidate: str) -> str:
        return "finetune" if candidate == ROOT else CANDIDATE_PREFIX + candidate

    compression_stages = [
        Stage(
            stage_of(name),
            tuple(dict.fromkeys(("ingest", "embed", "pretrain", "finetune", stage_of(config.candidates[name].parent)))),
        )
        for name in names
    ]
    candidate_stages = ("finetune", *(stage.name for stage in compression_stages))
    return [
        Stage("ingest", ()),
        Stage("embed", ("ingest",)),
        Stage("pretrain", ("ingest", "embed")),
        Stage("finetune", ("ingest", "embed", "pretrain")),
        *compression_stages,
        Stage("benchmark", ("ingest", *candidate_stages)),
        Stage("select", ("ingest", *candidate_stages, "benchmark")),
        Stage("refit", ("ingest", "embed", "pretrain", *candidate_stages, "select")),
        Stage("report", ("ingest", "embed", "pretrain", *candidate_stages, "benchmark", "select", "refit")),
    ]


def command(*arguments: str) -> list[str]:
    """Return a command line for the DVC of this Python environment."""
    return [sys.executable, "-m", "dvc", *arguments]


def environment() -> dict[str, str]:
    """Return os.environ with this Python environment first in PATH, for the `python` of the stages."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return {**os.environ, "PATH": path}


def check_named_keys(root: Path, config: Config) -> None:
    """Raise ConfigError where params.yaml lacks a key that dvc.yaml names, as a file of an earlier version may.

    winnow would use the key's default, but DVC would stop in the middle of a run.
    """
    written = yaml.safe_load((root / "params.yaml").read_text(encoding="utf-8"))
    defaults = config.model_dump(mode="json", by_alias=True)
    try:
        named = yaml.safe_load((root / "dvc.yaml").read_text(encoding="utf-8"))["stages"].values()
    except yaml.YAMLError:  # DVC says what is wrong
        return
    keys = dict.fromkeys(key for stage in named for key in stage.get("do", stage).get("params", ()) if "$" not in key)
    missing = {key: _look_up(defaults, key) for key in keys if _look_up(written, key) is None}
    missing = {key: value for key, value in missing.items() if value is not None}
    if not missing:
        return
    assignments = " ".join(f"-S {key}={value}" for key, value in missing.items() if not isinstance(value, Mapping))
    advice = f"`winnow run {assignments}` adds them with their defaults"
    if sections := [key for key, value in missing.items() if isinstance(value, Mapping)]:
        advice = f"add them as in docs/reference/params.md, the sections {', '.join(sections)} too"
    raise ConfigError(f"params.yaml lacks {', '.join(missing)}, which dvc.yaml names; {advice}")


def _look_up(section: Any, key: str) -> Any:
    """Return the value of a dotted key; None where it is missing."""
    for part in key.split("."):
        section = section.get(part) if isinstance(section, Mapping) else None
    return section


def stale_stages(root: Path, config: Config) -> dict[str, list[str]]:
    """Return stage -> reasons to run, with all descendants, in topological order; {} when everything is up to date.

    Raises ConfigError where params.yaml lacks a key that dvc.yaml names, DataError where data.path holds files that DVC
    cannot hash.
    """
    check_named_keys(root, config)
    check_special_files(root / config.data.path, has_class_folders=config.data.labels == NO_FILE)
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
    for entry in integrity.find_damaged(ProjectPaths(root)):
        name = entry.path.relative_to(root)
        changes.setdefault(entry.stage, []).append(f"its output {name} is damaged: it was changed in place")
    for stage, files in installed_code.changed_code(root, config).items():
        changes.setdefault(stage, []).append(f"winnow's code has changed: {_first_files(files)}")
    never_run = changes.keys() - integrity.read_lock(root).keys() if changes else set()
    return propagate_changes(
        changes | {stage: ["it has not run yet", *_missing(changes[stage])] for stage in never_run}, config
    )


def _first_files(files: Sequence[str]) -> str:
    more = f" and {len(files) - SHOWN_FILES} more" if len(files) > SHOWN_FILES else ""
    return ", ".join(files[:SHOWN_FILES]) + more


def _missing(changes: list[object]) -> list[str]:
    """Return the reasons about missing dependencies that are not outputs of other stages."""
    reasons = [reason for change in changes for reason in _reasons(change)]
    return [reason for reason in reasons if reason.endswith(": deleted") and "artifacts/" not in reason]


def propagate_changes(changes: Mapping[str, list[object]], config: Config) -> dict[str, list[str]]:
    """Return stage -> reasons for the changed stages and all their descendants, from the output of `dvc status`."""
    reasons_by_stage: dict[str, list[str]] = {}
    for stage in stages(config):
        reasons = [reason for change in changes.get(stage.name, []) for reason in _reasons(change)]
        if not reasons:
            reasons = [
                f"{need.removeprefix(CANDIDATE_PREFIX)} has to run" for need in stage.needs if need in reasons_by_stage
            ]
        if reasons:
            reasons_by_stage[stage.name] = reasons
    return reasons_by_stage


def _reasons(change: object) -> Iterator[str]:
    """Yield the reasons in one entry of `dvc status --json`."""
    if not isinstance(change, dict):
        yield str(change)
        return
    for kind, items in change.items():
        if not isinstance(items, dict):
            yield f"{kind}: {items}"
            continue
        for path, state in items.items():
            if isinstance(state, dict):
                yield from (f"{key}: {state_of_key}" for key, state_of_key in state.items())
            elif kind == "changed outs":
                yield f"its output {path}: {state}"
            else:
                yield f"{path}: {state}"


def start_stage(root: Path, stage: str) -> subprocess.Popen[str]:
    """Start `dvc repro` of one stage; the process's stdout holds its output."""
    return subprocess.Popen(
        command(*_reproduce(stage)),
        cwd=root,
        env=step_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )


def step_environment() -> dict[str, str]:
    """Return the environment of a step that this process starts and whose end ends it."""
    return {**environment(), STARTER_VARIABLE: process_identity(os.getpid())}


def reproduce_here(stage: str) -> int:
    """Run `dvc repro` of one stage in this process, which must not be used again, and return its exit status."""
    from dvc.cli import main  # type: ignore[import-untyped]

    return int(main(list(_reproduce(stage))))


def _reproduce(stage: str) -> tuple[str, ...]:
    return ("--wait-for-lock", "repro", "--single-item", stage)


NOISE = (
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


def is_noise(line: str) -> bool:
    """Return whether a line of DVC or torch is not worth showing to users."""
    text = line.strip()
    noise = text.startswith("WARNING") and ("is empty." in text or "had been killed" in text)
    return not text or noise or text.startswith(NOISE) or "No CUDA runtime is found" in text


def parse_outcome(lines: list[str]) -> str:
    """Return what DVC did, from its output: "ran", "restored" (from its cache), or "unchanged"."""
    text = "\n".join(lines)
    if "Running stage" in text:
        return "ran"
    return "restored" if "is cached" in text or "skipping run" in text else "unchanged"


def _last_lines(text: str, count: int = 8) -> str:
    return "\n".join(text.strip().splitlines()[-count:])
