"""The command line `winnow`. Imports are inside the commands, so that a command loads torch, Prefect or MLflow only if
it needs them.

    winnow run [-S KEY=VALUE ...]   bring everything up to date, track it, promote the winner
    winnow plan [-S KEY=VALUE ...]  how long that would take here, and how much memory and disk
    winnow fetch                    synchronise data.path with S3 (data.fetch); winnow run does it first
    winnow status [--full]          which steps are stale, and why
    winnow track                    log the records to MLflow (after dvc repro)
    winnow promote [--replace]      compare the winner with the champion, and promote it if it is better
    winnow rollback                 put the previous champion back into production
    winnow predict PATH ...         the promoted model on your files
    winnow export DIR               the promoted model as a folder: file, labels, cards, an example
    winnow serve                    the promoted model over HTTP
    winnow check-host FILE          import the serving machine's figures, which gates use from then on
    winnow search                   generated candidates, within a budget
    winnow sensitivity [NAME]       per-layer sensitivity to pruning and int8
    winnow sweep [NAME]             which batch, threads and runtime serve a file best
    winnow drift [FOLDER]           whether new images still resemble the training images
    winnow approve, winnow deny     manual approval of the challenger, where promotion.approval asks for it
    winnow team                     a team's servers on this machine
    winnow account NAME --role R    who may compare and load (reader), or also run and promote (engineer)
    winnow ui                       MLflow and Prefect in the browser
    winnow up                       the same, and a worker that runs what prefect.yaml schedules

Exit status: 0 done; 2 an error that the user can fix, explained in one message; 130 stopped; 1 a bug of ours, with a
traceback.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from flows import STOPPED_MESSAGE
from tasks import STOP_SIGNALS
from tasks.project.disk_errors import describe_disk_error
from tasks.project.environment import apply
from tasks.project.paths import ProjectPaths
from winnow.cli.arguments import Command, build_parser
from winnow.cli.export import check_host, export
from winnow.cli.progress import print_line
from winnow.cli.project_config import load_project_config
from winnow.cli.promotion import approve, deny, manage_account, promote_winner, roll_back
from winnow.config import load_config
from winnow.errors import ConfigError, WinnowError

if TYPE_CHECKING:
    pass


def main(arguments: list[str] | None = None) -> None:
    """Parse the arguments, run the command, and exit with its status."""
    options = build_parser(COMMANDS).parse_args(arguments)
    paths = ProjectPaths(_root())
    _handle_signals()
    try:
        apply(paths.root)
        status: int = options.act(paths, options)
    except WinnowError as error:
        if os.environ.get("WINNOW_TRACEBACK"):
            raise
        print_line(f"winnow: {error}", sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print_line(STOPPED_MESSAGE, sys.stderr)
        raise SystemExit(130) from None
    except Exception as error:
        problem = describe_disk_error(error, paths.root)
        if problem is None or os.environ.get("WINNOW_TRACEBACK"):
            raise
        print_line(f"winnow: {problem}", sys.stderr)
        raise SystemExit(2) from None
    for ending in STOP_SIGNALS:
        signal.signal(ending, signal.SIG_IGN)  # the command is done: a late Ctrl-C must not change the status
    raise SystemExit(status)


def _root() -> Path:
    """Return the project's folder: the nearest one upwards with params.yaml and dvc.yaml."""
    current = Path.cwd()
    for folder in (current, *current.parents):
        if (folder / "params.yaml").is_file() and (folder / "dvc.yaml").is_file():
            return folder
    print_line(f"winnow: no params.yaml and dvc.yaml in {current} or above; run it inside the project", sys.stderr)
    raise SystemExit(2)


def _apply_settings(paths: ProjectPaths, options: argparse.Namespace) -> None:
    from tasks.project import run_lock
    from winnow.cli.params_editor import set_keys

    if options.sets:
        with run_lock.lock_run(paths):  # a run in progress reads params.yaml at each step
            set_keys(paths, options.sets)


def _fetch(paths: ProjectPaths, _options: argparse.Namespace) -> int:
    from winnow.cli.run import fetch_data

    config = load_project_config(paths)
    if config.data.fetch == "none":
        raise ConfigError("data.fetch is none: set it to s3://bucket/prefix, and data.path to a folder")
    fetch_data(paths, config)
    return 0


def _run(paths: ProjectPaths, options: argparse.Namespace) -> int:
    from tasks.project import run_lock
    from winnow.cli.run import run

    with run_lock.lock_run(paths):  # no other process may change params.yaml before the first step reads it
        _apply_settings(paths, options)
        return run(paths, load_project_config(paths))


def _plan(paths: ProjectPaths, options: argparse.Namespace) -> int:
    from winnow.cli.plan import plan

    _apply_settings(paths, options)
    return plan(paths, load_project_config(paths))


def _handle_signals() -> None:
    """Treat a kill and a closed terminal like Ctrl-C, also for a shell's background job; nohup is respected."""
    for ending in STOP_SIGNALS:
        if ending != signal.SIGHUP or signal.getsignal(ending) != signal.SIG_IGN:
            signal.signal(ending, _interrupt)


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _status(paths: ProjectPaths, options: argparse.Namespace) -> int:
    from winnow.cli.run import show_status

    return show_status(paths, load_project_config(paths), options.full)


def _track(paths: ProjectPaths, _options: argparse.Namespace) -> int:
    from tasks.tracking import mlflow_runs

    print_line(mlflow_runs.track(paths, load_project_config(paths)))
    return 0


def _predict(paths: ProjectPaths, options: argparse.Namespace) -> int:
    from winnow.cli.predict import PredictOptions, predict

    config = load_config(paths.root / "params.yaml")
    predict_options = PredictOptions(options.top, options.abstain_below, options.out)
    return predict(paths, config, options.images, options.model, predict_options)


def _serve(paths: ProjectPaths, options: argparse.Namespace) -> int:
    from dataclasses import fields

    from winnow.cli.serve import serve
    from winnow.config.serving import ServingConfig

    fields_given: dict[str, Any] = {field.name: getattr(options, field.name, "") for field in fields(ServingConfig)}
    return serve(paths, load_config(paths.root / "params.yaml"), options.model, ServingConfig(**fields_given))


def _drift(paths: ProjectPaths, options: argparse.Namespace) -> int:
    from tasks import drift

    config = load_project_config(paths)
    # A folder on the command line is relative to the shell's folder, drift.path to the project's.
    report = drift.detect_drift(paths, config, str(Path(options.folder).absolute()) if options.folder else None)
    run_id = drift.log_drift(paths, config, report)
    print_line("\n".join(drift.report_lines(report)))
    for file, name, probability in report.to_label:
        print_line(f"  label {file} (now {name}, {probability:.2f})")
    print_line(f"MLflow run {run_id}")
    return 0


def _search(paths: ProjectPaths, options: argparse.Namespace) -> int:
    from winnow.cli.search import WorkerPool, run_search

    _apply_settings(paths, options)
    workers = WorkerPool(options.workers, options.scheduler)
    return run_search(paths, load_project_config(paths), options.name, options.add, workers)


def _sensitivity(paths: ProjectPaths, options: argparse.Namespace) -> int:
    from winnow.cli.sensitivity import run_sensitivity

    return run_sensitivity(paths, load_config(paths.root / "params.yaml"), options.name, options.share)


def _sweep(paths: ProjectPaths, options: argparse.Namespace) -> int:
    from winnow.cli.sweep import run_sweep

    return run_sweep(paths, load_config(paths.root / "params.yaml"), options.name, options.batches)


def _team(paths: ProjectPaths, options: argparse.Namespace) -> int:
    from winnow.servers.team import serve_team

    folder = (options.folder or paths.state_dir / "team").absolute()
    ports = {name: getattr(options, f"{name}_port") for name in ("postgresql", "s3", "mlflow", "prefect")}
    return serve_team(paths, folder, options.host, ports)


def _up(paths: ProjectPaths, options: argparse.Namespace) -> int:
    from winnow.servers.local import serve

    load_project_config(paths)
    return serve(paths, options.mlflow_port, options.prefect_port, with_worker=True)


def _ui(paths: ProjectPaths, options: argparse.Namespace) -> int:
    from winnow.servers.local import serve

    return serve(paths, options.mlflow_port, options.prefect_port)


COMMANDS: dict[str, Command] = {
    "run": _run,
    "plan": _plan,
    "fetch": _fetch,
    "status": _status,
    "track": _track,
    "promote": promote_winner,
    "rollback": roll_back,
    "predict": _predict,
    "export": export,
    "serve": _serve,
    "check-host": check_host,
    "approve": approve,
    "deny": deny,
    "drift": _drift,
    "search": _search,
    "sensitivity": _sensitivity,
    "sweep": _sweep,
    "team": _team,
    "account": manage_account,
    "ui": _ui,
    "up": _up,
}

if __name__ == "__main__":
    main()
