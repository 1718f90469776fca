"""Test manual approval before a promotion: in the registry, on the command line, and by Prefect's form."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import prefect.runtime
import pytest
import yaml
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError

import flows.promote as promote_flow
from flows.promote import Approval
from tasks.project import running_servers
from tasks.project.paths import ProjectPaths
from tasks.registry import approval_decision, approval_request, promotion_state, registered_models
from tasks.registry.promotion import promote
from tasks.registry.rollback import rollback
from tasks.tracking import tracked_runs
from tasks.tracking.tags import APPROVAL_TAG
from tests.handmade import MODEL, aliases, tag, write_named_files, write_run
from tests.integration.conftest import Project, make_project
from tests.integration.running import RunningProject, assert_notified, send_notifications_to, start, stop, webhook
from winnow.cli import promotion as cli_promotion
from winnow.config import Config
from winnow.errors import ArtifactError, WinnowError

pytest_plugins = "tests.stores"


def with_approval(config: Config, **values: Any) -> Config:
    """Return the config with approval and the objective size, which does not depend on timings."""
    policy = {"objective": "size", "approval": True, **values}
    return config.model_copy(update={"promotion": config.promotion.model_copy(update=policy)})


def write_next_run(paths: ProjectPaths, ballast: int, **values: Any) -> Config:
    return with_approval(write_run(paths.root, "quick", {"quick": {"ballast": ballast}}), **values)


@pytest.mark.thorough
def test_a_winner_waits_and_approval_is_requested_once(paths: ProjectPaths, config: Config) -> None:
    tracked_runs.track(paths, config)
    first = promote(paths, with_approval(config))
    assert first.waits is not None
    assert first.waits.state == "asked"
    assert (first.alias, first.champion) == ("challenger", None)
    assert "waits for approval" in first.reasons[-1]
    assert aliases(paths) == {"challenger": "1"}
    assert promotion_state.is_up_to_date(paths, with_approval(config))
    assert promotion_state.is_awaiting_approval(paths)
    assert not promotion_state.is_up_to_date(paths, config)  # no approval is requested any more
    second = promote(paths, with_approval(config))
    assert second.waits == first.waits
    assert "waits for approval" in tag(paths, "1", "winnow.reason")


def test_an_approved_version_is_champion_and_keeps_the_decision(paths: ProjectPaths, config: Config) -> None:
    promote(paths, with_approval(config))
    result = approval_decision.decide(paths, with_approval(config), True, "Ann", "looks right", None)
    assert (result.alias, result.champion, result.is_new) == ("champion", "1", True)
    assert "approved by Ann" in result.reasons[-1]
    assert "looks right" in tag(paths, "1", "winnow.reason")
    assert aliases(paths) == {"champion": "1", "challenger": "1"}
    with pytest.raises(WinnowError, match="was approved already"):
        approval_decision.decide(paths, with_approval(config), True, "Ann", "", None)
    assert promotion_state.read_reasons(paths) == list(result.reasons)
    assert not promotion_state.is_awaiting_approval(paths)
    assert "is the champion" in promote(paths, with_approval(config)).reasons[-1]


def test_a_damaged_request_is_an_error(paths: ProjectPaths, config: Config) -> None:
    promote(paths, with_approval(config))
    version = registered_models.find(paths, MODEL, "challenger")
    assert version is not None
    registered_models.annotate(paths, MODEL, version, {APPROVAL_TAG: "{"})
    with pytest.raises(ArtifactError, match=r"winnow\.approval of version 1"):
        promote(paths, with_approval(config))


@pytest.mark.thorough
def test_a_denial_is_kept(paths: ProjectPaths, config: Config) -> None:
    promote(paths, write_run(paths.root, "quick", {"quick": {"ballast": 400}}))
    next_config = write_next_run(paths, 0)
    assert promote(paths, next_config).waits is not None
    for missing in ("", " ", "\n"):
        with pytest.raises(WinnowError, match="needs a reason"):
            approval_decision.decide(paths, next_config, False, "Ann", missing, None)
    result = approval_decision.decide(paths, next_config, False, "Ann", "wrong on cats", None)
    assert (result.alias, result.champion, result.is_new) == ("challenger", "1", False)
    assert "wrong on cats" in tag(paths, "2", "winnow.reason")
    for policy_config in (next_config, with_approval(next_config, approval=False)):
        repeated = promote(paths, policy_config)
        assert repeated.waits is None
        assert "denied by Ann" in repeated.reasons[-1]
        assert aliases(paths)["champion"] == "1"
    assert promotion_state.is_up_to_date(paths, next_config)
    assert promote(paths, next_config, replace=True).waits is not None  # requested again


def test_an_unanswered_request_expires(paths: ProjectPaths, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    approval_config = with_approval(config, approval_hours=2.0)
    promote(paths, approval_config)
    later = datetime.now(UTC) + timedelta(hours=3)
    assert promotion_state.is_up_to_date(paths, approval_config)
    for module in (approval_request, promotion_state):
        monkeypatch.setattr(module, "_now", lambda: later)
    assert not promotion_state.is_up_to_date(paths, approval_config)  # so the next run records the expiry
    result = promote(paths, approval_config)
    assert result.waits is None
    assert "not approved in time: no decision" in result.reasons[-1]
    assert "no decision since" in tag(paths, "1", "winnow.reason")
    assert aliases(paths) == {"challenger": "1"}
    assert promotion_state.is_up_to_date(paths, approval_config)
    # A late decision is accepted, too.
    assert approval_decision.decide(paths, approval_config, True, "Ann", "was ill", None).champion == "1"


def test_the_next_challenger_ends_the_request(paths: ProjectPaths, config: Config) -> None:
    promote(paths, write_next_run(paths, 900))
    next_config = write_next_run(paths, 400)
    assert promote(paths, next_config).version == "2"
    assert "not approved before version 2 (quick) took its place" in tag(paths, "1", "winnow.reason")
    pending = approval_decision.pending_approval(paths, next_config)
    assert pending is not None
    assert pending.version.number == "2"
    # The first version wins a later selection: approval is requested again.
    assert promote(paths, write_next_run(paths, 900)).waits is not None


def test_a_decision_is_about_the_champion_of_the_request(paths: ProjectPaths, config: Config) -> None:
    promote(paths, write_run(paths.root, "quick", {"quick": {"ballast": 900}}))
    next_config = write_next_run(paths, 400)
    promote(paths, next_config)
    pending = approval_decision.pending_approval(paths, next_config)
    assert pending is not None
    registered_models.set_alias(paths, MODEL, "champion", pending.version.number)
    with pytest.raises(WinnowError, match="has changed since approval was asked for"):
        approval_decision.decide(paths, next_config, True, "Ann", "", None)
    assert approval_decision.pending_approval(paths, next_config) is None


def test_a_decision_is_about_the_version_that_was_reviewed(
    paths: ProjectPaths, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    promote(paths, write_next_run(paths, 900))
    reviewed = approval_decision.pending_approval(paths, config)
    assert reviewed is not None
    next_config = write_next_run(paths, 400)
    write_named_files(paths.root)
    promote(paths, next_config)
    for approve in (True, False):
        with pytest.raises(WinnowError, match=r"version 1 of photos is not the challenger .* version 2 \(quick\) is"):
            approval_decision.decide(paths, next_config, approve, "Ann", "seen", "1")
        with pytest.raises(WinnowError, match="version 1 of photos is not the challenger"):
            cli_promotion.decide(paths, approve, "seen", 1)
        with monkeypatch.context() as patch:
            patch.setattr(approval_decision, "pending_approval", lambda *_: reviewed)  # the next one came meanwhile
            with pytest.raises(WinnowError, match="version 1 of photos is not the challenger"):
                cli_promotion.decide(paths, approve, "seen", None)
    assert aliases(paths) == {"challenger": "2"}
    assert approval_decision.decide(paths, next_config, True, "Ann", "seen", "2").champion == "2"


def test_a_form_is_about_the_version_that_it_shows(
    paths: ProjectPaths, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    promote(paths, write_next_run(paths, 900))
    shown = approval_decision.pending_approval(paths, config)
    assert shown is not None
    approval_request.set_form(paths, MODEL, shown.version, shown.request, str(prefect.runtime.flow_run.id))

    def answer_after_the_next_run(*_: Any) -> Approval:
        promote(paths, write_next_run(paths, 400))
        return Approval(decision="approve", by="Ann", reason="seen")

    monkeypatch.setattr(promote_flow, "_ask", answer_after_the_next_run)
    with pytest.raises(WinnowError, match="version 1 of photos is not the challenger"):
        promote_flow._promote(paths)
    assert aliases(paths) == {"challenger": "2"}


@pytest.mark.parametrize(
    "error",
    [
        httpx.ConnectError("Connection refused"),
        RuntimeError("Failed to reach API at http://127.0.0.1:9/api/"),
        PrefectHTTPStatusError("503", request=httpx.Request("POST", "http://x"), response=httpx.Response(503)),
    ],
)
def test_a_request_is_kept_where_prefect_is_down(
    paths: ProjectPaths,
    config: Config,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(cli_promotion, "load_project_config", lambda _: with_approval(config))
    monkeypatch.setattr(running_servers, "report_to_prefect", lambda _: True)
    monkeypatch.setattr(promote_flow, "run_deployment", fail)
    assert cli_promotion.promote_winner(paths, replace=False) == 0
    assert str(error) in capsys.readouterr().err
    pending = approval_decision.pending_approval(paths, config)
    assert pending is not None
    assert pending.version.number == "1"


def test_without_a_deployment_the_form_waits_silently(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ObjectNotFound(httpx.HTTPError("404"))

    monkeypatch.setattr(promote_flow, "run_deployment", fail)
    assert promote_flow.show_form(config) == ""


@pytest.mark.thorough
def test_after_a_rollback_approval_is_requested_again(paths: ProjectPaths, config: Config) -> None:
    for ballast in (900, 400):
        promote(paths, write_run(paths.root, "quick", {"quick": {"ballast": ballast}}))
    next_config = write_next_run(paths, 0)
    first_request = promote(paths, next_config).waits
    assert rollback(paths, next_config, "slow on Mondays").champion == "1"
    assert not promotion_state.is_up_to_date(paths, next_config)
    second_request = promote(paths, next_config).waits
    assert first_request is not None
    assert second_request is not None
    assert (first_request.champion, second_request.champion) == ("2", "1")


def test_a_decision_without_a_request_is_an_error(paths: ProjectPaths, config: Config) -> None:
    with pytest.raises(WinnowError, match="no challenger"):
        approval_decision.decide(paths, config, True, "Ann", "", None)
    promote(paths, config)
    with pytest.raises(WinnowError, match="does not wait for approval"):
        approval_decision.decide(paths, config, True, "Ann", "", None)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningProject]:
    """Start a project whose first winner is champion and whose promotions need approval."""
    folder = tmp_path_factory.mktemp("approval")
    project = make_project(folder / "checkout", folder / "home")
    write_next_winner(project, ballast=2000, approval=False)
    result = project.winnow("promote")
    assert result.returncode == 0, result.stderr
    started = start(project)
    yield started
    stop(started.process)


def write_next_winner(project: Project, ballast: int, **values: Any) -> None:
    """Write the next run; the winner's file is the smaller, the smaller its ballast."""
    stages = (project.root / "dvc.yaml").read_bytes()
    write_run(project.root, "quick", {"quick": {"ballast": ballast}})
    (project.root / "dvc.yaml").write_bytes(stages)
    params = yaml.safe_load((project.root / "params.yaml").read_text())
    params["promotion"] |= {"objective": "size", "approval": True, **values}
    project.set_params(params)


def start_promotion(running: RunningProject) -> str:
    """Start a promotion flow and return its run id once it waits for approval."""
    run = running.schedule("promote/photos")
    running.wait(run, "Suspended")
    return run


def suspended_runs(running: RunningProject) -> list[str]:
    """Return the ids of runs that show a form."""
    return [row["id"] for row in running.post("flow_runs/filter", {}) if row["state"]["name"] == "Suspended"]


def submit_form(running: RunningProject, run: str, **fields: Any) -> str:
    running.post(f"flow_runs/{run}/resume", {"run_input": fields})
    running.wait(run, "Completed")
    return str(running.artifacts(run)["promotion"])


@pytest.mark.services
def test_the_form_describes_the_request(running: RunningProject) -> None:
    write_next_winner(running.project, ballast=1500)
    with webhook() as (address, received):
        send_notifications_to(running, address)
        run = start_promotion(running)
        assert_notified(received, "waits for approval", "winnow approve")
    anonymous = {"run_input": {"decision": "approve", "by": "", "reason": ""}}
    assert running.post(f"flow_runs/{run}/resume", anonymous)["status"] == "REJECT"
    keys = running.get(f"flow_runs/{run}")["state"]["state_details"]["run_input_keyset"]
    text = running.get(f"flow_runs/{run}/input/{keys['description']}")
    assert "is waiting for approval as champion" in text
    assert "report" in text
    output = submit_form(running, run, decision="approve", by="Ann", reason="small enough")
    assert "is the new champion" in output
    assert "approved by Ann" in output
    assert "is the champion" in running.project.winnow("promote").stdout


@pytest.mark.services
def test_denial_by_the_form(running: RunningProject) -> None:
    write_next_winner(running.project, ballast=1000)
    result = running.project.winnow("promote")
    assert "waits for approval" in result.stdout, result.stderr
    deadline = time.monotonic() + 60
    while not (run_ids := suspended_runs(running)) and time.monotonic() < deadline:
        time.sleep(0.5)
    text = submit_form(running, run_ids[0], decision="deny", by="Ben", reason="wrong on cats")
    assert "denied by Ben" in text
    assert "wrong on cats" in text
    output = running.project.winnow("promote").stdout
    assert "wrong on cats" in output
    output_before = running.project.winnow("promote").stdout
    running.wait(running.schedule("promote/photos"), "Completed")  # decided: nothing is measured or requested again
    assert running.project.winnow("promote").stdout == output_before


@pytest.mark.services
def test_an_unanswered_form_expires(running: RunningProject) -> None:
    write_next_winner(running.project, ballast=500, approval_hours=0.003)
    run = start_promotion(running)
    assert "never resumed" in running.wait(run, "Failed")["state"]["message"]
    next_run_id = running.schedule("promote/photos")
    running.wait(next_run_id, "Completed")
    assert "no decision since" in running.artifacts(next_run_id)["promotion"]


@pytest.mark.services
def test_the_next_challenger_ends_the_form(running: RunningProject) -> None:
    write_next_winner(running.project, ballast=450)
    first = start_promotion(running)
    write_next_winner(running.project, ballast=400)
    second = start_promotion(running)
    assert running.get(f"flow_runs/{first}")["state"]["type"] == "CANCELLED"
    submit_form(running, second, decision="deny", by="Ben", reason="wrong on cats, too")


@pytest.mark.services
def test_a_decision_on_the_command_line_ends_the_form(running: RunningProject) -> None:
    write_next_winner(running.project, ballast=200)
    run = start_promotion(running)
    result = running.project.winnow("approve", "--reason", "seen")
    assert result.returncode == 0, result.stderr
    assert "is the new champion" in result.stdout
    running.wait(run, "Completed", "Cancelled")


@pytest.mark.services
def test_a_changed_champion_renews_the_open_form(running: RunningProject) -> None:
    write_next_winner(running.project, ballast=150, approval=False)
    assert running.project.winnow("promote").returncode == 0  # a champion for the rollback
    write_next_winner(running.project, ballast=100)
    run = start_promotion(running)
    first_form = running.get(f"flow_runs/{run}")["state"]["state_details"]["run_input_keyset"]
    assert running.project.winnow("rollback", "--reason", "slow on Mondays").returncode == 0
    running.post(f"flow_runs/{run}/resume", {"run_input": {"decision": "approve", "by": "Ann", "reason": "seen"}})
    second_form = running.wait(run, "Suspended")["state"]["state_details"]["run_input_keyset"]
    assert second_form != first_form  # a decision about another champion is not accepted
    text = submit_form(running, run, decision="deny", by="Ann", reason="not needed any more")
    assert "not needed any more" in text
