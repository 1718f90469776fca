"""The commands that start servers and manage their accounts: ui, up, team, account."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from tasks.project.paths import ProjectPaths
from winnow.cli.command_setup import NonEmptyPath, load_project_config, project_command

TEAM_PORTS = {"postgresql": 5433, "s3": 9000, "mlflow": 5000, "prefect": 4200}
LOCAL_PORTS = {"mlflow": 5000, "prefect": 4200}


def _port_options(ports: dict[str, int]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add an option for the port of each server."""

    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        for name, port in reversed(ports.items()):
            function = click.option(f"--{name}-port", type=int, default=port, show_default=True)(function)
        return function

    return add


@click.command(epilog="Example: winnow ui --mlflow-port 5001")
@_port_options(LOCAL_PORTS)
@project_command
def ui(paths: ProjectPaths, mlflow_port: int, prefect_port: int) -> int:
    """Show MLflow and Prefect in the browser, until Ctrl-C."""
    from winnow.servers.local import serve

    return serve(paths, mlflow_port, prefect_port)


@click.command(epilog="Example: winnow up")
@_port_options(LOCAL_PORTS)
@project_command
def up(paths: ProjectPaths, mlflow_port: int, prefect_port: int) -> int:
    """Start MLflow, Prefect and a worker for scheduled runs.

    The worker runs what prefect.yaml schedules, until Ctrl-C.
    """
    from winnow.servers.local import serve

    load_project_config(paths)
    return serve(paths, mlflow_port, prefect_port, with_worker=True)


@click.command(epilog="Example: winnow team --host 10.0.0.5 --folder /srv/winnow")
@click.option(
    "--folder", type=NonEmptyPath(path_type=Path), default=None, help="The folder of their data; default: .winnow/team."
)
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@_port_options(TEAM_PORTS)
@project_command
def team(paths: ProjectPaths, /, folder: Path | None, host: str, **ports: int) -> int:
    """Start a team's servers on this machine.

    PostgreSQL, S3, MLflow with accounts, and Prefect with a password, until Ctrl-C.
    """
    from winnow.servers.team import serve_team

    return serve_team(
        paths,
        (folder or paths.state_dir / "team").absolute(),
        host,
        {name: ports[f"{name}_port"] for name in TEAM_PORTS},
    )


@click.command(epilog="Example: winnow account ann --role engineer")
@click.argument("name")
@click.option("--role", default="", help="reader or engineer; a new account gets a password, which is printed once.")
@click.option("--reset", is_flag=True, help="Set a new password, which is printed once.")
@click.option("--remove", is_flag=True, help="Remove the account; what it logged stays.")
@project_command
def account(paths: ProjectPaths, name: str, role: str, reset: bool, remove: bool) -> int:
    """Create, change or remove an account of the team's MLflow.

    The administrator's name and password are MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD.
    """
    if [bool(role), reset, remove].count(True) != 1:
        raise click.UsageError("exactly one of --role, --reset and --remove is required")
    from winnow.cli.promotion import manage_account

    return manage_account(paths, name, role, reset, remove)


SERVER_COMMANDS = (ui, up, team, account)
