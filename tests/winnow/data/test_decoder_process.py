from __future__ import annotations

import os
import signal
import subprocess
import sys

from tests.closure import ROOT
from winnow.data.chunk_decoding import DecodedChunk, DecodeSettings
from winnow.data.decoder_process import DecoderProcess


def test_workers_do_not_import_torch() -> None:
    code = "import sys, winnow.data.decoder_process; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


def test_ctrl_c_at_the_start_of_a_worker_does_not_end_it() -> None:
    """A terminal sends it to the whole group, also to a worker that has not yet run a line of its own."""
    decoder = DecoderProcess(DecodeSettings(8))
    try:
        assert decoder._process.pid is not None
        os.kill(decoder._process.pid, signal.SIGINT)
        decoder.give([ValueError("no image")])
        answer = decoder.answer(60)
        assert isinstance(answer, DecodedChunk)
        assert answer.reasons == {0: "no image"}
    finally:
        decoder.end()
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
