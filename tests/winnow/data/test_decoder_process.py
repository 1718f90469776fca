from __future__ import annotations

import subprocess
import sys

from tests.closure import ROOT


def test_workers_do_not_import_torch() -> None:
    code = "import sys, winnow.data.decoder_process; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
