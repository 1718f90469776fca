"""A person's word before the champion changes: on the registry, by the command line, and by Prefect's form."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import yaml

from tasks.project.paths import ProjectPaths
from tasks.registry import approval_decision, approval_request, promotion_state, registered_models
from tasks.registry.promotion import promote, rollback
from tasks.tracking import mlflow_runs
from tests.handmade import MODEL, aliases, tag, write_run
from tests.integration.conftest import Project, make_project
from tests.integration.running import Up, assert_told, start, stop, told_to, web_hook
from winnow.config import Config
from winnow.errors import ArtifactError, WinnowError

pytest_plugins = "tests.stores"


def asking(config: Config, **values: Any) -> Config:
    """Approval wanted; decided by bytes, so that nothing depends on a clock."""
    policy = {"objective": "size", "approval": True, **values}
    return config.model_copy(update={"promotion": config.promotion.model_copy(update=policy)})


def next_run(paths: ProjectPaths, ballast: int, **values: Any) -> Config:
    return asking(write_run(paths.root, "quick", {"quick": {"ballast": ballast}}), **values)


@pytest.mark.thorough
def test_a_winner_waits_and_is_asked_about_once(paths: ProjectPaths, config: Config) -> None:
    mlflow_runs.track(paths, config)
    first = promote(paths, asking(config))
    assert first.waits is not None
    assert first.waits.state == "asked"
    assert (first.alias, first.champion) == ("challenger", None)
    assert "waits for approval" in first.reasons[-1]
    assert aliases(paths) == {"challenger": "1"}
    assert promotion_state.is_up_to_date(paths, asking(config))
    assert promotion_state.is_awaiting_approval(paths)
    assert not promotion_state.is_up_to_date(paths, config)  # nobody is asked any more
    again = promote(paths, asking(config))
    assert again.waits == first.waits
    assert "waits for approval" in tag(paths, "1", "winnow.reason")


def test_approved_it_serves_and_the_word_stays_with_it(paths: ProjectPaths, config: Config) -> None:
    promote(paths, asking(config))
    outcome = approval_decision.decide(paths, asking(config), True, "Ann", "looks right")
    assert (outcome.alias, outcome.champion, outcome.is_new) == ("champion", "1", True)
    assert "approved by Ann" in outcome.reasons[-1]
    assert "looks right" in tag(paths, "1", "winnow.reason")
    assert aliases(paths) == {"champion": "1", "challenger": "1"}
    with pytest.raises(WinnowError, match="was approved already"):
        approval_decision.decide(paths, asking(config), True, "Ann", "")
    assert promotion_state.read_reasons(paths) == list(outcome.reasons)
    assert not promotion_state.is_awaiting_approval(paths)
    assert "is the champion" in promote(paths, asking(config)).reasons[-1]


def test_a_damaged_question_is_not_taken_for_none(paths: ProjectPaths, config: Config) -> None:
    promote(paths, asking(config))
    version = registered_models.find(paths, MODEL, "challenger")
    assert version is not None
    registered_models.annotate(paths, MODEL, version, {approval_request.REQUEST_TAG: "{"})
    with pytest.raises(ArtifactError, match=r"winnow\.approval of version 1"):
        promote(paths, asking(config))


@pytest.mark.thorough
def test_a_denial_holds(paths: ProjectPaths, config: Config) -> None:
    promote(paths, write_run(paths.root, "quick", {"quick": {"ballast": 400}}))
    wanted = next_run(paths, 0)
    assert promote(paths, wanted).waits is not None
    with pytest.raises(WinnowError, match="needs a reason"):
        approval_decision.decide(paths, wanted, False, "Ann", "")
    outcome = approval_decision.decide(paths, wanted, False, "Ann", "wrong on cats")
    assert (outcome.alias, outcome.champion, outcome.is_new) == ("challenger", "1", False)
    assert "wrong on cats" in tag(paths, "2", "winnow.reason")
    for config_now in (wanted, asking(wanted, approval=False)):
        refused = promote(paths, config_now)
        assert refused.waits is None
        assert "denied by Ann" in refused.reasons[-1]
        assert aliases(paths)["champion"] == "1"
    assert promotion_state.is_up_to_date(paths, wanted)
    assert promote(paths, wanted, replace=True).waits is not None  # asked for anew


def test_a_question_that_nobody_answers_expires(
    paths: ProjectPaths, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = asking(config, approval_hours=2.0)
    promote(paths, wanted)
    later = datetime.now(UTC) + timedelta(hours=3)
    assert promotion_state.is_up_to_date(paths, wanted)
    for module in (approval_request, promotion_state):
        monkeypatch.setattr(module, "_now", lambda: later)
    assert not promotion_state.is_up_to_date(paths, wanted)  # so the next run of the chain writes it down
    outcome = promote(paths, wanted)
    assert outcome.waits is None
    assert "not approved in time: nobody answered" in outcome.reasons[-1]
    assert "nobody answered" in tag(paths, "1", "winnow.reason")
    assert aliases(paths) == {"challenger": "1"}
    assert promotion_state.is_up_to_date(paths, wanted)
    # A person's word counts late, too.
    assert approval_decision.decide(paths, wanted, True, "Ann", "was ill").champion == "1"


def test_the_next_challenger_ends_the_question(paths: ProjectPaths, config: Config) -> None:
    promote(paths, next_run(paths, 900))
    wanted = next_run(paths, 400)
    assert promote(paths, wanted).version == "2"
    assert "not approved before version 2 (quick) took its place" in tag(paths, "1", "winnow.reason")
    question = approval_decision.pending_approval(paths, wanted)
    assert question is not None
    assert question.version.number == "2"
    # The first one wins a later selection: it is asked about anew.
    assert promote(paths, next_run(paths, 900)).waits is not None


def test_the_word_is_about_the_champion_of_the_question(paths: ProjectPaths, config: Config) -> None:
    promote(paths, write_run(paths.root, "quick", {"quick": {"ballast": 900}}))
    wanted = next_run(paths, 400)
    promote(paths, wanted)
    question = approval_decision.pending_approval(paths, wanted)
    assert question is not None
    registered_models.set_alias(paths, MODEL, "champion", question.version.number)
    with pytest.raises(WinnowError, match="has changed since approval was asked for"):
        approval_decision.decide(paths, wanted, True, "Ann", "")
    assert approval_decision.pending_approval(paths, wanted) is None


@pytest.mark.thorough
def test_after_a_rollback_a_person_is_asked_anew(paths: ProjectPaths, config: Config) -> None:
    for ballast in (900, 400):
        promote(paths, write_run(paths.root, "quick", {"quick": {"ballast": ballast}}))
    wanted = next_run(paths, 0)
    before = promote(paths, wanted).waits
    assert rollback(paths, wanted, "slow on Mondays").champion == "1"
    assert not promotion_state.is_up_to_date(paths, wanted)
    after = promote(paths, wanted).waits
    assert before is not None
    assert after is not None
    assert (before.champion, after.champion) == ("2", "1")


def test_nothing_to_answer_says_so(paths: ProjectPaths, config: Config) -> None:
    with pytest.raises(WinnowError, match="no challenger"):
        approval_decision.decide(paths, config, True, "Ann", "")
    promote(paths, config)
    with pytest.raises(WinnowError, match="does not wait for approval"):
        approval_decision.decide(paths, config, True, "Ann", "")


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """A project with a handmade run whose first winner serves, and whose promotions need approval."""
    folder = tmp_path_factory.mktemp("approval")
    project = make_project(folder / "checkout", folder / "home")
    handmade(project, ballast=2000, approval=False)
    result = project.winnow("promote")
    assert result.returncode == 0, result.stderr
    running = start(project)
    yield running
    stop(running.process)


def handmade(project: Project, ballast: int, **values: Any) -> None:
    """The next run's winner; the smaller its ballast, the smaller its file."""
    stages = (project.root / "dvc.yaml").read_bytes()
    write_run(project.root, "quick", {"quick": {"ballast": ballast}})
    (project.root / "dvc.yaml").write_bytes(stages)
    params = yaml.safe_load((project.root / "params.yaml").read_text())
    params["promotion"] |= {"objective": "size", "approval": True, **values}
    project.set_params(params)


def asked(up: Up) -> str:
    """A run of the promotion flow that waits for a person."""
    run = up.schedule("promote/photos")
    up.wait(run, "Suspended")
    return run


def suspended(up: Up) -> list[str]:
    """Runs that show a form."""
    return [row["id"] for row in up.post("flow_runs/filter", {}) if row["state"]["name"] == "Suspended"]


def answer(up: Up, run: str, **form: Any) -> str:
    up.post(f"flow_runs/{run}/resume", {"run_input": form})
    up.wait(run, "Completed")
    return str(up.artifacts(run)["promotion"])


@pytest.mark.services
def test_the_form_says_what_is_asked(up: Up) -> None:
    handmade(up.project, ballast=1500)
    with web_hook() as (address, received):
        told_to(up, address)
        run = asked(up)
        assert_told(received, "waits for approval", "winnow approve")
    nobody = {"run_input": {"decision": "approve", "by": "", "reason": ""}}
    assert up.post(f"flow_runs/{run}/resume", nobody)["status"] == "REJECT"
    keys = up.get(f"flow_runs/{run}")["state"]["state_details"]["run_input_keyset"]
    text = up.get(f"flow_runs/{run}/input/{keys['description']}")
    assert "is waiting for approval as champion" in text
    assert "report" in text
    told = answer(up, run, decision="approve", by="Ann", reason="small enough")
    assert "is the new champion" in told
    assert "approved by Ann" in told
    assert "is the champion" in up.project.winnow("promote").stdout


@pytest.mark.services
def test_denied_by_the_form(up: Up) -> None:
    handmade(up.project, ballast=1000)
    asked_by_hand = up.project.winnow("promote")
    assert "waits for approval" in asked_by_hand.stdout, asked_by_hand.stderr
    deadline = time.monotonic() + 60
    while not (forms := suspended(up)) and time.monotonic() < deadline:
        time.sleep(0.5)
    told = answer(up, forms[0], decision="deny", by="Ben", reason="wrong on cats")
    assert "denied by Ben" in told
    assert "wrong on cats" in told
    refused = up.project.winnow("promote").stdout
    assert "wrong on cats" in refused
    before = up.project.winnow("promote").stdout
    up.wait(up.schedule("promote/photos"), "Completed")  # settled: nothing is measured or asked again
    assert up.project.winnow("promote").stdout == before


@pytest.mark.services
def test_nobody_answers_the_form(up: Up) -> None:
    handmade(up.project, ballast=500, approval_hours=0.003)
    run = asked(up)
    assert "never resumed" in up.wait(run, "Failed")["state"]["message"]
    settled = up.schedule("promote/photos")
    up.wait(settled, "Completed")
    assert "nobody answered" in up.artifacts(settled)["promotion"]


@pytest.mark.services
def test_the_next_challenger_ends_the_form(up: Up) -> None:
    handmade(up.project, ballast=450)
    first = asked(up)
    handmade(up.project, ballast=400)
    second = asked(up)
    assert up.get(f"flow_runs/{first}")["state"]["type"] == "CANCELLED"
    answer(up, second, decision="deny", by="Ben", reason="wrong on cats, too")


@pytest.mark.services
def test_an_answer_on_the_command_line_ends_the_form(up: Up) -> None:
    handmade(up.project, ballast=200)
    run = asked(up)
    result = up.project.winnow("approve", "--reason", "seen")
    assert result.returncode == 0, result.stderr
    assert "is the new champion" in result.stdout
    up.wait(run, "Completed", "Cancelled")


@pytest.mark.services
def test_the_champion_changed_under_the_open_form(up: Up) -> None:
    handmade(up.project, ballast=150, approval=False)
    assert up.project.winnow("promote").returncode == 0  # so that there is a champion to go back to
    handmade(up.project, ballast=100)
    run = asked(up)
    question = up.get(f"flow_runs/{run}")["state"]["state_details"]["run_input_keyset"]
    assert up.project.winnow("rollback", "--reason", "slow on Mondays").returncode == 0
    up.post(f"flow_runs/{run}/resume", {"run_input": {"decision": "approve", "by": "Ann", "reason": "seen"}})
    again = up.wait(run, "Suspended")["state"]["state_details"]["run_input_keyset"]
    assert again != question  # an answer about another champion counts for nothing
    told = answer(up, run, decision="deny", by="Ann", reason="not needed any more")
    assert "not needed any more" in told
