"""Forecast of a run's time, memory and disk: the work of each step is timed on a small scale."""
