"""What the teacher said to a batch, kept: candidates with the same recovery see the same views, and ask only once.

    teacher = Answers(network, folder, record_digest(dense))
    logits_BC = teacher(views_BCHW)          # from the folder, where some training asked the same before

A batch is known by the hash of its pixels after augmentation, so what is found is what the teacher would have said, to
the bit. It lies in the folder as one file for each process that added to it, and the oldest go once all are too large.
Only on the CPU: a GPU answers faster than pixels come back from it to be hashed.
"""

from __future__ import annotations

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
from winnow.training import bf16_is_fast, device

log = logging.getLogger(__name__)

LARGEST = 10**9
"""Bytes of a folder beyond which its oldest files go."""
KEY_BYTES = 16


def is_recalled(recovery: Recovery) -> bool:
    """Whether a training needs no more of the teacher than its answers; a hint looks into it."""
    looks_in = recovery.hint in ("features", "attention")
    return recovery.teacher == "dense" and not looks_in and device().type == "cpu"


class Answers(nn.Module):
    """The teacher, with a memory. `teacher`: digest of what it was loaded from."""

    def __init__(self, network: nn.Module, folder: Path, teacher: str) -> None:
        super().__init__()
        self.network = network
        precision = "bf16" if bf16_is_fast() else "f32"  # what fit lets it compute in here
        self.stem = f"{hashlib.sha256(teacher.encode()).hexdigest()[:16]}-{precision}-torch{torch.__version__}"
        self.folder = folder
        self.mine = folder / f"{self.stem}-{os.getpid()}-{uuid.uuid4().hex[:8]}.bin"
        self.known: dict[tuple[bytes, int], NDArray[np.float32]] = {}
        self.asked = self.found = 0
        folder.mkdir(parents=True, exist_ok=True)
        _tidy(folder)
        for file in sorted(folder.glob(f"{self.stem}-*.bin")):
            self._read(file)

    def _read(self, file: Path) -> None:
        """Rows of a file: a header of (batch, classes) as int32, then key and logits; a torn last row is left out."""
        raw = np.fromfile(file, np.uint8)
        at = 0
        while len(raw) - at > 8:
            batch, classes = (int(each) for each in raw[at : at + 8].view(np.int32))
            row = KEY_BYTES + batch * classes * 4
            if batch < 1 or classes < 1 or len(raw) - at - 8 < row:
                return
            body = raw[at + 8 : at + 8 + row]
            logits = body[KEY_BYTES:].view(np.float32).reshape(batch, classes)
            self.known[body[:KEY_BYTES].tobytes(), batch] = logits
            at += 8 + row

    def forward(self, views_BCHW: torch.Tensor) -> torch.Tensor:
        """Logits float32 (B, C)."""
        key = _key(views_BCHW)
        self.asked += 1
        if (kept := self.known.get(key)) is not None:
            self.found += 1
            return torch.from_numpy(kept.copy())
        logits_BC = self._ask(views_BCHW)
        self._keep(key, logits_BC.numpy())
        return logits_BC

    def _ask(self, views_BCHW: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            logits_BC: torch.Tensor = self.network(views_BCHW).float()
        return logits_BC

    def _keep(self, key: tuple[bytes, int], logits_BC: NDArray[np.float32]) -> None:
        self.known[key] = logits_BC
        header = np.array(logits_BC.shape, np.int32).tobytes()
        with self.mine.open("ab") as file:
            file.write(header + key[0] + np.ascontiguousarray(logits_BC).tobytes())


class Recalled(nn.Module):
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


def _tidy(folder: Path) -> None:
    """Drop the oldest files while all are larger than LARGEST."""
    files = sorted(folder.glob("*.bin"), key=lambda file: file.stat().st_mtime, reverse=True)
    total = 0
    for file in files:
        total += file.stat().st_size
        if total > LARGEST:
            file.unlink(missing_ok=True)
