"""The commands of the chain: init, run, plan, fetch, status, track, doctor."""

from __future__ import annotations

from pathlib import Path

import click

from tasks.project.paths import ProjectPaths
from winnow.cli.command_setup import (
    NonEmptyPath,
    error_messages,
    find_project,
    find_root,
    load_project_config,
    project_command,
)
from winnow.cli.progress import print_line
from winnow.errors import ConfigError

settings_option = click.option(
    "-S",
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Set an existing key of params.yaml, as in -S data.source=folder; values are YAML.",
)


full_option = click.option(
    "--full",
    "is_full",
    is_flag=True,
    help="Change params.yaml first: longer trainings, more candidates, and controls; -S is applied after it.",
)


def apply_settings(paths: ProjectPaths, settings: tuple[str, ...], is_full: bool = False) -> None:
    """Write the preset of --full and the settings of -S into params.yaml.

    Raises ConfigError for an unknown key or an invalid value.
    """
    from tasks.project import run_lock
    from winnow.cli.params_editor import set_keys
    from winnow.cli.presets import FULL

    if settings or is_full:
        with run_lock.lock_run(paths):  # a run in progress reads params.yaml at each step
            set_keys(paths, list(settings), FULL if is_full else "")


@click.command(epilog="Example: winnow init shop --from /photos/products")
@click.argument("folder", type=NonEmptyPath(file_okay=False, path_type=Path), required=False)
@click.option(
    "--from",
    "images",
    metavar="IMAGES",
    help="A folder of images, an archive, a table of labels (.csv, .tsv, .parquet), or s3://bucket/prefix.",
)
@click.option("--update", is_flag=True, help="Renew dvc.yaml and code_digests/ of this project after an upgrade.")
@error_messages
def init(folder: Path | None, images: str | None, update: bool) -> int:
    """Create a project in FOLDER, with settings that fit the images.

    The images are not copied. params.yaml says why each setting was changed.
    """
    from winnow.cli.init import create_project, update_project

    if update:
        if folder or images:
            raise click.UsageError("--update renews the project of the current folder; it takes nothing else")
        return update_project(ProjectPaths(find_root()))
    if folder is None:
        raise click.UsageError("name the folder of the new project; `winnow init .` takes the current one")
    return create_project(folder, images)


@click.command(epilog="Example: winnow run -S data.source=folder -S data.path=/photos/products -S data.image_size=64")
@settings_option
@full_option
@project_command
def run(paths: ProjectPaths, settings: tuple[str, ...], is_full: bool) -> int:
    """Run all stale steps, log them, and promote the winner."""
    from tasks.project import run_lock
    from winnow.cli.run import run_stale

    with run_lock.lock_run(paths):  # no other process may change params.yaml before the first step reads it
        apply_settings(paths, settings, is_full)
        return run_stale(paths, load_project_config(paths))


@click.command(epilog="Example: winnow plan -S pretrain.epochs=60")
@settings_option
@full_option
@project_command
def plan(paths: ProjectPaths, settings: tuple[str, ...], is_full: bool) -> int:
    """Forecast the time, memory and disk that a run would take.

    Each stale step is measured on a small sample; no step runs.
    """
    from winnow.cli.plan import print_plan

    apply_settings(paths, settings, is_full)
    return print_plan(paths, load_project_config(paths))


@click.command(epilog="Example: winnow fetch")
@project_command
def fetch(paths: ProjectPaths) -> int:
    """Synchronise images with S3, and known weights with MLflow.

    `winnow run` does this first.
    """
    from winnow.cli.run import fetch_inputs

    if not fetch_inputs(paths, load_project_config(paths)):
        raise ConfigError(
            "data.fetch is none: set it to s3://bucket/prefix, and data.path to a folder; and neither teacher.weights "
            "nor pretrain.start names a model of MLflow's registry"
        )
    return 0


@click.command(epilog="Example: winnow status")
@click.option(
    "--full",
    is_flag=True,
    help="Read every file in DVC's cache, too: a failing disk may change bytes but not times.",
)
@project_command
def status(paths: ProjectPaths, full: bool) -> int:
    """Show which steps are stale, and why."""
    from winnow.cli.run import show_status

    return show_status(paths, load_project_config(paths), full)


@click.command(epilog="Example: dvc repro && winnow track")
@project_command
def track(paths: ProjectPaths) -> int:
    """Log the records to MLflow, after `dvc repro`."""
    from tasks.project import run_lock
    from tasks.tracking import tracked_runs

    with run_lock.lock_run(paths):
        print_line(tracked_runs.track(paths, load_project_config(paths)))
    return 0


@click.command(epilog="Example: winnow doctor")
def doctor() -> int:
    """Check this machine for what winnow needs.

    The table names what is missing for which feature, and how to install it. Inside a project its params.yaml and disks
    are checked, too. The exit status is 2 where a run cannot start.
    """
    from tasks.project.environment import apply
    from winnow.cli.doctor import print_checks

    root = find_project()
    if root is not None:
        apply(root)
    return print_checks(ProjectPaths(root) if root else None)


RUN_COMMANDS = (init, run, plan, fetch, status, track, doctor)
