from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.closure import ROOT


def test_workers_do_not_import_torch() -> None:
    code = "import sys, winnow.data.decoder_process; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


FIRST_WORKER = """
import multiprocessing, os, signal
from winnow.data.chunk_decoding import DecodeSettings
from winnow.data.decoder_process import DecoderProcess
if __name__ == "__main__":
    decoder = DecoderProcess(DecodeSettings(8))
    [worker] = multiprocessing.active_children()
    os.kill(worker.pid, signal.SIGINT)
    decoder.give([ValueError("no image")])
    print(decoder.answer(60).reasons, signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []))
    decoder.end()
"""


def test_ctrl_c_at_the_start_of_a_worker_does_not_end_it(tmp_path: Path) -> None:
    """A terminal sends it to the whole group, also to a worker that has not yet run a line of its own.

    In a process of its own, whose first worker it is: multiprocessing does more then.
    """
    script = tmp_path / "first.py"
    script.write_text(FIRST_WORKER, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "{0: 'no image'} False"
    assert "Traceback" not in result.stderr
