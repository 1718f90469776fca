"""The commands on labels: label suggest, label check."""

from __future__ import annotations

from pathlib import Path

import click

from tasks.project.paths import ProjectPaths
from winnow.cli.command_setup import NonEmptyPath, project_command
from winnow.config import Config, load_config
from winnow.errors import DataError

PATH = NonEmptyPath(path_type=Path)
METHODS = ("typiclust", "k-center", "margin", "random")
"""Those of winnow/labels/suggestion.py, which imports scikit-learn."""


@click.group()
def label() -> None:
    """Choose images to label, and check labels."""


@label.command(epilog="Example: winnow label suggest 100 --out next.csv")
@click.argument("count", type=click.IntRange(min=1), metavar="N")
@click.option(
    "--method",
    type=click.Choice(METHODS),
    default="typiclust",
    show_default=True,
    help="typiclust: for few labels; k-center: unusual images, too; margin: for many labels; random: for comparison.",
)
@click.option(
    "--out",
    type=PATH,
    default="suggested.csv",
    show_default=True,
    help="The table to fill with labels; a contact sheet with the same name is written as .png.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed gives the same images.")
@project_command
def suggest(paths: ProjectPaths, count: int, method: str, out: Path, seed: int) -> int:
    """Choose the N images to label next.

    Needs the features of a run: `dvc repro embed pretrain`, or `winnow run`.
    """
    from winnow.cli.label import suggest_labels

    return suggest_labels(paths, _load_current_config(paths), (count, method, seed), out)


@label.command(epilog="Example: winnow label check")
@click.option(
    "--out",
    type=PATH,
    default="label_check.csv",
    show_default=True,
    help="The table of suspicious labels; a contact sheet with the same name is written as .png.",
)
@project_command
def check(paths: ProjectPaths, out: Path) -> int:
    """List labels that are probably wrong.

    All labels of training and validation that may be used are checked; the test split is not read.
    """
    from winnow.cli.label import check_labelled

    return check_labelled(paths, _load_current_config(paths), out)


def _load_current_config(paths: ProjectPaths) -> Config:
    """Return the settings. Raises DataError where the images or labels have changed since they were ingested."""
    from tasks.project import run_lock
    from tasks.versioning import dvc_stages

    run_lock.check_unlocked(paths)
    config = load_config(paths.root / "params.yaml")
    if reasons := dvc_stages.stale_stages(paths.root, config).get("ingest"):
        raise DataError(
            f"artifacts/data does not hold the images and labels of params.yaml ({'; '.join(reasons[:3])}); run "
            "`winnow run`, or `dvc repro embed pretrain`, first"
        )
    return config


LABEL_COMMANDS = (label,)
