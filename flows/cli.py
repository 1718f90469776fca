"""The command line `winnow`. What has nothing to do needs neither torch, Prefect nor MLflow: imports are where used.

    winnow run [-S KEY=VALUE ...]   bring everything up to date, track it, promote the winner
    winnow plan [-S KEY=VALUE ...]  how long that would take here, and how much memory and disk
    winnow fetch                    bring data.path up to what lies in S3 (data.fetch); winnow run does it first
    winnow status                   which steps are stale, and why
    winnow track                    project the records onto MLflow (after dvc repro)
    winnow promote [--replace]      let the winner challenge the champion
    winnow rollback                 the previous champion back into production
    winnow predict PATH ...         the promoted model on your files
    winnow export DIR               the promoted model to take away: file, labels, cards, an example
    winnow serve                    the promoted model over HTTP
    winnow check-host FILE          figures of the machine that will serve, which gates go by from then on
    winnow drift [FOLDER]           whether fresh images still look like those that were trained on
    winnow approve, winnow deny     a person's word on the challenger, where promotion.approval asks for it
    winnow team                     a team's servers on this machine
    winnow account NAME --role R    who may compare and load (reader), or also run and promote (engineer)
    winnow ui                       MLflow and Prefect in the browser
    winnow up                       the same, and a worker that runs what prefect.yaml schedules

Exit status: 0 done; 2 something for a person to mend, said in one message; 130 stopped; 1 a bug of ours, with a
traceback.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from dataclasses import fields
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from flows import STOPPED
from tasks.settings import Places, apply, registered_model_name
from winnow.config import Config, load_config
from winnow.config.serving import Serving
from winnow.errors import ConfigError, WinnowError

if TYPE_CHECKING:
    from tasks.promotion import Outcome

ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main(arguments: list[str] | None = None) -> None:
    """Parse, act, and leave with the exit status."""
    options = _parser().parse_args(arguments)
    places = Places(_root())
    _end_politely()
    try:
        apply(places.root)
        status: int = options.act(places, options)
    except WinnowError as error:
        if os.environ.get("WINNOW_TRACEBACK"):
            raise
        print(f"winnow: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print(STOPPED, file=sys.stderr)
        raise SystemExit(130) from None
    for ending in ENDINGS:
        signal.signal(ending, signal.SIG_IGN)  # all is done: a second Ctrl-C changes no status
    raise SystemExit(status)


def _root() -> Path:
    """The project's folder: the nearest one upwards with params.yaml and dvc.yaml."""
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "params.yaml").is_file() and (folder / "dvc.yaml").is_file():
            return folder
    print(f"winnow: no params.yaml and dvc.yaml in {here} or above; run it inside the project", file=sys.stderr)
    raise SystemExit(2)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="winnow", description="From images, few of them labelled, to a small, fast model."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, act: object, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(act=act)
        return sub

    run = add("run", _run, "bring everything up to date, track it in MLflow, promote the winner")
    plan = add("plan", _plan, "how long a run would take here, how much memory and disk; nothing is started")
    for command in (run, plan):
        _add_settings(command)
    add("fetch", _fetch, "bring data.path up to what lies in S3, as winnow run does first (data.fetch)")
    add("status", _status, "which steps are stale, and why")
    add("track", _track, "project the records onto MLflow, as after dvc repro")
    promote = add("promote", _promote, "register the winner and let it challenge the champion")
    promote.add_argument("--replace", action="store_true", help="also where the champion cannot be compared")
    rollback = add("rollback", _rollback, "put the previous champion back into production")
    rollback.add_argument("--reason", default="", help="kept on the version that leaves")
    predict = add("predict", _predict, "class and probability of your image files, by the promoted model")
    predict.add_argument("images", nargs="+", type=Path, metavar="PATH", help="an image, or a folder, at any depth")
    predict.add_argument("--out", type=Path, default=None, help="a .csv or .parquet for any number of files")
    predict.add_argument("--top", type=int, default=1, help="how many classes, the likeliest first; default: 1")
    predict.add_argument("--abstain-below", type=float, default=0.0, help="name no class that is less likely than this")
    predict.add_argument("--model", default="champion", help="alias or version of the registered model")
    export = add("export", _export, "the promoted model as a folder to take away: file, labels, cards, an example")
    export.add_argument("folder", type=Path, metavar="DIR")
    export.add_argument("--model", default="champion", help="alias or version of the registered model")
    export.add_argument(
        "--candidates", action="store_true", help="also all candidates, to be timed where one of them will serve"
    )
    server = add("serve", _serve, "the promoted model over HTTP, until Ctrl-C: POST an image to /predict")
    server.add_argument("--model", default="champion", help="alias or version of the registered model")
    for field in fields(Serving):
        if field.name not in ("folder", "title"):
            flag = f"--{field.name.replace('_', '-')}"
            server.add_argument(flag, type=type(field.default), default=field.default, help=f"default: {field.default}")
    host = add("check-host", _check_host, "take in what check_host.py wrote on the machine that will serve")
    host.add_argument("file", type=Path, metavar="FILE", help="host.json")
    approve = add("approve", _approve, "let the challenger that waits for a person become champion")
    approve.add_argument("--reason", default="", help="kept on the version")
    deny = add("deny", _deny, "keep the challenger that waits for a person out")
    deny.add_argument("--reason", required=True, help="kept on the version")
    drift = add("drift", _drift, "whether fresh images still look like those that were trained on")
    drift.add_argument("folder", nargs="?", default="", help="of images, at any depth; default: drift.path")
    seek = add("search", _search, "look for the smallest, fastest candidates that keep dense's accuracy (search:)")
    _add_settings(seek)
    seek.add_argument("--name", default="default", help="of the search; one that was stopped goes on under its name")
    seek.add_argument("--add", default="", metavar="NAME", help="put the chosen candidates into params.yaml, so named")
    sensing = add("sensitivity", _sensitivity, "which layer bears pruning and int8, one at a time, nothing trained")
    sensing.add_argument("name", nargs="?", default="dense", help="a candidate that is not int8; default: dense")
    sensing.add_argument("--share", type=float, default=0.5, help="of a layer's channels to prune; default: 0.5")
    team = add("team", _team, "a team's servers on this machine: PostgreSQL, S3, MLflow with accounts, Prefect")
    team.add_argument("--folder", type=Path, default=None, help="of all that they hold; default: .winnow/team")
    team.add_argument("--host", default="127.0.0.1", help="address to listen on; default: this machine alone")
    for name, port in (("postgresql", 5433), ("s3", 9000), ("mlflow", 5000), ("prefect", 4200)):
        team.add_argument(f"--{name}-port", type=int, default=port)
    account = add("account", _account, "an account of the team's MLflow, by its administrator (MLFLOW_TRACKING_...)")
    account.add_argument("name")
    what = account.add_mutually_exclusive_group(required=True)
    what.add_argument("--role", help="reader or engineer; a new account gets a password, which is printed once")
    what.add_argument("--reset", action="store_true", help="a new password, which is printed once")
    what.add_argument("--remove", action="store_true", help="end the account; what it logged stays")
    ui = add("ui", _ui, "MLflow and Prefect in the browser, until Ctrl-C")
    up = add("up", _up, "the same, and a worker that runs what prefect.yaml schedules, until Ctrl-C")
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


def _set(places: Places, options: argparse.Namespace) -> None:
    from flows.setting import set_keys
    from tasks import checkout

    if options.sets:
        with checkout.run_alone(places):  # a run that works reads params.yaml at each step
            set_keys(places, options.sets)


def _config(places: Places) -> Config:
    from tasks.settings import check_files

    config = load_config(places.root / "params.yaml")
    check_files(config, places.root)
    return config


def _fetch(places: Places, _options: argparse.Namespace) -> int:
    from flows.running import fetch

    config = _config(places)
    if config.data.fetch == "none":
        raise ConfigError("data.fetch: names nothing to fetch; set it to s3://bucket/prefix, and data.path to a folder")
    fetch(places, config)
    return 0


def _run(places: Places, options: argparse.Namespace) -> int:
    from flows.running import run

    _set(places, options)
    return run(places, _config(places))


def _plan(places: Places, options: argparse.Namespace) -> int:
    from flows.planning import plan

    _set(places, options)
    return plan(places, _config(places))


def _end_politely() -> None:
    """A kill and a closed terminal are Ctrl-C too, also for a shell's background job; nohup is obeyed."""
    for ending in ENDINGS:
        if ending != signal.SIGHUP or signal.getsignal(ending) != signal.SIG_IGN:
            signal.signal(ending, _interrupt)


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _status(places: Places, _options: argparse.Namespace) -> int:
    from flows.running import show_status

    return show_status(places, _config(places))


def _track(places: Places, _options: argparse.Namespace) -> int:
    from tasks import tracking

    print(tracking.track(places, _config(places)))
    return 0


def _promote(places: Places, options: argparse.Namespace) -> int:
    from tasks import checkout, servers
    from tasks.promotion import promote

    config = _config(places)
    with checkout.run_alone(places):
        outcome = promote(places, config, replace=options.replace)
    told = _told(places, config, outcome)
    if outcome.waits and servers.report_to_prefect(places):
        from flows.promote import show_form

        show_form(config)
    return told


def _rollback(places: Places, options: argparse.Namespace) -> int:
    from tasks.promotion import rollback

    config = _config(places)
    return _told(places, config, rollback(places, config, options.reason))


def _told(places: Places, config: Config, outcome: Outcome) -> int:
    """Say what was done, and tell Prefect's server, if one is up, of another champion: it tells people."""
    from tasks import servers

    print("\n".join(outcome.reasons))
    if outcome.is_new and servers.report_to_prefect(places):
        from tasks.stages import tell_of

        logging.getLogger("EventsWorker").setLevel(logging.ERROR)  # it warns that it has one event left to send
        tell_of(outcome, registered_model_name(config))
    return 0


def _predict(places: Places, options: argparse.Namespace) -> int:
    from flows.predicting import Wanted, predict

    config = load_config(places.root / "params.yaml")
    wanted = Wanted(options.top, options.abstain_below, options.out)
    return predict(places, config, options.images, options.model, wanted)


def _export(places: Places, options: argparse.Namespace) -> int:
    from tasks import hosting, registry
    from winnow.exporting import export_check, export_model

    config = load_config(places.root / "params.yaml")
    name = registered_model_name(config)
    check = hosting.host_check(places, config, options.candidates)
    if options.candidates and registry.find(places, name, options.model) is None:
        # Perhaps nobody passes here because nobody is fast here.
        export_check(options.folder, check, config.data.image_size)
    else:
        version = registry.get(places, name, options.model)
        export_model(registry.fetch(places, name, version), options.folder, f"{name}, {version}", check)
        print(f"{version} of {name} is in {options.folder}")
    if options.candidates:
        print(f"There: python check_host.py; here again: winnow check-host host.json ({len(check.others)} candidates)")
    return 0


def _serve(places: Places, options: argparse.Namespace) -> int:
    from flows.serving import serve

    asked: dict[str, Any] = {field.name: getattr(options, field.name, "") for field in fields(Serving)}
    return serve(places, load_config(places.root / "params.yaml"), options.model, Serving(**asked))


def _check_host(places: Places, options: argparse.Namespace) -> int:
    from flows.setting import set_keys
    from tasks import checkout, hosting

    with checkout.run_alone(places):
        host, missing = hosting.take_in(places, _config(places), options.file)
        set_keys(places, [f"benchmark.target={hosting.TARGET}"])
    machine = host.machine
    print(f"Gates go by {machine.cpu}, {machine.threads} threads, from now on; winnow run applies it.")
    for candidate, why in missing.items():
        print(f"{candidate} was not timed there, and so is out of question: {why}")
    return 0


def _approve(places: Places, options: argparse.Namespace) -> int:
    return _answer(places, True, options.reason)


def _deny(places: Places, options: argparse.Namespace) -> int:
    return _answer(places, False, options.reason)


def _answer(places: Places, approve: bool, reason: str) -> int:
    from tasks import decision, servers
    from tasks.origin import person

    config = _config(places)
    waiting = decision.waiting(places, config)
    _told(places, config, decision.answer(places, config, approve, person(), reason))
    if waiting and waiting.request.form and servers.report_to_prefect(places):
        from flows.promote import close_form

        if warning := close_form(waiting.request.form, approve, person(), reason):
            print(f"winnow: {warning}", file=sys.stderr)
    return 0


def _drift(places: Places, options: argparse.Namespace) -> int:
    from tasks import drifting

    config = _config(places)
    # A folder on the command line is the shell's; drift.path is the project's.
    finding = drifting.look(places, config, str(Path(options.folder).absolute()) if options.folder else None)
    run_id = drifting.track(places, config, finding)
    print("\n".join(drifting.lines(finding)).replace("**", ""))
    for file, name, chance in finding.wanted:
        print(f"  label {file} (now {name}, {chance:.2f})")
    print(f"MLflow run {run_id}")
    return 0


def _search(places: Places, options: argparse.Namespace) -> int:
    from flows.searching import run_search

    _set(places, options)
    return run_search(places, _config(places), options.name, options.add)


def _sensitivity(places: Places, options: argparse.Namespace) -> int:
    from flows.sensing import show

    return show(places, load_config(places.root / "params.yaml"), options.name, options.share)


def _team(places: Places, options: argparse.Namespace) -> int:
    from flows.team import serve_team

    folder = (options.folder or places.hidden / "team").absolute()
    ports = {name: getattr(options, f"{name}_port") for name in ("postgresql", "s3", "mlflow", "prefect")}
    return serve_team(places, folder, options.host, ports)


def _account(places: Places, options: argparse.Namespace) -> int:
    from tasks import accounts

    accounts.check_name(options.name)
    if options.remove:
        accounts.remove(places, options.name)
        print(f"{options.name} is no account any more")
        return 0
    if options.role:
        accounts.check_role(options.role)  # before there is an account without one
    make = accounts.reset if options.reset else accounts.make
    if password := make(places, options.name):
        print(f"password of {options.name}: {password}")
    if options.role:
        accounts.give_role(places, options.name, options.role)
        print(f"{options.name} is {options.role}")
    return 0


def _up(places: Places, options: argparse.Namespace) -> int:
    from flows.interfaces import serve

    _config(places)
    return serve(places, options.mlflow_port, options.prefect_port, work=True)


def _ui(places: Places, options: argparse.Namespace) -> int:
    from flows.interfaces import serve

    return serve(places, options.mlflow_port, options.prefect_port)


if __name__ == "__main__":
    main()
