"""`python -m tasks STEP [NAME]`: the command of every DVC stage.

    python -m tasks pretrain
    python -m tasks candidate pruned

Under `winnow run` a process that has imported all libraries already may wait to run the step
(tasks/stage_server.py); otherwise it runs in this process. The result is the same.
"""

from __future__ import annotations

import os
import sys

from tasks.step_request import STEP_SOCKET_VARIABLE, request_step


def main(arguments: list[str]) -> int:
    """Run one step in the current folder, the project's root, and return the exit status."""
    if address := os.environ.get(STEP_SOCKET_VARIABLE):
        status = request_step(address, arguments)
        if status is not None:
            return status
    from tasks.step_process import main as run_here

    return run_here(arguments)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
