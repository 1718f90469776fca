"""The command line `winnow`. What has nothing to do needs neither torch, Prefect nor MLflow: imports are where used.

    winnow run [-S KEY=VALUE ...]   bring everything up to date, track it, promote the winner
    winnow plan [-S KEY=VALUE ...]  how long that would take here, and how much memory and disk
    winnow fetch                    bring data.path up to what lies in S3 (data.fetch); winnow run does it first
    winnow status [--full]          which steps are stale, and why
    winnow track                    project the records onto MLflow (after dvc repro)
    winnow promote [--replace]      let the winner challenge the champion
    winnow rollback                 the previous champion back into production
    winnow predict PATH ...         the promoted model on your files
    winnow export DIR               the promoted model to take away: file, labels, cards, an example
    winnow serve                    the promoted model over HTTP
    winnow check-host FILE          figures of the machine that will serve, which gates go by from then on
    winnow search                   candidates that nobody wrote down, within a budget
    winnow sensitivity [NAME]       which layer bears pruning and int8
    winnow sweep [NAME]             which batch, threads and runtime serve a file best
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
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from flows import STOPPED
from tasks import ENDINGS
from tasks.project.disk_errors import disk_problem
from tasks.project.paths import ProjectPaths, apply, registered_model_name
from winnow.cli.arguments import Act, parser_of
from winnow.cli.progress import say
from winnow.config import Config, load_config
from winnow.errors import ConfigError, WinnowError

if TYPE_CHECKING:
    from tasks.registry.promotion import PromotionResult


def main(arguments: list[str] | None = None) -> None:
    """Parse, act, and leave with the exit status."""
    options = parser_of(ACTS).parse_args(arguments)
    places = ProjectPaths(_root())
    _end_politely()
    try:
        apply(places.root)
        status: int = options.act(places, options)
    except WinnowError as error:
        if os.environ.get("WINNOW_TRACEBACK"):
            raise
        say(f"winnow: {error}", sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        say(STOPPED, sys.stderr)
        raise SystemExit(130) from None
    except Exception as error:
        told = disk_problem(error, places.root)
        if told is None or os.environ.get("WINNOW_TRACEBACK"):
            raise
        say(f"winnow: {told}", sys.stderr)
        raise SystemExit(2) from None
    for ending in ENDINGS:
        signal.signal(ending, signal.SIG_IGN)  # all is done: a second Ctrl-C changes no status
    raise SystemExit(status)


def _root() -> Path:
    """The project's folder: the nearest one upwards with params.yaml and dvc.yaml."""
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "params.yaml").is_file() and (folder / "dvc.yaml").is_file():
            return folder
    say(f"winnow: no params.yaml and dvc.yaml in {here} or above; run it inside the project", sys.stderr)
    raise SystemExit(2)


def _set(places: ProjectPaths, options: argparse.Namespace) -> None:
    from tasks.project import run_lock
    from winnow.cli.params_editor import set_keys

    if options.sets:
        with run_lock.run_alone(places):  # a run that works reads params.yaml at each step
            set_keys(places, options.sets)


def _config(places: ProjectPaths) -> Config:
    from tasks.project.paths import check_files

    config = load_config(places.root / "params.yaml")
    check_files(config, places.root)
    return config


def _fetch(places: ProjectPaths, _options: argparse.Namespace) -> int:
    from winnow.cli.run import fetch

    config = _config(places)
    if config.data.fetch == "none":
        raise ConfigError("data.fetch: names nothing to fetch; set it to s3://bucket/prefix, and data.path to a folder")
    fetch(places, config)
    return 0


def _run(places: ProjectPaths, options: argparse.Namespace) -> int:
    from tasks.project import run_lock
    from winnow.cli.run import run

    with run_lock.run_alone(places):  # from here on: nobody else's -S comes between params.yaml and the first step
        _set(places, options)
        return run(places, _config(places))


def _plan(places: ProjectPaths, options: argparse.Namespace) -> int:
    from winnow.cli.plan import plan

    _set(places, options)
    return plan(places, _config(places))


def _end_politely() -> None:
    """A kill and a closed terminal are Ctrl-C too, also for a shell's background job; nohup is obeyed."""
    for ending in ENDINGS:
        if ending != signal.SIGHUP or signal.getsignal(ending) != signal.SIG_IGN:
            signal.signal(ending, _interrupt)


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _status(places: ProjectPaths, options: argparse.Namespace) -> int:
    from winnow.cli.run import show_status

    return show_status(places, _config(places), options.full)


def _track(places: ProjectPaths, _options: argparse.Namespace) -> int:
    from tasks.tracking import mlflow_runs

    say(mlflow_runs.track(places, _config(places)))
    return 0


def _promote(places: ProjectPaths, options: argparse.Namespace) -> int:
    from tasks.project import announced_servers, run_lock
    from tasks.registry.promotion import promote

    config = _config(places)
    with run_lock.run_alone(places):
        outcome = promote(places, config, replace=options.replace)
    told = _told(places, config, outcome)
    if outcome.waits and announced_servers.report_to_prefect(places):
        from flows.promote import show_form

        show_form(config)
    return told


def _rollback(places: ProjectPaths, options: argparse.Namespace) -> int:
    from tasks.registry.promotion import rollback

    config = _config(places)
    return _told(places, config, rollback(places, config, options.reason))


def _told(places: ProjectPaths, config: Config, outcome: PromotionResult) -> int:
    """Say what was done, and tell Prefect's server, if one is up, of another champion: it tells people."""
    from tasks.project import announced_servers

    say("\n".join(outcome.reasons))
    if outcome.is_new and announced_servers.report_to_prefect(places):
        from tasks.events import emit_promoted

        logging.getLogger("EventsWorker").setLevel(logging.ERROR)  # it warns that it has one event left to send
        emit_promoted(outcome, registered_model_name(config))
    return 0


def _predict(places: ProjectPaths, options: argparse.Namespace) -> int:
    from winnow.cli.predict import Wanted, predict

    config = load_config(places.root / "params.yaml")
    wanted = Wanted(options.top, options.abstain_below, options.out)
    return predict(places, config, options.images, options.model, wanted)


def _export(places: ProjectPaths, options: argparse.Namespace) -> int:
    from tasks.project import benchmark_target
    from tasks.registry import registered_models
    from winnow.deploy.bundle import export_check, export_model

    config = load_config(places.root / "params.yaml")
    name = registered_model_name(config)
    check = benchmark_target.host_check(places, config, options.candidates)
    if options.candidates and registered_models.find(places, name, options.model) is None:
        # Perhaps nobody passes here because nobody is fast here.
        export_check(options.folder, check, config.data.image_size)
    else:
        version = registered_models.get(places, name, options.model)
        export_model(registered_models.fetch(places, name, version), options.folder, f"{name}, {version}", check)
        say(f"{version} of {name} is in {options.folder}")
    if options.candidates:
        say(f"There: python check_host.py; here again: winnow check-host host.json ({len(check.others)} candidates)")
    return 0


def _serve(places: ProjectPaths, options: argparse.Namespace) -> int:
    from dataclasses import fields

    from winnow.cli.serve import serve
    from winnow.config.serving import Serving

    asked: dict[str, Any] = {field.name: getattr(options, field.name, "") for field in fields(Serving)}
    return serve(places, load_config(places.root / "params.yaml"), options.model, Serving(**asked))


def _check_host(places: ProjectPaths, options: argparse.Namespace) -> int:
    from tasks.project import benchmark_target, run_lock
    from winnow.cli.params_editor import set_benchmark_target
    from winnow.selection.caveats import overflowing

    with run_lock.run_alone(places):
        config = _config(places)
        host, missing = benchmark_target.import_target(places, config, options.file)
        unsafe = overflowing(config, host.machine.flags)
        set_benchmark_target(places, benchmark_target.TARGET, unsafe)
    machine = host.machine
    say(f"Gates go by {machine.cpu}, {machine.threads} threads, from now on; winnow run applies it.")
    for candidate, why in missing.items():
        say(f"{candidate} was not timed there, and so is out of question: {why}")
    if benchmark_target.is_silent(host):
        say(
            f"{machine.system} does not tell what {machine.cpu} can do; if it is an x86 processor without VNNI, set "
            "overflow_safe: true in the int8 candidates."
        )
    if unsafe:
        say(
            f"{machine.cpu} has no VNNI: sums of int8 products saturate there. {', '.join(unsafe)} will be made anew "
            "with weights in 7 bits; take them there again after that, with `winnow export DIR --candidates`."
        )
    return 0


def _approve(places: ProjectPaths, options: argparse.Namespace) -> int:
    return _answer(places, True, options.reason)


def _deny(places: ProjectPaths, options: argparse.Namespace) -> int:
    return _answer(places, False, options.reason)


def _answer(places: ProjectPaths, approve: bool, reason: str) -> int:
    from tasks.project import announced_servers
    from tasks.project.run_origin import person
    from tasks.registry import approval_decision

    config = _config(places)
    waiting = approval_decision.waiting(places, config)
    _told(places, config, approval_decision.answer(places, config, approve, person(), reason))
    if waiting and waiting.request.form and announced_servers.report_to_prefect(places):
        from flows.promote import close_form

        if warning := close_form(waiting.request.form, approve, person(), reason):
            say(f"winnow: {warning}", sys.stderr)
    return 0


def _drift(places: ProjectPaths, options: argparse.Namespace) -> int:
    from tasks import drift

    config = _config(places)
    # A folder on the command line is the shell's; drift.path is the project's.
    finding = drift.look(places, config, str(Path(options.folder).absolute()) if options.folder else None)
    run_id = drift.track(places, config, finding)
    say("\n".join(drift.lines(finding)))
    for file, name, chance in finding.wanted:
        say(f"  label {file} (now {name}, {chance:.2f})")
    say(f"MLflow run {run_id}")
    return 0


def _search(places: ProjectPaths, options: argparse.Namespace) -> int:
    from winnow.cli.search import WorkerPool, run_search

    _set(places, options)
    crew = WorkerPool(options.workers, options.scheduler)
    return run_search(places, _config(places), options.name, options.add, crew)


def _sensitivity(places: ProjectPaths, options: argparse.Namespace) -> int:
    from winnow.cli.sensitivity import show

    return show(places, load_config(places.root / "params.yaml"), options.name, options.share)


def _sweep(places: ProjectPaths, options: argparse.Namespace) -> int:
    from winnow.cli.sweep import show

    return show(places, load_config(places.root / "params.yaml"), options.name, options.batches)


def _team(places: ProjectPaths, options: argparse.Namespace) -> int:
    from winnow.servers.team import serve_team

    folder = (options.folder or places.state_dir / "team").absolute()
    ports = {name: getattr(options, f"{name}_port") for name in ("postgresql", "s3", "mlflow", "prefect")}
    return serve_team(places, folder, options.host, ports)


def _account(places: ProjectPaths, options: argparse.Namespace) -> int:
    from tasks.registry import accounts

    accounts.check_name(options.name)
    if options.remove:
        accounts.remove(places, options.name)
        say(f"{options.name} is no account any more")
        return 0
    if options.role:
        accounts.check_role(options.role)  # before there is an account without one
    make = accounts.reset if options.reset else accounts.make
    if password := make(places, options.name):
        say(f"password of {options.name}: {password}")
    if options.role:
        accounts.give_role(places, options.name, options.role)
        say(f"{options.name} is {options.role}")
    return 0


def _up(places: ProjectPaths, options: argparse.Namespace) -> int:
    from winnow.servers.local import serve

    _config(places)
    return serve(places, options.mlflow_port, options.prefect_port, work=True)


def _ui(places: ProjectPaths, options: argparse.Namespace) -> int:
    from winnow.servers.local import serve

    return serve(places, options.mlflow_port, options.prefect_port)


ACTS: dict[str, Act] = {
    "run": _run,
    "plan": _plan,
    "fetch": _fetch,
    "status": _status,
    "track": _track,
    "promote": _promote,
    "rollback": _rollback,
    "predict": _predict,
    "export": _export,
    "serve": _serve,
    "check-host": _check_host,
    "approve": _approve,
    "deny": _deny,
    "drift": _drift,
    "search": _search,
    "sensitivity": _sensitivity,
    "sweep": _sweep,
    "team": _team,
    "account": _account,
    "ui": _ui,
    "up": _up,
}

if __name__ == "__main__":
    main()
