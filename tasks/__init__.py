"""Adapters: what a DVC stage runs, Prefect tasks, MLflow. Imports winnow, never flows."""

import signal

ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""What a person or the system sends to end a command."""
