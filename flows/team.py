"""`winnow team`: a team's servers on one machine, until Ctrl-C: PostgreSQL, S3, MLflow with accounts, Prefect.

mlflow/team.yaml says what runs with which settings; this fills in addresses and passwords, makes databases and accounts
on the first start, and keeps the four up. All they hold lies in one folder; so do the passwords, and three files for
people's shells (reader.env, engineer.env, admin.env), which only their owner may read.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from flows.supervising import HOST, Program, Supervisor, check_ports, identity, listens, supervisor
from tasks.servers import answers
from tasks.settings import Places
from winnow.errors import MissingExtra, WinnowError

BUCKET = "winnow"
MADE_UP = ("s3_key", "s3_secret", "postgresql", "mlflow_database", "prefect_database", "flask")
PEOPLE = ("admin", "engineer", "reader", "prefect")
DATABASES = {"mlflow": "mlflow", "accounts": "mlflow", "prefect": "prefect"}
"""Database -> the account that owns it."""


def serve_team(places: Places, folder: Path, host: str, ports: Mapping[str, int]) -> int:
    """Start the four, say where they are, keep them up, and end them together.

    `ports`: of postgresql, s3, mlflow, prefect.
    """
    console = Console(highlight=False, soft_wrap=True)
    _check_installed()
    _check_host(host)
    folder.mkdir(mode=0o711 if os.geteuid() == 0 else 0o700, parents=True, exist_ok=True)
    try:
        with supervisor(folder / "up.mark", places.root, folder / "logs", console) as keeps:
            check_ports(ports, {name: host for name in ports if name != "postgresql"})
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


def _start(places: Places, folder: Path, host: str, ports: Mapping[str, int], keeps: Supervisor) -> None:
    """In the order of their needs; what has to be made once is made in between."""
    plan = yaml.safe_load((places.root / "mlflow" / "team.yaml").read_text(encoding="utf-8"))
    binaries = postgresql_binaries(folder / "postgresql")
    words = {
        **_secrets(folder / "secrets.json"),
        **{f"{name}_port": str(port) for name, port in ports.items()},
        **{"folder": str(folder), "host": host, "bucket": BUCKET, "postgres": str(binaries / "postgres")},
    }
    programs = {name: _program(name, plan[name], words) for name in ("postgresql", "s3", "mlflow", "prefect")}
    programs["postgresql"].end_with, programs["postgresql"].account = signal.SIGINT, other_account()
    programs["postgresql"].is_up = lambda: _database_answers(words)
    programs["s3"].is_up = lambda: listens(ports["s3"], host)
    programs["mlflow"].is_up = lambda: answers(f"http://{host}:{ports['mlflow']}/health")
    programs["prefect"].is_up = lambda: answers(f"http://{host}:{ports['prefect']}/api/ready")
    _make_cluster(folder / "postgresql", binaries, words["postgresql"])
    _write_private(folder / "basic_auth.ini", _filled(plan["mlflow"]["basic_auth.ini"], words))
    (folder / "s3").mkdir(mode=0o700, exist_ok=True)
    (folder / "s3" / BUCKET).mkdir(exist_ok=True)
    keeps.add(programs["postgresql"], programs["s3"])
    _make_databases(words)
    keeps.add(programs["mlflow"], programs["prefect"])
    people = {name: _filled(plan["people"][name], words) for name in plan["people"]}
    _make_accounts(places, people)
    for name, variables in people.items():
        lines = [f"export {key}={shlex.quote(value)}\n" for key, value in variables.items()]
        _write_private(folder / f"{name}.env", "".join(lines))


def postgresql_binaries(cluster: Path) -> Path:
    """The folder of `postgres` and `initdb` that fit the files in `cluster`, the newest where there are none yet.

    Raises WinnowError where PostgreSQL is not installed, or not in the version that made the files.
    """
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
    made_by = cluster / "PG_VERSION"
    if made_by.is_file() and installed:
        version = made_by.read_text(encoding="ascii").strip()
        fitting = [path for path in installed if path.parts[-3] == version]
        if not fitting:
            raise WinnowError(f"{cluster} was made by PostgreSQL {version}, which is not installed (any more)")
        return fitting[0].parent
    if installed:
        return installed[-1].parent
    if found := shutil.which("postgres"):
        return Path(found).resolve().parent
    raise WinnowError("PostgreSQL is neither in /usr/lib/postgresql nor on the PATH; install it (postgresql)")


def other_account() -> pwd.struct_passwd | None:
    """PostgreSQL refuses to run as root: then it runs as `postgres`. None for everybody else."""
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam("postgres")
    except KeyError as error:
        raise WinnowError(
            "PostgreSQL does not run as root, and there is no account postgres; make one (useradd --system postgres), "
            "or run this as somebody else"
        ) from error


def _check_installed() -> None:
    try:
        import psycopg2  # noqa: F401
    except ImportError as error:
        raise MissingExtra("psycopg2-binary", "servers") from error


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
        found: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
        return found
    made = {name: secrets.token_hex(16) for name in MADE_UP} | {name: secrets.token_urlsafe(18) for name in PEOPLE}
    _write_private(path, json.dumps(made, indent=2) + "\n")
    return made


def _write_private(path: Path, text: str) -> None:
    """For its owner alone, from the first byte on; whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as opened:
        opened.write(text)
    temporary.replace(path)


def _make_cluster(folder: Path, binaries: Path, password: str) -> None:
    """PostgreSQL's files, where there are none yet."""
    if folder.exists():
        return
    account = other_account()
    unfinished = folder.with_name(".postgresql.tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(mode=0o700)
    with tempfile.NamedTemporaryFile("w", suffix=".password") as passwords:
        passwords.write(password)
        passwords.flush()
        if account:
            for path in (unfinished, Path(passwords.name)):
                os.chown(path, account.pw_uid, account.pw_gid)
        options = ["-U", "winnow", "--auth=scram-sha-256", f"--pwfile={passwords.name}", "-E", "UTF8", "--no-locale"]
        done = subprocess.run(
            [binaries / "initdb", "-D", unfinished, *options],
            env={"PATH": os.environ.get("PATH", "")},
            **identity(account),
            cwd="/",
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode != 0:
        told = "\n".join((done.stdout + done.stderr).strip().splitlines()[-4:])
        hint = f"\nAs root it runs as {account.pw_name}, who has to reach that folder: see --folder" if account else ""
        raise WinnowError(f"PostgreSQL cannot be set up in {folder}:\n{told}{hint}")
    unfinished.rename(folder)


@contextlib.contextmanager
def _connected(words: Mapping[str, str]) -> Iterator[Any]:
    """PostgreSQL's administrator."""
    import psycopg2

    connection = psycopg2.connect(
        host=HOST,
        port=words["postgresql_port"],
        user="winnow",
        password=words["postgresql"],
        dbname="postgres",
        connect_timeout=2,
    )
    connection.autocommit = True  # CREATE DATABASE takes no transaction
    try:
        with connection.cursor() as cursor:
            yield cursor
    finally:
        connection.close()


def _database_answers(words: Mapping[str, str]) -> bool:
    import psycopg2

    try:
        with _connected(words):
            return True
    except psycopg2.OperationalError as error:
        if "password authentication failed" in str(error):
            raise WinnowError(
                f"PostgreSQL in {words['folder']} was made with other passwords than those in secrets.json there; "
                "bring that file back"
            ) from error
        return False


def _make_databases(words: Mapping[str, str]) -> None:
    """One account for each server, and the databases that it owns; those that are there stay as they are."""
    from psycopg2 import sql

    with _connected(words) as cursor:
        for account in sorted(set(DATABASES.values())):
            cursor.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (account,))
            if cursor.fetchone() is None:
                text = sql.SQL("CREATE ROLE {} LOGIN PASSWORD %s").format(sql.Identifier(account))
                cursor.execute(text, (words[f"{account}_database"],))
        for database, owner in DATABASES.items():
            cursor.execute("SELECT 1 FROM pg_database WHERE datname = %s", (database,))
            if cursor.fetchone() is None:
                text = sql.SQL("CREATE DATABASE {} OWNER {}")
                cursor.execute(text.format(sql.Identifier(database), sql.Identifier(owner)))


def _make_accounts(places: Places, people: Mapping[str, Mapping[str, str]]) -> None:
    """The engineer and the reader, by the administrator."""
    from tasks import accounts

    before = dict(os.environ)
    os.environ.update(people["admin"])
    try:
        for role in accounts.ROLES:
            accounts.make(places, role, people[role]["MLFLOW_TRACKING_PASSWORD"])
            accounts.give_role(places, role, role)
    finally:
        os.environ.clear()
        os.environ.update(before)
