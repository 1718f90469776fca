from __future__ import annotations

import socket
from configparser import ConfigParser
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from tasks.project import running_servers
from tasks.project.paths import ProjectPaths
from tasks.project.running_servers import check_prefect
from winnow.errors import WinnowError
from winnow.servers.local import ACCOUNTS, _team_prefect_api, _write_mlflow_accounts, plan_servers, serve

PORTS, PASSWORD = {"mlflow": 5000, "prefect": 4200}, "a long password"


def test_the_mlflow_of_a_team_is_named_without_password_and_not_started() -> None:
    programs, pages = plan_servers(
        ProjectPaths(Path("/project")), "https://ann:secret@mlflow.example.org", "", PORTS, PASSWORD
    )
    assert [program.name for program in programs] == ["prefect"]
    assert pages == {"mlflow": "https://mlflow.example.org", "prefect": "http://127.0.0.1:4200"}


def test_the_prefect_of_a_team_is_named_and_not_started() -> None:
    paths = ProjectPaths(Path("/project"))
    programs, pages = plan_servers(paths, paths.mlflow_store, "http://prefect.example.org/api", PORTS, PASSWORD)
    assert [program.name for program in programs] == ["mlflow"]
    assert pages["prefect"] == "http://prefect.example.org"


def test_an_address_of_another_form_is_kept() -> None:
    paths, cloud = ProjectPaths(Path("/project")), "https://prefect.example.org/api/accounts/1/workspaces/2"
    assert plan_servers(paths, paths.mlflow_store, cloud, PORTS, PASSWORD)[1]["prefect"] == cloud


def test_the_store_of_the_project_gets_a_server() -> None:
    paths = ProjectPaths(Path("/project"))
    programs, pages = plan_servers(paths, paths.mlflow_store, "", PORTS, PASSWORD)
    assert {program.name for program in programs} == set(pages) == {"mlflow", "prefect"}
    assert pages["mlflow"] == "http://127.0.0.1:5000"
    for program in programs:
        assert not any(
            PASSWORD in argument for argument in program.command
        )  # all accounts of the machine can read commands
    environments = {program.name: program.environment for program in programs}
    assert environments["mlflow"]["MLFLOW_BACKEND_STORE_URI"] == paths.mlflow_store
    assert environments["mlflow"]["MLFLOW_AUTH_ADMIN_PASSWORD"] == PASSWORD
    assert environments["prefect"]["PREFECT_SERVER_API_AUTH_STRING"] == f"winnow:{PASSWORD}"


def test_the_password_of_a_database_is_in_no_command(tmp_path: Path) -> None:
    store = "postgresql://mlflow:secret@db/mlflow"
    programs, _ = plan_servers(ProjectPaths(tmp_path), store, "", PORTS, PASSWORD)
    assert not any("secret" in argument for program in programs for argument in program.command)
    assert [program.environment.get("MLFLOW_BACKEND_STORE_URI") for program in programs] == [store, None]


def test_a_folder_with_a_percent_sign_is_read_by_mlflow(tmp_path: Path) -> None:
    paths = ProjectPaths(tmp_path / "100%")
    (paths.state_dir / "mlflow").mkdir(parents=True)
    _write_mlflow_accounts(paths)
    settings = ConfigParser()  # as mlflow.server.auth.config reads it
    settings.read(paths.state_dir / "mlflow" / ACCOUNTS)
    assert settings["mlflow"]["database_uri"] == f"sqlite:///{paths.state_dir / 'mlflow' / 'accounts.db'}"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_the_address_of_the_own_server_is_no_team(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, host: str) -> None:
    port = free_port()
    monkeypatch.setenv("PREFECT_API_URL", f"http://{host}:{port}/api")
    assert _team_prefect_api(ProjectPaths(tmp_path), port) == ""  # no server answers: it has to be started
    assert _team_prefect_api(ProjectPaths(tmp_path), port + 1) == f"http://{host}:{port}/api"


def test_a_running_server_is_a_team_unless_this_project_started_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    paths = ProjectPaths(tmp_path)
    with HTTPServer(("127.0.0.1", 0), UnauthorizedServer) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/api"
        monkeypatch.setenv("PREFECT_API_URL", address)
        assert _team_prefect_api(paths, server.server_port) == address
        paths.state_dir.mkdir()
        running_servers.announce(paths, "", address)
        assert _team_prefect_api(paths, server.server_port) == ""
        server.shutdown()


class UnauthorizedServer(BaseHTTPRequestHandler):
    """A server that requires a password."""

    def do_GET(self) -> None:
        self.send_error(401)

    def log_message(self, format: str, *args: object) -> None:
        pass


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_missing_prefect_is_an_error_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://ann:secret@127.0.0.1:1/api")
    with pytest.raises(WinnowError, match=r"no server responds at http://127\.0\.0\.1:1/api: start it"):
        check_prefect()


@pytest.mark.parametrize(
    ("mlflow", "prefect", "message"),
    [
        (99999, 4200, "--mlflow-port 99999: a port is a number"),
        (0, 4200, "from 1 to 65535"),
        (65001, 65001, "two servers cannot have one port"),
    ],
)
def test_invalid_ports_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mlflow: int, prefect: int, message: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///x.db")
    for name in ("PREFECT_API_URL", "PREFECT_SERVER_UI_API_URL"):
        monkeypatch.setenv(name, "")
    with pytest.raises(WinnowError, match=message):
        serve(ProjectPaths(tmp_path), mlflow, prefect)
