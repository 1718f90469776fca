"""The settings of `winnow serve`, set on its command line. They are not in params.yaml, since they change no result."""

from __future__ import annotations

from dataclasses import dataclass

ALL_INTERFACES = ("0.0.0.0", "::")
"""The addresses that stand for all interfaces of this machine."""


@dataclass(frozen=True)
class ServingConfig:
    """The settings of one server."""

    host: str = "127.0.0.1"
    """The address to listen on; 127.0.0.1 is this machine alone."""
    port: int = 8000
    """The port to listen on."""
    top: int = 3
    """The number of classes in a response, the most probable first."""
    max_batch: int = 16
    """The most images in one batch."""
    max_wait_ms: float = 2.0
    """The time in ms that a batch waits for more images."""
    timeout: float = 10.0
    """The seconds until a request gets 504."""
    max_bytes: int = 10_000_000
    """The largest body of a request; a larger one gets 413."""
    max_waiting: int = 128
    """The most waiting requests; further ones get 503."""
    header_timeout: float = 5.0
    """The seconds that a request's header may take to arrive, and that an idle connection may stay open."""
    max_pixels: int = 25_000_000
    """The most pixels of an image; a larger one gets 400 before it is decoded."""
    max_per_client: int = 64
    """The most concurrent requests of one address; further ones get 429."""
    max_client_bytes: int = 100_000_000
    """The most bytes of request bodies in flight of one address; further ones get 429."""
    max_connections: int = 512
    """The most connections; beyond them the longest idle one is closed. One address may hold half of them."""
    allow_host: tuple[str, ...] = ()
    """The accepted names of the server in a request's Host header, beside this machine's own."""
    folder: str = ""
    """The folder of the model's file and card."""
    title: str = ""
    """The name and version of the model, included in every response."""
