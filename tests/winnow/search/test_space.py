from __future__ import annotations

import json
from typing import Any

import pytest

from tests.conftest import tiny_params
from winnow.config import Search, check_config
from winnow.errors import ConfigError
from winnow.search.space import HINTS, Point, available_hints, candidate_chain, initial_points, propose_point


class FixedTrial:
    """Return the given values and record which parameters are requested."""

    def __init__(self, **values: Any) -> None:
        self.values, self.requested = values, []

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        self.requested.append(name)
        assert self.values[name] in choices
        return self.values[name]

    def suggest_float(self, name: str, low: float, high: float, *, step: float) -> float:
        self.requested.append(name)
        assert low <= self.values[name] <= high
        return self.values[name]


ALL_STRUCTURES = Search(structures=("prune", "factorize", "student"))


def candidate_tree(
    point: Point, epochs: int = 5, search: Search = ALL_STRUCTURES, **options: Any
) -> dict[str, dict[str, Any]]:
    return candidate_chain(
        point, check_config(tiny_params() | {"search": search.model_dump(mode="json")}), epochs, **options
    )


@pytest.mark.parametrize("structure", ["prune", "factorize", "student"])
@pytest.mark.parametrize("int8", [True, False])
def test_every_point_gives_a_valid_candidate_tree(structure: Any, int8: bool) -> None:
    candidates = candidate_tree(Point(structure, 0.35, "features", int8=int8), epochs=7, name="mine")
    config = check_config(tiny_params() | {"candidates": candidates})
    assert list(config.candidates) == (["mine", "mine-int8"] if int8 else ["mine"])
    assert config.candidates["mine"].recovery.epochs == 7  # type: ignore[union-attr]
    assert config.candidates["mine"].recovery.hint == "features"  # type: ignore[union-attr]


def test_the_removed_share_is_the_complement_of_the_remaining() -> None:
    assert candidate_tree(Point("prune", 0.35, "none"))["found"]["remove"] == {"macs": 0.65}


def test_a_student_has_a_width_and_a_scalable_backbone() -> None:
    search = Search(structures=("student",), student="mobilenet_v3_small")
    candidate = candidate_tree(Point("student", 1.0, "none", width=0.5), search=search)["found"]
    assert (candidate["student"], candidate["width"]) == ("mobilenet_v3_small", 0.5)


@pytest.mark.parametrize("flip", [True, False])
def test_flips_follow_the_fine_tuning(flip: bool) -> None:
    params = tiny_params()
    params["finetune"]["augmentation"] = {"flip": flip}
    candidate = candidate_chain(Point("prune", 0.35, "none"), check_config(params), 5)["found"]
    assert candidate["recovery"]["augmentation"]["flip"] is flip


def test_int8_is_overflow_safe_if_the_machine_needs_it() -> None:
    point = Point("prune", 0.35, "none", int8=True)
    for overflow_safe in (True, False):
        config = check_config(tiny_params() | {"candidates": candidate_tree(point, overflow_safe=overflow_safe)})
        assert config.candidates["found-int8"].overflow_safe is overflow_safe  # type: ignore[union-attr]


def test_only_relevant_parameters_are_proposed() -> None:
    trial = FixedTrial(structure="student", width=0.5, hint="none", int8=True)
    assert propose_point(trial, ALL_STRUCTURES, list(HINTS)) == Point("student", 1.0, "none", int8=True, width=0.5)
    assert trial.requested == ["structure", "width", "hint", "int8"]
    search = Search(structures=("prune",), int8="never")
    pruned = propose_point(FixedTrial(structure="prune", macs=0.5, hint="none", importance="lamp"), search, list(HINTS))
    assert (pruned.importance, pruned.int8) == ("lamp", False)


def test_unavailable_hints_are_not_proposed() -> None:
    taught = check_config(tiny_params() | {"teacher": {"weights": "package:efficientnet-lite0"}})
    assert available_hints(taught) == list(HINTS)
    assert available_hints(check_config(tiny_params())) == [hint for hint in HINTS if hint != "embeddings"]
    without_pretraining = check_config(tiny_params() | {"pretrain": {"method": "none", "backbone": "vit_b_16"}})
    assert available_hints(without_pretraining) == ["none", "features"]
    with pytest.raises(AssertionError):
        propose_point(
            FixedTrial(structure="student", width=0.5, hint="pretrained", int8=True),
            ALL_STRUCTURES,
            available_hints(without_pretraining),
        )


@pytest.mark.parametrize(("hints", "hint"), [(["none", "features"], "none"), (["none", "embeddings"], "embeddings")])
def test_initial_points_are_in_the_space(hints: list[str], hint: str) -> None:
    points = initial_points(ALL_STRUCTURES, hints)
    for params in points:
        point = propose_point(FixedTrial(**params), ALL_STRUCTURES, hints)
        steps = (point.macs - ALL_STRUCTURES.least_macs) / 0.05
        assert point.structure == "student" or steps == pytest.approx(round(steps))
        assert point.hint == hint
    assert {params["structure"] for params in points} == {"prune", "factorize", "student"}


def tree_key(point: Point) -> str:
    """Return the key by which the search recognises evaluated points."""
    return json.dumps(candidate_tree(point), sort_keys=True)


def test_equal_points_have_equal_keys() -> None:
    assert tree_key(Point("prune", 0.3, "none")) == tree_key(Point("prune", 0.3, "none", "magnitude"))
    assert tree_key(Point("prune", 0.3, "none")) != tree_key(Point("prune", 0.3, "none", int8=True))
    assert tree_key(Point("student", 1.0, "none", width=0.5)) != tree_key(Point("student", 1.0, "none", width=0.75))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": "speed"}, "search.objective: Input should be 'latency'"),
        ({"structures": []}, "search.structures: .*at least one value"),
        ({"structures": ["prune", "prune"]}, "duplicate values"),
        ({"least_macs": 0.96}, "search.least_macs: Input should be less than or equal to 0.95"),
        ({"student": "resnet18"}, "search.student: .*'resnet18' has no widths to search; valid: resnet8"),
        ({"minutes": 0}, "search.minutes: Input should be greater than 0"),
        ({"hours": 1}, "search.hours: unknown key"),
    ],
)
def test_settings_are_checked_at_load(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_config(tiny_params() | {"search": changes})
