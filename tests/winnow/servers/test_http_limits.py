"""Limits of `winnow serve` on a server of uvicorn's with an app of a few lines: no model, no LitServe."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI, Request

from tests.connections import is_ended
from winnow.config.serving import ServingConfig
from winnow.servers.http_connections import client_key_of, connection_class, connection_limit
from winnow.servers.http_limits import DecoderPool, Limits, allowed_hosts, host_of, share_of

SETTINGS = ServingConfig(header_timeout=0.6, timeout=1.5, max_per_client=4, max_client_bytes=1_000)
HALF = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nX-Slow: "


def some_app(settings: ServingConfig, prepared: list[bool]) -> FastAPI:
    app = FastAPI()

    @app.post("/predict")
    async def predict(request: Request) -> dict[str, int]:
        size = 0
        async for part in request.stream():
            share_of(request).add(len(part))
            size += len(part)
        await asyncio.sleep(float(request.headers.get("x-sleep", "0")))
        return {"bytes": size}

    @app.get("/large")
    def large() -> str:
        return "x" * 10_000_000

    app.add_middleware(Limits, settings=settings, path="/predict", prepare=lambda: prepared.append(True))
    return app


@contextmanager
def server(settings: ServingConfig = SETTINGS) -> Iterator[int]:
    """The port of a server with these settings."""
    prepared: list[bool] = []
    config = uvicorn.Config(
        some_app(settings, prepared),
        port=0,
        log_level="error",
        http=connection_class(settings),
        ws="none",
        timeout_graceful_shutdown=1,
    )
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    while not running.started:
        time.sleep(0.01)
    assert prepared == [True]
    try:
        yield running.servers[0].sockets[0].getsockname()[1]
    finally:
        running.should_exit = True
        thread.join()


def connected(port: int, data: bytes = b"", source: str = "") -> socket.socket:
    made = socket.create_connection(("127.0.0.1", port), timeout=10, source_address=(source, 0) if source else None)
    made.sendall(data)
    return made


def seconds_open(connection: socket.socket, send: bytes = b"") -> float:
    """Until the other end closes it, sending something every 100 ms; 10 at most."""
    began = time.monotonic()
    with closing(connection):
        while time.monotonic() - began < 10:
            with contextlib.suppress(OSError):
                connection.sendall(send)
            connection.settimeout(0.1)
            try:
                if not connection.recv(100_000):
                    break
            except TimeoutError:
                continue
            except OSError:
                break
    return time.monotonic() - began


HEADER = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900\r\n\r\n"


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("first", "then", "most"),
    [
        (b"", b"", 0.6),
        (HALF, b"a", 0.6),
        (b"", b"\r\n", 0.6),
        (b"GET /nothing HTTP/1.1\r\nHost: localhost\r\n\r\n", b"\r\n", 0.6),
        (HEADER, b"a", 2.5),
        (HEADER.replace(b"/predict", b"/nothing"), b"a", 2.5),
        (HEADER.replace(b"Content-Length: 900", b"Transfer-Encoding: chunked"), b"1\r\na\r\n", 2.5),
        (HEADER.replace(b"Content-Length: 900", b"Transfer-Encoding: chunked") + b"0\r\n", b"Trailer: 1\r\n", 2.5),
    ],
    ids=["silent", "half", "empty lines", "idle", "slow body", "unread body", "slow chunks", "trailers"],
)
def test_a_slow_client_is_cut_off(first: bytes, then: bytes, most: float) -> None:
    with server() as port:
        assert most - 0.3 < seconds_open(connected(port, first), then) < most + 1.5


def test_endless_headers_end_the_connection() -> None:
    with server(replace(SETTINGS, header_timeout=60)) as port:
        assert seconds_open(connected(port, HALF), b"a" * 100_000) < 5
        many = connected(port, HEADER.replace(b"Content-Length: 900", b"Transfer-Encoding: chunked") + b"0\r\n")
        assert seconds_open(many, b"Trailer: 1\r\n" * 10_000) < 5


def test_who_does_not_read_the_answer_is_cut_off() -> None:
    with server() as port, closing(socket.socket()) as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.connect(("127.0.0.1", port))
        deaf.sendall(b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n")
        time.sleep(3)
        got = 0
        with contextlib.suppress(OSError):
            while part := deaf.recv(1_000_000):
                got += len(part)
        assert got < 10_000_000


def test_a_connection_serves_many_requests() -> None:
    with server() as port, httpx.Client() as client:
        for size in range(20):
            answer = client.post(f"http://127.0.0.1:{port}/predict", content=b"a" * size)
            assert answer.json() == {"bytes": size}
        time.sleep(0.4)
        assert client.post(f"http://127.0.0.1:{port}/predict", headers={"X-Sleep": "1"}).status_code == 200
        assert client.post(f"http://127.0.0.1:{port}/predict", headers={"X-Sleep": "2"}).status_code == 504


def test_requests_one_after_the_other_in_one_go() -> None:
    wanted = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\nabc"
    with server() as port, closing(connected(port, wanted * 3)) as all_at_once:
        time.sleep(0.4)
        assert all_at_once.recv(100_000).count(b'{"bytes":3}') == 3


@pytest.mark.parametrize("source", ["127.0.0.1", "127.0.0.2"])
def test_half_open_connections_leave_room_for_others(source: str) -> None:
    with server(replace(SETTINGS, header_timeout=60, max_connections=50)) as port:
        half_open = [connected(port, HALF, source) for _ in range(200)]
        began = time.monotonic()
        assert httpx.post(f"http://127.0.0.1:{port}/predict", content=b"abc", timeout=2).json() == {"bytes": 3}
        assert time.monotonic() - began < 2
        held = sum(not is_ended(each, 0.01) for each in half_open)
        assert 20 <= held <= 25
        for each in half_open:
            each.close()


def test_many_addresses_share_what_there_is() -> None:
    with server(replace(SETTINGS, header_timeout=60, max_connections=50)) as port:
        half_open = [connected(port, HALF, f"127.0.1.{1 + at % 5}") for at in range(200)]
        assert httpx.post(f"http://127.0.0.1:{port}/predict", content=b"abc", timeout=2).json() == {"bytes": 3}
        assert 40 <= sum(not is_ended(each, 0.01) for each in half_open) <= 50
        for each in half_open:
            each.close()


def test_one_client_holds_so_many_requests_and_bytes() -> None:
    waits = HEADER.replace(b"900", b"0").replace(b"\r\n\r\n", b"\r\nX-Sleep: 1\r\n\r\n")
    with server() as port:
        waiting = [connected(port, waits) for _ in range(4)]
        time.sleep(0.2)
        refused = httpx.post(f"http://127.0.0.1:{port}/predict")
        assert (refused.status_code, refused.headers["Retry-After"]) == (429, "1")
        assert refused.json()["detail"] == "4 requests of yours are waiting already"
        other = connected(port, HEADER.replace(b"900", b"0"), "127.0.0.2")
        assert b"200 OK" in other.recv(1_000)
        for each in waiting:
            assert b"200 OK" in each.recv(1_000)
        half = connected(port, HEADER + b"a" * 800)
        time.sleep(0.2)
        refused = httpx.post(f"http://127.0.0.1:{port}/predict", content=b"a" * 201)
        assert refused.status_code == 429
        assert refused.json()["detail"] == "requests of yours hold more than 1,000 bytes already"
        assert httpx.post(f"http://127.0.0.1:{port}/predict", content=b"a" * 200).status_code == 200
        half.close()
        time.sleep(0.2)
        assert httpx.post(f"http://127.0.0.1:{port}/predict", content=b"a" * 1000).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "", "10.0.0.1"])
def test_a_foreign_name_is_refused(host: str) -> None:
    with server() as port:
        for path in ("predict", "large", "docs", "nothing"):
            answer = httpx.post(f"http://127.0.0.1:{port}/{path}", headers={"Host": host})
            assert answer.status_code == 400
            assert "--allow-host NAME adds a name" in answer.json()["detail"]


def test_names_that_are_allowed() -> None:
    with server(replace(SETTINGS, allow_host=("Models.example", "[fd00::1]"))) as port:
        for host in ("localhost", "LOCALHOST:80", "models.example", f"127.0.0.1:{port}", "[::1]:80", "[fd00::1]"):
            assert httpx.post(f"http://127.0.0.1:{port}/predict", headers={"Host": host}).status_code == 200
    with server(replace(SETTINGS, allow_host=("*",))) as port:
        assert httpx.post(f"http://127.0.0.1:{port}/predict", headers={"Host": "any"}).status_code == 200


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([(b"host", b"a:1")], "a"),
        ([(b"host", b"[::1]:80")], "::1"),
        ([], ""),
        ([(b"host", b"localhost"), (b"host", b"evil")], ""),
        ([(b"host", b"evil@localhost")], "evil@localhost"),
    ],
)
def test_the_name_in_a_header(headers: list[tuple[bytes, bytes]], expected: str) -> None:
    assert host_of(headers) == expected


def test_every_address_of_a_machine_is_no_name() -> None:
    assert allowed_hosts(ServingConfig(host="0.0.0.0")) == ("127.0.0.1", "localhost", "::1")


@pytest.mark.parametrize(
    ("address", "client"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("testclient", "testclient"),
    ],
)
def test_who_is_one_client(address: str, client: str) -> None:
    assert client_key_of(address) == client


def test_connections_fit_into_open_files() -> None:
    assert connection_limit(ServingConfig(max_connections=10)) == 10
    assert connection_limit(ServingConfig(max_connections=10**9)) < 10**9


def test_clients_take_turns_at_the_decoders() -> None:
    async def order() -> list[str]:
        pool: DecoderPool = DecoderPool(["decoder"])  # type: ignore[list-item]
        served: list[str] = []

        async def ask(client: str) -> None:
            decoder = await pool.take(client)
            served.append(client)
            await asyncio.sleep(0)
            pool.give_back(decoder)

        gone = asyncio.ensure_future(ask("a"))
        tasks = [asyncio.ensure_future(ask(client)) for client in "aaaabac"]
        left = asyncio.ensure_future(ask("b"))
        await asyncio.sleep(0)
        left.cancel()
        await asyncio.gather(gone, *tasks)
        await pool.take("d")  # it came back
        return served

    assert asyncio.run(order()) == ["a", "a", "b", "c", "a", "a", "a", "a"]


def test_a_decoder_that_was_handed_to_one_who_left_goes_to_the_next() -> None:
    async def scenario() -> Any:
        pool: DecoderPool = DecoderPool(["decoder"])  # type: ignore[list-item]
        first = await pool.take("a")
        waiting = asyncio.ensure_future(pool.take("b"))
        await asyncio.sleep(0)
        pool.give_back(first)
        waiting.cancel()  # it has its decoder, and has not run since
        with contextlib.suppress(asyncio.CancelledError):
            await waiting
        return await asyncio.wait_for(pool.take("c"), 1)

    assert asyncio.run(scenario()) == "decoder"
