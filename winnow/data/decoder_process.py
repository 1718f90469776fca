"""A process that decodes images, and is replaced when it hangs or dies.

It is spawned, not forked (torch and Prefect run threads that do not survive a fork), and imports numpy and Pillow, not
torch.
"""

from __future__ import annotations

import multiprocessing
import signal
from contextlib import suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection

from winnow.data.chunk_decoding import DecodedChunk, DecodeSettings, decode_chunk
from winnow.data.image_items import Content
from winnow.errors import DataError

CRASH_REASON = "crashes the process that decodes it"


class DecoderProcess:
    """A decoding process with at most one chunk in flight; a process that ends is replaced by a new one.

    Not a ProcessPoolExecutor: that waits for ever for a worker which was killed while sending its result. Here each
    pipe has one writer, so a dead worker closes its pipe.
    """

    def __init__(self, sides: DecodeSettings) -> None:
        self._sides = sides
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, worker_pipe = context.Pipe()
        self._process = context.Process(target=_run_worker, args=(worker_pipe, self._sides), daemon=True)
        # Ctrl-C reaches the whole process group: a new process ignores it even before it can say so. The first process
        # also starts multiprocessing's tracker, which would unblock the signal.
        resource_tracker.ensure_running()
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        self._has_started = False
        worker_pipe.close()

    def give(self, contents: list[Content]) -> None:
        """Send a chunk to the process."""
        with suppress(OSError):  # `answer` reports a process that has died
            self._pipe.send(contents)

    def answer(self, seconds: float) -> DecodedChunk | str:
        """Return the chunk's result, or the reason why there is none; the process has then been replaced."""
        try:
            self._wait_until_started()
            if self._pipe.poll(seconds):
                result: DecodedChunk = self._pipe.recv()
                return result
            reason = f"takes longer than {seconds:.0f} s to decode"
        except (EOFError, OSError):
            self._process.join(1)
            reason = f"{CRASH_REASON} (status {self._process.exitcode})"
        self.end()
        self._start()
        return reason

    def _wait_until_started(self) -> None:
        """Wait for the process. Raises DataError where it failed before it received a file: no file is to blame."""
        if not self._has_started:
            try:
                self._pipe.recv()
            except (EOFError, OSError) as error:
                self._process.join(1)
                if (self._process.exitcode or 0) <= 0:  # killed, not failed
                    raise
                raise DataError(
                    "an image decoding process fails at start; a script that calls winnow must be a file, and "
                    'call it below if __name__ == "__main__":'
                ) from error
            self._has_started = True

    def end(self) -> None:
        """Kill the process."""
        self._pipe.close()
        self._process.kill()
        self._process.join()


def _run_worker(pipe: Connection, sides: DecodeSettings) -> None:
    """Report readiness, then decode chunks from the pipe until its other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    pipe.send("ready")
    while True:
        try:
            pipe.send(decode_chunk(pipe.recv(), sides))
        except (EOFError, OSError):
            return
