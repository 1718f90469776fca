"""The worker of `winnow up`: it runs the flows that prefect.yaml of its own checkout deploys, and nothing else.

    python -m winnow.servers.worker POOL

Prefect's worker runs whatever a deployment on the server names: any file, any pull step (which may be a shell command),
any variables. So anyone who can write to the API could run anything. This worker compares deployment, work pool and
parameters with prefect.yaml before a run starts, and refuses other runs with the reason in their state.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import yaml
from prefect.client.schemas.objects import FlowRun, WorkPool
from prefect.client.schemas.responses import DeploymentResponse
from prefect.workers.process import ProcessJobConfiguration, ProcessWorker, ProcessWorkerResult

from tasks.project.environment import ROOT_VARIABLE
from winnow.errors import WinnowError

OWN_ROOT = ("", ".")
"""Allowed values of a flow's parameter `root`: the worker's own checkout."""


class OwnFlowsWorker(ProcessWorker):
    """Prefect's process worker, which refuses runs whose deployment is not in prefect.yaml."""

    async def run(
        self,
        flow_run: FlowRun,
        configuration: ProcessJobConfiguration,
        task_status: anyio.abc.TaskStatus[int] | None = None,
    ) -> ProcessWorkerResult:
        """Start the run's process and wait for its end. Raises WinnowError, which Prefect shows, for a foreign run."""
        deployment = await self.client.read_deployment(flow_run.deployment_id) if flow_run.deployment_id else None
        prefect_yaml = yaml.safe_load((Path(os.environ[ROOT_VARIABLE]) / "prefect.yaml").read_text(encoding="utf-8"))
        if reason := refusal(prefect_yaml, flow_run, deployment, self.work_pool):
            raise WinnowError(f"{reason}; this worker runs only what prefect.yaml of its checkout deploys")
        return await super().run(flow_run, configuration, task_status)


def refusal(
    planned: Mapping[str, Any], flow_run: FlowRun, deployment: DeploymentResponse | None, pool: WorkPool
) -> str:
    """Return why a run is not one that `planned`, the content of prefect.yaml, deploys; "" where it is."""
    if deployment is None:
        return "the run belongs to no deployment"
    entrypoints = {row["entrypoint"] for row in planned["deployments"]}
    if deployment.entrypoint not in entrypoints:
        return f"the deployment's entrypoint is {deployment.entrypoint!r}"
    if deployment.pull_steps != planned["pull"]:
        return f"the deployment's pull steps are {deployment.pull_steps!r}"
    if deployment.storage_document_id or deployment.path not in (None, *OWN_ROOT):
        return f"the deployment's code is stored elsewhere ({deployment.path or deployment.storage_document_id})"
    if deployment.job_variables or flow_run.job_variables:
        return "the deployment or the run sets variables of the process"
    if pool.base_job_template != ProcessWorker.get_default_base_job_template():
        return f"the work pool {pool.name} has a job template of its own"
    if (root := flow_run.parameters.get("root", "")) not in OWN_ROOT:
        return f"the run's parameter root is {root!r}"
    return ""


async def _work(pool: str) -> None:
    await OwnFlowsWorker(work_pool_name=pool, limit=1, create_pool_if_not_found=False).start()


if __name__ == "__main__":
    anyio.run(_work, sys.argv[1])
