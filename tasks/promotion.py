"""From the winner of a run to what serves: register it, let it challenge the champion, move the alias or say why not.

    nobody passed the gates           nothing is registered, the champion stays
    the winner is the champion        nothing to do
    the winner was rolled back        it stays out until `winnow promote --replace`
    there is no champion              the winner becomes it
    the two cannot be compared        the champion stays, or is replaced by `--replace`
    otherwise                         both are measured side by side (tasks/challenge.py)
    it won, and promotion.approval    a person is asked (tasks/approval.py); once approved, it becomes champion

Each operation may be repeated: a version that was registered before a crash is found by its file, and `champion` moves
last, after the reasons are written and `previous` is set. .winnow/promoted.json keeps what was settled, for which
selection and at which address, so that an unchanged `winnow run` asks nobody. Two promotions at once are not locked
against each other; the champion is looked up again just before it is moved.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from tasks import approval, registry, tracked, tracking
from tasks.approval import REASON, Request
from tasks.projection import data_version
from tasks.registry import CARD, CHALLENGER, CHAMPION, PREVIOUS, Version
from tasks.settings import Places, registered_model_name
from winnow.config import Config
from winnow.errors import ArtifactError, WinnowError
from winnow.model_file import MODEL
from winnow.records import RECORD, StepRecord, read_json, read_record, record_digest, sha256_of, write_json
from winnow.selection import SERVES

PROMOTED = "promoted.json"
ROLLED_BACK, REPLACED, SINCE = "winnow.rolled_back", "winnow.replaced", "winnow.champion_since"


@dataclass(frozen=True)
class Outcome:
    """What `promote` did."""

    reasons: tuple[str, ...]
    """At least one; the last says what became of the champion."""
    winner: str | None = None
    sha256: str | None = None
    version: str | None = None
    """The winner's, where it has one."""
    alias: str | None = None
    """champion or challenger; None where the winner did not come so far."""
    champion: str | None = None
    """The version that serves now."""
    waits: Request | None = None
    """What a person is asked, where the winner waits for an answer."""
    is_new: bool = False
    """Whether the champion has changed."""


def promote(places: Places, config: Config, replace: bool = False) -> Outcome:
    """Register the winner of the last selection and let it challenge the champion."""
    selection, model = read_record(places.artifacts / "select"), registered_model_name(config)
    champion = registry.find(places, model, CHAMPION)
    winner: str | None = selection.details["winner"]
    if winner is None:
        stays = f"{champion} stays champion of {model}" if champion else f"{model} has no champion yet"
        reason = f"nothing is promoted: {selection.details['why']}; {stays}"
        outcome = Outcome((reason,), champion=_number(champion))
    else:
        outcome = _promote_winner(places, config, selection, winner, champion, replace)
    if outcome.waits is None:
        _remember(places, model, record_digest(places.artifacts / "select"), outcome)
    return outcome


def _promote_winner(
    places: Places, config: Config, selection: StepRecord, winner: str, champion: Version | None, replace: bool
) -> Outcome:
    model = registered_model_name(config)
    folder, sha256 = _checked(places, selection, winner)
    if champion and champion.sha256 == sha256:
        return Outcome(
            (f"{winner} is the champion of {model} already: {champion} is the same file",),
            *(winner, sha256, champion.number, CHAMPION, champion.number),
        )
    known = registry.find_file(places, model, sha256)
    if known and ROLLED_BACK in known.tags and not replace:
        why = (
            f"{known} of {model} was rolled back ({known.tags[ROLLED_BACK]}) and is not promoted again "
            "unless by `winnow promote --replace`"
        )
        return Outcome((why,), winner, sha256, known.number, None, _number(champion))
    card = _card(places, config, selection, winner)
    run_id = tracking.candidate_run(places, config, winner)
    version = registry.register(places, config, folder, card, run_id)
    registry.set_alias(places, model, CHALLENGER, version.number)
    registered = f"{winner} is version {version.number} of {model}"
    request = None if replace else _request(places, config, version, champion)
    if request is None:
        passed, reason = _contest(places, config, champion, (folder, card), replace)
        _write_reason(places, model, version, run_id, reason)
        if not passed:
            last = f"{champion} stays champion: {reason}"
            return Outcome((registered, last), winner, sha256, version.number, CHALLENGER, _number(champion))
        if config.promotion.approval:
            request = approval.ask(places, model, version, champion, reason, config.promotion.approval_hours)
    if request and request.state != "approved":
        stays = f"{champion} stays champion" if champion else f"{model} has no champion yet"
        last = f"{version} {request.words}; {stays}. What it showed: {request.why}"
        waits = request if request.state == "asked" else None
        return Outcome((registered, last), winner, sha256, version.number, CHALLENGER, _number(champion), waits)
    if request:
        reason = f"{request.why}; {request.words}"
    _crown(places, model, version, champion)
    last = f"{version} is the new champion: {reason}"
    return Outcome((registered, last), winner, sha256, version.number, CHAMPION, version.number, is_new=True)


def _request(places: Places, config: Config, version: Version, champion: Version | None) -> Request | None:
    """What was asked about this version against the champion of today. A denial holds, also where nobody asks now."""
    request = approval.read(places, registered_model_name(config), version)
    if request is None or request.champion != _number(champion):
        return None
    return request if config.promotion.approval or request.state == "denied" else None


@dataclass(frozen=True)
class Waiting:
    """A challenger about which a person is asked."""

    model: str
    version: Version
    request: Request


def waiting(places: Places, config: Config) -> Waiting | None:
    """The challenger that waits for an answer against the champion of today, if there is one."""
    model = registered_model_name(config)
    challenger, champion = registry.find(places, model, CHALLENGER), registry.find(places, model, CHAMPION)
    request = approval.stored(challenger) if challenger else None
    if challenger is None or request is None or request.state != "asked" or request.champion != _number(champion):
        return None
    return Waiting(model, challenger, request)


def answer(places: Places, config: Config, approve: bool, who: str, reason: str) -> Outcome:
    """A person's word on the challenger: it becomes champion, or stays out. Needs the registry alone, no artifacts."""
    model = registered_model_name(config)
    challenger, champion = registry.find(places, model, CHALLENGER), registry.find(places, model, CHAMPION)
    if challenger is None:
        raise WinnowError(f"{model} has no challenger, so there is nothing to approve; winnow run makes one")
    request = approval.stored(challenger)
    if approve and request and request.state != "approved" and request.champion != _number(champion):
        raise WinnowError(f"the champion of {model} has changed since approval was asked for; run winnow promote")
    request = approval.answer(places, model, challenger, approve, who, reason)
    if approve:
        _crown(places, model, challenger, champion)
        told = f"{challenger} is the new champion: {request.why}; {request.words}"
    else:
        told = f"{challenger} {request.words}; {champion or 'nobody'} stays champion"
    return Outcome(
        (told,),
        *(challenger.candidate, challenger.sha256, challenger.number),
        CHAMPION if approve else CHALLENGER,
        _number(challenger if approve else champion),
        is_new=approve,
    )


def _number(version: Version | None) -> str | None:
    return version.number if version else None


def _checked(places: Places, selection: StepRecord, winner: str) -> tuple[Path, str]:
    """The winner's folder and the digest of its file, if they are what was selected."""
    folder = places.artifacts / "candidates" / winner
    if selection.inputs.get(winner) != record_digest(folder):
        raise ArtifactError(f"{folder} has changed since it was selected; run winnow again")
    if selection.inputs.get("benchmark") != record_digest(places.artifacts / "benchmark"):
        raise ArtifactError(f"{places.artifacts / 'benchmark'} has changed since the selection; run winnow again")
    sha256 = sha256_of(folder / MODEL) if (folder / MODEL).is_file() else "missing"
    if sha256 not in {artifact.sha256 for artifact in read_record(folder).artifacts if artifact.name == MODEL}:
        raise ArtifactError(f"{folder / MODEL} is not the file of its record; delete {folder} and run winnow again")
    return folder, sha256


def _card(places: Places, config: Config, selection: StepRecord, winner: str) -> dict[str, Any]:
    """The candidate's card with what only the whole run knows: speed, machine, how to serve it, data version, why."""
    benchmark, objective = read_record(places.artifacts / "benchmark"), config.promotion.objective
    best = benchmark.details["best"][winner][SERVES[objective]]
    if best is None or benchmark.machine is None:
        raise ArtifactError(f"{winner} was timed on no runtime, so nobody knows how to serve it; run winnow again")
    serving = {key: best[key] for key in ("runtime", "precision", "threads", "batch", "p50_ms")}
    return {
        **read_json(places.artifacts / "candidates" / winner / CARD),
        "serving": {**serving, "objective": objective},
        "speed": benchmark.details["candidates"][winner],
        "machine": benchmark.machine.model_dump(mode="json"),
        "data_version": data_version(places),
        "split": _split(read_record(places.artifacts / "data")),
        "why": selection.details["why"],
    }


def _split(data: StepRecord) -> dict[str, float]:
    """The shares that decide which images validate; a test set that the source names needs none."""
    keys = ["validation_fraction"]
    if data.details.get("test_set") != "named by the source":
        keys.append("test_fraction")
    return {key: data.parameters[key] for key in keys if key in data.parameters}


def _contest(
    places: Places, config: Config, champion: Version | None, challenger: tuple[Path, dict[str, Any]], replace: bool
) -> tuple[bool, str]:
    """Whether the challenger may take the champion's place, and why."""
    from tasks.challenge import incomparable, judge_challenge, measure

    if champion is None:
        return True, "there was none before it"
    try:
        there = registry.fetch_model(places, registered_model_name(config), champion.number)
        card = read_json(there / CARD)
        obstacle = incomparable(card, challenger[1])
    except ArtifactError as error:
        obstacle = str(error)
    if not obstacle:
        return judge_challenge(measure(config, places.artifacts / "data", (there, card), challenger), config.promotion)
    if replace:
        return True, f"{champion} is replaced without a comparison, as asked for with --replace: {obstacle}"
    return False, f"the two cannot be compared: {obstacle}. `winnow promote --replace` puts the challenger in its place"


def _write_reason(places: Places, model: str, version: Version, run_id: str | None, reason: str) -> None:
    registry.note(places, model, version, {REASON: reason}, f"{_today()}: {reason}")
    if run_id:
        tracking.tag_run(places, run_id, {"winnow.promotion": f"version {version.number} of {model}: {reason}"})


def _crown(places: Places, model: str, version: Version, champion: Version | None) -> None:
    """Move the alias, last of all."""
    if _number(registry.find(places, model, CHAMPION)) != _number(champion):
        raise WinnowError(f"the champion of {model} has changed while its challenger was measured; run winnow promote")
    tags = {REPLACED: _number(champion), SINCE: _today(), ROLLED_BACK: None}
    registry.note(places, model, version, tags)
    if champion:
        registry.set_alias(places, model, PREVIOUS, champion.number)
    registry.set_alias(places, model, CHAMPION, version.number)


def rollback(places: Places, config: Config, reason: str) -> str:
    """Put the previous champion back; the version that leaves keeps the reason. Returns a line for people."""
    model = registered_model_name(config)
    champion, previous = registry.find(places, model, CHAMPION), registry.find(places, model, PREVIOUS)
    if champion is None:
        raise WinnowError(f"{model} has no champion, so there is nothing to roll back")
    if previous is None or previous.number == champion.number:
        raise WinnowError(f"there is no previous champion of {model} to go back to; {champion} stays")
    told = f"{_today()}: {reason or 'no reason given'}"
    registry.note(places, model, champion, {ROLLED_BACK: told}, f"rolled back {told}")
    registry.set_alias(places, model, CHAMPION, previous.number)
    before = previous.tags.get(REPLACED, "")
    older = registry.find(places, model, before) if before else None
    registry.set_alias(places, model, PREVIOUS, _number(older))
    line = f"{previous} is the champion of {model} again; {champion} was rolled back: {reason or 'no reason given'}"
    settled = _recall(places)
    if settled and (settled["address"], settled["model"]) == (_address(places), model):
        write_json(places.hidden / PROMOTED, {**settled, "champion": previous.number, "reasons": [line]})
    return line


def is_settled(places: Places, config: Config) -> bool:
    """Whether the last selection was promoted, or refused, at this address; from files alone."""
    settled, select = _recall(places), places.artifacts / "select"
    if not settled or not (select / RECORD).is_file() or not tracked.store_exists(tracked.registry_address(places)):
        return False
    wanted = (_address(places), registered_model_name(config), record_digest(select))
    return wanted == tuple(settled.get(key) for key in ("address", "model", "select"))


def _remember(places: Places, model: str, select: str, outcome: Outcome) -> None:
    write_json(
        places.hidden / PROMOTED,
        {
            "address": _address(places),
            "model": model,
            "select": select,
            "winner": outcome.winner,
            "sha256": outcome.sha256,
            "version": outcome.version,
            "alias": outcome.alias,
            "champion": outcome.champion,
            "reasons": list(outcome.reasons),
        },
    )


def _recall(places: Places) -> dict[str, Any]:
    """Nothing where the file is missing or damaged: then the registry is asked."""
    try:
        found = json.loads((places.hidden / PROMOTED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _address(places: Places) -> str:
    return tracked.without_password(tracked.registry_address(places))


def _today() -> str:
    return f"{datetime.now().astimezone():%Y-%m-%d %H:%M}"
