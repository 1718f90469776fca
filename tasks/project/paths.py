"""The folders and files of a project, and the name of its registered model.

This file imports nothing heavy: the command line starts with it.
"""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from winnow.config import Config
from winnow.config.section import NO_FILE
from winnow.config.weights import NO_WEIGHTS, is_file
from winnow.errors import ConfigError

QUEUED = f"{os.sep}.dvc{os.sep}tmp{os.sep}exps{os.sep}"
"""The folder inside the project in which `dvc exp run --queue` makes the copy that it runs in."""


@dataclass(frozen=True)
class ProjectPaths:
    """The folders of a project. Runs write to two of them, artifacts/ and .winnow/; git ignores both."""

    root: Path

    @property
    def artifacts(self) -> Path:
        """The outputs of DVC stages: one folder per step and candidate."""
        return self.root / "artifacts"

    @property
    def state_dir(self) -> Path:
        """The folder of everything that is no artifact: stores, checkpoints, logs, caches."""
        return self.root / ".winnow"

    @property
    def checkpoints(self) -> Path:
        """The checkpoints from which interrupted trainings resume."""
        return self.state_dir / "checkpoints"

    @property
    def answers(self) -> Path:
        """The cache of teacher outputs, for candidates that train on the same views."""
        return self.state_dir / "answers"

    @property
    def weights(self) -> Path:
        """The downloaded files of known weights."""
        return self.state_dir / "weights"

    @property
    def logs(self) -> Path:
        """The logs of servers and of scheduled runs."""
        return self.state_dir / "logs"

    @property
    def mlflow_store(self) -> str:
        """The address of the project's own MLflow store."""
        return f"sqlite:///{self.state_dir / 'mlflow' / 'mlflow.db'}"

    @property
    def mlflow_artifacts(self) -> Path:
        """The artifacts of the project's own MLflow store."""
        return self.state_dir / "mlflow" / "artifacts"

    @property
    def test_readings(self) -> Path:
        """The file that counts how often the report has read each version of the test split.

        Experiments queued with `dvc exp run --queue` count in the project itself, not in their temporary copy.
        """
        project = str(self.root).partition(QUEUED)[0]
        return Path(project) / ".winnow" / "test-readings.json"


def holds_project(folder: Path, root: Path) -> bool:
    """Return whether a folder is the project at `root` or contains it: its results would be among the images."""
    return root.resolve().is_relative_to(folder.resolve())


def check_files(config: Config, root: Path) -> None:
    """Raise ConfigError with every file or folder that params.yaml names and that does not exist or holds the project.

    DVC itself would only say "missing", or name a file of its own.
    """
    problems = []
    if holds_project(root / config.data.path, root):
        problems.append(
            f"  data.path: {config.data.path!r} holds the project itself ({root}), with its results; put the images "
            "into a folder of their own"
        )
    if config.data.fetch == "none" and not (root / config.data.path).exists():
        problems.append(f"  data.path: {config.data.path!r} does not exist (looked for in {root})")
    if not (root / config.finetune.weights).is_file():
        problems.append(
            f"  finetune.weights: {config.finetune.weights!r} is not a file (looked for in {root}); "
            f"to use no weights of your own, set it to {NO_FILE}"
        )
    for key, weights in (("teacher.weights", config.teacher.weights), ("pretrain.start", config.pretrain.start)):
        if is_file(weights) and not (root / weights).is_file():
            problems.append(
                f"  {key}: {weights!r} is not a file (looked for in {root}); to use no known weights, set it to "
                f"{NO_WEIGHTS}"
            )
    if not (root / config.data.labels).is_file():
        problems.append(
            f"  data.labels: {config.data.labels!r} is not a file (looked for in {root}); for none, set it to {NO_FILE}"
        )
    if not (root / config.benchmark.target).is_file():
        problems.append(
            f"  benchmark.target: {config.benchmark.target!r} is not a file (looked for in {root}); "
            f"`winnow check-host` creates it; for this machine, set it to {NO_FILE}"
        )
    if problems:
        raise ConfigError("params.yaml names files or folders that cannot be used:\n" + "\n".join(problems))


def registered_model_name(config: Config) -> str:
    """Return promotion.registered_model, or for "auto" the title of the data in lower case, digits and hyphens.

    A title with non-ASCII letters gets a digest appended, so that two titles that differ only in those letters do not
    share a model.
    """
    if config.promotion.registered_model != "auto":
        return config.promotion.registered_model
    title = unicodedata.normalize("NFC", config.data.title)
    name = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
    if name and not any(letter.isalnum() and not letter.isascii() for letter in title):
        return name
    digest = hashlib.blake2b(title.encode("utf-8", "backslashreplace"), digest_size=4).hexdigest()
    return f"{name or 'images'}-{digest}"
