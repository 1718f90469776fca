"""Keep the project's own MLflow store usable after its folder was moved or copied.

MLflow stores the absolute address of every artifact folder. Files of a moved project would not be found, and a copied
one would read and write those of the original.
"""

from __future__ import annotations

import contextlib
import re
import sqlite3
from pathlib import Path

from tasks.project.paths import ProjectPaths
from tasks.tracking.tracking_store import SQLITE

ADDRESS_COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "storage_location"),
)
"""(table, column) of MLflow's database that hold addresses of artifacts."""
OWN_FOLDER = re.compile(r"(.*/\.winnow/mlflow/artifacts)(?:/|$)")


def relocate(paths: ProjectPaths) -> bool:
    """Let the store's addresses name the project's present folder; return whether any named another one.

    A database that cannot be read stays as it is: MLflow says what is wrong.
    """
    file = Path(paths.mlflow_store.removeprefix(SQLITE))
    if not file.is_file():
        return False
    with contextlib.suppress(sqlite3.DatabaseError), contextlib.closing(sqlite3.connect(file, timeout=30)) as database:
        former = _former_folders(database, paths)
        with database:
            for folder, present in former.items():
                for table, column in _columns(database):
                    database.execute(
                        f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?",
                        (present, len(folder) + 1, len(folder), folder),
                    )
        return bool(former)
    return False


def _former_folders(database: sqlite3.Connection, paths: ProjectPaths) -> dict[str, str]:
    """Return former address of the folder of artifacts -> present one, each as a URI or as a path."""
    uri, path = paths.mlflow_artifacts.as_uri(), str(paths.mlflow_artifacts)
    former = {}
    for table, column in _columns(database):
        for (address,) in database.execute(f"SELECT DISTINCT {column} FROM {table}"):
            if (match := OWN_FOLDER.match(address or "")) and match[1] not in (uri, path):
                former[match[1]] = uri if match[1].startswith("file:") else path
    return former


def _columns(database: sqlite3.Connection) -> list[tuple[str, str]]:
    """Return those of ADDRESS_COLUMNS that this version of MLflow has."""
    return [
        (table, column)
        for table, column in ADDRESS_COLUMNS
        if column in {row[1] for row in database.execute(f"PRAGMA table_info({table})")}
    ]
