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
def bare(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment in which neither a person nor winnow has set anything."""
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
def test_compilers_get_paths_that_they_can_be_given(bare: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    bare.setenv("HOME", str(tmp_path / "home"))
    cache = Path(default_variables(tmp_path / name)["TORCHINDUCTOR_CACHE_DIR"])
    assert cache.is_relative_to(tmp_path / "home" / ".cache" / "winnow")
    assert cache != Path(default_variables(tmp_path / (name + "2"))["TORCHINDUCTOR_CACHE_DIR"])
    bare.setenv("HOME", str(tmp_path / name))
    shared = Path(tempfile.gettempdir()) / f"winnow-{os.getuid()}"
    assert Path(default_variables(tmp_path / name)["TORCHINDUCTOR_CACHE_DIR"]).is_relative_to(shared)
    assert shared.stat().st_mode & 0o777 == 0o700


def test_an_account_without_a_home_compiles_too(bare: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bare.setenv("HOME", "~")  # what an account that nobody knows is given
    shared = Path(tempfile.gettempdir()) / f"winnow-{os.getuid()}"
    assert Path(default_variables(tmp_path / "it's")["TORCHINDUCTOR_CACHE_DIR"]).is_relative_to(shared)


def test_a_shared_folder_of_somebody_else_is_not_used(bare: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bare.setenv("HOME", str(tmp_path / "it's"))
    bare.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / f"winnow-{os.getuid()}").symlink_to(tmp_path)
    own = tmp_path / "it's" / ".winnow" / "cache" / "inductor"
    assert default_variables(tmp_path / "it's")["TORCHINDUCTOR_CACHE_DIR"] == str(own)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["it's", "my größe"])
def test_pytorch_compiles_in_any_folder(bare: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    code = "import torch; print(torch.compile(lambda x: torch.relu(x * 2).sum())(torch.ones(64)).item())"
    (tmp_path / name).mkdir()
    bare.setenv("HOME", str(tmp_path / "home"))
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command,
        env=process_environment(tmp_path / name),
        cwd=tmp_path / name,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "128.0", done.stderr[-500:]


def test_what_a_person_has_set_stays(bare: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bare.setenv("MLFLOW_TRACKING_URI", "https://team.example")
    bare.setenv("CI", "")
    found = process_environment(tmp_path)
    assert (found["MLFLOW_TRACKING_URI"], found["CI"]) == ("https://team.example", "")
    assert found["PREFECT_HOME"] == str(tmp_path / ".winnow" / "prefect")
    assert found["PATH"] == os.environ["PATH"]


def test_another_project_replaces_what_winnow_set_and_nothing_else(bare: pytest.MonkeyPatch, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    bare.setenv("PREFECT_HOME", "/mine")
    for name, value in process_environment(first).items():
        bare.setenv(name, value)
    bare.setenv("TORCH_HOME", "/also mine")  # set after winnow was
    found = process_environment(second)
    assert found[ROOT_VARIABLE] == str(second)
    assert (found["PREFECT_HOME"], found["TORCH_HOME"]) == ("/mine", "/also mine")
    assert found["MLFLOW_TRACKING_URI"] == ProjectPaths(second).mlflow_store
    assert not [name for name, value in found.items() if value.startswith(str(first))]
    for name, value in found.items():
        bare.setenv(name, value)
    assert process_environment(second) == found  # twice is once


def test_apply_makes_folders_and_reaches_children(tmp_path: Path) -> None:
    code = f"import pathlib, sys; from tasks.project.environment import apply; apply(pathlib.Path({str(tmp_path)!r}))\n"
    code += "import os, subprocess; heavy = {'torch', 'mlflow', 'prefect', 'dvc', 'numpy'} & set(sys.modules)\n"
    code += "print(subprocess.run(['printenv', 'DVC_SITE_CACHE_DIR'], capture_output=True, text=True).stdout, heavy)"
    clean = {name: value for name, value in os.environ.items() if name not in default_variables(tmp_path)}
    told = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=clean, capture_output=True, text=True, check=True)
    assert told.stdout.split() == [str(tmp_path / ".winnow" / "cache" / "dvc"), "set()"]
    assert ProjectPaths(tmp_path).mlflow_artifacts.is_dir()
    assert ProjectPaths(tmp_path).checkpoints.is_dir()
    assert [path.name for path in tmp_path.iterdir()] == [".winnow"]


def test_apply_is_what_the_tests_themselves_run_in(tmp_path: Path, bare: pytest.MonkeyPatch) -> None:
    before = dict(os.environ)
    try:
        apply(tmp_path)
        assert os.environ["MPLCONFIGDIR"] == str(tmp_path / ".winnow" / "cache" / "matplotlib")
        assert Path(os.environ["MPLCONFIGDIR"]).is_dir()
    finally:
        os.environ.clear()
        os.environ.update(before)


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


class Answering(BaseHTTPRequestHandler):
    text = b"here"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.text)))
        self.end_headers()
        self.wfile.write(self.text)

    def log_message(self, *_: object) -> None:
        pass


class Proxy(Answering):
    text = b"through the proxy"


@pytest.mark.thorough
def test_a_proxy_is_not_asked_for_this_machine(tmp_path: Path) -> None:
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), kind) for kind in (Answering, Proxy)]
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    here, proxy = (server.server_address[1] for server in servers)
    clean = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    asked = {name: f"http://127.0.0.1:{proxy}" for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY")}
    try:
        for more in ({}, {"NO_PROXY": "intern.example"}, {"no_proxy": "a.example, b.example"}):
            command = [sys.executable, "-c", PROXIED, str(tmp_path), str(here)]
            environment_of_user = {**clean, **asked, **more}
            told = subprocess.run(
                command, cwd=ROOT, env=environment_of_user, capture_output=True, text=True, check=False
            )
            assert told.stdout == "through the proxy\n", told.stderr  # other hosts go there, as the user wants
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
def test_what_a_person_has_set_without_a_proxy_stays(
    bare: pytest.MonkeyPatch, tmp_path: Path, set_by_user: dict[str, str], expected: str
) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        bare.delenv(name, raising=False)
    for name, value in set_by_user.items():
        bare.setenv(name, value)
    found = process_environment(tmp_path)
    assert found["no_proxy"] == found["NO_PROXY"] == expected
    for name, value in found.items():
        bare.setenv(name, value)
    assert process_environment(tmp_path) == found
