"""`winnow ui` and `winnow up`: MLflow's and Prefect's servers on this project's own stores, on 127.0.0.1, until Ctrl-C.

`ui` shows pages. `up` also registers what prefect.yaml schedules and starts a worker that runs it. A team's servers
(MLFLOW_TRACKING_URI, PREFECT_API_URL) are up already: they are named, not started.

While Prefect's server is up, runs report to it (its address lies in .winnow/servers.json), so a run can be watched as
it goes.
"""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Mapping
from functools import partial

from rich.console import Console

from tasks.project import announced_servers, passwords
from tasks.project.announced_servers import answers
from tasks.project.paths import ProjectPaths
from tasks.project.run_origin import is_alive
from tasks.tracking.tracked_runs import without_password
from winnow.cli.terminal import Terminal
from winnow.config import load_config
from winnow.errors import ConfigError
from winnow.servers.supervisor import HOST, Program, check_ports, module, supervisor

ACCOUNTS = "basic_auth.ini"
"""Settings of MLflow's accounts, beside its store."""


def serve(places: ProjectPaths, mlflow_port: int, prefect_port: int, work: bool = False) -> int:
    """Start the servers, with `work` a worker too; say where they are, keep them up, and end them together."""
    ports = {"mlflow": mlflow_port, "prefect": prefect_port}
    console = Terminal()
    if not work and (up := announced_servers.announced(places)) and is_alive(up.owner):
        _name(console, announced_servers.mlflow_page(places), page_of(announced_servers.prefect_api(places)))
        _tell_password(console, places)
        console.print("They are up already.")
        return 0
    told = _told(places, prefect_port)
    password = passwords.own_password(places)
    programs, pages = planned(places, os.environ["MLFLOW_TRACKING_URI"], told, ports, password)
    own = {program.name for program in programs}
    api = told or f"{pages['prefect']}/api"
    # The worker and `deploy` report there.
    os.environ["PREFECT_API_URL"] = api
    if not told:
        os.environ["PREFECT_API_AUTH_STRING"] = passwords.auth_of(password)
    try:
        with supervisor(places.state_dir / "up.mark", places.root, places.logs, console) as keeps:
            check_ports({program.name: ports[program.name] for program in programs})
            if "mlflow" in own:
                _keep_accounts_of_mlflow(places)
            keeps.add(*programs)
            announced_servers.announce(places, pages["mlflow"] if "mlflow" in own else "", "" if told else api)
            _name(console, **pages)
            if own:
                _tell_password(console, places)
            if not (work or programs):
                return 0
            if work:
                if told:
                    _check_name(places)
                if "mlflow" not in own:
                    _check_mlflow(places)
                keeps.add(_worker(places))
                console.print("Worker   waits for what prefect.yaml schedules")
            console.print("Ctrl-C ends what was started here.")
            keeps.keep_up()
    except KeyboardInterrupt:
        pass
    finally:
        announced_servers.withdraw(places)
    return 0


def _told(places: ProjectPaths, port: int) -> str:
    """The team's Prefect, if the shell names one. The address of our own is for `prefect` on the command line.

    Both may be the same one: ours is what this project has up there, or what nobody has.
    """
    told = os.environ.get("PREFECT_API_URL", "")
    here = told.rstrip("/").replace("//localhost:", f"//{HOST}:")
    if here != f"http://{HOST}:{port}/api":
        return told
    found = announced_servers.announced(places)
    is_ours = found is not None and is_alive(found.owner) and found.prefect_api == here
    return "" if is_ours or not announced_servers.is_there(f"{here}/health") else told


def _name(console: Console, mlflow: str, prefect: str) -> None:
    """Where the pages are; a shell that was not told of a team's Prefect does not know it."""
    console.print(f"MLflow   {mlflow}\nPrefect  {prefect or 'where PREFECT_API_URL of the shell of winnow up says'}")


def _tell_password(console: Console, places: ProjectPaths) -> None:
    """What the pages of the project's own servers ask for."""
    password = passwords.own_password(places)
    console.print(
        f"Log in   MLflow: user {passwords.USER}, password {password}\n"
        f"         Prefect: {passwords.auth_of(password)}   ({passwords.file_of(places)} keeps the password)"
    )


def planned(
    places: ProjectPaths, store: str, api: str, ports: Mapping[str, int], password: str
) -> tuple[list[Program], dict[str, str]]:
    """Servers to start, which ask for `password`, and the page of each; a team's are up already and are only named."""
    pages = {name: f"http://{HOST}:{port}" for name, port in ports.items()}
    programs = []
    if store.startswith("http"):
        pages["mlflow"] = without_password(store)
    else:
        command = module(
            *("mlflow", "server", "--backend-store-uri", store, "--host", HOST, "--port", str(ports["mlflow"])),
            *("--default-artifact-root", str(places.mlflow_artifacts), "--workers", "1", "--app-name", "basic-auth"),
        )
        up = partial(answers, f"{pages['mlflow']}/health")
        programs.append(Program("mlflow", command, up, _mlflow_account(places, password)))
    if api:
        pages["prefect"] = page_of(api)
    else:
        environment = {
            "PREFECT_SERVER_API_AUTH_STRING": passwords.auth_of(password),
            # The page asks port 4200 unless told where its own server is.
            "PREFECT_SERVER_UI_API_URL": f"{pages['prefect']}/api",
        }
        command = module("winnow.servers.prefect_server", HOST, str(ports["prefect"]))
        programs.append(Program("prefect", command, partial(answers, f"{pages['prefect']}/api/health"), environment))
    return programs, pages


def _mlflow_account(places: ProjectPaths, password: str) -> dict[str, str]:
    """Variables of an MLflow server with one account; whoever has none sees nothing."""
    return {
        "MLFLOW_AUTH_CONFIG_PATH": str(places.state_dir / "mlflow" / ACCOUNTS),
        "MLFLOW_AUTH_ADMIN_USERNAME": passwords.USER,
        "MLFLOW_AUTH_ADMIN_PASSWORD": password,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(32),
    }


def _keep_accounts_of_mlflow(places: ProjectPaths) -> None:
    """Write where MLflow keeps its account, which it makes anew at each start: so the password is that of today."""
    folder = places.state_dir / "mlflow"
    passwords.write_private(accounts := folder / "accounts.db", "")
    passwords.write_private(
        folder / ACCOUNTS,
        "[mlflow]\ndefault_permission = NO_PERMISSIONS\n"
        f"database_uri = sqlite:///{accounts}\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n",
    )


def page_of(api: str) -> str:
    """Prefect's page, from the address of its API."""
    return without_password(api).rstrip("/").removesuffix("/api")


def _check_name(places: ProjectPaths) -> None:
    """At a server that others use, `photos` may be somebody else's: raise ConfigError unless the name was chosen."""
    if load_config(places.root / "params.yaml").promotion.registered_model == "auto":
        raise ConfigError(
            "promotion.registered_model is auto, and other projects share this Prefect server: give it its own, "
            "as in winnow run -S promotion.registered_model=products"
        )


def _check_mlflow(places: ProjectPaths) -> None:
    """Raise StoreError now, not at night, where a team's MLflow does not answer or this account may not log runs."""
    from tasks.tracking.mlflow_client import answering, experiment_id

    with answering(places, kept=""):
        experiment_id(places, load_config(places.root / "params.yaml"))


def _worker(places: ProjectPaths) -> Program:
    """Register what is to run, then the one who runs it: one run at a time, as DVC wants it."""
    from flows import deployments

    pool = deployments.set_up(places)
    quietly = ("-W", "ignore:Type 'OwnFlowsWorker'")  # it takes the place of Prefect's own, as it should
    return Program("worker", [sys.executable, *quietly, "-m", "winnow.servers.worker", pool], takes_along=False)
