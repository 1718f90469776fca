"""Check prefect.yaml and flows/automations.yaml against the code and Prefect's schemas, without a server."""

from __future__ import annotations

import importlib

import pytest
import yaml
from prefect import Flow
from prefect.automations import AutomationCore
from prefect.states import Failed
from prefect.utilities.templating import apply_values

from flows import deployments
from flows.runtime import ENDED_EVENT
from tasks import stage_runner
from tasks.project.environment import default_variables
from tasks.tracking.mlflow_client import StoreError
from tests.closure import ROOT
from winnow.errors import ConfigError


@pytest.fixture(autouse=True)
def project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(deployments.PROJECT, "photos")


DEPLOYMENTS = yaml.safe_load((ROOT / "prefect.yaml").read_text())


@pytest.mark.parametrize("deployment", DEPLOYMENTS["deployments"], ids=lambda deployment: deployment["entrypoint"])
def test_every_deployment_names_a_flow_a_pool_and_a_concurrency_limit(deployment: dict) -> None:
    file, _, function = deployment["entrypoint"].partition(":")
    flow = getattr(importlib.import_module(file.removesuffix(".py").replace("/", ".")), function)
    assert isinstance(flow, Flow)
    values = apply_values({"pool": deployment["work_pool"]["name"], "name": deployment["name"]}, {})
    assert values == {"pool": deployments.work_pool_name("photos"), "name": "photos"}
    assert apply_values(deployment["tags"], {}) == [deployments.work_pool_name("photos")]
    assert flow.name in deployments.FLOWS
    assert deployment["concurrency_limit"]["limit"] == 1
    assert set(deployment.get("parameters", {})) <= set(flow.parameters.properties)
    assert all(schedule["timezone"] for schedule in deployment["schedules"])


def test_automations_are_valid_for_prefect_and_fit_the_heartbeat() -> None:
    automations = [AutomationCore.model_validate(row) for row in deployments._automations()]
    assert all(automation.name.startswith(deployments.automation_prefix("photos")) for automation in automations)
    assert len({automation.name for automation in automations}) == len(automations) == 3
    # Runs of another project on the same server do not match.
    related = {str(automation.trigger.match_related) for automation in automations}
    assert len(related) == 1
    assert "prefect.tag.winnow-photos" in related.pop()
    running = automations[0].trigger
    assert ENDED_EVENT in running.expect
    assert "prefect.flow-run.Crashed" not in running.expect
    assert running.within.total_seconds() >= 3 * int(default_variables(ROOT)["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"])


def test_no_machine_specific_names() -> None:
    text = (ROOT / "prefect.yaml").read_text() + (ROOT / "flows" / "automations.yaml").read_text()
    assert "/" + "work" not in text
    assert str(ROOT) not in text


@pytest.mark.parametrize(
    ("error", "is_retried"),
    [
        (stage_runner.StageDied("killed"), True),
        (StoreError("no answer"), True),
        (stage_runner.StageFailed("exited with 2"), False),
        (ConfigError("pretrain.epochs"), False),
    ],
)
def test_only_transient_errors_are_retried(error: Exception, is_retried: bool) -> None:
    assert stage_runner.can_be_retried(None, None, Failed(data=error)) is is_retried
