from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import nn

from winnow.compression import teacher_cache
from winnow.compression.teacher_cache import CachedTeacher, CacheHit, is_cacheable
from winnow.config import Recovery


class Counting(nn.Module):
    """A teacher that counts its questions."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, views: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return torch.stack([views.mean((1, 2, 3)), views.amax((1, 2, 3))], 1)


def views(seed: int, batch: int = 4) -> torch.Tensor:
    return torch.rand(batch, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def test_what_was_asked_once_is_known_to_every_later_training(tmp_path: Path) -> None:
    teacher = Counting()
    first = CachedTeacher(teacher, tmp_path, "dense")
    said = [first(views(seed)) for seed in (1, 2)]
    assert teacher.calls == 2
    again = CachedTeacher(teacher, tmp_path, "dense")
    for seed, expected in zip((1, 2), said, strict=True):
        assert torch.equal(again(views(seed)), expected)
        assert torch.equal(again(views(seed).contiguous(memory_format=torch.channels_last)), expected)
    assert teacher.calls == 2
    assert (again.calls, again.hits) == (4, 4)
    assert again(views(1, batch=3)).shape == (3, 2)
    assert torch.equal(again(views(3)), Counting()(views(3)))
    assert teacher.calls == 4


def test_another_teacher_knows_nothing(tmp_path: Path) -> None:
    CachedTeacher(Counting(), tmp_path, "dense")(views(1))
    second_teacher = Counting()
    CachedTeacher(second_teacher, tmp_path, "another dense")(views(1))
    assert second_teacher.calls == 1


@pytest.mark.parametrize("cut", [1, 20, 50])
def test_a_torn_end_loses_no_more_than_itself(tmp_path: Path, cut: int) -> None:
    first = CachedTeacher(Counting(), tmp_path, "dense")
    for seed in (1, 2):
        first(views(seed))
    os.truncate(first.file, first.file.stat().st_size - cut)
    teacher = Counting()
    again = CachedTeacher(teacher, tmp_path, "dense")
    for seed in (1, 2):
        assert torch.equal(again(views(seed)), Counting()(views(seed)))
    assert teacher.calls == 1


def test_what_is_handed_out_can_be_changed_without_harm(tmp_path: Path) -> None:
    for _ in range(3):
        teacher = CachedTeacher(Counting(), tmp_path, "dense")
        for _ in range(2):
            said = teacher(views(1))
            assert torch.equal(said, Counting()(views(1)))
            said.zero_()


def test_the_oldest_go_when_all_are_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = []
    for number in range(3):
        teacher = CachedTeacher(Counting(), tmp_path, f"teacher {number}")
        teacher(views(1))
        os.utime(teacher.file, (number, number))
        files.append(teacher.file)
    monkeypatch.setattr(teacher_cache, "MAX_BYTES", 2 * files[0].stat().st_size)
    CachedTeacher(Counting(), tmp_path, "teacher 2")
    assert [file.exists() for file in files] == [False, True, True]


def test_what_a_training_wrote_is_there_for_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = CachedTeacher(Counting(), tmp_path, "dense")
    first(views(0))
    monkeypatch.setattr(teacher_cache, "MAX_BYTES", 4 * first.file.stat().st_size)
    for seed in range(1, 10):
        first = CachedTeacher(Counting(), tmp_path, "dense") if seed == 1 else first
        first(views(seed))
    teacher = Counting()
    again = CachedTeacher(teacher, tmp_path, "dense")
    for seed in range(1, 5):
        again(views(seed))
    assert (again.hits, teacher.calls) == (4, 0)


def test_a_training_adds_so_much_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = CachedTeacher(Counting(), tmp_path, "dense")
    first(views(0))
    row = first.file.stat().st_size
    monkeypatch.setattr(teacher_cache, "MAX_BYTES", 4 * row)
    teacher = CachedTeacher(Counting(), tmp_path, "dense")
    for seed in range(1, 10):
        assert torch.equal(teacher(views(seed)), Counting()(views(seed)))
    assert teacher.file.stat().st_size == 4 * row


def test_a_full_disk_ends_no_training(tmp_path: Path) -> None:
    teacher = CachedTeacher(Counting(), tmp_path, "dense")
    teacher.file = tmp_path / "gone" / "file.bin"
    for seed in (1, 2):
        assert torch.equal(teacher(views(seed)), Counting()(views(seed)))
    assert teacher.bytes_left == 0


def test_a_file_that_another_one_tidies_away_is_only_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    CachedTeacher(Counting(), tmp_path, "dense")(views(1))
    (tmp_path / "gone.bin").symlink_to(tmp_path / "nowhere")
    (tmp_path / "empty.bin").touch()
    monkeypatch.setattr(
        teacher_cache, "_delete_oldest", lambda folder, _max_bytes: [f.unlink() for f in folder.glob("*-*.bin")] and 0
    )
    teacher = Counting()
    CachedTeacher(teacher, tmp_path, "dense")(views(1))
    assert teacher.calls == 1


def test_other_numbers_of_threads_round_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    CachedTeacher(Counting(), tmp_path, "dense")(views(1))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 96)
    teacher = Counting()
    CachedTeacher(teacher, tmp_path, "dense")(views(1))
    assert teacher.calls == 1


def test_a_hint_looks_into_the_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Recovery.model_validate(RECOVERY)
    assert is_cacheable(plain)
    for hint in ("features", "attention"):
        assert not is_cacheable(plain.model_copy(update={"hint": hint}))
    assert not is_cacheable(plain.model_copy(update={"teacher": "none"}))
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
