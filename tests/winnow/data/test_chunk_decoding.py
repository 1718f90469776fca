from __future__ import annotations

import os
from pathlib import Path

from winnow.data.chunk_decoding import DecodeSettings, decode_chunk
from winnow.data.image_items import MAX_FILE_BYTES


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
