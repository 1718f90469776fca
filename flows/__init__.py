"""Prefect flows and the command line `winnow`. No file here is named after a library: Prefect puts this folder on the
import path when it loads a flow."""

import signal

ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""What a person or the system sends to end a command."""
STOPPED = "winnow: stopped; run it again to go on where it was"
