"""A cache of teacher logits: candidates with the same recovery see the same views, so the teacher runs once.

    teacher = CachedTeacher(network, folder, record_digest(dense))
    logits_BC = teacher(views_BCHW)          # from the folder, where an earlier training needed the same

The key of a batch is the hash of its pixels after augmentation, so cached logits equal computed ones bit for bit, on
the same number of threads. Each training adds one file of at most MAX_BYTES bytes. When a training starts, the oldest
files are deleted until no more than MAX_BYTES bytes remain. CPU only: a GPU computes logits faster than pixels are
copied back to be hashed.
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
from winnow.training.device import bf16_is_fast, default_device

log = logging.getLogger(__name__)

MAX_BYTES = 500_000_000
"""Bytes that one training may add, and that are kept from earlier ones."""
KEY_BYTES, HEADER_BYTES = 16, 8


def row_bytes(batch: int, classes: int) -> int:
    """Return the bytes on disk of the logits of one batch."""
    return HEADER_BYTES + KEY_BYTES + batch * classes * 4


def is_cacheable(recovery: Recovery) -> bool:
    """Return whether a training needs only the teacher's logits on the CPU; some hints need its features too."""
    needs_features = recovery.hint in ("features", "attention")
    return recovery.teacher != "none" and not needs_features and default_device().type == "cpu"


class CachedTeacher(nn.Module):
    """A teacher that reads logits from the cache. `teacher`: digest of the record it was loaded from."""

    def __init__(self, network: nn.Module, folder: Path, teacher: str) -> None:
        super().__init__()
        self.network = network
        precision = "bf16" if bf16_is_fast() else "f32"  # the precision of autocast in `fit`
        kind = f"{precision}-{torch.get_num_threads()}threads-torch{torch.__version__}"
        stem = f"{hashlib.sha256(teacher.encode()).hexdigest()[:16]}-{kind}"
        self.file = folder / f"{stem}-{os.getpid()}-{uuid.uuid4().hex[:8]}.bin"
        self.logits: dict[tuple[bytes, int], NDArray[np.float32]] = {}
        self.calls = self.hits = 0
        folder.mkdir(parents=True, exist_ok=True)
        _delete_oldest(folder, MAX_BYTES)
        self.bytes_left = MAX_BYTES
        """Bytes that this training may add."""
        for file in sorted(folder.glob(f"{stem}-*.bin")):
            with contextlib.suppress(OSError, ValueError):  # deleted by another process, or empty
                self._read(np.memmap(file, np.uint8, "r"))

    def _read(self, raw: NDArray[np.uint8]) -> None:
        """Load the rows of a file: (batch, classes) as int32, then key and logits; ignores an incomplete last row."""
        start = 0
        while len(raw) - start > HEADER_BYTES:
            batch, classes = (int(size) for size in raw[start : start + HEADER_BYTES].view(np.int32))
            row_size = KEY_BYTES + batch * classes * 4
            if batch < 1 or classes < 1 or len(raw) - start - HEADER_BYTES < row_size:
                return
            body = raw[start + HEADER_BYTES : start + HEADER_BYTES + row_size]
            logits = body[KEY_BYTES:].view(np.float32).reshape(batch, classes)
            self.logits[body[:KEY_BYTES].tobytes(), batch] = logits
            start += HEADER_BYTES + row_size

    def forward(self, views_BCHW: torch.Tensor) -> torch.Tensor:
        """Return logits float32 (B, C)."""
        key = _key(views_BCHW)
        self.calls += 1
        if (cached := self.logits.get(key)) is not None:
            self.hits += 1
            return torch.from_numpy(np.array(cached))
        logits_BC = self._compute(views_BCHW)
        self._store(key[0], logits_BC.numpy())
        return logits_BC

    def _compute(self, views_BCHW: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            logits_BC: torch.Tensor = self.network(views_BCHW).float()
        return logits_BC

    def _store(self, key: bytes, logits_BC: NDArray[np.float32]) -> None:
        """Append logits for later trainings; when the disk is full, storing stops and training continues."""
        row = np.array(logits_BC.shape, np.int32).tobytes() + key + np.ascontiguousarray(logits_BC).tobytes()
        if len(row) > self.bytes_left:
            return
        self.bytes_left -= len(row)
        try:
            with self.file.open("ab") as file:
                file.write(row)
        except OSError as error:
            self.bytes_left = 0
            log.info("teacher logits are no longer cached: %s", error.strerror)


class CacheHit(nn.Module):
    """A teacher whose logits are all cached, with their cost but without values; used to forecast times."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, views_BCHW: torch.Tensor) -> torch.Tensor:
        """Return zeros float32 (B, C)."""
        return torch.zeros(_key(views_BCHW)[1], self.classes)


def _key(views_BCHW: torch.Tensor) -> tuple[bytes, int]:
    """Return (hash of the pixels, batch size)."""
    pixels = views_BCHW.permute(0, 2, 3, 1).contiguous().numpy()
    return hashlib.blake2b(pixels.tobytes(), digest_size=KEY_BYTES).digest(), len(pixels)


def _delete_oldest(folder: Path, max_bytes: int) -> None:
    """Delete the oldest files while all together exceed `max_bytes`; other processes may do so as well."""
    files = []
    for file in folder.glob("*.bin"):
        with contextlib.suppress(FileNotFoundError):
            status = file.stat()
            files.append((status.st_mtime, status.st_size, file))
    total = 0
    for _, size, file in sorted(files, reverse=True):
        total += size
        if total > max_bytes:
            file.unlink(missing_ok=True)
