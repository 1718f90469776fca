"""The fingerprint of a step: a digest of all that decides its outcome, which names the folder of its checkpoints.

That is the step's section of params.yaml, the records that it reads and winnow's own code.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import yaml

from tasks.project.paths import ProjectPaths
from tasks.versioning.installed_code import FOLDER
from winnow.config import ROOT, Config
from winnow.config.weights import weights_file
from winnow.records import RECORD, CandidateRecord, sha256_of
from winnow.refit.deployed_folder import read_winner


def _code_of(root: Path, step: str, section: object) -> list[Path]:
    """Return the code files that decide a step's outcome: those that dvc.yaml lists for it.

    `section`: the candidate's settings, whose method is a file of its own.
    """
    stage = yaml.safe_load((root / "dvc.yaml").read_text(encoding="utf-8"))["stages"][step]
    listed = [str(dep) for dep in stage.get("do", stage)["deps"]]
    method = getattr(section, "method", "")
    files = (dep.replace("${item.method}", method) for dep in listed)
    return sorted(root / file for file in files if file.endswith(".py") or file.startswith(f"{FOLDER}/"))


def _inputs(config: Config, artifacts: Path, step: str, name: str) -> list[Path]:
    """Return the folders whose records a training reads."""
    data, pretrain, dense = artifacts / "data", artifacts / "pretrain", artifacts / "candidates" / ROOT
    if step == "candidate":
        parent = config.candidates[name].parent if name in config.candidates else ROOT
        others = [artifacts / "candidates" / parent] if parent != ROOT else []
        return [data, artifacts / "embed", pretrain, dense, *others]
    if step == "refit":
        winner = read_winner(artifacts / "select")
        lineage = CandidateRecord.read(artifacts / "candidates" / winner).details.lineage if winner else [ROOT]
        return [data, pretrain, *(artifacts / "candidates" / ancestor for ancestor in lineage)]
    embedded = artifacts / "embed"
    folders = {"embed": [data], "pretrain": [data, embedded], "finetune": [data, embedded, pretrain]}
    return folders.get(step, [])


SECTIONS = {"embed": "teacher"}
"""Step -> section of params.yaml, where it has another name."""


def _digest(path: Path) -> str:
    """Return the digest of a file; "" where it is missing, which the step itself reports."""
    return sha256_of(path) if path.is_file() else ""


def step_fingerprint(config: Config, paths: ProjectPaths, step: str, name: str) -> str:
    """Return a digest of all that decides the outcome of a training: settings, inputs, code."""
    section: object = (
        config.candidates.get(name) if step == "candidate" else getattr(config, SECTIONS.get(step, step), None)
    )
    parts = [json.dumps([config.data.label_budget, repr(section), config.finetune.seeds[0]])]
    parts += [_digest(folder / RECORD) for folder in _inputs(config, paths.artifacts, step, name)]
    if step == "refit":
        parts.append(repr(config.finetune))
    weights = {"embed": config.teacher.weights, "pretrain": config.pretrain.start}.get(step, "")
    if file := weights_file(weights):
        parts.append(_digest(paths.root / file))
    if step in ("finetune", "refit"):
        parts.append(_digest(paths.root / config.finetune.weights))
    parts += [sha256_of(path) for path in _code_of(paths.root, step, section)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
