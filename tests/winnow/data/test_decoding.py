from __future__ import annotations

import io
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.closure import ROOT
from winnow.data.chunk_decoding import DecodeSettings, decode_chunk
from winnow.data.dataset import decode
from winnow.data.decoding import (
    CHUNK_BYTES,
    CHUNKS_PER_WORKER,
    MAX_CHUNK_IMAGES,
    MIN_PARALLEL_IMAGES,
    DecodedItems,
    _chunks,
    decode_all,
)
from winnow.data.image_items import Item
from winnow.errors import DataError
from winnow.hardware import cores

needs_cores = pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity") or cores() < 2, reason="processes are used from two cores on"
)


def random_png(seed: int, side: int = 12) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def mixed_items(count: int, folder: Path) -> list[Item]:
    """Return items with bytes and files in turns; every seventh is not an image."""
    items = []
    for index in range(count):
        content: str | bytes = random_png(index) if index % 7 else b"no image"
        if index % 2:
            path = folder / f"{index}.png"
            path.write_bytes(content)
            content = str(path)
        items.append(Item(f"{index}", index % 3, False, content))
    return items


@contextmanager
def on_one_core() -> Iterator[None]:
    previous = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(previous)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, previous)


def concatenate(chunks: list[DecodedItems]) -> tuple[list[str], list[str], dict[str, str], bytes, bytes]:
    """Return all names in order, kept names, reasons by name, pixels and keys."""
    names = [item.name for chunk in chunks for item in chunk.items]
    kept_names = [chunk.items[index].name for chunk in chunks for index in chunk.usable]
    reasons = {chunk.items[index].name: reason for chunk in chunks for index, reason in chunk.reasons.items()}
    pixels = b"".join(chunk.pixels_KHWC.tobytes() for chunk in chunks)
    return names, kept_names, reasons, pixels, b"".join(chunk.keys_K16.tobytes() for chunk in chunks)


@pytest.mark.parametrize("count", [1, 5, MIN_PARALLEL_IMAGES - 1])
def test_order_pixels_and_reasons_of_decoded_items(tmp_path: Path, count: int) -> None:
    items = mixed_items(count, tmp_path)
    names, kept_names, reasons, pixels, keys = concatenate(list(decode_all(iter(items), count, 8)))
    valid = [index for index in range(count) if index % 7]
    assert names == [str(index) for index in range(count)]
    assert kept_names == [str(index) for index in valid]
    assert reasons == {str(index): "not a supported image format" for index in range(0, count, 7)}
    expected = [decode(random_png(index), 8) for index in valid]
    assert pixels == b"".join(pixels_HWC.tobytes() for pixels_HWC, _ in expected)
    assert keys == b"".join(key for _, key in expected)


@pytest.mark.thorough
@needs_cores
def test_several_processes_give_the_result_of_one(tmp_path: Path) -> None:
    items = mixed_items(300, tmp_path)
    spread = concatenate(list(decode_all(items, len(items), 8)))
    with on_one_core():
        assert cores() == 1
        assert concatenate(list(decode_all(items, len(items), 8))) == spread


@pytest.mark.thorough
@needs_cores
@pytest.mark.parametrize("side", [8, 512])
def test_few_files_are_decoded_in_advance(side: int) -> None:
    consumed = 0

    def item_stream() -> Iterator[Item]:
        nonlocal consumed
        for index in range(2000):
            consumed += 1
            yield Item(str(index), 0, False, random_png(index, 4))

    with closing(decode_all(item_stream(), 2000, side)) as decoded:
        first_chunk = next(decoded)
        max_chunks = cores() * CHUNKS_PER_WORKER
        assert len(first_chunk.items) == min(MAX_CHUNK_IMAGES, CHUNK_BYTES // (side * side * 3))
        assert consumed <= max_chunks * len(first_chunk.items)
    assert consumed < 2000
    assert multiprocessing.active_children() == []  # closed early without leftover processes


class CallOnUnpickle:
    """Item content that calls a function in the worker: pickle calls it when the worker receives the item."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple:
        return self.call


@pytest.mark.thorough
@needs_cores
def test_a_killed_worker_loses_no_image() -> None:
    items = [Item(str(index), 0, False, random_png(index % 5)) for index in range(2000)]
    expected = concatenate(list(decode_all(items, len(items), 8)))
    decoded = decode_all(items, len(items), 8)
    first_chunk = next(decoded)
    for child in multiprocessing.active_children():
        child.kill()
    assert concatenate([first_chunk, *decoded]) == expected
    assert multiprocessing.active_children() == []


@pytest.mark.thorough
@needs_cores
def test_only_files_that_crash_or_hang_are_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("winnow.data.decoding.CHUNK_SECONDS", 3.0)
    monkeypatch.setattr("winnow.data.decoding.FILE_SECONDS", 3.0)
    contents: list = [random_png(index) for index in range(200)]
    contents[7], contents[90] = CallOnUnpickle(os._exit, 3), CallOnUnpickle(time.sleep, 600)
    items = [Item(str(index), 0, False, content) for index, content in enumerate(contents)]
    _, kept_names, reasons, _, _ = concatenate(list(decode_all(items, len(items), 8)))
    assert reasons == {
        "7": "crashes the process that decodes it (status 3)",
        "90": "takes longer than 3 s to decode",
    }
    assert len(kept_names) == 198
    assert multiprocessing.active_children() == []


@pytest.mark.thorough
@needs_cores
def test_a_script_without_a_main_guard_is_an_error(tmp_path: Path) -> None:
    code = (
        "from winnow.data.decoding import decode_all\n"
        "from winnow.data.image_items import Item\n"
        f"items = [Item(str(at), 0, False, {random_png(1)!r}) for at in range(100)]\n"
        "print(sum(len(part.usable) for part in decode_all(items, 100, 8)))\n"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=False)
    assert result.returncode != 0
    assert "below if __name__" in result.stderr
    script.write_text(code.replace("items =", "if __name__ == '__main__':\n  items =").replace("print", "  print"))
    result = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=True)
    assert result.stdout == "100\n"


@pytest.mark.thorough
@needs_cores
def test_repeatedly_dying_workers_are_an_error_with_a_remedy() -> None:
    items = [Item(str(index), 0, False, CallOnUnpickle(os._exit, 3)) for index in range(64)]  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"one image decoding process after another died.*taskset"):
        list(decode_all(items, len(items), 8))
    assert multiprocessing.active_children() == []


def test_only_invalid_items_and_no_items() -> None:
    result = decode_chunk([b"", b"x"], DecodeSettings(8))
    kept, pixels_KHWC, keys_K16, reasons = result.usable, result.pixels_KHWC, result.keys_K16, result.reasons
    assert (kept, pixels_KHWC.shape, keys_K16.shape, list(reasons)) == ([], (0, 8, 8, 3), (0, 16), [0, 1])
    assert list(decode_all([], 0, 8)) == []


def test_the_content_of_a_chunk_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("winnow.data.decoding.MAX_CONTENT_BYTES", 100)
    sizes = [10, 60, 30, 10, 300, 5, 5]
    items = [Item(str(index), 0, False, bytes(size)) for index, size in enumerate(sizes)]
    chunks = [[len(item.content) for item in chunk] for chunk in _chunks(iter(items), 4)]  # type: ignore[arg-type]
    assert chunks == [[10, 60, 30], [10], [300], [5, 5]]
    paths = [Item(str(index), 0, False, "somewhere") for index in range(9)]
    assert [len(chunk) for chunk in _chunks(iter(paths), 4)] == [4, 4, 1]


@pytest.mark.thorough
def test_hanging_files_are_not_reported_as_lack_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("winnow.data.decoding.CHUNK_SECONDS", 0.5)
    monkeypatch.setattr("winnow.data.decoding.FILE_SECONDS", 0.5)
    items = [Item(str(index), 0, False, CallOnUnpickle(time.sleep, 600)) for index in range(24)]  # type: ignore[arg-type]
    monkeypatch.setattr("winnow.data.decoding.cores", lambda: 1)
    stream = decode_all(items, len(items), 8)
    assert set(next(stream).reasons.values()) == {"takes longer than 0 s to decode"}
    stream.close()
