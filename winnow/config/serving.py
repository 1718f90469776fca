"""What `winnow serve` is told, on its command line: no section of params.yaml, since it changes no result."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Serving:
    """Of one server."""

    host: str = "127.0.0.1"
    port: int = 8000
    top: int = 3
    """Classes in an answer, the likeliest first."""
    max_batch: int = 16
    """Images that are answered together, if they arrive together."""
    max_wait_ms: float = 2.0
    """How long a batch waits for company."""
    timeout: float = 10.0
    """Seconds until 504."""
    max_bytes: int = 10_000_000
    """Of a request's body; more get 413."""
    max_waiting: int = 128
    """Requests; more get 503."""
    folder: str = ""
    title: str = ""
    """Name and version of the model, told with every answer."""
