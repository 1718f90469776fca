"""The tree of candidates as a whole: names, parents, what may descend from what, and their order."""

from __future__ import annotations

from collections.abc import Iterator

from winnow.config.backbones import has_maps, is_prunable
from winnow.config.candidates import (
    CONTROL,
    NAME,
    NAME_IN_WORDS,
    ROOT,
    TAKEN,
    AnyCandidate,
    Candidate,
    Distill,
    Factorize,
    Prune,
    Quantize,
)


def tree_errors(
    candidates: dict[str, Candidate], backbone: str | None = None, pretrained: bool = True
) -> list[tuple[str, str]]:
    """What is wrong with the tree as a whole: (dotted path, message) pairs, empty when it is sound.

    `backbone`: of dense, where it is known; `pretrained`: whether it is pretrained here.
    """
    found = _control_errors(candidates.get(CONTROL))
    for name, candidate in candidates.items():
        here = f"candidates.{name}"
        if not NAME.fullmatch(name):
            found.append((here, f"{name!r} is no usable name: {NAME_IN_WORDS}"))
        if name in TAKEN:
            found.append((here, f"{name!r} is the name of a step or its folder; call the candidate {name}-1, say"))
        if name == ROOT:
            found.append((here, f"{ROOT!r} is the fine-tuned model itself, the root of the tree; choose another name"))
            continue
        if candidate.parent != ROOT and candidate.parent not in candidates:
            choices = ", ".join([ROOT, *candidates])
            found.append((f"{here}.from", f"no candidate is called {candidate.parent!r}; valid: {choices}"))
            continue
        found += [
            (f"{here}.recovery.hint", message) for message in _hint_errors(name, candidates, backbone, pretrained)
        ]
        parent = candidates.get(candidate.parent)
        if isinstance(parent, Quantize) and candidate.parent != ROOT:
            found.append(
                (
                    f"{here}.from",
                    f"{candidate.parent!r} is quantized and cannot be changed further; "
                    f"make {name!r} from {parent.parent!r} and quantize last",
                )
            )
        if isinstance(candidate, Prune | Factorize) and _is_of_low_rank(candidate.parent, candidates):
            found.append((f"{here}.from", f"{candidate.parent!r} is of low rank already: prune first, factorize then"))
        if _in_cycle(name, candidates):
            found.append((f"{here}.from", f"{name!r} descends from itself; every chain must end at {ROOT!r}"))
        elif isinstance(candidate, Prune):
            network = _backbone_of(candidate.parent, candidates, backbone)
            if network and not is_prunable(network):
                found.append(
                    (
                        here,
                        f"channels cannot be removed from a {network}: its windows or shuffled channels cannot be "
                        "followed; remove the candidate, or choose another backbone",
                    )
                )
    return found


def _hint_errors(name: str, candidates: dict[str, Candidate], backbone: str | None, pretrained: bool) -> Iterator[str]:
    """What is wrong with the hint of a candidate that trains."""
    recovery = getattr(candidates[name], "recovery", None)
    if recovery is None:
        return
    if recovery.hint == "pretrained" and not pretrained:
        yield "pretrained needs pretraining, and pretrain.method is none"
    for network in (_backbone_of(name, candidates, backbone), backbone):
        if recovery.hint == "attention" and network and not has_maps(network):
            yield f"attention compares maps of channels, which a {network} has only at its start; set features"
            return


def _line_of(name: str, candidates: dict[str, Candidate]) -> Iterator[Candidate]:
    """`name` and what it was made of, up to dense or a student of another backbone, who begins anew."""
    seen = set[str]()  # a tree may have a cycle, which is told apart
    while name in candidates and name not in seen:
        seen.add(name)
        candidate = candidates[name]
        yield candidate
        if isinstance(candidate, Distill) and candidate.student != "same":
            return
        name = candidate.parent


def _is_of_low_rank(name: str, candidates: dict[str, Candidate]) -> bool:
    """Whether `name` or what it was made of was factorized."""
    return any(isinstance(candidate, Factorize) for candidate in _line_of(name, candidates))


def _backbone_of(name: str, candidates: dict[str, Candidate], dense: str | None) -> str | None:
    """The network that `name` is made of."""
    students = (each.student for each in _line_of(name, candidates) if isinstance(each, Distill))
    return next((student for student in students if student != "same"), dense)


def _control_errors(control: Candidate | None) -> list[tuple[str, str]]:
    """Drops are counted against the control, so it must be dense trained on and nothing else."""
    if control is None:
        return []
    here = f"candidates.{CONTROL}"
    why = f"{CONTROL!r} is the control, {ROOT!r} trained on with itself as teacher"
    if not isinstance(control, Distill):
        return [(f"{here}.method", f"{why}: it must be distill; or give the candidate another name")]
    wanted = (
        ("from", control.parent, ROOT),
        ("student", control.student, "same"),
        ("recovery.teacher", control.recovery.teacher, ROOT),
    )
    return [
        (f"{here}.{key}", f"{why}: it must be {needed}, not {value!r}; or give the candidate another name")
        for key, value, needed in wanted
        if value != needed
    ]


def _in_cycle(name: str, candidates: dict[str, Candidate]) -> bool:
    at, seen = name, set[str]()
    while at in candidates and at not in seen:
        seen.add(at)
        at = candidates[at].parent
    return at == name


def in_order(candidates: dict[str, AnyCandidate]) -> list[str]:
    """Names with every parent before its children; otherwise as written."""
    done: list[str] = []

    def place(name: str) -> None:
        if name in candidates and name not in done:
            place(candidates[name].parent)
            done.append(name)

    for name in candidates:
        place(name)
    return done
