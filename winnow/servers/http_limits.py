"""Limits on requests to `winnow serve` before LitServe sees them, and on what one client may hold at a time.

    Limits(app)             ASGI middleware: Host, waiting requests, time, bytes; metrics of the answers
    DecoderPool(decoders)   the next free decoder, to each client in turn

A client is an IPv4 address or an IPv6 network; behind a proxy on this machine, the address that the proxy names in
X-Forwarded-For (uvicorn reads it, also from the proxies in FORWARDED_ALLOW_IPS). A request that calls the server by an
unknown host name is refused: otherwise a web page whose name is redirected to 127.0.0.1 after it was loaded (DNS
rebinding) would be answered through a browser on this machine.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

from fastapi import HTTPException, Request
from fastapi.responses import JSONResponse
from prometheus_client import Counter, Gauge, Histogram
from starlette.requests import ClientDisconnect

from winnow.config.serving import ALL_INTERFACES, ServingConfig
from winnow.data.decoder_process import DecoderProcess
from winnow.printable import printable
from winnow.servers.http_connections import client_key_of

LOCAL = ("127.0.0.1", "localhost", "::1")
ANY = "*"
SHARE_KEY = "winnow.held"
CLIENT_CLOSED = 499
"""The status counted where a client left before its response, as nginx counts it."""
ANSWERS = Counter("winnow_requests", "Requests by status.", ["status"])
WAITING = Gauge("winnow_waiting", "Requests that are being read or processed.")
SECONDS = Histogram(
    "winnow_seconds",
    "From the first byte of a request to the last of its response.",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)


def allowed_hosts(settings: ServingConfig) -> tuple[str, ...]:
    """Return the host names by which requests may call the server."""
    bound = () if settings.host in ALL_INTERFACES else (settings.host,)
    names = (*bound, *LOCAL, *(name.strip("[]").lower() for name in settings.allow_host))
    return tuple(dict.fromkeys(names))


def host_of(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """Return the host name of a request, without its port; "" where it has none, or several."""
    values = [value for name, value in headers if name == b"host"]
    if len(values) != 1:
        return ""
    host = values[0].decode("latin-1").strip().lower()
    return host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]


@dataclass(slots=True)
class ClientShare:
    """The requests and bytes that one client holds."""

    requests: int = 0
    bytes: int = 0


@dataclass(slots=True)
class RequestShare:
    """The bytes that one request holds of its client's share."""

    share: ClientShare
    most: int
    bytes: int = 0

    def add(self, count: int) -> None:
        """Count bytes of the request's body. Raises HTTPException where its client holds too many."""
        if self.share.bytes + count > self.most:
            raise HTTPException(
                429, f"requests of yours hold more than {self.most:,} bytes already", {"Retry-After": "1"}
            )
        self.bytes += count
        self.share.bytes += count


def share_of(request: Request) -> RequestShare:
    """Return the share of a request that came through `Limits`."""
    client_share: RequestShare = request.scope[SHARE_KEY]
    return client_share


class Limits:
    """ASGI middleware that limits host names, requests and their time, and counts the responses.

    `path`: where requests wait for the model. `prepare`: called before the first request.
    """

    def __init__(self, app: Any, settings: ServingConfig, path: str, prepare: Callable[[], object]) -> None:
        self.app, self.settings, self.path, self.prepare = app, settings, path, prepare
        self.hosts: Collection[str] = allowed_hosts(settings)
        self.waiting = 0
        self.shares: dict[str, ClientShare] = {}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass the request on, or answer 400, 429, 503 or 504."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                self.prepare()
            await self.app(scope, receive, send)
        elif refusal := self._foreign_host(scope["headers"]):
            await refusal(scope, receive, send)
        elif scope["path"] != self.path:
            await self.app(scope, receive, send)
        else:
            await self._predict(scope, receive, send)

    def _foreign_host(self, headers: list[tuple[bytes, bytes]]) -> JSONResponse | None:
        host = host_of(headers)
        if ANY in self.hosts or host in self.hosts:
            return None
        names = ", ".join(self.hosts)
        text = f"this server is called {names}, not {printable(host)!r}; winnow serve --allow-host NAME adds a name"
        return JSONResponse({"detail": text}, 400)

    def _refusal(self, share: ClientShare) -> JSONResponse | None:
        settings, headers = self.settings, {"Retry-After": "1"}
        if self.waiting > settings.max_waiting:
            return JSONResponse({"detail": f"{settings.max_waiting} requests are waiting already"}, 503, headers)
        if share.requests > settings.max_per_client:
            text = f"{settings.max_per_client} requests of yours are waiting already"
            return JSONResponse({"detail": text}, 429, headers)
        return None

    async def _predict(self, scope: Any, receive: Any, send: Any) -> None:
        settings, started, status = self.settings, time.perf_counter(), 0
        client = client_key_of(scope["client"][0]) if scope["client"] else ""
        share = self.shares.setdefault(client, ClientShare())
        client_share = scope[SHARE_KEY] = RequestShare(share, settings.max_client_bytes)

        async def send_and_note(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self.waiting += 1
        share.requests += 1
        WAITING.set(self.waiting)
        try:
            if refusal := self._refusal(share):
                await refusal(scope, receive, send_and_note)
            else:
                await asyncio.wait_for(self.app(scope, receive, send_and_note), settings.timeout)
        except TimeoutError:
            if not status:
                text = f"no response within {settings.timeout:g} s"
                await JSONResponse({"detail": text}, 504)(scope, receive, send_and_note)
        except ClientDisconnect:
            status = CLIENT_CLOSED
        finally:
            self.waiting -= 1
            share.requests -= 1
            share.bytes -= client_share.bytes
            if not share.requests:
                self.shares.pop(client, None)
            WAITING.set(self.waiting)
            ANSWERS.labels(str(status or 500)).inc()  # no status: LitServe answers 500 further out
            SECONDS.observe(time.perf_counter() - started)


class DecoderPool:
    """Decoders, each for one request at a time; clients take turns, so that one client's images do not block all
    others.
    """

    def __init__(self, decoders: Iterable[DecoderProcess]) -> None:
        self._free = deque(decoders)
        self._queues: dict[str, deque[asyncio.Future[DecoderProcess]]] = {}

    async def take(self, client: str) -> DecoderProcess:
        """Return the next free decoder; where none is free, wait for this client's turn."""
        if self._free:
            return self._free.popleft()
        turn: asyncio.Future[DecoderProcess] = asyncio.get_running_loop().create_future()
        self._queues.setdefault(client, deque()).append(turn)
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give_back(turn.result())
            raise

    def give_back(self, decoder: DecoderProcess) -> None:
        """Pass the decoder to the next client in turn."""
        while self._queues:
            client = next(iter(self._queues))
            turns = self._queues.pop(client)
            turn = turns.popleft()
            if turns:
                self._queues[client] = turns  # behind all others
            if not turn.done():
                turn.set_result(decoder)
                return
        self._free.append(decoder)
