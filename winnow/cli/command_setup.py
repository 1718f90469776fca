"""Share between all commands of `winnow`: the project's folder, signals, and errors as one message."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Concatenate, ParamSpec

import click

from flows import STOPPED_MESSAGE
from tasks import STOP_SIGNALS
from tasks.project.disk_errors import describe_disk_error, describe_path_error
from tasks.project.environment import apply
from tasks.project.paths import ProjectPaths, check_files
from winnow.cli.progress import print_line
from winnow.config import Config, load_config
from winnow.errors import WinnowError

Options = ParamSpec("Options")


def project_command(function: Callable[Concatenate[ProjectPaths, Options], int]) -> Callable[Options, int]:
    """Give a command the project's folders as its first argument, and turn its errors into messages and statuses."""

    @functools.wraps(function)
    def run(*arguments: Options.args, **options: Options.kwargs) -> int:
        paths = ProjectPaths(find_root())
        with _errors_as_messages(paths.root):
            apply(paths.root)
            return function(paths, *arguments, **options)

    return run


def error_messages(function: Callable[Options, int]) -> Callable[Options, int]:
    """Turn the errors of a command that needs no project into messages and statuses."""

    @functools.wraps(function)
    def run(*arguments: Options.args, **options: Options.kwargs) -> int:
        with _errors_as_messages(Path.cwd()):
            return function(*arguments, **options)

    return run


@contextlib.contextmanager
def _errors_as_messages(folder: Path) -> Iterator[None]:
    """Print one message for an error that the user can fix, and exit; `folder`: where a full disk would be."""
    try:
        yield
    except KeyboardInterrupt:
        print_line(STOPPED_MESSAGE, sys.stderr)
        raise SystemExit(130) from None
    except click.ClickException:
        raise
    except Exception as error:
        is_ours = isinstance(error, WinnowError)
        problem = str(error) if is_ours else describe_disk_error(error, folder) or describe_path_error(error)
        if problem is None or os.environ.get("WINNOW_TRACEBACK"):
            raise
        raise SystemExit(_print_error(problem)) from None


def _print_error(message: str) -> int:
    """Print an error that the user can fix, and return its exit status."""
    print_line(f"winnow: {message}", sys.stderr)
    return 2


def find_project() -> Path | None:
    """Return the project's folder, the nearest one upwards with params.yaml and dvc.yaml; None outside of a project."""
    current = Path.cwd()
    for folder in (current, *current.parents):
        if (folder / "params.yaml").is_file() and (folder / "dvc.yaml").is_file():
            return folder
    return None


def find_root() -> Path:
    """Return the project's folder. Ends the process with a message outside of a project."""
    if (folder := find_project()) is None:
        where = f"no params.yaml and dvc.yaml in {Path.cwd()} or above"
        message = f"{where}; run it inside a project, which `winnow init` creates"
        raise SystemExit(_print_error(message))
    return folder


def load_project_config(paths: ProjectPaths) -> Config:
    """Return the checked configuration. Raises ConfigError for mistakes and for missing files that it names."""
    config = load_config(paths.root / "params.yaml")
    check_files(config, paths.root)
    return config


class NonEmptyPath(click.Path):
    """A path that is not empty: an empty one would be the current folder."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path."""
        if str(value) == "":
            self.fail("an empty path; the current folder is .", param, ctx)
        return super().convert(value, param, ctx)


def handle_signals() -> None:
    """Treat a kill and a closed terminal like Ctrl-C, also for a shell's background job; nohup is respected."""
    for ending in STOP_SIGNALS:
        if ending != signal.SIGHUP or signal.getsignal(ending) != signal.SIG_IGN:
            signal.signal(ending, _interrupt)


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
