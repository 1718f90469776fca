"""Accounts of a team's MLflow server and their two roles, managed with the administrator's account.

    reader      compares runs, loads models
    engineer    also logs runs, registers versions and moves aliases, as `winnow run` and `winnow promote` do

An account without a role sees nothing.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import warnings
from collections.abc import Iterator
from typing import Any

from tasks.project.paths import ProjectPaths
from tasks.tracking import tracking_store
from tasks.tracking.mlflow_client import session
from winnow.errors import MissingExtra, WinnowError

ROLES = {
    "reader": {"experiment": "READ", "registered_model": "READ"},
    "engineer": {"experiment": "MANAGE", "registered_model": "MANAGE", "workspace": "USE"},
}
"""Role -> resource type -> permission on all resources of that type.

Deleting a tag or an alias requires MANAGE; creating experiments and models requires USE of the workspace.
"""
TEAM_ACCOUNTS = (ADMINISTRATOR := "admin", *ROLES)
"""Accounts that `winnow team` creates, with the passwords of its secrets.json."""
WORKSPACE = "default"


def create_account(paths: ProjectPaths, name: str) -> str:
    """Create an account, unless it exists; return the password of a new account, else "".

    Environment variables name the server and the administrator. Raises WinnowError without a server.
    """
    with _administrator(paths) as client:
        if _exists(client, name):
            return ""
        client.create_user(name, password := secrets.token_urlsafe(18))
        return password


def reset_password(paths: ProjectPaths, name: str) -> str:
    """Set a random password and return it. Raises WinnowError where the account does not exist."""
    with _administrator(paths) as client:
        if not _exists(client, name):
            raise _missing(paths, name)
        _set_password(client, name, password := secrets.token_urlsafe(18))
        return password


def ensure_account(paths: ProjectPaths, name: str, password: str) -> None:
    """Create an account with this password, or set the password of an existing one."""
    with _administrator(paths) as client:
        if _exists(client, name):
            _set_password(client, name, password)
        else:
            client.create_user(name, password)


def check_name(name: str) -> None:
    """Raise WinnowError for an account that the team's servers create at each start."""
    if name in TEAM_ACCOUNTS:
        raise WinnowError(
            f"{name} is an account of the team's servers: its password is in secrets.json of the team's folder; "
            "to change it, edit that file and restart `make team`"
        )


def check_role(role: str) -> None:
    """Raise WinnowError for an unknown role."""
    if role not in ROLES:
        raise WinnowError(f"--role {role}: choose one of {', '.join(ROLES)}")


def assign_role(paths: ProjectPaths, name: str, role: str) -> None:
    """Assign a role to an account and remove its other role. Raises WinnowError for an unknown role."""
    check_role(role)
    with _administrator(paths) as client:
        role_ids = {existing.name: existing.id for existing in client.list_roles(WORKSPACE)}
        for role_name, permissions in ROLES.items():
            if role_name not in role_ids:
                role_ids[role_name] = client.create_role(WORKSPACE, role_name, "made by winnow").id
            granted = {entry.resource_type for entry in client.list_role_permissions(role_ids[role_name])}
            for resource, permission in permissions.items():
                if resource not in granted:  # an earlier start may have been interrupted
                    client.add_role_permission(role_ids[role_name], resource, "*", permission)
        assigned = {existing.name for existing in client.list_user_roles(name)}
        if role not in assigned:
            client.assign_role(name, role_ids[role])
        for other_role in assigned & (ROLES.keys() - {role}):
            client.unassign_role(name, role_ids[other_role])


def delete_account(paths: ProjectPaths, name: str) -> None:
    """Delete an account; its runs and versions stay. Raises WinnowError where it does not exist."""
    with _administrator(paths) as client:
        if not _exists(client, name):
            raise _missing(paths, name)
        client.delete_user(name)


@contextlib.contextmanager
def _administrator(paths: ProjectPaths) -> Iterator[Any]:
    address = tracking_store.tracking_address(paths)
    if not address.startswith("http"):
        raise WinnowError(
            "accounts need an MLflow server: set MLFLOW_TRACKING_URI, and the administrator's name and password"
        )
    with session(paths, takes="the administrator's account", hint=""):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a deprecation warning inside MLflow
                from mlflow.server.auth.client import AuthServiceClient
        except ImportError as error:
            raise MissingExtra("mlflow[auth]", "servers") from error
        yield AuthServiceClient(address)


def _missing(paths: ProjectPaths, name: str) -> WinnowError:
    return WinnowError(
        f"there is no account {name} at {tracking_store.redact_password(tracking_store.tracking_address(paths))}"
    )


def _set_password(client: Any, name: str, password: str) -> None:
    """Set a password. To change their own, users have to send the old one as well."""
    is_own = name == os.environ.get("MLFLOW_TRACKING_USERNAME")
    client.update_user_password(name, password, os.environ.get("MLFLOW_TRACKING_PASSWORD") if is_own else None)


def _exists(client: Any, name: str) -> bool:
    from mlflow.exceptions import MlflowException

    try:
        client.get_user(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return False
    return True
