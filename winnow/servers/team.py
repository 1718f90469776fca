"""`winnow team`: a team's servers on one machine, until Ctrl-C: PostgreSQL, S3, MLflow with accounts, Prefect.

mlflow/team.yaml says what runs with which settings; this fills in addresses and passwords, makes databases and accounts
on the first start, and keeps the four up. All they hold lies in one folder; so do the passwords, and three files for
people's shells (reader.env, engineer.env, admin.env), which only their owner may read.
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

from tasks.project.announced_servers import answers
from tasks.project.passwords import SHORTEST, write_private
from tasks.project.paths import ProjectPaths
from winnow.cli.terminal import Terminal
from winnow.errors import MissingExtra, WinnowError
from winnow.servers import postgresql
from winnow.servers.supervisor import Program, Supervisor, check_ports, listens, supervisor

BUCKET = "winnow"
MADE_UP = ("s3_key", "s3_secret", "postgresql", "mlflow_database", "prefect_database", "flask")
PEOPLE = ("admin", "engineer", "reader", "prefect")


def serve_team(places: ProjectPaths, folder: Path, host: str, ports: Mapping[str, int]) -> int:
    """Start the four, say where they are, keep them up, and end them together.

    `ports`: of postgresql, s3, mlflow, prefect.
    """
    console = Terminal()
    postgresql.check_installed()
    _check_host(host)
    folder.mkdir(mode=0o711 if os.geteuid() == 0 else 0o700, parents=True, exist_ok=True)
    try:
        with supervisor(folder / "up.mark", places.root, folder / "logs", console) as keeps:
            check_ports(ports, {name: host for name in ports if name != "postgresql"})
            console.print(f"Starting PostgreSQL, S3, MLflow and Prefect; what they hold lies in {folder}")
            _start(places, folder, host, ports, keeps)
            console.print(
                f"MLflow   http://{host}:{ports['mlflow']}\nPrefect  http://{host}:{ports['prefect']}\n"
                f"S3       http://{host}:{ports['s3']}/{BUCKET}\n"
                f"A shell: . {shlex.quote(str(folder / 'engineer.env'))}   (or reader.env, admin.env)\n"
                "Ctrl-C ends what was started here."
            )
            keeps.keep_up()
    except KeyboardInterrupt:
        pass
    return 0


def _start(places: ProjectPaths, folder: Path, host: str, ports: Mapping[str, int], keeps: Supervisor) -> None:
    """In the order of their needs; what has to be made once is made in between."""
    plan = yaml.safe_load((places.root / "mlflow" / "team.yaml").read_text(encoding="utf-8"))
    kept = _secrets(folder / "secrets.json")
    cluster = postgresql.Cluster(folder / "postgresql", ports["postgresql"], kept["postgresql"])
    words = {
        **kept,
        **{f"{name}_port": str(port) for name, port in ports.items()},
        **{"folder": str(folder), "host": host, "bucket": BUCKET},
        "postgres": str(postgresql.binaries(cluster.folder) / "postgres"),
    }
    programs = {name: _program(name, plan[name], words) for name in ("postgresql", "s3", "mlflow", "prefect")}
    programs["postgresql"].end_with, programs["postgresql"].account = signal.SIGINT, postgresql.account_to_run_as()
    programs["postgresql"].is_up = cluster.answers
    programs["s3"].is_up = lambda: listens(ports["s3"], host)
    programs["mlflow"].is_up = lambda: answers(f"http://{host}:{ports['mlflow']}/health")
    programs["prefect"].is_up = lambda: answers(f"http://{host}:{ports['prefect']}/api/ready")
    cluster.make()
    write_private(folder / "basic_auth.ini", _filled(plan["mlflow"]["basic_auth.ini"], words))
    (folder / "s3").mkdir(mode=0o700, exist_ok=True)
    (folder / "s3" / BUCKET).mkdir(exist_ok=True)
    keeps.add(programs["postgresql"], programs["s3"])
    cluster.make_databases({owner: kept[f"{owner}_database"] for owner in postgresql.DATABASES.values()})
    keeps.add(programs["mlflow"], programs["prefect"])
    people = {name: _filled(plan["people"][name], words) for name in plan["people"]}
    _make_accounts(places, f"http://{host}:{ports['mlflow']}", kept, _password_in(folder / "admin.env"))
    for name, variables in people.items():
        lines = [f"export {key}={shlex.quote(value)}\n" for key, value in variables.items()]
        write_private(folder / f"{name}.env", "".join(lines))


def _check_host(host: str) -> None:
    """An address of this machine that others can use as it is."""
    try:
        with socket.socket() as probe:
            probe.bind((host, 0))
            if probe.getsockname()[0] == "0.0.0.0":
                raise WinnowError(f"--host {host}: name the address that people are to use, as in --host 192.168.1.20")
    except OSError as error:
        raise WinnowError(f"--host {host}: it is no address of this machine ({error.strerror or error})") from error


def _program(name: str, planned: Mapping[str, Any], words: Mapping[str, str]) -> Program:
    command: list[str] = _filled(planned["command"], words)
    if command[0] == "python":
        command[0] = sys.executable
    elif not (found := shutil.which(command[0], path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")):
        raise MissingExtra(command[0], "servers")
    else:
        command[0] = found
    return Program(name, command, environment=_filled(planned["environment"], words))


def _filled(value: Any, words: Mapping[str, str]) -> Any:
    """The value with every {word} in its texts filled in."""
    if isinstance(value, str):
        return value.format_map(words)
    if isinstance(value, list):
        return [_filled(item, words) for item in value]
    return {key: _filled(item, words) for key, item in value.items()}


def _secrets(path: Path) -> dict[str, str]:
    """The passwords, made up on the first start."""
    if path.is_file():
        try:
            found = TypeAdapter(dict[str, str]).validate_json(path.read_bytes())
        except ValidationError as error:
            first = error.errors()[0]["msg"]
            raise WinnowError(
                f"{path} is no JSON object of texts any more ({first}); mend it: the databases know its passwords"
            ) from error
        if wrong := [name for name in (*MADE_UP, *PEOPLE) if len(str(found.get(name, ""))) < SHORTEST]:
            raise WinnowError(f"{path}: {', '.join(wrong)}: MLflow takes no less than {SHORTEST} characters")
        return found
    made = {name: secrets.token_hex(16) for name in MADE_UP} | {name: secrets.token_urlsafe(18) for name in PEOPLE}
    write_private(path, json.dumps(made, indent=2) + "\n")
    return made


def _password_in(shell: Path) -> str:
    """MLflow's password in a file for a shell, as the last start left it; "" where there is none."""
    lines = shell.read_text(encoding="utf-8").splitlines() if shell.is_file() else []
    words = [shlex.split(line)[-1].partition("=") for line in lines]
    return next((value for key, _, value in words if key == "MLFLOW_TRACKING_PASSWORD"), "")


def _make_accounts(places: ProjectPaths, mlflow: str, passwords: Mapping[str, str], former: str) -> None:
    """The three that secrets.json names, with the passwords that it names. `former`: the administrator's last one."""
    from tasks.registry import accounts

    before = dict(os.environ)
    admin = accounts.ADMINISTRATOR
    os.environ |= {
        "MLFLOW_TRACKING_URI": mlflow,
        "MLFLOW_TRACKING_USERNAME": admin,
        "MLFLOW_TRACKING_PASSWORD": former or passwords[admin],
    }
    try:
        if former and former != passwords[admin]:
            accounts.keep(places, admin, passwords[admin])
            os.environ["MLFLOW_TRACKING_PASSWORD"] = passwords[admin]
        for role in accounts.ROLES:
            accounts.keep(places, role, passwords[role])
            accounts.give_role(places, role, role)
    finally:
        os.environ.clear()
        os.environ.update(before)
