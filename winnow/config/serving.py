"""What `winnow serve` is told, on its command line: no section of params.yaml, since it changes no result."""

from __future__ import annotations

from dataclasses import dataclass

EVERYWHERE = ("0.0.0.0", "::")
"""Addresses that stand for all of this machine."""


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
    header_timeout: float = 5.0
    """Seconds that the header of a request may take to arrive, and an idle connection may stay."""
    max_pixels: int = 25_000_000
    """Of an image; one of more gets 400 before it is decoded."""
    max_per_client: int = 64
    """Requests of one address; more get 429."""
    max_client_bytes: int = 100_000_000
    """Of bodies of one address that are under way; more get 429."""
    max_connections: int = 512
    """Beyond these the one that waits longest for a request is closed; one address may hold half of them."""
    allow_host: tuple[str, ...] = ()
    """Names, beside this machine's own, that requests may call the server by."""
    folder: str = ""
    title: str = ""
    """Name and version of the model, told with every answer."""
