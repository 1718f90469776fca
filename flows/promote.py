"""The promotion flow: the last winner challenges the champion; with `promotion.approval` a person decides.

With `promotion.approval` the run suspends, which needs no process, and its page in Prefect shows a form with a link to
the report. Once answered, the run resumes: its body runs again from the beginning, so it looks for the answer first.
A run that times out fails in Prefect; the next run records that there was no decision.
"""

from __future__ import annotations

import math
from typing import Any, Literal
from uuid import UUID

from httpx import HTTPError
from prefect import flow, runtime
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterState,
    FlowRunFilterStateName,
)
from prefect.deployments import run_deployment
from prefect.exceptions import FlowPauseTimeout, NotPausedError, ObjectNotFound
from prefect.flow_runs import resume_flow_run, suspend_flow_run
from prefect.input import RunInput
from prefect.logging import get_run_logger
from prefect.states import Cancelled
from pydantic import Field

from flows import artifacts
from flows.runtime import locked_project
from tasks.model_events import emit_promoted, emit_waiting
from tasks.project.paths import ProjectPaths, registered_model_name
from tasks.project.run_summary import promotion_lines
from tasks.promote import promote as promote_task
from tasks.registry import approval_decision, approval_request, promotion_state
from tasks.registry.approval_decision import PendingApproval
from tasks.tracking.tags import ACCURACY_TAG, TEST_WARNING_TAG
from winnow.config import Config, load_config
from winnow.printable import markdown
from winnow.records import RECORD


class Approval(RunInput):
    """The approval form. It has no default decision, so that it cannot be submitted unread."""

    decision: Literal["approve", "deny"]
    by: str = Field(min_length=1)
    reason: str = Field(min_length=1)


@flow(name="promote", validate_parameters=False, persist_result=True, result_serializer="json")
def promote(root: str = ".") -> list[str]:
    """Let the winner challenge the champion, wait for approval where required, and return the reasons."""
    with locked_project(root) as paths:
        return _promote(paths)


def _promote(paths: ProjectPaths) -> list[str]:
    config = load_config(paths.root / "params.yaml")
    run_id = str(runtime.flow_run.id)
    waiting = approval_decision.pending_approval(paths, config)
    # An answer needs no artifacts: the run may have been resumed in another checkout.
    is_answered_here = waiting is not None and waiting.request.form == run_id
    if not is_answered_here and not (paths.artifacts / "select" / RECORD).is_file():
        get_run_logger().info("There is no selection yet, so nothing is promoted.")
        return []
    if (
        waiting is None
        and promotion_state.is_up_to_date(paths, config)
        and not promotion_state.is_awaiting_approval(paths)
    ):
        # A lost comparison is not repeated: repeated every hour, noise would win it eventually.
        _end_other_forms("")
        return promotion_lines(paths)
    if waiting is None or waiting.request.form != run_id:
        reasons: list[str] = promote_task(str(paths.root))["reasons"]
        waiting = approval_decision.pending_approval(paths, config)
        if waiting is None or not runtime.deployment.id or _has_form(waiting.request.form):
            _end_other_forms(waiting.request.form if waiting else "")
            artifacts.create_promotion_artifact(reasons)
            return reasons
        approval_request.set_form(paths, waiting.model, waiting.version, waiting.request, run_id)
        _end_other_forms(run_id)
        emit_waiting(waiting.model, waiting.version, waiting.request)
    answer = _ask(paths, waiting)
    is_approved = answer.decision == "approve"
    outcome = approval_decision.decide(
        paths, config, is_approved, answer.by, answer.reason, expected=waiting.version.number
    )
    artifacts.create_promotion_artifact(list(outcome.reasons))
    emit_promoted(outcome, waiting.model)
    return list(outcome.reasons)


def show_form(config: Config) -> str:
    """Start a run of this flow that shows the form, where the flow is deployed; return "" or a warning.

    The request is stored already, so an error here is only a warning: the next hourly run shows the form.
    """
    try:
        run_deployment(f"promote/{registered_model_name(config)}", timeout=0, as_subflow=False)
    except ObjectNotFound:
        return ""
    except (RuntimeError, HTTPError) as error:
        reason = " ".join(str(error).split())[:200]
        return f"Prefect does not show the form yet: {reason}; the next hourly run shows it"
    return ""


def close_form(form: str, approve: bool, by: str, reason: str) -> str:
    """Pass an answer given elsewhere to the run that shows the form, so that it ends; return "" or a warning.

    The answer is stored already, so an error here is only a warning.
    """
    answer = {"decision": "approve" if approve else "deny", "by": by, "reason": reason}
    try:
        resume_flow_run(UUID(form), run_input=answer)
    except (NotPausedError, ObjectNotFound, FlowPauseTimeout):
        return ""
    except (RuntimeError, HTTPError) as error:
        return f"Prefect's run {form} still shows the form; cancel it there: {' '.join(str(error).split())[:200]}"
    return ""


def _ask(paths: ProjectPaths, waiting: PendingApproval) -> Any:
    """Suspend the run until the form is answered, and return the answer. Prefect stores answers by key."""
    tags = waiting.version.tags
    lines = [
        *([f"**Warning:** {markdown(tags[TEST_WARNING_TAG])}."] if TEST_WARNING_TAG in tags else []),
        f"**{markdown(f'{waiting.version} of {waiting.model}')}** is waiting for approval as champion.",
        *([f"Accuracy: {markdown(tags[ACCURACY_TAG])}."] if ACCURACY_TAG in tags else []),
        f"Result of the comparison: {markdown(waiting.request.why)}.",
        *artifacts.link_lines(paths),
        "The reason is stored with the model version.",
    ]
    form = Approval.with_initial_data(description="\n\n".join(lines))
    seconds = math.ceil(max(1.0, waiting.request.seconds_left))
    question = "".join(filter(str.isdigit, waiting.request.asked))
    return suspend_flow_run(wait_for_input=form, timeout=seconds, key=f"version-{waiting.version.number}-{question}")


def _end_other_forms(form: str) -> None:
    """Cancel suspended runs whose form is obsolete; `form` is the id of the run to keep."""
    if not runtime.deployment.id:
        return
    suspended = FlowRunFilter(
        deployment_id=FlowRunFilterDeploymentId(any_=[UUID(runtime.deployment.id)]),
        state=FlowRunFilterState(name=FlowRunFilterStateName(any_=["Suspended"])),
    )
    with get_client(sync_client=True) as client:
        for run in client.read_flow_runs(flow_run_filter=suspended):
            if str(run.id) not in {form, runtime.flow_run.id}:
                client.set_flow_run_state(run.id, Cancelled(message="This approval is no longer needed."))


def _has_form(form: str) -> bool:
    """Return whether the run with this id still shows its form."""
    if not form:
        return False
    with get_client(sync_client=True) as client:
        try:
            state = client.read_flow_run(UUID(form)).state
        except ObjectNotFound:
            return False
    return state is not None and not state.is_final()
