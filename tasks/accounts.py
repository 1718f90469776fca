"""Accounts of a team's MLflow and their two roles, by the administrator's own account.

    reader      compares runs, loads models
    engineer    a reader who also logs runs, registers versions and moves aliases: what `winnow run` and `promote` need

MLflow lets every account make experiments and models of its own; nobody but an engineer touches those of others.
"""

from __future__ import annotations

import secrets
import warnings
from typing import Any

from tasks import tracked
from tasks.settings import Places
from tasks.tracking import answering
from winnow.errors import MissingExtra, WinnowError

ROLES = {"reader": "READ", "engineer": "MANAGE"}
"""Role -> permission on every experiment and registered model. Deleting a tag or an alias takes MANAGE."""
RESOURCES = ("experiment", "registered_model")
WORKSPACE = "default"


def ensure_account(places: Places, name: str, role: str, password: str = "") -> str:
    """See that an account has this role and not the other; returns a new one's password, "" for one that was there.

    The environment names the server and the administrator. Raises WinnowError where there is no such server or role.
    """
    if role not in ROLES:
        raise WinnowError(f"--role {role}: it is one of {', '.join(ROLES)}")
    where = tracked.address(places)
    if not where.startswith("http"):
        raise WinnowError("accounts are a server's: set MLFLOW_TRACKING_URI, and the administrator's name and password")
    with answering(places):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a library of MLflow's, about its own future
                from mlflow.server.auth.client import AuthServiceClient
        except ImportError as error:
            raise MissingExtra("mlflow[auth]", "servers") from error
        client = AuthServiceClient(where)
        roles = {found.name: found.id for found in client.list_roles(WORKSPACE)}
        for wanted, permission in ROLES.items():
            if wanted not in roles:
                roles[wanted] = _make_role(client, wanted, permission)
        password = _make_user(client, name, password)
        has = {found.name for found in client.list_user_roles(name)}
        if role not in has:
            client.assign_role(name, roles[role])
        for former in has & (ROLES.keys() - {role}):
            client.unassign_role(name, roles[former])
    return password


def _make_role(client: Any, name: str, permission: str) -> int:
    made: int = client.create_role(WORKSPACE, name, "made by winnow").id
    for resource in RESOURCES:
        client.add_role_permission(made, resource, "*", permission)
    return made


def _make_user(client: Any, name: str, password: str) -> str:
    """The account's password; "" for one that was there already and keeps its own."""
    from mlflow.exceptions import MlflowException

    try:
        client.get_user(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        password = password or secrets.token_urlsafe(18)
        client.create_user(name, password)
        return password
    return ""
