"""What a request to `winnow serve` is held to before LitServe sees it, and what one client may hold at a time.

    Limits(app)             ASGI middleware: Host, requests that wait, time, bytes; metrics of what they got
    DecoderPool(decoders)   the next free one, to each client in turn

A client is an IPv4 address or an IPv6 network; behind a proxy on this machine, the address that the proxy names in
X-Forwarded-For (uvicorn reads it, also from the proxies in FORWARDED_ALLOW_IPS). A request that calls the server by a
name it does not know is refused: a page whose name is turned to 127.0.0.1 after it was loaded (DNS rebinding) would
otherwise be answered through the browser of a person on this machine.
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

from winnow.config.serving import EVERYWHERE, Serving
from winnow.data.decoding import Decoder
from winnow.printable import printable
from winnow.servers.http_connections import client_of

LOCAL = ("127.0.0.1", "localhost", "::1")
ANY = "*"
HELD = "winnow.held"
GONE = 499
"""What is counted where a client left before its answer; nginx counts it so."""
ANSWERS = Counter("winnow_requests", "Requests by status.", ["status"])
WAITING = Gauge("winnow_waiting", "Requests that are being read or answered.")
SECONDS = Histogram(
    "winnow_seconds",
    "From the first byte of a request to the last of its answer.",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)


def allowed_hosts(settings: Serving) -> tuple[str, ...]:
    """Return the names by which requests may call the server."""
    own = () if settings.host in EVERYWHERE else (settings.host,)
    names = (*own, *LOCAL, *(name.strip("[]").lower() for name in settings.allow_host))
    return tuple(dict.fromkeys(names))


def host_of(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """Return the name that a request calls the server by, without its port; "" where it has none, or several."""
    named = [value for name, value in headers if name == b"host"]
    if len(named) != 1:
        return ""
    host = named[0].decode("latin-1").strip().lower()
    return host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]


@dataclass(slots=True)
class Share:
    """What one client holds."""

    requests: int = 0
    bytes: int = 0


@dataclass(slots=True)
class Held:
    """What one request holds of its client's share."""

    share: Share
    most: int
    bytes: int = 0

    def add(self, count: int) -> None:
        """Count bytes of its body. Raises HTTPException where its client holds too many."""
        if self.share.bytes + count > self.most:
            raise HTTPException(
                429, f"requests of yours hold more than {self.most:,} bytes already", {"Retry-After": "1"}
            )
        self.bytes += count
        self.share.bytes += count


def held_by(request: Request) -> Held:
    """Return what a request that came through `Limits` holds."""
    held: Held = request.scope[HELD]
    return held


class Limits:
    """ASGI middleware: by which name, how many and how long, and the metrics of what they got.

    `path`: where requests wait for the model. `prepare`: called before the first request.
    """

    def __init__(self, app: Any, settings: Serving, path: str, prepare: Callable[[], object]) -> None:
        self.app, self.settings, self.path, self.prepare = app, settings, path, prepare
        self.hosts: Collection[str] = allowed_hosts(settings)
        self.waiting = 0
        self.shares: dict[str, Share] = {}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass on, or answer 400, 429, 503 or 504."""
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
        known = ", ".join(self.hosts)
        text = f"this server is called {known}, not {printable(host)!r}; winnow serve --allow-host NAME adds a name"
        return JSONResponse({"detail": text}, 400)

    def _refusal(self, share: Share) -> JSONResponse | None:
        settings, later = self.settings, {"Retry-After": "1"}
        if self.waiting > settings.max_waiting:
            return JSONResponse({"detail": f"{settings.max_waiting} requests are waiting already"}, 503, later)
        if share.requests > settings.max_per_client:
            text = f"{settings.max_per_client} requests of yours are waiting already"
            return JSONResponse({"detail": text}, 429, later)
        return None

    async def _predict(self, scope: Any, receive: Any, send: Any) -> None:
        settings, began, status = self.settings, time.perf_counter(), 0
        client = client_of(scope["client"][0]) if scope["client"] else ""
        share = self.shares.setdefault(client, Share())
        held = scope[HELD] = Held(share, settings.max_client_bytes)

        async def noted(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self.waiting += 1
        share.requests += 1
        WAITING.set(self.waiting)
        try:
            if refusal := self._refusal(share):
                await refusal(scope, receive, noted)
            else:
                await asyncio.wait_for(self.app(scope, receive, noted), settings.timeout)
        except TimeoutError:
            if not status:
                text = f"no answer within {settings.timeout:g} s"
                await JSONResponse({"detail": text}, 504)(scope, receive, noted)
        except ClientDisconnect:
            status = GONE
        finally:
            self.waiting -= 1
            share.requests -= 1
            share.bytes -= held.bytes
            if not share.requests:
                self.shares.pop(client, None)
            WAITING.set(self.waiting)
            ANSWERS.labels(str(status or 500)).inc()  # no status: LitServe answers 500 further out
            SECONDS.observe(time.perf_counter() - began)


class DecoderPool:
    """Decoders, each to one request at a time; clients take turns, so that images of one do not hold up all others."""

    def __init__(self, decoders: Iterable[Decoder]) -> None:
        self._free = deque(decoders)
        self._queues: dict[str, deque[asyncio.Future[Decoder]]] = {}

    async def take(self, client: str) -> Decoder:
        """Return the next free one, to be given back; where none is, this client's turn comes after all others'."""
        if self._free:
            return self._free.popleft()
        turn: asyncio.Future[Decoder] = asyncio.get_running_loop().create_future()
        self._queues.setdefault(client, deque()).append(turn)
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give_back(turn.result())
            raise

    def give_back(self, decoder: Decoder) -> None:
        """Hand it to whoever is next."""
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
