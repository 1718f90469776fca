from __future__ import annotations

import json
from typing import Any

import pytest

from tests.conftest import tiny_params
from winnow.config import Search, check_config
from winnow.errors import ConfigError
from winnow.search.space import HINTS, Point, available_hints, candidate_chain, initial_points, propose_point


class Fixed:
    """Proposes what it was told, and notes what was asked."""

    def __init__(self, **answers: Any) -> None:
        self.answers, self.asked = answers, []

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        self.asked.append(name)
        assert self.answers[name] in choices
        return self.answers[name]

    def suggest_float(self, name: str, low: float, high: float, *, step: float) -> float:
        self.asked.append(name)
        assert low <= self.answers[name] <= high
        return self.answers[name]


EVERYTHING = Search(structures=("prune", "factorize", "student"))


def tree(point: Point, epochs: int = 5, search: Search = EVERYTHING, **more: Any) -> dict[str, dict[str, Any]]:
    return candidate_chain(
        point, check_config(tiny_params() | {"search": search.model_dump(mode="json")}), epochs, **more
    )


@pytest.mark.parametrize("structure", ["prune", "factorize", "student"])
@pytest.mark.parametrize("int8", [True, False])
def test_every_point_is_a_sound_tree(structure: Any, int8: bool) -> None:
    made = tree(Point(structure, 0.35, "features", int8=int8), epochs=7, name="mine")
    config = check_config(tiny_params() | {"candidates": made})
    assert list(config.candidates) == (["mine", "mine-int8"] if int8 else ["mine"])
    assert config.candidates["mine"].recovery.epochs == 7  # type: ignore[union-attr]
    assert config.candidates["mine"].recovery.hint == "features"  # type: ignore[union-attr]


def test_a_share_that_stays_is_a_share_that_is_removed() -> None:
    assert tree(Point("prune", 0.35, "none"))["found"]["remove"] == {"macs": 0.65}


def test_a_student_has_a_width_and_a_backbone_that_comes_in_widths() -> None:
    narrow = Search(structures=("student",), student="mobilenet_v3_small")
    made = tree(Point("student", 1.0, "none", width=0.5), search=narrow)["found"]
    assert (made["student"], made["width"]) == ("mobilenet_v3_small", 0.5)


@pytest.mark.parametrize("flip", [True, False])
def test_images_that_are_not_mirrored_before_are_not_here(flip: bool) -> None:
    params = tiny_params()
    params["finetune"]["augmentation"] = {"flip": flip}
    made = candidate_chain(Point("prune", 0.35, "none"), check_config(params), 5)["found"]
    assert made["recovery"]["augmentation"]["flip"] is flip


def test_int8_is_overflow_safe_where_the_machine_needs_it() -> None:
    point = Point("prune", 0.35, "none", int8=True)
    for safe in (True, False):
        made = check_config(tiny_params() | {"candidates": tree(point, overflow_safe=safe)})
        assert made.candidates["found-int8"].overflow_safe is safe  # type: ignore[union-attr]


def test_only_what_matters_is_asked() -> None:
    trial = Fixed(structure="student", width=0.5, hint="none", int8=True)
    assert propose_point(trial, EVERYTHING, list(HINTS)) == Point("student", 1.0, "none", int8=True, width=0.5)
    assert trial.asked == ["structure", "width", "hint", "int8"]
    never = Search(structures=("prune",), int8="never")
    pruned = propose_point(Fixed(structure="prune", macs=0.5, hint="none", importance="lamp"), never, list(HINTS))
    assert (pruned.importance, pruned.int8) == ("lamp", False)


def test_hints_that_dense_cannot_give_are_not_proposed() -> None:
    assert available_hints(check_config(tiny_params())) == list(HINTS)
    without = check_config(tiny_params() | {"pretrain": {"method": "none", "backbone": "vit_b_16"}})
    assert available_hints(without) == ["none", "features"]
    with pytest.raises(AssertionError):
        propose_point(
            Fixed(structure="student", width=0.5, hint="pretrained", int8=True), EVERYTHING, available_hints(without)
        )


def test_what_is_tried_first_lies_in_the_space() -> None:
    for params in initial_points(EVERYTHING):
        point = propose_point(Fixed(**params), EVERYTHING, ["none"])
        steps = (point.macs - EVERYTHING.least_macs) / 0.05
        assert point.structure == "student" or steps == pytest.approx(round(steps))
    assert {params["structure"] for params in initial_points(EVERYTHING)} == {"prune", "factorize", "student"}


def key(point: Point) -> str:
    """By which the search tells what was tried."""
    return json.dumps(tree(point), sort_keys=True)


def test_equal_points_have_equal_keys() -> None:
    assert key(Point("prune", 0.3, "none")) == key(Point("prune", 0.3, "none", "magnitude"))
    assert key(Point("prune", 0.3, "none")) != key(Point("prune", 0.3, "none", int8=True))
    assert key(Point("student", 1.0, "none", width=0.5)) != key(Point("student", 1.0, "none", width=0.75))


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
