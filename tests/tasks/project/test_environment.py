from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tasks.project.environment import ROOT_VARIABLE, apply, default_variables, process_environment
from tasks.project.paths import ProjectPaths
from tests.closure import ROOT


@pytest.fixture
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Remove all variables that the user or winnow may have set."""
    for name in default_variables(Path("/any")):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_defaults_keep_libraries_inside_the_project(tmp_path: Path) -> None:
    values = default_variables(tmp_path)
    assert all(isinstance(value, str) and value for value in values.values())
    paths = {
        name: value.removeprefix("sqlite:///")
        for name, value in values.items()
        if "/" in value and name != ROOT_VARIABLE
    }
    assert len(paths) >= 8
    assert all(Path(value).is_relative_to(tmp_path / ".winnow") for value in paths.values())


@pytest.mark.parametrize("name", ["it's", "my photos", "größe", 'a"b', "a\\b"])
def test_compiler_caches_avoid_paths_that_compilers_cannot_read(
    clean_environment: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    clean_environment.setenv("HOME", str(tmp_path / "home"))
    cache = Path(default_variables(tmp_path / name)["TORCHINDUCTOR_CACHE_DIR"])
    assert cache.is_relative_to(tmp_path / "home" / ".cache" / "winnow")
    assert cache != Path(default_variables(tmp_path / (name + "2"))["TORCHINDUCTOR_CACHE_DIR"])
    clean_environment.setenv("HOME", str(tmp_path / name))
    shared = Path(tempfile.gettempdir()) / f"winnow-{os.getuid()}"
    assert Path(default_variables(tmp_path / name)["TORCHINDUCTOR_CACHE_DIR"]).is_relative_to(shared)
    assert shared.stat().st_mode & 0o777 == 0o700


def test_an_account_without_a_home_uses_the_shared_cache(clean_environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    clean_environment.setenv("HOME", "~")  # the value for an account without a passwd entry
    shared = Path(tempfile.gettempdir()) / f"winnow-{os.getuid()}"
    assert Path(default_variables(tmp_path / "it's")["TORCHINDUCTOR_CACHE_DIR"]).is_relative_to(shared)


def test_a_shared_folder_of_somebody_else_is_not_used(clean_environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    clean_environment.setenv("HOME", str(tmp_path / "it's"))
    clean_environment.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / f"winnow-{os.getuid()}").symlink_to(tmp_path)
    fallback_folder = tmp_path / "it's" / ".winnow" / "cache" / "inductor"
    assert default_variables(tmp_path / "it's")["TORCHINDUCTOR_CACHE_DIR"] == str(fallback_folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["it's", "my größe"])
def test_pytorch_compiles_in_any_folder(clean_environment: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    code = "import torch; print(torch.compile(lambda x: torch.relu(x * 2).sum())(torch.ones(64)).item())"
    (tmp_path / name).mkdir()
    clean_environment.setenv("HOME", str(tmp_path / "home"))
    command = [sys.executable, "-c", code]
    result = subprocess.run(
        command,
        env=process_environment(tmp_path / name),
        cwd=tmp_path / name,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stdout.strip() == "128.0", result.stderr[-500:]


def test_variables_set_by_the_user_are_kept(clean_environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    clean_environment.setenv("MLFLOW_TRACKING_URI", "https://team.example")
    clean_environment.setenv("CI", "")
    variables = process_environment(tmp_path)
    assert (variables["MLFLOW_TRACKING_URI"], variables["CI"]) == ("https://team.example", "")
    assert variables["PREFECT_HOME"] == str(tmp_path / ".winnow" / "prefect")
    assert variables["PATH"] == os.environ["PATH"]


def test_another_project_replaces_what_winnow_set_and_nothing_else(
    clean_environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    clean_environment.setenv("PREFECT_HOME", "/mine")
    for name, value in process_environment(first).items():
        clean_environment.setenv(name, value)
    clean_environment.setenv("TORCH_HOME", "/also mine")  # set after winnow was
    variables = process_environment(second)
    assert variables[ROOT_VARIABLE] == str(second)
    assert (variables["PREFECT_HOME"], variables["TORCH_HOME"]) == ("/mine", "/also mine")
    assert variables["MLFLOW_TRACKING_URI"] == ProjectPaths(second).mlflow_store
    assert not [name for name, value in variables.items() if value.startswith(str(first))]
    for name, value in variables.items():
        clean_environment.setenv(name, value)
    assert process_environment(second) == variables  # idempotent


def test_apply_makes_folders_and_reaches_children(tmp_path: Path) -> None:
    code = f"import pathlib, sys; from tasks.project.environment import apply; apply(pathlib.Path({str(tmp_path)!r}))\n"
    code += "import os, subprocess; heavy = {'torch', 'mlflow', 'prefect', 'dvc', 'numpy'} & set(sys.modules)\n"
    code += "print(subprocess.run(['printenv', 'DVC_SITE_CACHE_DIR'], capture_output=True, text=True).stdout, heavy)"
    environment = {name: value for name, value in os.environ.items() if name not in default_variables(tmp_path)}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == [str(tmp_path / ".winnow" / "cache" / "dvc"), "set()"]
    assert ProjectPaths(tmp_path).mlflow_artifacts.is_dir()
    assert ProjectPaths(tmp_path).checkpoints.is_dir()
    assert [path.name for path in tmp_path.iterdir()] == [".winnow"]


def test_apply_sets_the_environment_of_this_process(tmp_path: Path, clean_environment: pytest.MonkeyPatch) -> None:
    previous_environment = dict(os.environ)
    try:
        apply(tmp_path)
        assert os.environ["MPLCONFIGDIR"] == str(tmp_path / ".winnow" / "cache" / "matplotlib")
        assert Path(os.environ["MPLCONFIGDIR"]).is_dir()
    finally:
        os.environ.clear()
        os.environ.update(previous_environment)


PROXIED = """
import sys, urllib.request
from pathlib import Path
from tasks.project.environment import apply
apply(Path(sys.argv[1]))
import httpx, requests
for host in ("127.0.0.1", "localhost"):
    url = f"http://{host}:{sys.argv[2]}/"
    answers = [requests.get(url, timeout=5).text, httpx.get(url, timeout=5).text]
    answers.append(urllib.request.urlopen(url, timeout=5).read().decode())
    assert answers == ["here"] * 3, answers
print(httpx.get("http://elsewhere.example/", timeout=5).text)
"""


class TextServer(BaseHTTPRequestHandler):
    text = b"here"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.text)))
        self.end_headers()
        self.wfile.write(self.text)

    def log_message(self, *_: object) -> None:
        pass


class Proxy(TextServer):
    text = b"through the proxy"


@pytest.mark.thorough
def test_no_proxy_for_requests_to_this_machine(tmp_path: Path) -> None:
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), kind) for kind in (TextServer, Proxy)]
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    server_port, proxy_port = (server.server_address[1] for server in servers)
    environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    proxy_variables = {
        name: f"http://127.0.0.1:{proxy_port}" for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY")
    }
    try:
        for no_proxy_variables in ({}, {"NO_PROXY": "intern.example"}, {"no_proxy": "a.example, b.example"}):
            command = [sys.executable, "-c", PROXIED, str(tmp_path), str(server_port)]
            environment_of_user = {**environment, **proxy_variables, **no_proxy_variables}
            result = subprocess.run(
                command, cwd=ROOT, env=environment_of_user, capture_output=True, text=True, check=False
            )
            assert result.stdout == "through the proxy\n", result.stderr  # other hosts use the proxy
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()


@pytest.mark.parametrize(
    ("set_by_user", "expected"),
    [
        ({}, "127.0.0.1,localhost,::1"),
        ({"NO_PROXY": "intern.example"}, "intern.example,127.0.0.1,localhost,::1"),
        ({"no_proxy": "localhost, b"}, "localhost,b,127.0.0.1,::1"),
        ({"no_proxy": "a", "NO_PROXY": "b"}, "a,b,127.0.0.1,localhost,::1"),
        ({"NO_PROXY": "*"}, "*"),
    ],
)
def test_no_proxy_set_by_the_user_is_extended(
    clean_environment: pytest.MonkeyPatch, tmp_path: Path, set_by_user: dict[str, str], expected: str
) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        clean_environment.delenv(name, raising=False)
    for name, value in set_by_user.items():
        clean_environment.setenv(name, value)
    variables = process_environment(tmp_path)
    assert variables["no_proxy"] == variables["NO_PROXY"] == expected
    for name, value in variables.items():
        clean_environment.setenv(name, value)
    assert process_environment(tmp_path) == variables
