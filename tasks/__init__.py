"""The steps as DVC stages and Prefect tasks, and the adapters for DVC, MLflow and the project folder.

Imports winnow, never flows.
"""

import signal

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""The signals with which a user or the system ends a command."""
