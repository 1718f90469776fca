"""Test the search loop with fake trials; test_trial.py tests the trials."""

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


class FakeTrials:
    """Trials by a formula: the fewer MACs remain, the larger the drop."""

    def __init__(self) -> None:
        self.evaluated: list[tuple[int, Point]] = []
        self.interrupt_at: int | None = None
        self.pruned_at: set[int] = set()
        self.always_fails = False
        self.crashes = 0

    def evaluate(
        self, _context: SearchContext, number: int, point: Point, _earlier: Sequence[EarlierTrial], _measurer: Any
    ) -> tuple[TrialEvaluation, TrialEvaluation]:
        if self.interrupt_at == len(self.evaluated):
            self.interrupt_at = None
            raise KeyboardInterrupt
        if self.crashes and number == 2:
            self.crashes -= 1
            raise MemoryError
        self.evaluated.append((number, point))
        if self.always_fails:
            raise ConfigError("no channel can go")
        macs = point.macs * point.width
        drop, cost = (1 - macs) * 4 + (0.3 if point.int8 else 0), macs / (3 if point.int8 else 1)
        evaluation = TrialEvaluation(drop, drop + 0.5, cost, {}, ("x",))
        if len(self.evaluated) in self.pruned_at:
            raise TrialPruned(evaluation, "slow and bad")
        return evaluation, evaluation


class FakeMeasurer:
    dense_cost = 1.0

    def peaks(self) -> dict[str, float]:
        return {"f32": 2.0}


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch) -> FakeTrials:
    trials = FakeTrials()
    monkeypatch.setattr("winnow.search.trial.evaluate_chain", trials.evaluate)
    for module in ("winnow.search.trial", "winnow.search.optuna_study"):
        monkeypatch.setattr(f"{module}.make_cost_measurer", lambda *_: FakeMeasurer())
    return trials


@pytest.mark.thorough
def test_a_resumed_search_says_how_to_end_it(
    trials: FakeTrials, tmp_path: Path, tiny_dense: Path, tiny_data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "winnow")
    run_search(tmp_path, tiny_dense, tiny_data, trials=2)
    assert "goes on" not in caplog.text
    assert "the budget is spent: the search ends, 0 s of 5:00 spent" in caplog.text
    run_search(tmp_path, tiny_dense, tiny_data, trials=3)
    assert "resuming the search after 2 trials, 0 s of 5:00 spent; to end it here: -S search.trials=2" in caplog.text


def run_search(
    tmp_path: Path, dense: Path, data: Path, embedded: Path | None = None, **changes: Any
) -> tuple[SearchProgress, list[EndedTrial]]:
    params = tiny_params() if (dense.parent / "dense-kd").is_dir() else params_without_control()
    if embedded is not None:
        params["teacher"] = {"weights": "package:efficientnet-lite0"}
    config = check_config(params | {"search": {"trials": 6, "minutes": 5, **changes}})
    pretrained = dense.parent.parent / "pretrain"
    folders = CandidateFolders(data, pretrained, dense.parent, tmp_path / "scratch", embedded=embedded)
    ended: list[EndedTrial] = []
    context = SearchContext(config, folders, tmp_path / "trials")
    return search(context, tmp_path / "study.db", ended.append), ended


@pytest.mark.thorough
def test_the_number_of_trials_without_duplicates(
    trials: FakeTrials, tmp_path: Path, tiny_dense: Path, tiny_data: Path
) -> None:
    progress, ended = run_search(tmp_path, tiny_dense, tiny_data, trials=12)
    assert len(progress.trials) == len(ended) == len(trials.evaluated) == 12
    assert len({point for _, point in trials.evaluated}) == 12
    assert (progress.dense_cost, progress.peaks) == (1.0, {"f32": 2.0})
    assert {trial.state for trial in progress.trials} == {"finished"}


def test_a_search_resumes(trials: FakeTrials, tmp_path: Path, tiny_dense: Path, tiny_data: Path) -> None:
    first, _ = run_search(tmp_path, tiny_dense, tiny_data, trials=4)
    second, ended = run_search(tmp_path, tiny_dense, tiny_data, trials=4)
    assert ended == []
    assert second.trials == first.trials
    third, ended = run_search(tmp_path, tiny_dense, tiny_data, trials=7)
    assert len(ended) == 3
    assert third.trials[:4] == first.trials
    assert len({point for _, point in trials.evaluated}) == 7


def test_an_interrupted_trial_resumes_in_its_folder(
    trials: FakeTrials, tmp_path: Path, tiny_dense: Path, tiny_data: Path
) -> None:
    trials.interrupt_at = 2
    with pytest.raises(KeyboardInterrupt):
        run_search(tmp_path, tiny_dense, tiny_data)
    assert len(trials.evaluated) == 2
    progress, _ = run_search(tmp_path, tiny_dense, tiny_data)
    assert len(progress.trials) == 6  # no trial is lost or counted twice
    folders = [number for number, _ in trials.evaluated]
    assert 2 in folders[2:]
    assert len(set(folders)) == len(folders)


@pytest.mark.thorough
def test_a_repeatedly_crashing_trial_is_skipped(
    trials: FakeTrials, tmp_path: Path, tiny_dense: Path, tiny_data: Path
) -> None:
    trials.crashes = 99
    for _ in range(3):
        with pytest.raises(MemoryError):
            run_search(tmp_path, tiny_dense, tiny_data)
    progress, ended = run_search(tmp_path, tiny_dense, tiny_data)
    (skipped,) = [trial for trial in ended if trial.state == "impossible"]
    assert (skipped.folder, skipped.why) == (2, "its process died 3 times during it, perhaps for lack of memory")
    assert len(progress.trials) == 6


@pytest.mark.thorough
def test_a_trial_interrupted_by_the_user_is_not_skipped(
    trials: FakeTrials, tmp_path: Path, tiny_dense: Path, tiny_data: Path
) -> None:
    for number in (2, 0, 0, 0):
        trials.evaluated, trials.interrupt_at = [], number
        with pytest.raises(KeyboardInterrupt):
            run_search(tmp_path, tiny_dense, tiny_data)
    progress, _ = run_search(tmp_path, tiny_dense, tiny_data)
    assert {trial.state for trial in progress.trials} == {"finished"}


def test_pruned_trials_are_reported_and_not_chosen(
    trials: FakeTrials, tmp_path: Path, tiny_dense: Path, tiny_data: Path
) -> None:
    trials.pruned_at = {2, 3}
    progress, _ = run_search(tmp_path, tiny_dense, tiny_data)
    assert [trial.state for trial in progress.trials].count("given up") == 2
    assert [trial.finished_point is None for trial in progress.trials] == [False, True, True, False, False, False]
    assert "slow and bad" in progress.trials[1].why
    settings = check_config(tiny_params()).search
    assert describe_trial(progress.trials[1], settings).endswith(" ms; slow and bad")


@pytest.mark.thorough
def test_a_search_ends_if_every_trial_fails(
    trials: FakeTrials, tmp_path: Path, tiny_dense: Path, tiny_data: Path
) -> None:
    trials.always_fails = True
    with pytest.raises(ConfigError, match="8 trials in a row were impossible; reason of the last: no channel can go"):
        run_search(tmp_path, tiny_dense, tiny_data, trials=50)


@pytest.mark.thorough
def test_a_search_ends_if_no_new_point_is_left(
    trials: FakeTrials, tmp_path: Path, tiny_dense: Path, tiny_data: Path
) -> None:
    changes = {"structures": ["prune"], "int8": "never", "least_macs": 0.95}
    progress, _ = run_search(tmp_path, tiny_dense, tiny_data, trials=500, **changes)
    assert len(progress.trials) == 12  # one share, four hints, three importances


@pytest.mark.thorough
def test_repeated_proposals_are_replaced(trials: FakeTrials, tmp_path: Path, tiny_dense: Path, tiny_data: Path) -> None:
    trials.pruned_at = set(range(5, 100))  # points like the best are pruned repeatedly, and proposed again
    progress, _ = run_search(tmp_path, tiny_dense, tiny_data, trials=60, minutes=60)
    assert len({point for _, point in trials.evaluated}) == len(progress.trials) == 60


def test_the_time_budget_is_over_all_calls(
    trials: FakeTrials, tmp_path: Path, tiny_dense: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr("winnow.search.trial.time.monotonic", lambda: clock[0])
    evaluate = trials.evaluate

    def slow_evaluate(*arguments: Any) -> Any:
        clock[0] += 50
        return evaluate(*arguments)

    monkeypatch.setattr("winnow.search.trial.evaluate_chain", slow_evaluate)
    progress, _ = run_search(tmp_path, tiny_dense, tiny_data, trials=0, minutes=2)
    assert len(progress.trials) == 3  # 100 s are less than two minutes, 150 are not
    progress, ended = run_search(tmp_path, tiny_dense, tiny_data, trials=0, minutes=3)
    assert len(ended) == 1
    assert progress.seconds == 200


@pytest.mark.thorough
def test_a_trial_that_ended_before_the_kill_is_not_repeated(
    trials: FakeTrials, tmp_path: Path, tiny_dense: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        record_result = "winnow.search.optuna_study.SearchStudy._record_result"
        patch.setattr(record_result, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run_search(tmp_path, tiny_dense, tiny_data)
    progress, _ = run_search(tmp_path, tiny_dense, tiny_data)
    assert len(progress.trials) == len(trials.evaluated) == 6
    assert [trial.state for trial in progress.trials] == ["finished"] * 6


def test_another_control_needs_another_search(
    trials: FakeTrials, tmp_path: Path, tiny_dense: Path, tiny_data: Path
) -> None:
    candidates = tmp_path / "candidates"
    shutil.copytree(tiny_dense, candidates / "dense")
    run_search(tmp_path, candidates / "dense", tiny_data, trials=1)
    shutil.copytree(tiny_dense, candidates / "dense-kd")
    with pytest.raises(ConfigError, match=r"holds a search with another dense-kd: give this search another name"):
        run_search(tmp_path, candidates / "dense", tiny_data, trials=2)


def test_other_embeddings_need_another_search(
    trials: FakeTrials, tmp_path: Path, tiny_dense: Path, tiny_data: Path
) -> None:
    """Trials learn from them; any folder with a record stands for the folder of embed here."""
    run_search(tmp_path, tiny_dense, tiny_data, embedded=tiny_data, trials=1)
    assert trials.evaluated[0][1].hint == "embeddings"
    for embedded in (tiny_dense, None):
        with pytest.raises(ConfigError, match="holds a search with another embed: give this search another name"):
            run_search(tmp_path, tiny_dense, tiny_data, embedded=embedded, trials=2)


def test_other_settings_need_another_search(
    trials: FakeTrials, tmp_path: Path, tiny_dense: Path, tiny_data: Path
) -> None:
    run_search(tmp_path, tiny_dense, tiny_data, trials=1)
    with pytest.raises(ConfigError, match=r"another objective \(latency, now size\): give this search another name"):
        run_search(tmp_path, tiny_dense, tiny_data, objective="size")
    progress, _ = run_search(
        tmp_path, tiny_dense, tiny_data, trials=2, max_drop_points=3.0
    )  # only the choice depends on it
    assert len(progress.trials) == 2
