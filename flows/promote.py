"""The flow of promotion: the last winner against the champion; where params.yaml wants it, a person decides.

With `promotion.approval` the run suspends (it holds no process) and its page shows a form with a link to the report.
When it is answered, the run is taken up again, and the body runs a second time from its beginning: so the answer is
looked for first. A run whose time is over fails on Prefect's side; the next run writes down that nobody answered.
"""

from __future__ import annotations

import contextlib
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
from flows.runtime import working
from tasks.events import emit_promoted, emit_waiting
from tasks.project.paths import ProjectPaths, registered_model_name
from tasks.project.run_summary import promotion_lines
from tasks.promote import promote as promote_task
from tasks.registry import approval_decision, approval_request, promotion_state
from tasks.registry.approval_decision import Waiting
from tasks.registry.promotion import ACCURACY, TEST_WARNING
from winnow.config import Config, load_config
from winnow.printable import markdown
from winnow.records import RECORD


class Approval(RunInput):
    """The form. Nothing is filled in: who submits it unread has decided nothing."""

    decision: Literal["approve", "deny"]
    by: str = Field(min_length=1)
    reason: str = Field(min_length=1)


@flow(name="promote", validate_parameters=False, persist_result=True, result_serializer="json")
def promote(root: str = ".") -> list[str]:
    """Let the winner challenge the champion, wait for a person where one is asked; returns the reasons."""
    with working(root) as places:
        return _promote(places)


def _promote(places: ProjectPaths) -> list[str]:
    config = load_config(places.root / "params.yaml")
    run_id = str(runtime.flow_run.id)
    waiting = approval_decision.waiting(places, config)
    # Who answers needs no artifacts: the run may have been resumed in another checkout.
    is_answered_here = waiting is not None and waiting.request.form == run_id
    if not is_answered_here and not (places.artifacts / "select" / RECORD).is_file():
        get_run_logger().info("Nothing was selected yet: there is nothing to promote.")
        return []
    if waiting is None and promotion_state.is_settled(places, config) and not promotion_state.waits(places):
        # A contest that was lost is not measured again: by the hour, noise would win it some day.
        _end_other_forms("")
        return promotion_lines(places)
    if waiting is None or waiting.request.form != run_id:
        reasons: list[str] = promote_task(str(places.root))["reasons"]
        waiting = approval_decision.waiting(places, config)
        if waiting is None or not runtime.deployment.id or _has_form(waiting.request.form):
            _end_other_forms(waiting.request.form if waiting else "")
            artifacts.promotion(reasons)
            return reasons
        approval_request.show_on(places, waiting.model, waiting.version, waiting.request, run_id)
        _end_other_forms(run_id)
        emit_waiting(waiting.model, waiting.version, waiting.request)
    answer = _ask(places, waiting)
    outcome = approval_decision.answer(places, config, answer.decision == "approve", answer.by, answer.reason)
    artifacts.promotion(list(outcome.reasons))
    emit_promoted(outcome, waiting.model)
    return list(outcome.reasons)


def show_form(config: Config) -> None:
    """Have a run of this flow ask now, where the server knows its deployment; else the next hourly one does."""
    with contextlib.suppress(ObjectNotFound):
        run_deployment(f"promote/{registered_model_name(config)}", timeout=0, as_subflow=False)


def close_form(form: str, approve: bool, by: str, reason: str) -> str:
    """Pass an answer that was given elsewhere on to the run that shows the form, which then ends.

    The answer holds already: what goes wrong here is returned as a line for people, and fails nothing.
    """
    answered = {"decision": "approve" if approve else "deny", "by": by, "reason": reason}
    try:
        resume_flow_run(UUID(form), run_input=answered)
    except (NotPausedError, ObjectNotFound, FlowPauseTimeout):
        return ""
    except (RuntimeError, HTTPError) as error:
        return f"Prefect's run {form} still shows the form; cancel it there: {' '.join(str(error).split())[:200]}"
    return ""


def _ask(places: ProjectPaths, waiting: Waiting) -> Any:
    """The person's answer; suspends the run until there is one. Prefect keeps answers by key: one key, one question."""
    tags = waiting.version.tags
    lines = [
        *([f"**Warning:** {markdown(tags[TEST_WARNING])}."] if TEST_WARNING in tags else []),
        f"**{markdown(f'{waiting.version} of {waiting.model}')}** asks to become champion.",
        *([f"Accuracy: {markdown(tags[ACCURACY])}."] if ACCURACY in tags else []),
        f"What it showed: {markdown(waiting.request.why)}.",
        *artifacts.link_lines(places),
        "The reason stays with the model.",
    ]
    form = Approval.with_initial_data(description="\n\n".join(lines))
    seconds = math.ceil(max(1.0, waiting.request.seconds_left))
    question = "".join(filter(str.isdigit, waiting.request.asked))
    return suspend_flow_run(wait_for_input=form, timeout=seconds, key=f"version-{waiting.version.number}-{question}")


def _end_other_forms(form: str) -> None:
    """Cancel runs that show a form about a challenger of which nobody asks any more; `form` is the one to keep."""
    if not runtime.deployment.id:
        return
    suspended = FlowRunFilter(
        deployment_id=FlowRunFilterDeploymentId(any_=[UUID(runtime.deployment.id)]),
        state=FlowRunFilterState(name=FlowRunFilterStateName(any_=["Suspended"])),
    )
    with get_client(sync_client=True) as client:
        for run in client.read_flow_runs(flow_run_filter=suspended):
            if str(run.id) not in {form, runtime.flow_run.id}:
                client.set_flow_run_state(run.id, Cancelled(message="This is not asked any more."))


def _has_form(form: str) -> bool:
    """Whether the run that shows the form is still there to be answered."""
    if not form:
        return False
    with get_client(sync_client=True) as client:
        try:
            state = client.read_flow_run(UUID(form)).state
        except ObjectNotFound:
            return False
    return state is not None and not state.is_final()
