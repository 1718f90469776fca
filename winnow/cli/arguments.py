"""The commands of `winnow` and their options, without their implementation (winnow/cli/main.py)."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path

from tasks.project.paths import ProjectPaths
from winnow.config.serving import ServingConfig

Command = Callable[[ProjectPaths, argparse.Namespace], int]
"""A command's implementation, which returns the exit status."""
AddCommand = Callable[[str, str], argparse.ArgumentParser]
"""Add the parser of a command, from its name and help text."""


def build_parser(commands: Mapping[str, Command]) -> argparse.ArgumentParser:
    """Return the parser. `commands`: name -> implementation, which options.act holds after parsing."""
    parser = argparse.ArgumentParser(
        prog="winnow", description="From images, few of them labelled, to a small, fast model."
    )
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")

    def add_command(name: str, text: str) -> argparse.ArgumentParser:
        sub = subparsers.add_parser(name, help=text, description=text)
        sub.set_defaults(act=commands[name])
        return sub

    _add_run_commands(add_command)
    _add_model_commands(add_command)
    _add_search_commands(add_command)
    _add_server_commands(add_command)
    return parser


def _add_run_commands(add_command: AddCommand) -> None:
    run = add_command("run", "bring everything up to date, track it in MLflow, promote the winner")
    plan = add_command("plan", "how long a run would take here, how much memory and disk; nothing is started")
    for command in (run, plan):
        _add_settings(command)
    add_command("fetch", "synchronise data.path with S3, as winnow run does first (data.fetch)")
    status = add_command("status", "which steps are stale, and why")
    status.add_argument(
        "--full",
        action="store_true",
        help="also read every file that DVC keeps of this state: a failing disk may change bytes but not times",
    )
    add_command("track", "log the records to MLflow, as after dvc repro")


def _add_model_commands(add_command: AddCommand) -> None:
    promote = add_command("promote", "register the winner and compare it with the champion")
    promote.add_argument(
        "--replace",
        action="store_true",
        help="promote even a version that was denied or rolled back, or where the champion cannot be compared",
    )
    rollback = add_command("rollback", "put the previous champion back into production")
    rollback.add_argument("--reason", default="", help="stored on the version that is rolled back")
    predict = add_command("predict", "class and probability of your image files, by the promoted model")
    predict.add_argument("images", nargs="+", type=Path, metavar="PATH", help="an image, or a folder, at any depth")
    predict.add_argument("--out", type=Path, default=None, help="a .csv or .parquet for any number of files")
    predict.add_argument("--top", type=int, default=1, help="how many classes, the likeliest first; default: 1")
    predict.add_argument("--abstain-below", type=float, default=0.0, help="name no class that is less likely than this")
    predict.add_argument("--model", default="champion", help="alias or version of the registered model")
    export = add_command("export", "the promoted model as a folder: file, labels, cards, an example")
    export.add_argument("folder", type=Path, metavar="DIR")
    export.add_argument("--model", default="champion", help="alias or version of the registered model")
    export.add_argument(
        "--candidates", action="store_true", help="also all candidates, to be timed on the serving machine"
    )
    server = add_command("serve", "the promoted model over HTTP, until Ctrl-C: POST an image to /predict")
    server.add_argument("--model", default="champion", help="alias or version of the registered model")
    for field in fields(ServingConfig):
        if field.name not in ("folder", "title", "allow_host"):
            flag = f"--{field.name.replace('_', '-')}"
            server.add_argument(flag, type=type(field.default), default=field.default, help=f"default: {field.default}")
    server.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a name or address by which clients call this server, beside 127.0.0.1 and localhost; * for any",
    )
    host = add_command("check-host", "import the file that check_host.py wrote on the serving machine")
    host.add_argument("file", type=Path, metavar="FILE", help="host.json")
    approve = add_command("approve", "make the challenger that waits for manual approval the champion")
    approve.add_argument("--reason", default="", help="stored on the version")
    deny = add_command("deny", "reject the challenger that waits for manual approval")
    deny.add_argument("--reason", required=True, help="stored on the version")
    drift = add_command("drift", "test whether new images still resemble the training images")
    drift.add_argument("folder", nargs="?", default="", help="of images, at any depth; default: drift.path")


def _add_search_commands(add_command: AddCommand) -> None:
    search = add_command("search", "search for the smallest, fastest candidates that keep dense's accuracy (search:)")
    _add_settings(search)
    search.add_argument("--name", default="default", help="of the search; a stopped search resumes under its name")
    search.add_argument("--workers", type=int, default=1, help="trials at once, each in a process of its own")
    search.add_argument(
        "--scheduler", default="", metavar="ADDRESS", help="of Dask, whose workers see this folder, too"
    )
    search.add_argument(
        "--add", default="", metavar="NAME", help="add the chosen candidates to params.yaml under this name"
    )
    sensitivity = add_command(
        "sensitivity", "per-layer sensitivity to pruning and int8, one layer at a time, without training"
    )
    sensitivity.add_argument("name", nargs="?", default="dense", help="a candidate that is not int8; default: dense")
    sensitivity.add_argument("--share", type=float, default=0.5, help="of a layer's channels to prune; default: 0.5")
    sweep = add_command("sweep", "measure which batch, threads and runtime serve a candidate's file best")
    sweep.add_argument("name", nargs="?", default="", help="a candidate; default: the winner")
    sweep.add_argument("--batches", type=_counts, default=(), metavar="1,8,64", help="default: 1, 2, 4 ... 128")


def _add_server_commands(add_command: AddCommand) -> None:
    team = add_command("team", "a team's servers on this machine: PostgreSQL, S3, MLflow with accounts, Prefect")
    team.add_argument("--folder", type=Path, default=None, help="of all that they hold; default: .winnow/team")
    team.add_argument("--host", default="127.0.0.1", help="address to listen on; default: this machine alone")
    for name, port in (("postgresql", 5433), ("s3", 9000), ("mlflow", 5000), ("prefect", 4200)):
        team.add_argument(f"--{name}-port", type=int, default=port)
    account = add_command("account", "an account of the team's MLflow, by its administrator (MLFLOW_TRACKING_...)")
    account.add_argument("name")
    change = account.add_mutually_exclusive_group(required=True)
    change.add_argument("--role", help="reader or engineer; a new account gets a password, which is printed once")
    change.add_argument("--reset", action="store_true", help="a new password, which is printed once")
    change.add_argument("--remove", action="store_true", help="remove the account; what it logged stays")
    ui = add_command("ui", "MLflow and Prefect in the browser, until Ctrl-C")
    up = add_command("up", "the same, and a worker that runs what prefect.yaml schedules, until Ctrl-C")
    for servers in (ui, up):
        servers.add_argument("--mlflow-port", type=int, default=5000)
        servers.add_argument("--prefect-port", type=int, default=4200)


def _add_settings(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "-S",
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="sets",
        help="set an existing key of params.yaml, as in -S data.source=folder; values are YAML",
    )


def _counts(text: str) -> tuple[int, ...]:
    """Parse a list of counts: "1,8,64"."""
    counts = tuple(int(part) if part.isdecimal() else 0 for part in text.split(","))
    if min(counts) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of counts such as 1,8,64")
    return counts
