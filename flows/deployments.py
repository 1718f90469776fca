"""What Prefect's server must know before anything runs by itself: pool, slots, automations, deployments.

`set_up` may be repeated; afterwards the server holds what prefect.yaml and flows/automations.yaml say. A team's server
knows several projects: pool, deployments and automations carry the project's name (that of its registered model, in
those files as WINNOW_PROJECT), and automations act on runs with its tag alone.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any, cast

import yaml

from tasks.events import DRIFTED, PROMOTED, WAITING
from tasks.project import gpu_slots
from tasks.project.paths import ProjectPaths, registered_model_name
from tasks.project.state_files import read_memory
from tasks.tracking.tracked_runs import without_password
from winnow.config import load_config
from winnow.errors import WinnowError
from winnow.records import write_json

PROJECT = "WINNOW_PROJECT"
FLOWS = ("winnow", "promote", "drift")
NOTIFY_BLOCK = "winnow-notify"
"""Name of the notification block (of any kind) that a person makes to be told."""
PAGE = 200
"""How many blocks or automations Prefect's server hands out at once."""


def pool_of(project: str) -> str:
    """The work pool whose runs work in this project's checkout."""
    return f"winnow-{project}"


def prefix_of(project: str) -> str:
    """Automations whose names begin so are this project's."""
    return f"winnow {project}: "


def set_up(places: ProjectPaths) -> str:
    """Bring the server at PREFECT_API_URL up to date and return the name of the project's work pool.

    Raises WinnowError when the server does not answer, or does not take a deployment.
    """
    from httpx import HTTPError
    from prefect.exceptions import PrefectHTTPStatusError

    try:
        return _set_up(places)
    except (HTTPError, PrefectHTTPStatusError) as error:
        told = " ".join(str(error).split())[:300]
        raise WinnowError(
            f"Prefect at {without_password(os.environ['PREFECT_API_URL'])} does not answer as it should: {told}\n"
            "See PREFECT_API_URL and PREFECT_API_AUTH_STRING, and whether the server is up"
        ) from error


def _set_up(places: ProjectPaths) -> str:
    project = registered_model_name(load_config(places.root / "params.yaml"))
    os.environ[PROJECT] = project  # for what both files leave open
    _forget_former(places, project)
    _make_pool(pool_of(project))
    gpu_slots.ensure(gpu_slots.GPU)
    _automate(prefix_of(project), [*_automations(places), *_notifications(project)])
    result = subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"],
        cwd=places.root,
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode != 0:
        told = "\n".join((result.stdout + result.stderr).strip().splitlines()[-12:])
        raise WinnowError(f"Prefect does not take the deployments of {places.root / 'prefect.yaml'}:\n{told}")
    return pool_of(project)


def _forget_former(places: ProjectPaths, project: str) -> None:
    """Take what this checkout had deployed under other names off the server, unless a worker still works at it."""
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound

    path, key = (
        places.state_dir / "deployed.json",
        f"{places.root} at {without_password(os.environ['PREFECT_API_URL'])}",
    )
    known: dict[str, list[str]] = read_memory(path, dict[str, list[str]], {})
    left = [project]
    for former in set(known.get(key, [])) - {project}:
        if _has_worker(pool_of(former)):
            left.append(former)
            continue
        with get_client(sync_client=True) as client:
            for flow in FLOWS:
                with contextlib.suppress(ObjectNotFound):
                    client.delete_deployment(client.read_deployment_by_name(f"{flow}/{former}").id)
            with contextlib.suppress(ObjectNotFound):
                client.delete_work_pool(pool_of(former))
        _automate(prefix_of(former), [])
    write_json(path, {**known, key: left})


def _has_worker(pool: str) -> bool:
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound

    with get_client(sync_client=True) as client:
        try:
            where = {"work_pool_name": pool}
            found = client.request("POST", "/work_pools/{work_pool_name}/workers/filter", path_params=where, json={})
        except ObjectNotFound:
            return False
    return any(worker["status"] == "ONLINE" for worker in found.json())


def _make_pool(pool: str) -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound

    with get_client(sync_client=True) as client, contextlib.suppress(ObjectAlreadyExists):
        try:
            client.read_work_pool(pool)
        except ObjectNotFound:
            client.create_work_pool(WorkPoolCreate(name=pool, type="process"))


def _automations(places: ProjectPaths) -> list[dict[str, Any]]:
    """Those of the project's file, filled in as Prefect fills in prefect.yaml."""
    from prefect.utilities.templating import apply_values

    path = places.root / "flows" / "automations.yaml"
    listed = yaml.safe_load(path.read_text(encoding="utf-8"))["automations"]
    return cast(list[dict[str, Any]], apply_values(listed, {}, remove_notset=False))


def _notifications(project: str) -> list[dict[str, Any]]:
    """One for failures and one for what becomes of models, where a block says whom to tell."""
    block = _notify_block()
    if block is None:
        return []
    return [
        {
            "name": f"{prefix_of(project)}tell of runs that failed",
            "trigger": {
                **_each("prefect.flow-run.Failed", "prefect.flow-run.Crashed", "prefect.flow-run.TimedOut"),
                "match": {"prefect.resource.id": "prefect.flow-run.*"},
                "match_related": {"prefect.resource.id": f"prefect.tag.{pool_of(project)}"},
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
            "name": f"{prefix_of(project)}tell of promotions, approvals and drift",
            "trigger": {
                **_each(PROMOTED, DRIFTED, WAITING),
                "match": {"prefect.resource.id": f"winnow.model.{project}"},
            },
            "actions": [_send(block, "winnow: {{ event.resource.name }}", "{{ event.payload.reason }}")],
        },
    ]


def _each(*events: str) -> dict[str, Any]:
    """A trigger for every single one of these events."""
    return {"type": "event", "posture": "Reactive", "expect": list(events), "threshold": 1, "within": 0}


def _send(block: str, subject: str, body: str) -> dict[str, Any]:
    return {"type": "send-notification", "block_document_id": block, "subject": subject, "body": body}


def _notify_block() -> str | None:
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        found = _all(lambda offset: client.read_block_documents(offset=offset, limit=PAGE, include_secrets=False))
        return next((str(block.id) for block in found if block.name == NOTIFY_BLOCK), None)


def _automate(mine: str, wanted: list[dict[str, Any]]) -> None:
    """Those whose names begin with `mine` become `wanted`: the same name is updated, others are removed.

    One that is as wanted is left alone: an update makes it forget the runs that it is waiting for.
    """
    from prefect.automations import AutomationCore
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        found = _all(lambda offset: client.read_automations(offset=offset, limit=PAGE))
        known = {automation.name: automation for automation in found if automation.name.startswith(mine)}
        for automation in wanted:
            core = AutomationCore.model_validate(automation)
            there = known.pop(core.name, None)
            if there is None:
                client.create_automation(core)
            elif core.model_dump() != AutomationCore.model_validate(there.model_dump()).model_dump():
                client.update_automation(there.id, core)
        for left in known.values():
            client.delete_automation(left.id)


def _all(read: Callable[[int], list[Any]]) -> Iterator[Any]:
    """Page after page of what `read` hands out from an offset on."""
    for offset in itertools.count(0, PAGE):
        page = read(offset)
        yield from page
        if len(page) < PAGE:
            return
