"""The commands of `winnow` and their options; what each does is told by whoever asks (winnow/cli/main.py)."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path

from tasks.project.paths import ProjectPaths
from winnow.config.serving import Serving

Act = Callable[[ProjectPaths, argparse.Namespace], int]
"""Returns the exit status."""


def parser_of(acts: Mapping[str, Act]) -> argparse.ArgumentParser:
    """`acts`: command -> what it does; options.act is that of the command that was given."""
    parser = argparse.ArgumentParser(
        prog="winnow", description="From images, few of them labelled, to a small, fast model."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(act=acts[name])
        return sub

    run = add("run", "bring everything up to date, track it in MLflow, promote the winner")
    plan = add("plan", "how long a run would take here, how much memory and disk; nothing is started")
    for command in (run, plan):
        _add_settings(command)
    add("fetch", "bring data.path up to what lies in S3, as winnow run does first (data.fetch)")
    status = add("status", "which steps are stale, and why")
    status.add_argument(
        "--full",
        action="store_true",
        help="read everything that DVC keeps of this state, too: a disk may change bytes and no times",
    )
    add("track", "project the records onto MLflow, as after dvc repro")
    promote = add("promote", "register the winner and let it challenge the champion")
    promote.add_argument(
        "--replace",
        action="store_true",
        help="also a version that was denied or rolled back, or where the champion cannot be compared",
    )
    rollback = add("rollback", "put the previous champion back into production")
    rollback.add_argument("--reason", default="", help="kept on the version that leaves")
    predict = add("predict", "class and probability of your image files, by the promoted model")
    predict.add_argument("images", nargs="+", type=Path, metavar="PATH", help="an image, or a folder, at any depth")
    predict.add_argument("--out", type=Path, default=None, help="a .csv or .parquet for any number of files")
    predict.add_argument("--top", type=int, default=1, help="how many classes, the likeliest first; default: 1")
    predict.add_argument("--abstain-below", type=float, default=0.0, help="name no class that is less likely than this")
    predict.add_argument("--model", default="champion", help="alias or version of the registered model")
    export = add("export", "the promoted model as a folder to take away: file, labels, cards, an example")
    export.add_argument("folder", type=Path, metavar="DIR")
    export.add_argument("--model", default="champion", help="alias or version of the registered model")
    export.add_argument(
        "--candidates", action="store_true", help="also all candidates, to be timed where one of them will serve"
    )
    server = add("serve", "the promoted model over HTTP, until Ctrl-C: POST an image to /predict")
    server.add_argument("--model", default="champion", help="alias or version of the registered model")
    for field in fields(Serving):
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
    host = add("check-host", "take in what check_host.py wrote on the machine that will serve")
    host.add_argument("file", type=Path, metavar="FILE", help="host.json")
    approve = add("approve", "let the challenger that waits for a person become champion")
    approve.add_argument("--reason", default="", help="kept on the version")
    deny = add("deny", "keep the challenger that waits for a person out")
    deny.add_argument("--reason", required=True, help="kept on the version")
    drift = add("drift", "whether fresh images still look like those that were trained on")
    drift.add_argument("folder", nargs="?", default="", help="of images, at any depth; default: drift.path")
    seek = add("search", "look for the smallest, fastest candidates that keep dense's accuracy (search:)")
    _add_settings(seek)
    seek.add_argument("--name", default="default", help="of the search; one that was stopped goes on under its name")
    seek.add_argument("--workers", type=int, default=1, help="trials at once, each in a process of its own")
    seek.add_argument("--scheduler", default="", metavar="ADDRESS", help="of Dask, whose workers see this folder, too")
    seek.add_argument("--add", default="", metavar="NAME", help="put the chosen candidates into params.yaml, so named")
    sensing = add("sensitivity", "which layer bears pruning and int8, one at a time, nothing trained")
    sensing.add_argument("name", nargs="?", default="dense", help="a candidate that is not int8; default: dense")
    sensing.add_argument("--share", type=float, default=0.5, help="of a layer's channels to prune; default: 0.5")
    sweeping = add("sweep", "which batch, threads and runtime serve a candidate's file best, all measured")
    sweeping.add_argument("name", nargs="?", default="", help="a candidate; default: the winner")
    sweeping.add_argument("--batches", type=_counts, default=(), metavar="1,8,64", help="default: 1, 2, 4 ... 128")
    team = add("team", "a team's servers on this machine: PostgreSQL, S3, MLflow with accounts, Prefect")
    team.add_argument("--folder", type=Path, default=None, help="of all that they hold; default: .winnow/team")
    team.add_argument("--host", default="127.0.0.1", help="address to listen on; default: this machine alone")
    for name, port in (("postgresql", 5433), ("s3", 9000), ("mlflow", 5000), ("prefect", 4200)):
        team.add_argument(f"--{name}-port", type=int, default=port)
    account = add("account", "an account of the team's MLflow, by its administrator (MLFLOW_TRACKING_...)")
    account.add_argument("name")
    what = account.add_mutually_exclusive_group(required=True)
    what.add_argument("--role", help="reader or engineer; a new account gets a password, which is printed once")
    what.add_argument("--reset", action="store_true", help="a new password, which is printed once")
    what.add_argument("--remove", action="store_true", help="end the account; what it logged stays")
    ui = add("ui", "MLflow and Prefect in the browser, until Ctrl-C")
    up = add("up", "the same, and a worker that runs what prefect.yaml schedules, until Ctrl-C")
    for servers in (ui, up):
        servers.add_argument("--mlflow-port", type=int, default=5000)
        servers.add_argument("--prefect-port", type=int, default=4200)
    return parser


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
    """1,8,64"""
    counts = tuple(int(part) if part.isdecimal() else 0 for part in text.split(","))
    if min(counts) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of counts, as 1,8,64 is")
    return counts
