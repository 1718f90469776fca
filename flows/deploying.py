"""What Prefect's server must know before anything runs by itself: pool, slots, automations, deployments.

`set_up` may be repeated; afterwards the server holds what prefect.yaml and flows/automations.yaml say.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import yaml

from tasks import slots
from tasks.settings import OWNER, Places
from tasks.stages import DRIFTED, PROMOTED
from winnow.errors import WinnowError

POOL = "winnow"
NOTIFY_BLOCK = "winnow-notify"
"""Name of the notification block (of any kind) that a person makes to be told."""
MINE = "winnow: "
"""Automations whose names begin so are ours to change."""


def enter_checkout() -> dict[str, str]:
    """The pull step of every deployment: a run works in the checkout of the worker that took it."""
    os.chdir(os.environ[OWNER])
    return {"directory": os.environ[OWNER]}


def set_up(places: Places) -> None:
    """Bring the server at PREFECT_API_URL up to date; raises WinnowError when it does not take a deployment."""
    _make_pool()
    slots.ensure(slots.GPU)
    _automate([*_automations(places), *_notifications()])
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


def _make_pool() -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectNotFound

    with get_client(sync_client=True) as client:
        try:
            client.read_work_pool(POOL)
        except ObjectNotFound:
            client.create_work_pool(WorkPoolCreate(name=POOL, type="process"))


def _automations(places: Places) -> list[dict[str, Any]]:
    """Those of the project's file."""
    path = places.root / "flows" / "automations.yaml"
    listed: list[dict[str, Any]] = yaml.safe_load(path.read_text(encoding="utf-8"))["automations"]
    return listed


def _notifications() -> list[dict[str, Any]]:
    """One for failures and one for promotions and drift, where a block says whom to tell."""
    block = _notify_block()
    if block is None:
        return []
    return [
        _notification(
            block,
            "runs that failed",
            ["prefect.flow-run.Failed", "prefect.flow-run.Crashed", "prefect.flow-run.TimedOut"],
            "prefect.flow-run.*",
            "winnow: {{ flow.name }} {{ flow_run.state.name }}",
            "{{ flow_run.name }}: {{ flow_run.state.message }}\n{{ flow_run|ui_url }}",
        ),
        _notification(
            block,
            "promotions and drift",
            [PROMOTED, DRIFTED],
            "winnow.model.*",
            "winnow: {{ event.resource.name }}",
            "{{ event.payload.reason }}",
        ),
    ]


def _notification(block: str, what: str, events: list[str], resource: str, subject: str, body: str) -> dict[str, Any]:
    """An automation that sends each of these events on."""
    return {
        "name": f"{MINE}tell of {what}",
        "trigger": {
            "type": "event",
            "posture": "Reactive",
            "expect": events,
            "match": {"prefect.resource.id": resource},
            "threshold": 1,
            "within": 0,
        },
        "actions": [{"type": "send-notification", "block_document_id": block, "subject": subject, "body": body}],
    }


def _notify_block() -> str | None:
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        found = client.read_block_documents()
    return next((str(block.id) for block in found if block.name == NOTIFY_BLOCK), None)


def _automate(wanted: list[dict[str, Any]]) -> None:
    """Ours become `wanted`: the same name is updated, others of ours are removed."""
    from prefect.automations import AutomationCore
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        known = {found.name: found.id for found in client.read_automations() if found.name.startswith(MINE)}
        for automation in wanted:
            core = AutomationCore.model_validate(automation)
            if (there := known.pop(core.name, None)) is not None:
                client.update_automation(there, core)
            else:
                client.create_automation(core)
        for left in known.values():
            client.delete_automation(left)
