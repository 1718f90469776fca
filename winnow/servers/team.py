"""`winnow team`: a team's servers on one machine, until Ctrl-C: PostgreSQL, S3, MLflow with accounts, Prefect.

mlflow/team.yaml lists the programs and their settings. This module fills in addresses and passwords, creates databases
and accounts on the first start, and keeps the four running. All their data is in one folder; so are the passwords, and
three files for users' shells (reader.env, engineer.env, admin.env), which only their owner may read.
"""

from __future__ import annotations

import json
import os
import secrets
import shlex
import shutil
import signal
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from tasks.project.passwords import MIN_LENGTH, write_private_file
from tasks.project.paths import ProjectPaths
from tasks.project.running_servers import is_healthy
from tasks.project.templates import template
from winnow.cli.terminal import Terminal
from winnow.errors import MissingExtra, WinnowError
from winnow.servers import postgresql
from winnow.servers.supervisor import Program, Supervisor, check_ports, is_port_taken, supervise

BUCKET = "winnow"
GENERATED_SECRETS = ("s3_key", "s3_secret", "postgresql", "mlflow_database", "prefect_database", "flask")
ACCOUNT_SECRETS = ("admin", "engineer", "reader", "prefect")


def serve_team(paths: ProjectPaths, folder: Path, host: str, ports: Mapping[str, int]) -> int:
    """Start the four servers, print their addresses, keep them up, and end them together.

    `ports`: of postgresql, s3, mlflow, prefect.
    """
    console = Terminal()
    postgresql.check_installed()
    _check_host(host)
    folder.mkdir(mode=0o711 if os.geteuid() == 0 else 0o700, parents=True, exist_ok=True)
    try:
        with supervise(folder / "up.mark", paths.root, folder / "logs", console) as supervised:
            check_ports(ports, {name: host for name in ports if name != "postgresql"})
            console.print(f"Starting PostgreSQL, S3, MLflow and Prefect; their data is in {folder}")
            _start(paths, folder, host, ports, supervised)
            console.print(
                f"MLflow   http://{host}:{ports['mlflow']}\nPrefect  http://{host}:{ports['prefect']}\n"
                f"S3       http://{host}:{ports['s3']}/{BUCKET}\n"
                f"A shell: . {shlex.quote(str(folder / 'engineer.env'))}   (or reader.env, admin.env)\n"
                "Ctrl-C ends what was started here."
            )
            supervised.keep_up()
    except KeyboardInterrupt:
        pass
    return 0


def _team_settings(paths: ProjectPaths) -> str:
    """Return the project's mlflow/team.yaml, or the installed one where it has none."""
    own = paths.root / "mlflow" / "team.yaml"
    return own.read_text(encoding="utf-8") if own.is_file() else template("team.yaml")


def _start(paths: ProjectPaths, folder: Path, host: str, ports: Mapping[str, int], supervised: Supervisor) -> None:
    """Start the servers in the order of their dependencies, and create what the first start needs in between."""
    plan = yaml.safe_load(_team_settings(paths))
    passwords = _secrets(folder / "secrets.json")
    cluster = postgresql.Cluster(folder / "postgresql", ports["postgresql"], passwords["postgresql"])
    values = {
        **passwords,
        **{f"{name}_port": str(port) for name, port in ports.items()},
        **{"folder": str(folder), "host": host, "bucket": BUCKET},
        "postgres": str(postgresql.binaries_folder(cluster.folder) / "postgres"),
    }
    programs = {name: _program(name, plan[name], values) for name in ("postgresql", "s3", "mlflow", "prefect")}
    programs["postgresql"].stop_signal, programs["postgresql"].account = signal.SIGINT, postgresql.server_account()
    programs["postgresql"].is_up = cluster.answers
    programs["s3"].is_up = lambda: is_port_taken(ports["s3"], host)
    programs["mlflow"].is_up = lambda: is_healthy(f"http://{host}:{ports['mlflow']}/health")
    programs["prefect"].is_up = lambda: is_healthy(f"http://{host}:{ports['prefect']}/api/ready")
    cluster.make()
    write_private_file(folder / "basic_auth.ini", _fill(plan["mlflow"]["basic_auth.ini"], values))
    (folder / "s3").mkdir(mode=0o700, exist_ok=True)
    (folder / "s3" / BUCKET).mkdir(exist_ok=True)
    supervised.add(programs["postgresql"], programs["s3"])
    cluster.make_databases({owner: passwords[f"{owner}_database"] for owner in postgresql.DATABASES.values()})
    supervised.add(programs["mlflow"], programs["prefect"])
    people = {name: _fill(plan["people"][name], values) for name in plan["people"]}
    _make_accounts(paths, f"http://{host}:{ports['mlflow']}", passwords, _password_in(folder / "admin.env"))
    for name, variables in people.items():
        lines = [f"export {key}={shlex.quote(value)}\n" for key, value in variables.items()]
        write_private_file(folder / f"{name}.env", "".join(lines))


def _check_host(host: str) -> None:
    """Raise WinnowError unless other machines can use the host as an address of this machine."""
    try:
        with socket.socket() as probe:
            probe.bind((host, 0))
            if probe.getsockname()[0] == "0.0.0.0":
                raise WinnowError(f"--host {host}: name the address that clients will use, as in --host 192.168.1.20")
    except OSError as error:
        raise WinnowError(f"--host {host}: it is not an address of this machine ({error.strerror or error})") from error


def _program(name: str, planned: Mapping[str, Any], values: Mapping[str, str]) -> Program:
    command: list[str] = _fill(planned["command"], values)
    if command[0] == "python":
        command[0] = sys.executable
    elif not (
        executable := shutil.which(command[0], path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    ):
        raise MissingExtra(command[0], "servers")
    else:
        command[0] = executable
    return Program(name, command, environment=_fill(planned["environment"], values))


def _fill(value: Any, values: Mapping[str, str]) -> Any:
    """Return the value with every {placeholder} in its texts filled in."""
    if isinstance(value, str):
        return value.format_map(values)
    if isinstance(value, list):
        return [_fill(item, values) for item in value]
    return {key: _fill(item, values) for key, item in value.items()}


def _secrets(path: Path) -> dict[str, str]:
    """Return the passwords, generated on the first start."""
    if path.is_file():
        try:
            stored = TypeAdapter(dict[str, str]).validate_json(path.read_bytes())
        except ValidationError as error:
            first = error.errors()[0]["msg"]
            raise WinnowError(
                f"{path} is damaged, no JSON object of strings ({first}); repair it: the databases use its passwords"
            ) from error
        if too_short := [
            name for name in (*GENERATED_SECRETS, *ACCOUNT_SECRETS) if len(str(stored.get(name, ""))) < MIN_LENGTH
        ]:
            raise WinnowError(f"{path}: {', '.join(too_short)}: MLflow requires at least {MIN_LENGTH} characters")
        return stored
    generated = {name: secrets.token_hex(16) for name in GENERATED_SECRETS} | {
        name: secrets.token_urlsafe(18) for name in ACCOUNT_SECRETS
    }
    write_private_file(path, json.dumps(generated, indent=2) + "\n")
    return generated


def _password_in(shell: Path) -> str:
    """Return MLflow's password in a file for a shell, as the last start wrote it; "" where there is none."""
    lines = shell.read_text(encoding="utf-8").splitlines() if shell.is_file() else []
    words = [shlex.split(line)[-1].partition("=") for line in lines]
    return next((value for key, _, value in words if key == "MLFLOW_TRACKING_PASSWORD"), "")


def _make_accounts(paths: ProjectPaths, mlflow: str, passwords: Mapping[str, str], former_password: str) -> None:
    """Create the accounts in secrets.json with their passwords. `former_password`: the administrator's last one."""
    from tasks.registry import accounts

    before = dict(os.environ)
    admin = accounts.ADMINISTRATOR
    os.environ |= {
        "MLFLOW_TRACKING_URI": mlflow,
        "MLFLOW_TRACKING_USERNAME": admin,
        "MLFLOW_TRACKING_PASSWORD": former_password or passwords[admin],
    }
    try:
        if former_password and former_password != passwords[admin]:
            accounts.ensure_account(paths, admin, passwords[admin])
            os.environ["MLFLOW_TRACKING_PASSWORD"] = passwords[admin]
        for role in accounts.ROLES:
            accounts.ensure_account(paths, role, passwords[role])
            accounts.assign_role(paths, role, role)
    finally:
        os.environ.clear()
        os.environ.update(before)
