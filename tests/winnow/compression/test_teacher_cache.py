from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import nn

from winnow.compression import teacher_cache
from winnow.compression.teacher_cache import CachedTeacher, CacheHit, is_cacheable
from winnow.config import Recovery


class CountingTeacher(nn.Module):
    """A teacher that counts its forward passes."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, views: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return torch.stack([views.mean((1, 2, 3)), views.amax((1, 2, 3))], 1)


def views(seed: int, batch: int = 4) -> torch.Tensor:
    return torch.rand(batch, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def test_cached_logits_are_read_by_later_trainings(tmp_path: Path) -> None:
    teacher = CountingTeacher()
    first = CachedTeacher(teacher, tmp_path, "dense")
    logits = [first(views(seed)) for seed in (1, 2)]
    assert teacher.calls == 2
    second = CachedTeacher(teacher, tmp_path, "dense")
    for seed, expected in zip((1, 2), logits, strict=True):
        assert torch.equal(second(views(seed)), expected)
        assert torch.equal(second(views(seed).contiguous(memory_format=torch.channels_last)), expected)
    assert teacher.calls == 2
    assert (second.calls, second.hits) == (4, 4)
    assert second(views(1, batch=3)).shape == (3, 2)
    assert torch.equal(second(views(3)), CountingTeacher()(views(3)))
    assert teacher.calls == 4


def test_another_teacher_has_its_own_cache(tmp_path: Path) -> None:
    CachedTeacher(CountingTeacher(), tmp_path, "dense")(views(1))
    second_teacher = CountingTeacher()
    CachedTeacher(second_teacher, tmp_path, "another dense")(views(1))
    assert second_teacher.calls == 1


@pytest.mark.parametrize("missing_bytes", [1, 20, 50])
def test_a_truncated_file_loses_its_last_entry_only(tmp_path: Path, missing_bytes: int) -> None:
    first = CachedTeacher(CountingTeacher(), tmp_path, "dense")
    for seed in (1, 2):
        first(views(seed))
    os.truncate(first.file, first.file.stat().st_size - missing_bytes)
    teacher = CountingTeacher()
    second = CachedTeacher(teacher, tmp_path, "dense")
    for seed in (1, 2):
        assert torch.equal(second(views(seed)), CountingTeacher()(views(seed)))
    assert teacher.calls == 1


def test_changing_returned_logits_does_not_change_the_cache(tmp_path: Path) -> None:
    for _ in range(3):
        teacher = CachedTeacher(CountingTeacher(), tmp_path, "dense")
        for _ in range(2):
            logits = teacher(views(1))
            assert torch.equal(logits, CountingTeacher()(views(1)))
            logits.zero_()


def test_the_oldest_files_are_deleted_above_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = []
    for number in range(3):
        teacher = CachedTeacher(CountingTeacher(), tmp_path, f"teacher {number}")
        teacher(views(1))
        os.utime(teacher.file, (number, number))
        files.append(teacher.file)
    monkeypatch.setattr(teacher_cache, "MAX_BYTES", 2 * files[0].stat().st_size)
    CachedTeacher(CountingTeacher(), tmp_path, "teacher 2")
    assert [file.exists() for file in files] == [False, True, True]


def test_entries_of_a_training_are_available_to_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = CachedTeacher(CountingTeacher(), tmp_path, "dense")
    first(views(0))
    monkeypatch.setattr(teacher_cache, "MAX_BYTES", 4 * first.file.stat().st_size)
    for seed in range(1, 10):
        first = CachedTeacher(CountingTeacher(), tmp_path, "dense") if seed == 1 else first
        first(views(seed))
    teacher = CountingTeacher()
    second = CachedTeacher(teacher, tmp_path, "dense")
    for seed in range(1, 5):
        second(views(seed))
    assert (second.hits, teacher.calls) == (4, 0)


def test_a_training_stops_adding_at_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = CachedTeacher(CountingTeacher(), tmp_path, "dense")
    first(views(0))
    entry_bytes = first.file.stat().st_size
    monkeypatch.setattr(teacher_cache, "MAX_BYTES", 4 * entry_bytes)
    teacher = CachedTeacher(CountingTeacher(), tmp_path, "dense")
    for seed in range(1, 10):
        assert torch.equal(teacher(views(seed)), CountingTeacher()(views(seed)))
    assert teacher.file.stat().st_size == 4 * entry_bytes


def test_a_full_disk_does_not_end_the_training(tmp_path: Path) -> None:
    teacher = CachedTeacher(CountingTeacher(), tmp_path, "dense")
    teacher.file = tmp_path / "gone" / "file.bin"
    for seed in (1, 2):
        assert torch.equal(teacher(views(seed)), CountingTeacher()(views(seed)))
    assert teacher.bytes_left == 0


def test_a_file_deleted_by_another_process_is_a_miss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    CachedTeacher(CountingTeacher(), tmp_path, "dense")(views(1))
    (tmp_path / "gone.bin").symlink_to(tmp_path / "nowhere")
    (tmp_path / "empty.bin").touch()
    monkeypatch.setattr(
        teacher_cache, "_delete_oldest", lambda folder, _max_bytes: [f.unlink() for f in folder.glob("*-*.bin")] and 0
    )
    teacher = CountingTeacher()
    CachedTeacher(teacher, tmp_path, "dense")(views(1))
    assert teacher.calls == 1


def test_the_cache_depends_on_the_number_of_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    CachedTeacher(CountingTeacher(), tmp_path, "dense")(views(1))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 96)
    teacher = CountingTeacher()
    CachedTeacher(teacher, tmp_path, "dense")(views(1))
    assert teacher.calls == 1


def test_hints_cannot_use_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    recovery = Recovery.model_validate(RECOVERY)
    assert is_cacheable(recovery)
    for hint in ("features", "attention"):
        assert not is_cacheable(recovery.model_copy(update={"hint": hint}))
    assert not is_cacheable(recovery.model_copy(update={"teacher": "none"}))
    assert CacheHit(5)(views(1)).shape == (4, 5)


RECOVERY = {
    "epochs": 1,
    "batch_size": 32,
    "optimiser": {"learning_rate": 0.05, "momentum": 0.9, "weight_decay": 0.0, "warmup": 0.1},
    "teacher": "dense",
    "temperature": 4.0,
    "teacher_weight": 0.9,
    "images": "all",
    "augmentation": {"crop_scale_min": 0.6, "flip": True, "jitter": 0.0, "grayscale": 0.0},
    "seed": 0,
}
