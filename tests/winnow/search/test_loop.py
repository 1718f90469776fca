"""The search around its trials; what a trial does itself is in test_search_trial.py."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import params_without_control, tiny_params
from winnow.config import check_config
from winnow.errors import ConfigError
from winnow.search.loop import SearchProgress, describe_trial, search
from winnow.search.optuna_study import EndedTrial
from winnow.search.space import Point
from winnow.search.trial import EarlierTrial, SearchContext, TrialEvaluation, TrialPruned
from winnow.steps.compress import CandidateFolders


class World:
    """Trials of an arithmetic world: less left, more lost."""

    def __init__(self) -> None:
        self.made: list[tuple[int, Point]] = []
        self.kill_at: int | None = None
        self.give_up: set[int] = set()
        self.impossible = False
        self.crash = 0

    def attempt(
        self, _place: SearchContext, number: int, point: Point, earlier: Sequence[EarlierTrial], _meter: Any
    ) -> tuple[TrialEvaluation, TrialEvaluation]:
        if self.kill_at == len(self.made):
            self.kill_at = None
            raise KeyboardInterrupt
        if self.crash and number == 2:
            self.crash -= 1
            raise MemoryError
        self.made.append((number, point))
        if self.impossible:
            raise ConfigError("no channel can go")
        left = point.macs * point.width
        drop, cost = (1 - left) * 4 + (0.3 if point.int8 else 0), left / (3 if point.int8 else 1)
        look = TrialEvaluation(drop, drop + 0.5, cost, {}, ("x",))
        if len(self.made) in self.give_up:
            raise TrialPruned(look, "slow and bad")
        return look, look


class Meter:
    dense_cost = 1.0

    def peaks(self) -> dict[str, float]:
        return {"f32": 2.0}


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    made = World()
    monkeypatch.setattr("winnow.search.trial.evaluate_chain", made.attempt)
    for place in ("winnow.search.trial", "winnow.search.optuna_study"):
        monkeypatch.setattr(f"{place}.make_cost_measurer", lambda *_: Meter())
    return made


@pytest.mark.thorough
def test_a_search_that_goes_on_says_how_to_end_it(
    world: World, tmp_path: Path, tiny_dense: Path, tiny_data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "winnow")
    go(tmp_path, tiny_dense, tiny_data, trials=2)
    assert "goes on" not in caplog.text
    assert "the budget is spent: the search ends, 0 s of 5:00 spent" in caplog.text
    go(tmp_path, tiny_dense, tiny_data, trials=3)
    assert "resuming the search after 2 trials, 0 s of 5:00 spent; to end it here: -S search.trials=2" in caplog.text


def go(tmp_path: Path, dense: Path, data: Path, **changes: Any) -> tuple[SearchProgress, list[EndedTrial]]:
    params = tiny_params() if (dense.parent / "dense-kd").is_dir() else params_without_control()
    config = check_config(params | {"search": {"trials": 6, "minutes": 5, **changes}})
    folders = CandidateFolders(data, dense.parent.parent / "pretrain", dense.parent, tmp_path / "scratch")
    seen: list[EndedTrial] = []
    place = SearchContext(config, folders, tmp_path / "trials")
    return search(place, tmp_path / "study.db", seen.append), seen


@pytest.mark.thorough
def test_as_many_trials_as_asked_none_twice(world: World, tmp_path: Path, tiny_dense: Path, tiny_data: Path) -> None:
    progress, seen = go(tmp_path, tiny_dense, tiny_data, trials=12)
    assert len(progress.trials) == len(seen) == len(world.made) == 12
    assert len({point for _, point in world.made}) == 12
    assert (progress.dense_cost, progress.peaks) == (1.0, {"f32": 2.0})
    assert {trial.state for trial in progress.trials} == {"finished"}


def test_it_goes_on_where_it_was(world: World, tmp_path: Path, tiny_dense: Path, tiny_data: Path) -> None:
    first, _ = go(tmp_path, tiny_dense, tiny_data, trials=4)
    again, seen = go(tmp_path, tiny_dense, tiny_data, trials=4)
    assert seen == []
    assert again.trials == first.trials
    more, seen = go(tmp_path, tiny_dense, tiny_data, trials=7)
    assert len(seen) == 3
    assert more.trials[:4] == first.trials
    assert len({point for _, point in world.made}) == 7


def test_a_killed_trial_is_taken_up_in_its_folder(
    world: World, tmp_path: Path, tiny_dense: Path, tiny_data: Path
) -> None:
    world.kill_at = 2
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path, tiny_dense, tiny_data)
    assert len(world.made) == 2
    progress, _ = go(tmp_path, tiny_dense, tiny_data)
    assert len(progress.trials) == 6  # none lost, none counted twice
    folders = [number for number, _ in world.made]
    assert 2 in folders[2:]
    assert len(set(folders)) == len(folders)


@pytest.mark.thorough
def test_a_trial_that_ends_its_process_again_and_again_is_passed_over(
    world: World, tmp_path: Path, tiny_dense: Path, tiny_data: Path
) -> None:
    world.crash = 99
    for _ in range(3):
        with pytest.raises(MemoryError):
            go(tmp_path, tiny_dense, tiny_data)
    progress, seen = go(tmp_path, tiny_dense, tiny_data)
    (given,) = [trial for trial in seen if trial.state == "impossible"]
    assert (given.folder, given.why) == (2, "its process died 3 times during it, perhaps for lack of memory")
    assert len(progress.trials) == 6


@pytest.mark.thorough
def test_a_trial_that_a_person_stops_is_not_to_blame(
    world: World, tmp_path: Path, tiny_dense: Path, tiny_data: Path
) -> None:
    for at in (2, 0, 0, 0):
        world.made, world.kill_at = [], at
        with pytest.raises(KeyboardInterrupt):
            go(tmp_path, tiny_dense, tiny_data)
    progress, _ = go(tmp_path, tiny_dense, tiny_data)
    assert {trial.state for trial in progress.trials} == {"finished"}


def test_what_is_given_up_or_impossible_is_told_and_not_chosen(
    world: World, tmp_path: Path, tiny_dense: Path, tiny_data: Path
) -> None:
    world.give_up = {2, 3}
    progress, _ = go(tmp_path, tiny_dense, tiny_data)
    assert [trial.state for trial in progress.trials].count("given up") == 2
    assert [trial.found is None for trial in progress.trials] == [False, True, True, False, False, False]
    assert "slow and bad" in progress.trials[1].why
    settings = check_config(tiny_params()).search
    assert describe_trial(progress.trials[1], settings).endswith(" ms; slow and bad")


@pytest.mark.thorough
def test_where_nothing_can_be_made_it_ends(world: World, tmp_path: Path, tiny_dense: Path, tiny_data: Path) -> None:
    world.impossible = True
    with pytest.raises(ConfigError, match="8 trials in a row were impossible; reason of the last: no channel can go"):
        go(tmp_path, tiny_dense, tiny_data, trials=50)


@pytest.mark.thorough
def test_where_nothing_new_is_left_it_ends(world: World, tmp_path: Path, tiny_dense: Path, tiny_data: Path) -> None:
    changes = {"structures": ["prune"], "int8": "never", "least_macs": 0.95}
    progress, _ = go(tmp_path, tiny_dense, tiny_data, trials=500, **changes)
    assert len(progress.trials) == 12  # one share, four hints, three importances


@pytest.mark.thorough
def test_it_goes_on_where_the_optimiser_goes_in_circles(
    world: World, tmp_path: Path, tiny_dense: Path, tiny_data: Path
) -> None:
    world.give_up = set(range(5, 100))  # what is like the best is given up again and again, and proposed again
    progress, _ = go(tmp_path, tiny_dense, tiny_data, trials=60, minutes=60)
    assert len({point for _, point in world.made}) == len(progress.trials) == 60


def test_time_is_a_budget_over_all_calls(
    world: World, tmp_path: Path, tiny_dense: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr("winnow.search.trial.time.monotonic", lambda: clock[0])
    plain = world.attempt

    def slow(*arguments: Any) -> Any:
        clock[0] += 50
        return plain(*arguments)

    monkeypatch.setattr("winnow.search.trial.evaluate_chain", slow)
    progress, _ = go(tmp_path, tiny_dense, tiny_data, trials=0, minutes=2)
    assert len(progress.trials) == 3  # 100 s are less than two minutes, 150 are not
    progress, seen = go(tmp_path, tiny_dense, tiny_data, trials=0, minutes=3)
    assert len(seen) == 1
    assert progress.seconds == 200


@pytest.mark.thorough
def test_what_ended_as_the_process_was_killed_is_not_run_again(
    world: World, tmp_path: Path, tiny_dense: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        record_result = "winnow.search.optuna_study.SearchStudy._record_result"
        patch.setattr(record_result, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            go(tmp_path, tiny_dense, tiny_data)
    progress, _ = go(tmp_path, tiny_dense, tiny_data)
    assert len(progress.trials) == len(world.made) == 6
    assert [trial.state for trial in progress.trials] == ["finished"] * 6


def test_another_control_is_another_search(world: World, tmp_path: Path, tiny_dense: Path, tiny_data: Path) -> None:
    candidates = tmp_path / "candidates"
    shutil.copytree(tiny_dense, candidates / "dense")
    go(tmp_path, candidates / "dense", tiny_data, trials=1)
    shutil.copytree(tiny_dense, candidates / "dense-kd")
    with pytest.raises(ConfigError, match=r"holds a search with another dense-kd: give this search another name"):
        go(tmp_path, candidates / "dense", tiny_data, trials=2)


def test_other_settings_are_another_search(world: World, tmp_path: Path, tiny_dense: Path, tiny_data: Path) -> None:
    go(tmp_path, tiny_dense, tiny_data, trials=1)
    with pytest.raises(ConfigError, match=r"another objective \(latency, now size\): give this search another name"):
        go(tmp_path, tiny_dense, tiny_data, objective="size")
    progress, _ = go(tmp_path, tiny_dense, tiny_data, trials=2, max_drop_points=3.0)  # only who is chosen hangs on it
    assert len(progress.trials) == 2
