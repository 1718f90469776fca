"""A person's word before the champion changes: asked for, given and kept on the challenger's version.

    asked      it won against the champion, and nobody has answered; open for `promotion.approval_hours`
    approved   it may become champion, as long as the one that it won against still serves
    denied     it stays out, and the reason stays with it
    expired    nobody answered in time; it stays out
    superseded another challenger came before anybody answered

A version that was denied or has expired is asked for again only by `winnow promote --replace`. What a request says is
one JSON text in the version's tag `winnow.approval`, so it reads the same from every machine. Nothing here moves an
alias.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Literal

from tasks.project.paths import ProjectPaths
from tasks.registry import registered_models
from tasks.registry.registered_models import Version
from winnow.errors import ArtifactError, WinnowError

TAG, REASON = "winnow.approval", "winnow.reason"
State = Literal["asked", "approved", "denied", "expired", "superseded"]


@dataclass(frozen=True)
class Request:
    """What was asked of whom, and what came of it."""

    state: State
    champion: str | None
    """The version that serves and that it won against; None where nothing served."""
    why: str
    """What the contest found."""
    asked: str
    until: str
    """Both in ISO form, UTC."""
    form: str = ""
    """The run of Prefect's that shows the form."""
    answer: str = ""
    """Who answered, when and why."""

    @property
    def seconds_left(self) -> float:
        """Until the request expires; 0 when it is over."""
        return max(0.0, (datetime.fromisoformat(self.until) - _now()).total_seconds())

    @property
    def words(self) -> str:
        """For people."""
        if self.state == "asked":
            until = datetime.fromisoformat(self.until).astimezone()
            return (
                f"waits for approval until {until:%Y-%m-%d %H:%M %Z} (winnow approve, winnow deny, or Prefect's form)"
            )
        return f"{self.state if self.state in ('approved', 'denied') else 'not approved'} {self.answer}"


def stored(version: Version) -> Request | None:
    """The version's request as it was written, if one was made; raises ArtifactError where it cannot be read."""
    if TAG not in version.tags:
        return None
    try:
        return Request(**json.loads(version.tags[TAG]))
    except (ValueError, TypeError) as error:
        raise ArtifactError(f"the tag {TAG} of {version} is damaged; delete it in MLflow to ask anew") from error


def read(places: ProjectPaths, model: str, version: Version) -> Request | None:
    """The version's request; one whose time is over is written down as expired."""
    request = stored(version)
    if request and request.state == "asked" and request.seconds_left == 0:
        asked = datetime.fromisoformat(request.asked).astimezone()
        expired = replace(request, state="expired", answer=f"in time: nobody answered since {asked:%Y-%m-%d %H:%M %Z}")
        _write(places, model, version, expired)
        return expired
    return request


def ask(
    places: ProjectPaths, model: str, version: Version, champion: Version | None, why: str, hours: float
) -> Request:
    """Open a request; one that was there before is replaced."""
    now = _now()
    request = Request(
        state="asked",
        champion=champion.number if champion else None,
        why=why,
        asked=now.isoformat(timespec="seconds"),
        until=(now + timedelta(hours=hours)).isoformat(timespec="seconds"),
    )
    _write(places, model, version, request)
    return request


def supersede(places: ProjectPaths, model: str, former: Version, by: Version) -> None:
    """Nobody is asked about `former` any more; its own tag says so."""
    with contextlib.suppress(ArtifactError):  # one that cannot be read asks nobody
        request = stored(former)
        if request and request.state == "asked":
            answer = f"before {by} took its place as challenger"
            _write(places, model, former, replace(request, state="superseded", answer=answer))


def show_on(places: ProjectPaths, model: str, version: Version, request: Request, form: str) -> None:
    """Note which run of Prefect's shows the form."""
    registered_models.note(places, model, version, {TAG: json.dumps(asdict(replace(request, form=form)))})


def answer(places: ProjectPaths, model: str, version: Version, approve: bool, who: str, reason: str) -> Request:
    """Write the answer down. Raises WinnowError where nothing was asked, or a denial names no reason."""
    request = stored(version)
    if request is None or request.state == "approved":
        state = f"was approved already ({request.answer})" if request else "waits for no approval"
        raise WinnowError(f"{version} of {model} {state}; `winnow promote` says what serves")
    if approve and request.state == "denied" and not reason:
        raise WinnowError(f"{version} of {model} was denied {request.answer}. To turn that round, give a --reason")
    if not approve and not reason:
        raise WinnowError("a denial needs a reason: it stays with the model")
    told = f"by {who} on {_now().astimezone():%Y-%m-%d %H:%M %Z}" + (f": {reason}" if reason else "")
    answered = replace(request, state="approved" if approve else "denied", answer=told)
    _write(places, model, version, answered)
    return answered


def _write(places: ProjectPaths, model: str, version: Version, request: Request) -> None:
    text = request.words
    registered_models.note(
        places, model, version, {TAG: json.dumps(asdict(request)), REASON: f"{request.why}; {text}"}, text
    )


def _now() -> datetime:
    return datetime.now(UTC)
