"""The commands that explore: search, sensitivity, sweep."""

from __future__ import annotations

import click

from tasks.project.paths import ProjectPaths
from winnow.cli.command_setup import load_project_config, project_command
from winnow.cli.run_commands import apply_settings, settings_option
from winnow.config import load_config


@click.command(epilog="Example: winnow search -S search.minutes=60 --name small --add small")
@settings_option
@click.option(
    "--name",
    default="default",
    show_default=True,
    help="The name of the search; a stopped search resumes under its name.",
)
@click.option(
    "--workers",
    type=int,
    default=1,
    show_default=True,
    help="The number of trials at once, each in a process of its own.",
)
@click.option(
    "--scheduler",
    default="",
    metavar="ADDRESS",
    help="The address of a Dask scheduler, whose workers have this folder, too.",
)
@click.option("--add", default="", metavar="NAME", help="Add the selected candidates to params.yaml under this name.")
@project_command
def search(paths: ProjectPaths, settings: tuple[str, ...], name: str, workers: int, scheduler: str, add: str) -> int:
    """Search for small, fast candidates within a budget.

    The section search: of params.yaml sets the space, the budget and the allowed loss of accuracy.
    """
    from winnow.cli.search import WorkerPool, check_form_of_names, run_search

    check_form_of_names(name, add)
    apply_settings(paths, settings)
    return run_search(paths, load_project_config(paths), name, add, WorkerPool(workers, scheduler))


@click.command(epilog="Example: winnow sensitivity dense --share 0.3")
@click.argument("name", default="dense", required=False)
@click.option("--share", type=float, default=0.5, show_default=True, help="The share of a layer's channels to prune.")
@project_command
def sensitivity(paths: ProjectPaths, name: str, share: float) -> int:
    """Measure per-layer sensitivity to pruning and int8.

    NAME: a candidate that is not int8; default: dense. Nothing is trained.
    """
    from winnow.cli.sensitivity import run_sensitivity

    return run_sensitivity(paths, load_config(paths.root / "params.yaml"), name, share)


LARGEST_BATCH = 4096


class _Counts(click.ParamType[tuple[int, ...]]):
    """A list of batch sizes: "1,8,64"."""

    name = "counts"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """Return the counts."""
        counts = tuple(int(part) if part.isdecimal() else 0 for part in value.split(","))
        if min(counts) < 1 or max(counts) > LARGEST_BATCH:
            self.fail(f"{value!r} is not a list of counts from 1 to {LARGEST_BATCH}, such as 1,8,64", param, ctx)
        return counts


@click.command(epilog="Example: winnow sweep student-int8 --batches 1,8,64")
@click.argument("name", default="", required=False)
@click.option(
    "--batches", type=_Counts(), default=None, metavar="1,8,64", help="Batch sizes; default: 1, 2, 4 ... 128."
)
@project_command
def sweep(paths: ProjectPaths, name: str, batches: tuple[int, ...] | None) -> int:
    """Measure which batch, threads and runtime serve a file best.

    NAME: a candidate; default: the winner.
    """
    from winnow.cli.sweep import run_sweep

    return run_sweep(paths, load_config(paths.root / "params.yaml"), name, batches or ())


SEARCH_COMMANDS = (search, sensitivity, sweep)
