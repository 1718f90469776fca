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
from winnow.data.dataset import decode
from winnow.data.decoding import (
    CHUNK_BYTES,
    CHUNKS_PER_WORKER,
    MAX_CHUNK_IMAGES,
    MAX_FILE_BYTES,
    MIN_PARALLEL_IMAGES,
    DecodedItems,
    DecodeSettings,
    Item,
    _chunks,
    decode_all,
    decode_chunk,
)
from winnow.errors import DataError
from winnow.hardware import cores

needs_cores = pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity") or cores() < 2, reason="processes are used from two cores on"
)


def bitmap(seed: int, side: int = 12) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def some_items(count: int, folder: Path) -> list[Item]:
    """By turns: bytes, files, and every seventh of them no image."""
    items = []
    for index in range(count):
        content: str | bytes = bitmap(index) if index % 7 else b"no image"
        if index % 2:
            path = folder / f"{index}.png"
            path.write_bytes(content)
            content = str(path)
        items.append(Item(f"{index}", index % 3, False, content))
    return items


@contextmanager
def on_one_core() -> Iterator[None]:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def together(parts: list[DecodedItems]) -> tuple[list[str], list[str], dict[str, str], bytes, bytes]:
    """Names in order, names kept, reasons by name, pixels and keys."""
    names = [item.name for part in parts for item in part.items]
    kept = [part.items[at].name for part in parts for at in part.kept]
    reasons = {part.items[at].name: why for part in parts for at, why in part.reasons.items()}
    pixels = b"".join(part.pixels_KHWC.tobytes() for part in parts)
    return names, kept, reasons, pixels, b"".join(part.keys_K16.tobytes() for part in parts)


@pytest.mark.parametrize("count", [1, 5, MIN_PARALLEL_IMAGES - 1])
def test_order_pixels_and_reasons(tmp_path: Path, count: int) -> None:
    items = some_items(count, tmp_path)
    names, kept, reasons, pixels, keys = together(list(decode_all(iter(items), count, 8)))
    good = [at for at in range(count) if at % 7]
    assert names == [str(at) for at in range(count)]
    assert kept == [str(at) for at in good]
    assert reasons == {str(at): "not a supported image format" for at in range(0, count, 7)}
    expected = [decode(bitmap(at), 8) for at in good]
    assert pixels == b"".join(pixels_HWC.tobytes() for pixels_HWC, _ in expected)
    assert keys == b"".join(key for _, key in expected)


@pytest.mark.thorough
@needs_cores
def test_processes_give_what_one_process_gives(tmp_path: Path) -> None:
    items = some_items(300, tmp_path)
    spread = together(list(decode_all(items, len(items), 8)))
    with on_one_core():
        assert cores() == 1
        assert together(list(decode_all(items, len(items), 8))) == spread


@pytest.mark.thorough
@needs_cores
@pytest.mark.parametrize("side", [8, 512])
def test_few_files_are_under_way(side: int) -> None:
    taken = 0

    def stream() -> Iterator[Item]:
        nonlocal taken
        for index in range(2000):
            taken += 1
            yield Item(str(index), 0, False, bitmap(index, 4))

    with closing(decode_all(stream(), 2000, side)) as decoded:
        first = next(decoded)
        under_way = cores() * CHUNKS_PER_WORKER
        assert len(first.items) == min(MAX_CHUNK_IMAGES, CHUNK_BYTES // (side * side * 3))
        assert taken <= under_way * len(first.items)
    assert taken < 2000
    assert multiprocessing.active_children() == []  # closed early, and nobody is left behind


class Does:
    """A file at which a worker calls a function: pickle calls it where the worker takes the file."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.what = function, arguments

    def __reduce__(self) -> tuple:
        return self.what


@pytest.mark.thorough
@needs_cores
def test_a_killed_worker_costs_no_image() -> None:
    items = [Item(str(index), 0, False, bitmap(index % 5)) for index in range(2000)]
    whole = together(list(decode_all(items, len(items), 8)))
    decoded = decode_all(items, len(items), 8)
    first = next(decoded)
    for child in multiprocessing.active_children():
        child.kill()
    assert together([first, *decoded]) == whole
    assert multiprocessing.active_children() == []


@pytest.mark.thorough
@needs_cores
def test_files_that_kill_or_hang_are_set_aside_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("winnow.data.decoding.CHUNK_SECONDS", 3.0)
    monkeypatch.setattr("winnow.data.decoding.FILE_SECONDS", 3.0)
    contents: list = [bitmap(index) for index in range(200)]
    contents[7], contents[90] = Does(os._exit, 3), Does(time.sleep, 600)
    items = [Item(str(index), 0, False, content) for index, content in enumerate(contents)]
    _, kept, reasons, _, _ = together(list(decode_all(items, len(items), 8)))
    assert reasons == {
        "7": "crashes the process that decodes it (status 3)",
        "90": "takes longer than 3 s to decode",
    }
    assert len(kept) == 198
    assert multiprocessing.active_children() == []


@pytest.mark.thorough
@needs_cores
def test_a_script_without_a_guard_is_told_so(tmp_path: Path) -> None:
    code = (
        "from winnow.data.decoding import Item, decode_all\n"
        f"items = [Item(str(at), 0, False, {bitmap(1)!r}) for at in range(100)]\n"
        "print(sum(len(part.kept) for part in decode_all(items, 100, 8)))\n"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    told = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=False)
    assert told.returncode != 0
    assert "below if __name__" in told.stderr
    script.write_text(code.replace("items =", "if __name__ == '__main__':\n  items =").replace("print", "  print"))
    told = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=True)
    assert told.stdout == "100\n"


@pytest.mark.thorough
@needs_cores
def test_process_after_process_that_dies_is_an_error_that_says_what_to_do() -> None:
    items = [Item(str(index), 0, False, Does(os._exit, 3)) for index in range(64)]  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"one image decoding process after another died.*taskset"):
        list(decode_all(items, len(items), 8))
    assert multiprocessing.active_children() == []


def test_all_bad_and_none_at_all() -> None:
    made = decode_chunk([b"", b"x"], DecodeSettings(8))
    kept, pixels_KHWC, keys_K16, reasons = made.kept, made.pixels_KHWC, made.keys_K16, made.reasons
    assert (kept, pixels_KHWC.shape, keys_K16.shape, list(reasons)) == ([], (0, 8, 8, 3), (0, 16), [0, 1])
    assert list(decode_all([], 0, 8)) == []


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("nowhere")
    with (tmp_path / "huge.png").open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    paths = [str(tmp_path / name) for name in ("pipe", "link", "huge.png", ".")]
    assert decode_chunk(paths, DecodeSettings(8)).reasons == {
        0: "not a regular file",
        1: "cannot be read (No such file or directory)",
        2: "200,000,001 bytes are more than 200,000,000",
        3: "not a regular file",
    }


def test_workers_load_no_torch() -> None:
    code = "import sys, winnow.data.decoding; print('torch' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "False"


def test_a_chunk_holds_no_more_content_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("winnow.data.decoding.MAX_CONTENT_BYTES", 100)
    sizes = [10, 60, 30, 10, 300, 5, 5]
    items = [Item(str(at), 0, False, bytes(size)) for at, size in enumerate(sizes)]
    chunks = [[len(item.content) for item in chunk] for chunk in _chunks(iter(items), 4)]  # type: ignore[arg-type]
    assert chunks == [[10, 60, 30], [10], [300], [5, 5]]
    paths = [Item(str(at), 0, False, "somewhere") for at in range(9)]
    assert [len(chunk) for chunk in _chunks(iter(paths), 4)] == [4, 4, 1]


@pytest.mark.thorough
def test_hanging_files_alone_are_no_want_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("winnow.data.decoding.CHUNK_SECONDS", 0.5)
    monkeypatch.setattr("winnow.data.decoding.FILE_SECONDS", 0.5)
    items = [Item(str(at), 0, False, Does(time.sleep, 600)) for at in range(24)]  # type: ignore[arg-type]
    monkeypatch.setattr("winnow.data.decoding.cores", lambda: 1)
    stream = decode_all(items, len(items), 8)
    assert set(next(stream).reasons.values()) == {"takes longer than 0 s to decode"}
    stream.close()
