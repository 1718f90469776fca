"""`winnow ui` and `winnow up`: MLflow's and Prefect's servers on this project's own stores, on 127.0.0.1, until Ctrl-C.

`ui` shows their pages. `up` also registers what prefect.yaml schedules and starts a worker that runs it. A team's
servers (MLFLOW_TRACKING_URI, PREFECT_API_URL) are already running: they are named, not started.

While Prefect's server is up, runs report to it (its address is in .winnow/servers.json), so a run can be watched.
"""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Mapping
from functools import partial

from rich.console import Console

from tasks.project import passwords, running_servers
from tasks.project.paths import ProjectPaths
from tasks.project.run_origin import is_alive
from tasks.project.running_servers import is_healthy
from tasks.project.state_files import SERVERS
from tasks.tracking.moved_store import relocate
from tasks.tracking.tracking_store import redact_password
from winnow.cli.terminal import Terminal
from winnow.config import load_config
from winnow.errors import ConfigError
from winnow.servers.supervisor import HOST, Program, check_ports, module_command, supervise

ACCOUNTS = "basic_auth.ini"
"""Settings of MLflow's accounts, beside its store."""


def serve(paths: ProjectPaths, mlflow_port: int, prefect_port: int, with_worker: bool = False) -> int:
    """Start the servers (`with_worker`: a worker, too), print their addresses, keep them up, and end them together."""
    ports = {"mlflow": mlflow_port, "prefect": prefect_port}
    console = Terminal()
    if not with_worker and (announced := SERVERS.read(paths)) and is_alive(announced.owner):
        _print_pages(console, running_servers.mlflow_url(paths), page_address(running_servers.prefect_api(paths)))
        _print_password(console, paths)
        console.print("They are running already.")
        return 0
    team_api = _team_prefect_api(paths, prefect_port)
    password = passwords.project_password(paths)
    programs, pages = plan_servers(paths, os.environ["MLFLOW_TRACKING_URI"], team_api, ports, password)
    started_names = {program.name for program in programs}
    api = team_api or f"{pages['prefect']}/api"
    # The worker and the deployments use this API.
    os.environ["PREFECT_API_URL"] = api
    if not team_api:
        os.environ["PREFECT_API_AUTH_STRING"] = passwords.auth_string(password)
    try:
        with supervise(paths.state_dir / "up.mark", paths.root, paths.logs, console) as supervised:
            check_ports({program.name: ports[program.name] for program in programs})
            if "mlflow" in started_names:
                _write_mlflow_accounts(paths)
            if "prefect" in started_names:
                running_servers.check_prefect_database()
            supervised.add(*programs)
            running_servers.announce(
                paths, pages["mlflow"] if "mlflow" in started_names else "", "" if team_api else api
            )
            _print_pages(console, **pages)
            if started_names:
                _print_password(console, paths)
            if not (with_worker or programs):
                return 0
            if with_worker:
                if team_api:
                    _check_name(paths)
                if "mlflow" not in started_names:
                    _check_mlflow(paths)
                supervised.add(_worker(paths))
                console.print("Worker   waits for what prefect.yaml schedules")
            console.print("Ctrl-C ends what was started here.")
            supervised.keep_up()
    except KeyboardInterrupt:
        pass
    finally:
        running_servers.withdraw(paths)
    return 0


def _team_prefect_api(paths: ProjectPaths, port: int) -> str:
    """Return the team's Prefect API, if the shell names one; "" where the address is this project's own.

    The address of our own server may be set for `prefect` on the command line: it counts as ours where this project has
    its server there, or where no server answers.
    """
    configured = os.environ.get("PREFECT_API_URL", "")
    local = configured.rstrip("/").replace("//localhost:", f"//{HOST}:")
    if local != f"http://{HOST}:{port}/api":
        return configured
    announced = SERVERS.read(paths)
    is_ours = announced is not None and is_alive(announced.owner) and announced.prefect_api == local
    return "" if is_ours or not running_servers.is_reachable(f"{local}/health") else configured


def _print_pages(console: Console, mlflow: str, prefect: str) -> None:
    """Print where the pages are; without PREFECT_API_URL the shell does not know a team's Prefect."""
    console.print(f"MLflow   {mlflow}\nPrefect  {prefect or 'where PREFECT_API_URL of the shell of winnow up says'}")


def _print_password(console: Console, paths: ProjectPaths) -> None:
    """Print the login of the project's own servers."""
    password = passwords.project_password(paths)
    console.print(
        f"Log in   MLflow: user {passwords.USER}, password {password}\n"
        f"         Prefect: {passwords.auth_string(password)}   ({passwords.password_file(paths)} keeps the password)"
    )


def plan_servers(
    paths: ProjectPaths, store: str, api: str, ports: Mapping[str, int], password: str
) -> tuple[list[Program], dict[str, str]]:
    """Return the servers to start, with this password, and the page of each; a team's servers are only named."""
    pages = {name: f"http://{HOST}:{port}" for name, port in ports.items()}
    programs = []
    if store.startswith("http"):
        pages["mlflow"] = redact_password(store)
    else:
        relocate(paths)
        command = module_command(
            *("mlflow", "server", "--host", HOST, "--port", str(ports["mlflow"])),
            *("--default-artifact-root", str(paths.mlflow_artifacts), "--workers", "1", "--app-name", "basic-auth"),
        )
        is_up = partial(is_healthy, f"{pages['mlflow']}/health")
        environment = {"MLFLOW_BACKEND_STORE_URI": store, **_mlflow_account(paths, password)}
        programs.append(Program("mlflow", command, is_up, environment))
    if api:
        pages["prefect"] = page_address(api)
    else:
        environment = {
            "PREFECT_SERVER_API_AUTH_STRING": passwords.auth_string(password),
            # The page uses port 4200 unless the address of its own server is set.
            "PREFECT_SERVER_UI_API_URL": f"{pages['prefect']}/api",
        }
        command = module_command("winnow.servers.prefect_server", HOST, str(ports["prefect"]))
        programs.append(Program("prefect", command, partial(is_healthy, f"{pages['prefect']}/api/health"), environment))
    return programs, pages


def _mlflow_account(paths: ProjectPaths, password: str) -> dict[str, str]:
    """Return the variables of an MLflow server with one account; without it nothing is visible."""
    return {
        "MLFLOW_AUTH_CONFIG_PATH": str(paths.state_dir / "mlflow" / ACCOUNTS),
        "MLFLOW_AUTH_ADMIN_USERNAME": passwords.USER,
        "MLFLOW_AUTH_ADMIN_PASSWORD": password,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(32),
    }


def _write_mlflow_accounts(paths: ProjectPaths) -> None:
    """Write where MLflow keeps its account, and reset that database, so that the password is the current one."""
    folder = paths.state_dir / "mlflow"
    passwords.write_private_file(accounts := folder / "accounts.db", "")
    path = str(accounts).replace("%", "%%")  # MLflow's parser replaces %(name)s
    passwords.write_private_file(
        folder / ACCOUNTS,
        "[mlflow]\ndefault_permission = NO_PERMISSIONS\n"
        f"database_uri = sqlite:///{path}\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n",
    )


def page_address(api: str) -> str:
    """Return the address of Prefect's page, from that of its API."""
    return redact_password(api).rstrip("/").removesuffix("/api")


def _check_name(paths: ProjectPaths) -> None:
    """Raise ConfigError unless the registered model's name was chosen: on a shared server `photos` may be another's."""
    if load_config(paths.root / "params.yaml").promotion.registered_model == "auto":
        raise ConfigError(
            "promotion.registered_model is auto, and other projects share this Prefect server: choose a name, as in "
            "winnow run -S promotion.registered_model=products"
        )


def _check_mlflow(paths: ProjectPaths) -> None:
    """Raise StoreError now, rather than during a scheduled run, where MLflow does not answer or denies this account."""
    from tasks.tracking.mlflow_client import experiment_id, session

    with session(paths, hint=""):
        experiment_id(paths, load_config(paths.root / "params.yaml"))


def _worker(paths: ProjectPaths) -> Program:
    """Register the deployments and return the worker, which runs one at a time, as DVC requires."""
    from flows import deployments

    pool = deployments.set_up(paths)
    warning_options = ("-W", "ignore:Type 'OwnFlowsWorker'")  # it replaces Prefect's own worker on purpose
    return Program(
        "worker", [sys.executable, *warning_options, "-m", "winnow.servers.worker", pool], ends_children=False
    )
