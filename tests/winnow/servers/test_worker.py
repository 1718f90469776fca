from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest
import yaml
from prefect.client.schemas.objects import FlowRun, WorkPool
from prefect.client.schemas.responses import DeploymentResponse
from prefect.workers.process import ProcessWorker

from tests.closure import ROOT
from winnow.servers.prefect_server import allowed_hosts, origins
from winnow.servers.worker import refusal

PREFECT_YAML = yaml.safe_load((ROOT / "prefect.yaml").read_text(encoding="utf-8"))


def refusal_of(deployment: dict[str, Any], run: dict[str, Any], template: dict[str, Any] | None = None) -> str:
    """Return the reason to refuse a run that differs from prefect.yaml by these changes."""
    shipped = {
        "name": "photos",
        "flow_id": uuid4(),
        "entrypoint": "flows/pipeline.py:pipeline",
        "pull_steps": PREFECT_YAML["pull"],
        "path": ".",
    }
    pool = WorkPool(
        name="p", type="process", base_job_template=template or ProcessWorker.get_default_base_job_template()
    )
    return refusal(PREFECT_YAML, FlowRun(flow_id=uuid4(), **run), DeploymentResponse(**(shipped | deployment)), pool)


@pytest.mark.parametrize("entrypoint", [row["entrypoint"] for row in PREFECT_YAML["deployments"]])
def test_deployments_of_prefect_yaml_run(entrypoint: str) -> None:
    assert refusal_of({"entrypoint": entrypoint}, {"parameters": {"root": ".", "retries": 2}}) == ""
    assert refusal_of({"entrypoint": entrypoint}, {}) == ""


@pytest.mark.parametrize(
    ("deployment", "run", "expected"),
    [
        ({"entrypoint": "winnow/cli/main.py:main"}, {}, "entrypoint is 'winnow/cli/main.py:main'"),
        ({"entrypoint": None}, {}, "entrypoint is None"),
        ({"pull_steps": None}, {}, "pull steps are None"),
        ({"pull_steps": [*PREFECT_YAML["pull"], {"prefect.deployments.steps.run_shell_script": {}}]}, {}, "pull steps"),
        ({"path": "/tmp"}, {}, "stored elsewhere"),
        ({"storage_document_id": uuid4()}, {}, "stored elsewhere"),
        ({"job_variables": {"env": {"PYTHONPATH": "/tmp"}}}, {}, "variables of the process"),
        ({}, {"job_variables": {"working_dir": "/tmp"}}, "variables of the process"),
        ({}, {"parameters": {"root": "/tmp"}}, "root is '/tmp'"),
    ],
)
def test_anything_else_is_refused(deployment: dict[str, Any], run: dict[str, Any], expected: str) -> None:
    assert expected in refusal_of(deployment, run)


def test_a_pool_with_another_template_is_refused() -> None:
    template = ProcessWorker.get_default_base_job_template()
    template["job_configuration"]["command"] = "touch /tmp/mark"
    assert "job template" in refusal_of({}, {}, template)


def test_a_run_without_a_deployment_is_refused() -> None:
    pool = WorkPool(name="p", type="process", base_job_template=ProcessWorker.get_default_base_job_template())
    assert refusal(PREFECT_YAML, FlowRun(flow_id=uuid4()), None, pool) == "the run belongs to no deployment"


def test_names_of_the_own_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WINNOW_SERVER_HOSTS", "prefect.example.org, 192.168.1.20")
    hosts = allowed_hosts("192.168.1.20")
    assert hosts == ["192.168.1.20", "127.0.0.1", "localhost", "prefect.example.org"]
    assert "https://prefect.example.org," in origins(hosts, 4200) + ","
    assert "http://127.0.0.1:4200" in origins(hosts, 4200).split(",")
