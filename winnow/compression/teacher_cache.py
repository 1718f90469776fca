"""What the teacher said to a batch, kept: candidates with the same recovery see the same views, and ask only once.

    teacher = Answers(network, folder, record_digest(dense))
    logits_BC = teacher(views_BCHW)          # from the folder, where an earlier training asked the same

A batch is known by the hash of its pixels after augmentation, so what is found is what the teacher would have said, to
the bit, on the same number of threads. It lies in the folder as one file for each training that added to it, at most
LARGEST bytes. When a training begins the oldest go, until no more than that is left.
Only on the CPU: a GPU answers faster than pixels come back from it to be hashed.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import uuid
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from winnow.config import Recovery
from winnow.training.loop import bf16_is_fast, device

log = logging.getLogger(__name__)

LARGEST = 500_000_000
"""Bytes that a training adds, and that are kept of those before it."""
KEY_BYTES, HEADER_BYTES = 16, 8


def row_bytes(batch: int, classes: int) -> int:
    """Of one batch's answers on disk."""
    return HEADER_BYTES + KEY_BYTES + batch * classes * 4


def is_recalled(recovery: Recovery) -> bool:
    """Whether a training needs no more of the teacher than its answers; a hint looks into it."""
    looks_in = recovery.hint in ("features", "attention")
    return recovery.teacher == "dense" and not looks_in and device().type == "cpu"


class CachedTeacher(nn.Module):
    """The teacher, with the memory of earlier trainings. `teacher`: digest of what it was loaded from."""

    def __init__(self, network: nn.Module, folder: Path, teacher: str) -> None:
        super().__init__()
        self.network = network
        precision = "bf16" if bf16_is_fast() else "f32"  # what fit lets it compute in here
        kind = f"{precision}-{torch.get_num_threads()}threads-torch{torch.__version__}"
        stem = f"{hashlib.sha256(teacher.encode()).hexdigest()[:16]}-{kind}"
        self.mine = folder / f"{stem}-{os.getpid()}-{uuid.uuid4().hex[:8]}.bin"
        self.known: dict[tuple[bytes, int], NDArray[np.float32]] = {}
        self.asked = self.found = 0
        folder.mkdir(parents=True, exist_ok=True)
        _tidy(folder, LARGEST)
        self.room = LARGEST
        """Bytes that this training may add."""
        for file in sorted(folder.glob(f"{stem}-*.bin")):
            with contextlib.suppress(OSError, ValueError):  # gone just now, or empty
                self._read(np.memmap(file, np.uint8, "r"))

    def _read(self, raw: NDArray[np.uint8]) -> None:
        """Rows of a file: (batch, classes) as int32, then key and logits; a torn last row is left out."""
        at = 0
        while len(raw) - at > HEADER_BYTES:
            batch, classes = (int(each) for each in raw[at : at + HEADER_BYTES].view(np.int32))
            row = KEY_BYTES + batch * classes * 4
            if batch < 1 or classes < 1 or len(raw) - at - HEADER_BYTES < row:
                return
            body = raw[at + HEADER_BYTES : at + HEADER_BYTES + row]
            logits = body[KEY_BYTES:].view(np.float32).reshape(batch, classes)
            self.known[body[:KEY_BYTES].tobytes(), batch] = logits
            at += HEADER_BYTES + row

    def forward(self, views_BCHW: torch.Tensor) -> torch.Tensor:
        """Logits float32 (B, C)."""
        key = _key(views_BCHW)
        self.asked += 1
        if (kept := self.known.get(key)) is not None:
            self.found += 1
            return torch.from_numpy(np.array(kept))
        logits_BC = self._ask(views_BCHW)
        self._keep(key[0], logits_BC.numpy())
        return logits_BC

    def _ask(self, views_BCHW: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            logits_BC: torch.Tensor = self.network(views_BCHW).float()
        return logits_BC

    def _keep(self, key: bytes, logits_BC: NDArray[np.float32]) -> None:
        """For trainings to come; a full disk ends that and no training."""
        row = np.array(logits_BC.shape, np.int32).tobytes() + key + np.ascontiguousarray(logits_BC).tobytes()
        if len(row) > self.room:
            return
        self.room -= len(row)
        try:
            with self.mine.open("ab") as file:
                file.write(row)
        except OSError as error:
            self.room = 0
            log.info("the teacher's answers are not kept any more: %s", error.strerror)


class CacheHit(nn.Module):
    """What a teacher costs whose every answer is known; says nothing. For a forecast."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, views_BCHW: torch.Tensor) -> torch.Tensor:
        """Zeros float32 (B, C)."""
        return torch.zeros(_key(views_BCHW)[1], self.classes)


def _key(views_BCHW: torch.Tensor) -> tuple[bytes, int]:
    pixels = views_BCHW.permute(0, 2, 3, 1).contiguous().numpy()
    return hashlib.blake2b(pixels.tobytes(), digest_size=KEY_BYTES).digest(), len(pixels)


def _tidy(folder: Path, most: int) -> None:
    """Drop the oldest files while all are larger than `most` bytes. Others may tidy just now, too."""
    files = []
    for file in folder.glob("*.bin"):
        with contextlib.suppress(FileNotFoundError):
            told = file.stat()
            files.append((told.st_mtime, told.st_size, file))
    whole = 0
    for _, size, file in sorted(files, reverse=True):
        whole += size
        if whole > most:
            file.unlink(missing_ok=True)
