"""Accounts of a team's MLflow and their two roles, by the administrator's own account.

    reader      compares runs, loads models
    engineer    a reader who also logs runs, registers versions and moves aliases: what `winnow run` and `promote` need

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
from tasks.tracking import tracked_runs
from tasks.tracking.mlflow_client import answering
from winnow.errors import MissingExtra, WinnowError

ROLES = {
    "reader": {"experiment": "READ", "registered_model": "READ"},
    "engineer": {"experiment": "MANAGE", "registered_model": "MANAGE", "workspace": "USE"},
}
"""Role -> kind -> permission on all of that kind. Deleting a tag or an alias takes MANAGE, making new ones USE."""
OWN = (ADMINISTRATOR := "admin", *ROLES)
"""Accounts that `winnow team` makes, with the passwords of its secrets.json."""
WORKSPACE = "default"


def make(places: ProjectPaths, name: str) -> str:
    """See that there is an account; returns its password where it is new, "" where it keeps its own.

    The environment names the server and the administrator. Raises WinnowError where there is no such server.
    """
    with _administrator(places) as client:
        if _is_there(client, name):
            return ""
        client.create_user(name, password := secrets.token_urlsafe(18))
        return password


def reset(places: ProjectPaths, name: str) -> str:
    """A new password, which is returned. Raises WinnowError where there is no such account."""
    with _administrator(places) as client:
        if not _is_there(client, name):
            raise _missing(places, name)
        _set_password(client, name, password := secrets.token_urlsafe(18))
        return password


def keep(places: ProjectPaths, name: str, password: str) -> None:
    """See that there is an account with this very password."""
    with _administrator(places) as client:
        if _is_there(client, name):
            _set_password(client, name, password)
        else:
            client.create_user(name, password)


def check_name(name: str) -> None:
    """Raise WinnowError for an account that the team's servers make themselves at each start."""
    if name in OWN:
        raise WinnowError(
            f"{name} is the team's own account: its password stands in secrets.json of the team's folder; "
            "to change it, edit that file and start `make team` again"
        )


def check_role(role: str) -> None:
    """Raise WinnowError for a role that there is not."""
    if role not in ROLES:
        raise WinnowError(f"--role {role}: it is one of {', '.join(ROLES)}")


def give_role(places: ProjectPaths, name: str, role: str) -> None:
    """See that an account has this role and not the other; raises WinnowError for a role that there is not."""
    check_role(role)
    with _administrator(places) as client:
        roles = {found.name: found.id for found in client.list_roles(WORKSPACE)}
        for wanted, permissions in ROLES.items():
            if wanted not in roles:
                roles[wanted] = client.create_role(WORKSPACE, wanted, "made by winnow").id
            granted = {found.resource_type for found in client.list_role_permissions(roles[wanted])}
            for resource, permission in permissions.items():
                if resource not in granted:  # an earlier start may have been cut off
                    client.add_role_permission(roles[wanted], resource, "*", permission)
        has = {found.name for found in client.list_user_roles(name)}
        if role not in has:
            client.assign_role(name, roles[role])
        for former in has & (ROLES.keys() - {role}):
            client.unassign_role(name, roles[former])


def remove(places: ProjectPaths, name: str) -> None:
    """End an account; its runs and versions stay. Raises WinnowError where there is none."""
    with _administrator(places) as client:
        if not _is_there(client, name):
            raise _missing(places, name)
        client.delete_user(name)


@contextlib.contextmanager
def _administrator(places: ProjectPaths) -> Iterator[Any]:
    where = tracked_runs.address(places)
    if not where.startswith("http"):
        raise WinnowError("accounts are a server's: set MLFLOW_TRACKING_URI, and the administrator's name and password")
    with answering(places, takes="the administrator's account", kept=""):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a library of MLflow's, about its own future
                from mlflow.server.auth.client import AuthServiceClient
        except ImportError as error:
            raise MissingExtra("mlflow[auth]", "servers") from error
        yield AuthServiceClient(where)


def _missing(places: ProjectPaths, name: str) -> WinnowError:
    return WinnowError(f"there is no account {name} at {tracked_runs.without_password(tracked_runs.address(places))}")


def _set_password(client: Any, name: str, password: str) -> None:
    """Whoever changes his own has to know the one before."""
    own = name == os.environ.get("MLFLOW_TRACKING_USERNAME")
    client.update_user_password(name, password, os.environ.get("MLFLOW_TRACKING_PASSWORD") if own else None)


def _is_there(client: Any, name: str) -> bool:
    from mlflow.exceptions import MlflowException

    try:
        client.get_user(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return False
    return True
