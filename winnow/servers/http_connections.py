"""Limits of time and number on the connections of `winnow serve`, which neither uvicorn nor LitServe sets.

    connection_class(settings)      the protocol class that uvicorn takes as `http=`

uvicorn waits for ever for the rest of a header, and for a body that nothing reads. Here a header has `header_timeout`
seconds from its first byte, as an idle connection has for the next one; a whole request has a second more than
`timeout`, within which its answer was due anyway; a client that does not read its response is disconnected. Bytes that
are neither a complete header nor part of a body (endless headers, trailers) end the connection as well.

One address may hold half of `max_connections`, and all addresses together `max_connections`. Beyond that the connection
that has waited longest for a header is closed, of the address that has most of those: a client that needs an answer
sends its header at once, however many connections others hold.
"""

from __future__ import annotations

import asyncio
import ipaddress
import resource
from functools import lru_cache
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from winnow.config.serving import ServingConfig
from winnow.hardware import cores

MAX_HEADER_BYTES = 256 * 1024
"""At most the bytes of one read of a socket."""
ANSWER_MARGIN = 1.0
"""Seconds beyond `timeout`, so that 504 is sent before the connection ends."""
OTHER_FILES, FILES_PER_CORE = 64, 4
"""File descriptors of the server that are not connections."""


@lru_cache(maxsize=4096)
def client_key_of(address: str) -> str:
    """Return the key by which a client is counted: an IPv4 address, or the /64 network of an IPv6 address."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return address


def connection_limit(settings: ServingConfig) -> int:
    """Return the maximum number of connections: `max_connections`, or what the limit on open files leaves."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        return settings.max_connections
    return min(settings.max_connections, max(8, files - OTHER_FILES - FILES_PER_CORE * cores()))


class _ConnectionSet:
    """The number of a server's connections, and those that wait for a header, by client."""

    def __init__(self, limit: int) -> None:
        self.limit, self.count = limit, 0
        self.by_client: dict[str, dict[TimedProtocol, None]] = {}

    def wait(self, connection: TimedProtocol) -> None:
        """Put the connection last among its client's; close the one that has waited longest if there are too many."""
        waiting = self.by_client.setdefault(connection.client_key, {})
        waiting.pop(connection, None)
        waiting[connection] = None
        if len(waiting) > max(1, self.limit // 2):
            self._end_oldest(waiting)
        elif self.count > self.limit:
            self._end_oldest(max(self.by_client.values(), key=len))

    def _end_oldest(self, waiting: dict[TimedProtocol, None]) -> None:
        next(iter(waiting)).cut_off()

    def leave(self, connection: TimedProtocol) -> None:
        """Remove the connection from those that wait."""
        waiting = self.by_client.get(connection.client_key, {})
        waiting.pop(connection, None)
        if not waiting:
            self.by_client.pop(connection.client_key, None)


class TimedProtocol(HttpToolsProtocol):
    """A uvicorn connection with deadlines. `connection_class` sets the class attributes without a value."""

    settings: ServingConfig
    open_connections: _ConnectionSet
    client_key = ""
    _timer: asyncio.TimerHandle | None = None
    _write_timer: asyncio.TimerHandle | None = None
    _is_request_whole = True
    _unparsed = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the deadline of the first header."""
        super().connection_made(transport)
        self.client_key = client_key_of(self.client[0]) if self.client else ""
        self.open_connections.count += 1
        self._expect_header()

    def connection_lost(self, exc: Exception | None) -> None:
        """Remove the connection."""
        self._end_timers()
        self.open_connections.leave(self)
        self.open_connections.count -= 1
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse data; close a connection that sends more than parsing uses."""
        self._unparsed += len(data)
        super().data_received(data)
        if self._unparsed > MAX_HEADER_BYTES:
            self.cut_off()

    def on_message_begin(self) -> None:
        """Start the deadline of the header at its first byte."""
        super().on_message_begin()
        self._is_request_whole = False
        self._expect_header()

    def on_headers_complete(self) -> None:
        """Start the deadline of the body."""
        self._unparsed = 0
        self.open_connections.leave(self)
        self._end_in(self.settings.timeout + ANSWER_MARGIN)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Pass on a part of the body."""
        self._unparsed = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """End the body's deadline; that of the response is set elsewhere (winnow/servers/http_limits.py)."""
        self._is_request_whole = True
        self._unparsed = 0
        super().on_message_complete()
        if self.cycle is not None and self.cycle.response_complete:
            self._expect_header()
        else:
            self._end_timers()

    def on_response_complete(self) -> None:
        """Start the deadline of the next header, if the answered request is complete."""
        is_last = not self.pipeline
        super().on_response_complete()
        if is_last and self._is_request_whole and not self.transport.is_closing():
            self._expect_header()

    def pause_writing(self) -> None:
        """Start the deadline for a client that does not read its response."""
        super().pause_writing()
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(self.settings.timeout, self.cut_off)

    def resume_writing(self) -> None:
        """End the deadline of the response."""
        super().resume_writing()
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def cut_off(self) -> None:
        """Close the connection at once."""
        self._end_timers()
        self.open_connections.leave(self)
        self.transport.abort()

    def _expect_header(self) -> None:
        self.open_connections.wait(self)
        if not self.transport.is_closing():
            self._end_in(self.settings.header_timeout)

    def _end_in(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(seconds, self.cut_off)

    def _end_timers(self) -> None:
        for timer in (self._timer, self._write_timer):
            if timer is not None:
                timer.cancel()
        self._timer = self._write_timer = None


def connection_class(settings: ServingConfig) -> type[Any]:
    """Return the protocol class for one server's connections; uvicorn makes an object of it for each."""
    class_attributes = {"settings": settings, "open_connections": _ConnectionSet(connection_limit(settings))}
    return type("Connection", (TimedProtocol,), class_attributes)
