"""Approval requests: manual approval before the champion changes, stored with the challenger's version.

    asked      it won against the champion and waits for an answer, for `promotion.approval_hours`
    approved   it becomes champion, as long as the champion that it was compared with has not changed
    denied     it does not become champion; the reason is stored
    expired    there was no decision in time; it does not become champion
    superseded another challenger came before the answer

A version that was denied or has expired can still be approved (`winnow approve`); `winnow promote --replace` compares
it with the champion again and requests approval again. A request is JSON in the version's tag `winnow.approval`, so
every machine sees the same. Nothing here moves an alias.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Literal

from tasks.project.paths import ProjectPaths
from tasks.registry import registered_models
from tasks.registry.registered_models import CHALLENGER, ModelVersion
from tasks.tracking.tags import APPROVAL_TAG, REASON_TAG
from winnow.errors import ArtifactError, WinnowError

RequestState = Literal["asked", "approved", "denied", "expired", "superseded"]


@dataclass(frozen=True)
class ApprovalRequest:
    """A request for approval and its answer."""

    state: RequestState
    champion: str | None
    """The version of the champion that it won against; None where there was no champion."""
    why: str
    """The result of the comparison."""
    asked: str
    until: str
    """`asked` and `until` are UTC times in ISO 8601."""
    form: str = ""
    """The id of the Prefect flow run that shows the form."""
    answer: str = ""
    """The decision for users: by whom, when and why."""

    @property
    def seconds_left(self) -> float:
        """The seconds until the request expires; 0 afterwards."""
        return max(0.0, (datetime.fromisoformat(self.until) - _now()).total_seconds())

    @property
    def words(self) -> str:
        """The state for users."""
        if self.state == "asked":
            until = datetime.fromisoformat(self.until).astimezone()
            commands = "winnow approve --version N, winnow deny --version N, or Prefect's form"
            return f"waits for approval until {until:%Y-%m-%d %H:%M %Z} ({commands})"
        return f"{self.state if self.state in ('approved', 'denied') else 'not approved'} {self.answer}"


def parse_request(version: ModelVersion) -> ApprovalRequest | None:
    """Return the request stored with a version, or None. Raises ArtifactError where the tag is damaged."""
    if APPROVAL_TAG not in version.tags:
        return None
    try:
        return ApprovalRequest(**json.loads(version.tags[APPROVAL_TAG]))
    except (ValueError, TypeError) as error:
        raise ArtifactError(
            f"the tag {APPROVAL_TAG} of {version} is damaged; delete it in MLflow to create a new request"
        ) from error


def read_request(paths: ProjectPaths, model: str, version: ModelVersion) -> ApprovalRequest | None:
    """Return the request of a version, or None; mark it as expired where its time is over."""
    request = parse_request(version)
    if request and request.state == "asked" and request.seconds_left == 0:
        asked = datetime.fromisoformat(request.asked).astimezone()
        expired = replace(request, state="expired", answer=f"in time: no decision since {asked:%Y-%m-%d %H:%M %Z}")
        _write(paths, model, version, expired)
        return expired
    return request


def create_request(
    paths: ProjectPaths, model: str, version: ModelVersion, champion: ModelVersion | None, why: str, hours: float
) -> ApprovalRequest:
    """Create a request, which replaces an earlier one of the version."""
    now = _now()
    request = ApprovalRequest(
        state="asked",
        champion=champion.number if champion else None,
        why=why,
        asked=now.isoformat(timespec="seconds"),
        until=(now + timedelta(hours=hours)).isoformat(timespec="seconds"),
    )
    _write(paths, model, version, request)
    return request


def supersede(paths: ProjectPaths, model: str, successor: ModelVersion) -> None:
    """Mark an open request of the present challenger as superseded."""
    previous = registered_models.find(paths, model, CHALLENGER)
    if previous is None or previous.number == successor.number:
        return
    with contextlib.suppress(ArtifactError):  # a damaged request is not open
        request = parse_request(previous)
        if request and request.state == "asked":
            answer = f"before {successor} took its place as challenger"
            _write(paths, model, previous, replace(request, state="superseded", answer=answer))


def set_form(paths: ProjectPaths, model: str, version: ModelVersion, request: ApprovalRequest, form: str) -> None:
    """Store the id of the Prefect flow run that shows the form."""
    registered_models.annotate(paths, model, version, {APPROVAL_TAG: json.dumps(asdict(replace(request, form=form)))})


def answer_request(
    paths: ProjectPaths, model: str, version: ModelVersion, approve: bool, by: str, reason: str
) -> ApprovalRequest:
    """Store the answer. Raises WinnowError without an open request, or for a denial without a reason."""
    request, reason = parse_request(version), reason.strip()
    if request is None or request.state == "approved":
        state = f"was approved already ({request.answer})" if request else "does not wait for approval"
        raise WinnowError(f"{version} of {model} {state}; `winnow promote` shows the champion")
    if approve and request.state == "denied" and not reason:
        raise WinnowError(f"{version} of {model} was denied {request.answer}. To approve it now, give a --reason")
    if not approve and not reason:
        raise WinnowError("a denial needs a reason, which is stored with the model")
    answer_text = f"by {by} on {_now().astimezone():%Y-%m-%d %H:%M %Z}" + (f": {reason}" if reason else "")
    answered = replace(request, state="approved" if approve else "denied", answer=answer_text)
    _write(paths, model, version, answered)
    return answered


def _write(paths: ProjectPaths, model: str, version: ModelVersion, request: ApprovalRequest) -> None:
    text = request.words
    registered_models.annotate(
        paths, model, version, {APPROVAL_TAG: json.dumps(asdict(request)), REASON_TAG: f"{request.why}; {text}"}, text
    )


def _now() -> datetime:
    return datetime.now(UTC)
