"""Limits of time and number on the connections of `winnow serve`, which neither uvicorn nor LitServe sets.

    connection_class(settings)      the protocol class that uvicorn takes as `http=`

uvicorn waits for ever for the rest of a header, and for a body that nobody asks for. Here a header has `header_timeout`
seconds from its first byte, as an idle connection has for the next one; a whole request has a second more than
`timeout`, within which its answer was due anyway; a client that does not read its answer is cut off. Bytes that are
neither a header that ends nor part of a body (endless headers, trailers) end the connection as well.

One address may hold half of `max_connections` and all together as many. Where that is exceeded, the connection that
has waited longest for a header is closed, of the address that has most of those: a client in need of an answer sends
one at once, whoever else holds connections.
"""

from __future__ import annotations

import asyncio
import ipaddress
import resource
from functools import lru_cache
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from winnow.config.serving import Serving
from winnow.hardware import cores

MAX_HEADER_BYTES = 256 * 1024
"""At most what one read of a socket brings."""
IN_TIME = 1.0
"""Seconds beyond `timeout`, so that 504 is sent before the connection ends."""
OTHER_FILES, FILES_PER_CORE = 64, 4
"""File descriptors of the server that are not connections."""


@lru_cache(maxsize=4096)
def client_of(address: str) -> str:
    """Return who is counted as one client: an IPv4 address, or the /64 network of an IPv6 one."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped:
            return str(found.ipv4_mapped)
        return str(ipaddress.ip_network((found, 64), strict=False))
    return address


def connection_limit(settings: Serving) -> int:
    """Return how many connections are held: `max_connections`, or what the limit on open files leaves."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        return settings.max_connections
    return min(settings.max_connections, max(8, files - OTHER_FILES - FILES_PER_CORE * cores()))


class _Crowd:
    """The connections of a server: how many there are, and those that wait for a header, by client."""

    def __init__(self, most: int) -> None:
        self.most, self.count = most, 0
        self.by_client: dict[str, dict[TimedProtocol, None]] = {}

    def wait(self, connection: TimedProtocol) -> None:
        """Put it last among those of its client; end the one that waited longest, where there are too many."""
        waiting = self.by_client.setdefault(connection.client_key, {})
        waiting.pop(connection, None)
        waiting[connection] = None
        if len(waiting) > max(1, self.most // 2):
            self._end_oldest(waiting)
        elif self.count > self.most:
            self._end_oldest(max(self.by_client.values(), key=len))

    def _end_oldest(self, waiting: dict[TimedProtocol, None]) -> None:
        next(iter(waiting)).cut_off()

    def leave(self, connection: TimedProtocol) -> None:
        """It waits no more."""
        waiting = self.by_client.get(connection.client_key, {})
        waiting.pop(connection, None)
        if not waiting:
            self.by_client.pop(connection.client_key, None)


class TimedProtocol(HttpToolsProtocol):
    """A connection of uvicorn's with deadlines. Made by `connection_class`, which sets what is not set here."""

    settings: Serving
    crowd: _Crowd
    client_key = ""
    _timer: asyncio.TimerHandle | None = None
    _write_timer: asyncio.TimerHandle | None = None
    _is_request_whole = True
    _unparsed = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Expect a header from now on."""
        super().connection_made(transport)
        self.client_key = client_of(self.client[0]) if self.client else ""
        self.crowd.count += 1
        self._expect_header()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        self._end_timers()
        self.crowd.leave(self)
        self.crowd.count -= 1
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse; end a connection that sends more than parsing makes use of."""
        self._unparsed += len(data)
        super().data_received(data)
        if self._unparsed > MAX_HEADER_BYTES:
            self.cut_off()

    def on_message_begin(self) -> None:
        """The first byte of a header: the rest has its time from now on."""
        super().on_message_begin()
        self._is_request_whole = False
        self._expect_header()

    def on_headers_complete(self) -> None:
        """The body has its time from now on."""
        self._unparsed = 0
        self.crowd.leave(self)
        self._end_in(self.settings.timeout + IN_TIME)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Part of a body."""
        self._unparsed = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """A whole request; how long its answer takes is limited elsewhere (winnow/servers/http_limits.py)."""
        self._is_request_whole = True
        self._unparsed = 0
        super().on_message_complete()
        if self.cycle is not None and self.cycle.response_complete:
            self._expect_header()
        else:
            self._end_timers()

    def on_response_complete(self) -> None:
        """An answer was sent: the next request is expected, if the one that was answered is whole."""
        is_last = not self.pipeline
        super().on_response_complete()
        if is_last and self._is_request_whole and not self.transport.is_closing():
            self._expect_header()

    def pause_writing(self) -> None:
        """The client does not read its answer."""
        super().pause_writing()
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(self.settings.timeout, self.cut_off)

    def resume_writing(self) -> None:
        """It does again."""
        super().resume_writing()
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def cut_off(self) -> None:
        """End the connection at once: nothing is owed to whoever is late."""
        self._end_timers()
        self.crowd.leave(self)
        self.transport.abort()

    def _expect_header(self) -> None:
        self.crowd.wait(self)
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


def connection_class(settings: Serving) -> type[Any]:
    """Return the protocol of one server's connections, which uvicorn makes an object of for each."""
    own = {"settings": settings, "crowd": _Crowd(connection_limit(settings))}
    return type("Connection", (TimedProtocol,), own)
