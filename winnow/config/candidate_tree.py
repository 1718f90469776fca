"""Check the tree of candidates as a whole: names, parents, allowed orders of methods. Sort parents before children."""

from __future__ import annotations

from collections.abc import Iterator

from winnow.config.backbones import has_feature_maps, is_prunable
from winnow.config.candidate_names import CONTROL, NAME_RULE, RESERVED_NAMES, ROOT, is_candidate_name
from winnow.config.candidates import AnyCandidate, Candidate, Distill, Factorize, Probe, Prune, Quantize


def tree_errors(
    candidates: dict[str, Candidate], backbone: str | None = None, pretrained: bool = True, has_teacher: bool = True
) -> list[tuple[str, str]]:
    """Return (dotted path, message) of every mistake in the tree as a whole.

    `backbone` is that of dense, None where it is unknown; `pretrained` is true where pretrain.method trains it,
    `has_teacher` where the section `teacher` names weights.
    """
    errors = _control_errors(candidates.get(CONTROL))
    for name, candidate in candidates.items():
        path = f"candidates.{name}"
        errors += [(path, message) for message in _name_errors(name)]
        if name == ROOT:
            continue
        if candidate.parent != ROOT and candidate.parent not in candidates:
            choices = ", ".join([ROOT, *candidates])
            errors.append((f"{path}.from", f"no candidate is called {candidate.parent!r}; valid: {choices}"))
            continue
        hint_errors = _hint_errors(name, candidates, backbone, pretrained)
        if not has_teacher:
            errors += _teacher_errors(path, candidate)
        errors += [(f"{path}.recovery.hint", message) for message in hint_errors]
        errors += [(f"{path}.from", message) for message in _parent_errors(name, candidates)]
        if isinstance(candidate, Prune) and not _in_cycle(name, candidates):
            network = _backbone_of(candidate.parent, candidates, backbone)
            if network and not is_prunable(network):
                message = (
                    f"channels of a {network} cannot be pruned: torch-pruning cannot trace its windows or shuffled "
                    "channels; remove the candidate, or choose another backbone"
                )
                errors.append((path, message))
    return errors


def _name_errors(name: str) -> Iterator[str]:
    if not is_candidate_name(name):
        yield f"{name!r} is not a valid name; use {NAME_RULE}"
    if name in RESERVED_NAMES:
        yield f"{name!r} is the name of a step or its folder; choose another name, such as {name}-1"
    if name == ROOT:
        yield f"{ROOT!r} is the fine-tuned model itself, the root of the tree; choose another name"


def _parent_errors(name: str, candidates: dict[str, Candidate]) -> Iterator[str]:
    """Yield the mistakes in a candidate's place in the tree, given that its parent exists."""
    if _in_cycle(name, candidates):
        yield f"{name!r} descends from itself; every chain must end at {ROOT!r}"
        return
    candidate = candidates[name]
    parent = candidates.get(candidate.parent)
    if isinstance(parent, Quantize) and candidate.parent != ROOT:
        yield (
            f"{candidate.parent!r} is quantized and cannot be changed further; "
            f"make {name!r} from {parent.parent!r} and quantize last"
        )
    if isinstance(parent, Probe) and not isinstance(candidate, Quantize):
        yield f"{candidate.parent!r} is the frozen teacher, of which only int8 candidates are made; set from: dense"
    if isinstance(candidate, Prune | Factorize) and _has_low_rank(candidate.parent, candidates):
        yield f"{candidate.parent!r} is factorized already: prune first, then factorize"


def _hint_errors(name: str, candidates: dict[str, Candidate], backbone: str | None, pretrained: bool) -> Iterator[str]:
    """Yield the mistakes in the hint of a candidate that trains."""
    recovery = candidates[name].training
    if recovery is None:
        return
    if recovery.hint == "pretrained" and not pretrained:
        yield "pretrained needs pretraining, but pretrain.method is none"
    for network in (_backbone_of(name, candidates, backbone), backbone):
        if recovery.hint == "attention" and network and not has_feature_maps(network):
            yield f"attention compares feature maps, which a {network} has only in its first layer; set features"
            return


def _teacher_errors(path: str, candidate: Candidate) -> list[tuple[str, str]]:
    """Return the mistake of a candidate that needs the section `teacher`."""
    recovery = candidate.training
    if recovery is not None and recovery.hint == "embeddings":
        return [(f"{path}.recovery.hint", "embeddings are those of a teacher: set teacher.weights, or hint: none")]
    if isinstance(candidate, Probe):
        return [(f"{path}.method", "probe needs a teacher: set teacher.weights, or remove the candidate")]
    return []


def _lineage(name: str, candidates: dict[str, Candidate]) -> Iterator[Candidate]:
    """Yield `name` and its ancestors, up to dense or to a student of another backbone, which starts a new network."""
    seen = set[str]()  # _in_cycle reports cycles
    while name in candidates and name not in seen:
        seen.add(name)
        candidate = candidates[name]
        yield candidate
        if isinstance(candidate, Distill) and candidate.student != "same":
            return
        name = candidate.parent


def _has_low_rank(name: str, candidates: dict[str, Candidate]) -> bool:
    """Return whether `name` or one of its ancestors is factorized."""
    return any(isinstance(candidate, Factorize) for candidate in _lineage(name, candidates))


def _backbone_of(name: str, candidates: dict[str, Candidate], dense: str | None) -> str | None:
    """Return the backbone of `name`; `dense` is that of dense."""
    students = (candidate.student for candidate in _lineage(name, candidates) if isinstance(candidate, Distill))
    return next((student for student in students if student != "same"), dense)


def _control_errors(control: Candidate | None) -> list[tuple[str, str]]:
    """Return the mistakes in the control. Drops are measured from it, so it must be dense, trained on, and no more."""
    if control is None:
        return []
    path = f"candidates.{CONTROL}"
    reason = f"{CONTROL!r} is the control, {ROOT!r} trained further with a teacher"
    if not isinstance(control, Distill):
        return [(f"{path}.method", f"{reason}: it must be distill; or give the candidate another name")]
    required = (
        ("from", control.parent, (ROOT,)),
        ("student", control.student, ("same",)),
        ("recovery.teacher", control.recovery.teacher, ("auto", ROOT)),
    )
    return [
        (
            f"{path}.{key}",
            f"{reason}: it must be {' or '.join(valid)}, not {value!r}; or give the candidate another name",
        )
        for key, value, valid in required
        if value not in valid
    ]


def _in_cycle(name: str, candidates: dict[str, Candidate]) -> bool:
    ancestor, seen = name, set[str]()
    while ancestor in candidates and ancestor not in seen:
        seen.add(ancestor)
        ancestor = candidates[ancestor].parent
    return ancestor == name


def topological_order(candidates: dict[str, AnyCandidate]) -> list[str]:
    """Return the names with every parent before its children, otherwise in the given order."""
    ordered: list[str] = []

    def visit(name: str) -> None:
        if name in candidates and name not in ordered:
            visit(candidates[name].parent)
            ordered.append(name)

    for name in candidates:
        visit(name)
    return ordered
