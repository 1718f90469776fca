"""Register the project at a Prefect server: work pool, GPU slots, automations, deployments.

`set_up` is idempotent: afterwards the server holds what prefect.yaml and flows/automations.yaml say. Several projects
can share a team's server: pool, deployments and automations carry the project's name (that of its registered model,
WINNOW_PROJECT in those files), and automations act only on runs with its tag.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import yaml
from httpx import HTTPError
from prefect.automations import AutomationCore
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound, PrefectHTTPStatusError
from prefect.utilities.templating import apply_values

from tasks.model_events import DRIFTED, PROMOTED, WAITING
from tasks.project import gpu_slots
from tasks.project.paths import ProjectPaths, registered_model_name
from tasks.project.state_files import DEPLOYED
from tasks.tracking.tracking_store import redact_password
from winnow.config import load_config
from winnow.errors import WinnowError

PROJECT = "WINNOW_PROJECT"
FLOWS = ("winnow", "promote", "drift")
NOTIFY_BLOCK = "winnow-notify"
"""The name of the notification block, of any type, that users create to receive notifications."""
PAGE = 200
"""The largest page of blocks or automations that Prefect's server returns."""


def work_pool_name(project: str) -> str:
    """Return the name of the project's work pool."""
    return f"winnow-{project}"


def automation_prefix(project: str) -> str:
    """Return the prefix of the names of the project's automations."""
    return f"winnow {project}: "


def set_up(paths: ProjectPaths) -> str:
    """Register the project at the server of PREFECT_API_URL and return the name of its work pool.

    Raises WinnowError when the server does not answer, or rejects a deployment.
    """
    try:
        return _set_up(paths)
    except (HTTPError, PrefectHTTPStatusError) as error:
        message = " ".join(str(error).split())[:300]
        raise WinnowError(
            f"Prefect at {redact_password(os.environ['PREFECT_API_URL'])} failed: {message}\n"
            "Check PREFECT_API_URL, PREFECT_API_AUTH_STRING, and that the server is running"
        ) from error


def _set_up(paths: ProjectPaths) -> str:
    project = registered_model_name(load_config(paths.root / "params.yaml"))
    os.environ[PROJECT] = project  # a placeholder in both files
    _delete_renamed(paths, project)
    _make_pool(work_pool_name(project))
    gpu_slots.create_limit()
    _automate(automation_prefix(project), [*_automations(), *_notifications(project)])
    result = subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"],
        cwd=paths.root,
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode != 0:
        output = "\n".join((result.stdout + result.stderr).strip().splitlines()[-12:])
        raise WinnowError(f"Prefect rejected the deployments of {paths.root / 'prefect.yaml'}:\n{output}")
    return work_pool_name(project)


def _delete_renamed(paths: ProjectPaths, project: str) -> None:
    """Delete what this checkout deployed under other project names, unless a worker still serves them."""
    key = f"{paths.root} at {redact_password(os.environ['PREFECT_API_URL'])}"
    deployed = DEPLOYED.read(paths)
    names = [project]
    for old_name in set(deployed.get(key, [])) - {project}:
        if _has_worker(work_pool_name(old_name)):
            names.append(old_name)
            continue
        with get_client(sync_client=True) as client:
            for flow in FLOWS:
                with contextlib.suppress(ObjectNotFound):
                    client.delete_deployment(client.read_deployment_by_name(f"{flow}/{old_name}").id)
            with contextlib.suppress(ObjectNotFound):
                client.delete_work_pool(work_pool_name(old_name))
        _automate(automation_prefix(old_name), [])
    DEPLOYED.write(paths, {**deployed, key: names})


def _has_worker(pool: str) -> bool:
    with get_client(sync_client=True) as client:
        try:
            path_params = {"work_pool_name": pool}
            response = client.request(
                "POST", "/work_pools/{work_pool_name}/workers/filter", path_params=path_params, json={}
            )
        except ObjectNotFound:
            return False
    return any(worker["status"] == "ONLINE" for worker in response.json())


def _make_pool(pool: str) -> None:
    with get_client(sync_client=True) as client, contextlib.suppress(ObjectAlreadyExists):
        try:
            client.read_work_pool(pool)
        except ObjectNotFound:
            client.create_work_pool(WorkPoolCreate(name=pool, type="process"))


def _automations() -> list[dict[str, Any]]:
    """Return the automations of flows/automations.yaml, with placeholders filled in like those of prefect.yaml."""
    path = Path(__file__).with_name("automations.yaml")
    automations = yaml.safe_load(path.read_text(encoding="utf-8"))["automations"]
    return cast(list[dict[str, Any]], apply_values(automations, {}, remove_notset=False))


def _notifications(project: str) -> list[dict[str, Any]]:
    """Return the automations that notify of failed runs and of model events; none without a notification block."""
    block = _notify_block()
    if block is None:
        return []
    return [
        {
            "name": f"{automation_prefix(project)}notify of failed runs",
            "trigger": {
                **_on_events("prefect.flow-run.Failed", "prefect.flow-run.Crashed", "prefect.flow-run.TimedOut"),
                "match": {"prefect.resource.id": "prefect.flow-run.*"},
                "match_related": {"prefect.resource.id": f"prefect.tag.{work_pool_name(project)}"},
            },
            "actions": [
                _send(
                    block,
                    f"winnow {project}: {{{{ flow.name }}}} {{{{ flow_run.state.name }}}}",
                    "{{ flow_run.name }}: {{ flow_run.state.message }}\n{{ flow_run|ui_url }}",
                )
            ],
        },
        {
            "name": f"{automation_prefix(project)}notify of promotions, approvals and drift",
            "trigger": {
                **_on_events(PROMOTED, DRIFTED, WAITING),
                "match": {"prefect.resource.id": f"winnow.model.{project}"},
            },
            "actions": [_send(block, "winnow: {{ event.resource.name }}", "{{ event.payload.reason }}")],
        },
    ]


def _on_events(*events: str) -> dict[str, Any]:
    """Return a trigger that fires on each of these events."""
    return {"type": "event", "posture": "Reactive", "expect": list(events), "threshold": 1, "within": 0}


def _send(block: str, subject: str, body: str) -> dict[str, Any]:
    return {"type": "send-notification", "block_document_id": block, "subject": subject, "body": body}


def _notify_block() -> str | None:
    with get_client(sync_client=True) as client:
        blocks = _all_pages(
            lambda offset: client.read_block_documents(offset=offset, limit=PAGE, include_secrets=False)
        )
        return next((str(block.id) for block in blocks if block.name == NOTIFY_BLOCK), None)


def _automate(prefix: str, desired: list[dict[str, Any]]) -> None:
    """Replace the automations whose names start with `prefix` by `desired`: update by name, delete the others.

    An unchanged automation is not updated: an update makes it forget the runs that it waits for.
    """
    with get_client(sync_client=True) as client:
        automations = _all_pages(lambda offset: client.read_automations(offset=offset, limit=PAGE))
        existing = {automation.name: automation for automation in automations if automation.name.startswith(prefix)}
        for automation in desired:
            core = AutomationCore.model_validate(automation)
            current = existing.pop(core.name, None)
            if current is None:
                client.create_automation(core)
            elif core.model_dump() != AutomationCore.model_validate(current.model_dump()).model_dump():
                client.update_automation(current.id, core)
        for obsolete in existing.values():
            client.delete_automation(obsolete.id)


def _all_pages(read: Callable[[int], list[Any]]) -> Iterator[Any]:
    """Yield the items of all pages; `read` returns the page at an offset."""
    for offset in itertools.count(0, PAGE):
        page = read(offset)
        yield from page
        if len(page) < PAGE:
            return
