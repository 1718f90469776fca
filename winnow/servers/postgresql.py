"""PostgreSQL for a team's servers: which installation to use, its files, and the databases of the other servers."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from winnow.errors import MissingExtra, WinnowError
from winnow.servers.supervisor import HOST, account_arguments

DATABASES = {"mlflow": "mlflow", "accounts": "mlflow", "prefect": "prefect"}
"""Database -> the account that owns it."""


@dataclass(frozen=True)
class Cluster:
    """PostgreSQL's files in a folder, and its server on a port of this machine."""

    folder: Path
    port: int
    password: str
    """The password of its administrator, `winnow`."""

    def make(self) -> None:
        """Create its files, where there are none yet; all of them or none."""
        if self.folder.exists():
            return
        account = server_account()
        unfinished = self.folder.with_name(f".{self.folder.name}.tmp")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(mode=0o700)
        with tempfile.NamedTemporaryFile("w", suffix=".password") as passwords:
            passwords.write(self.password)
            passwords.flush()
            if account:
                for path in (unfinished, Path(passwords.name)):
                    os.chown(path, account.pw_uid, account.pw_gid)
            options = ["-U", "winnow", "--auth=scram-sha-256", f"--pwfile={passwords.name}", "-EUTF8", "--no-locale"]
            result = subprocess.run(
                [binaries_folder(self.folder) / "initdb", "-D", unfinished, *options],
                env={"PATH": os.environ.get("PATH", "")},
                **account_arguments(account),
                cwd="/",
                capture_output=True,
                text=True,
                check=False,
            )
        if result.returncode != 0:
            output = "\n".join((result.stdout + result.stderr).strip().splitlines()[-4:])
            hint = (
                f"\nAs root it runs as {account.pw_name}, which needs access to that folder: --folder"
                if account
                else ""
            )
            raise WinnowError(f"PostgreSQL cannot be set up in {self.folder}:\n{output}{hint}")
        unfinished.rename(self.folder)

    def answers(self) -> bool:
        """Return whether the administrator can log in.

        Raises WinnowError where that cannot succeed: the files were made with another password.
        """
        import psycopg2

        try:
            with self._connected():
                return True
        except psycopg2.OperationalError as error:
            if "password authentication failed" in str(error):
                raise WinnowError(
                    f"PostgreSQL in {self.folder} was made with other passwords than those in secrets.json beside it; "
                    "restore that file"
                ) from error
            return False

    def make_databases(self, passwords: Mapping[str, str]) -> None:
        """Create one account for each server (account -> password), and its databases; existing ones stay unchanged."""
        from psycopg2 import sql

        with self._connected() as cursor:
            for account in sorted(set(DATABASES.values())):
                cursor.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (account,))
                if cursor.fetchone() is None:
                    text = sql.SQL("CREATE ROLE {} LOGIN PASSWORD %s").format(sql.Identifier(account))
                    cursor.execute(text, (passwords[account],))
            for database, owner in DATABASES.items():
                cursor.execute("SELECT 1 FROM pg_database WHERE datname = %s", (database,))
                if cursor.fetchone() is None:
                    text = sql.SQL("CREATE DATABASE {} OWNER {}")
                    cursor.execute(text.format(sql.Identifier(database), sql.Identifier(owner)))

    @contextlib.contextmanager
    def _connected(self) -> Iterator[Any]:
        """Yield a cursor of the administrator."""
        import psycopg2

        connection = psycopg2.connect(
            host=HOST, port=self.port, user="winnow", password=self.password, dbname="postgres", connect_timeout=2
        )
        connection.autocommit = True  # CREATE DATABASE takes no transaction
        try:
            with connection.cursor() as cursor:
                yield cursor
        finally:
            connection.close()


def binaries_folder(cluster: Path) -> Path:
    """Return the folder of `postgres` and `initdb` that fit the files in `cluster`; the newest where there are none
    yet.

    Raises WinnowError where PostgreSQL is not installed, or not in the version that made the files.
    """
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
    version_file = cluster / "PG_VERSION"
    if version_file.is_file() and installed:
        version = version_file.read_text(encoding="ascii").strip()
        matching = [path for path in installed if path.parts[-3] == version]
        if not matching:
            raise WinnowError(f"{cluster} was made by PostgreSQL {version}, which is not installed")
        return matching[0].parent
    if installed:
        return installed[-1].parent
    if on_path := shutil.which("postgres"):
        return Path(on_path).resolve().parent
    raise WinnowError("PostgreSQL is neither in /usr/lib/postgresql nor on the PATH; install it (postgresql)")


def server_account() -> pwd.struct_passwd | None:
    """Return the account `postgres` for root, as which PostgreSQL refuses to run; None for other users."""
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam("postgres")
    except KeyError as error:
        raise WinnowError(
            "PostgreSQL does not run as root, and there is no account postgres; create it (useradd --system postgres), "
            "or run this as another user"
        ) from error


def check_installed() -> None:
    """Raise MissingExtra where psycopg2 is not installed."""
    try:
        import psycopg2  # noqa: F401
    except ImportError as error:
        raise MissingExtra("psycopg2-binary", "servers") from error
