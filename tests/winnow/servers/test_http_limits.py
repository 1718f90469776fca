"""Check the limits of `winnow serve` on a uvicorn server with a small app, without a model or LitServe."""

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
PARTIAL_HEADERS = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nX-Slow: "


def make_app(settings: ServingConfig, prepare_calls: list[bool]) -> FastAPI:
    app = FastAPI()

    @app.post("/predict")
    async def predict(request: Request) -> dict[str, int]:
        size = 0
        async for chunk in request.stream():
            share_of(request).add(len(chunk))
            size += len(chunk)
        await asyncio.sleep(float(request.headers.get("x-sleep", "0")))
        return {"bytes": size}

    @app.get("/large")
    def large() -> str:
        return "x" * 10_000_000

    app.add_middleware(Limits, settings=settings, path="/predict", prepare=lambda: prepare_calls.append(True))
    return app


@contextmanager
def run_server(settings: ServingConfig = SETTINGS) -> Iterator[int]:
    """Run a server with these settings and yield its port."""
    prepare_calls: list[bool] = []
    config = uvicorn.Config(
        make_app(settings, prepare_calls),
        port=0,
        log_level="error",
        http=connection_class(settings),
        ws="none",
        timeout_graceful_shutdown=1,
    )
    uvicorn_server = uvicorn.Server(config)
    thread = threading.Thread(target=uvicorn_server.run, daemon=True)
    thread.start()
    while not uvicorn_server.started:
        time.sleep(0.01)
    assert prepare_calls == [True]
    try:
        yield uvicorn_server.servers[0].sockets[0].getsockname()[1]
    finally:
        uvicorn_server.should_exit = True
        thread.join()


def connect(port: int, data: bytes = b"", source: str = "") -> socket.socket:
    connection = socket.create_connection(
        ("127.0.0.1", port), timeout=10, source_address=(source, 0) if source else None
    )
    connection.sendall(data)
    return connection


def seconds_open(connection: socket.socket, data: bytes = b"") -> float:
    """Return the seconds until the server closes the connection, at most 10; send `data` every 100 ms."""
    start = time.monotonic()
    with closing(connection):
        while time.monotonic() - start < 10:
            with contextlib.suppress(OSError):
                connection.sendall(data)
            connection.settimeout(0.1)
            try:
                if not connection.recv(100_000):
                    break
            except TimeoutError:
                continue
            except OSError:
                break
    return time.monotonic() - start


REQUEST_HEADERS = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900\r\n\r\n"


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("initial", "repeated", "expected_seconds"),
    [
        (b"", b"", 0.6),
        (PARTIAL_HEADERS, b"a", 0.6),
        (b"", b"\r\n", 0.6),
        (b"GET /nothing HTTP/1.1\r\nHost: localhost\r\n\r\n", b"\r\n", 0.6),
        (REQUEST_HEADERS, b"a", 2.5),
        (REQUEST_HEADERS.replace(b"/predict", b"/nothing"), b"a", 2.5),
        (REQUEST_HEADERS.replace(b"Content-Length: 900", b"Transfer-Encoding: chunked"), b"1\r\na\r\n", 2.5),
        (
            REQUEST_HEADERS.replace(b"Content-Length: 900", b"Transfer-Encoding: chunked") + b"0\r\n",
            b"Trailer: 1\r\n",
            2.5,
        ),
    ],
    ids=["silent", "half", "empty lines", "idle", "slow body", "unread body", "slow chunks", "trailers"],
)
def test_a_slow_client_is_cut_off(initial: bytes, repeated: bytes, expected_seconds: float) -> None:
    with run_server() as port:
        assert expected_seconds - 0.3 < seconds_open(connect(port, initial), repeated) < expected_seconds + 1.5


def test_endless_headers_end_the_connection() -> None:
    with run_server(replace(SETTINGS, header_timeout=60)) as port:
        assert seconds_open(connect(port, PARTIAL_HEADERS), b"a" * 100_000) < 5
        trailer_connection = connect(
            port, REQUEST_HEADERS.replace(b"Content-Length: 900", b"Transfer-Encoding: chunked") + b"0\r\n"
        )
        assert seconds_open(trailer_connection, b"Trailer: 1\r\n" * 10_000) < 5


def test_who_does_not_read_the_answer_is_cut_off() -> None:
    with run_server() as port, closing(socket.socket()) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", port))
        connection.sendall(b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n")
        time.sleep(3)
        received = 0
        with contextlib.suppress(OSError):
            while chunk := connection.recv(1_000_000):
                received += len(chunk)
        assert received < 10_000_000


def test_a_connection_serves_many_requests() -> None:
    with run_server() as port, httpx.Client() as client:
        for size in range(20):
            response = client.post(f"http://127.0.0.1:{port}/predict", content=b"a" * size)
            assert response.json() == {"bytes": size}
        time.sleep(0.4)
        assert client.post(f"http://127.0.0.1:{port}/predict", headers={"X-Sleep": "1"}).status_code == 200
        assert client.post(f"http://127.0.0.1:{port}/predict", headers={"X-Sleep": "2"}).status_code == 504


def test_pipelined_requests_are_answered() -> None:
    request = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\nabc"
    with run_server() as port, closing(connect(port, request * 3)) as connection:
        time.sleep(0.4)
        assert connection.recv(100_000).count(b'{"bytes":3}') == 3


@pytest.mark.parametrize("source", ["127.0.0.1", "127.0.0.2"])
def test_half_open_connections_leave_room_for_others(source: str) -> None:
    with run_server(replace(SETTINGS, header_timeout=60, max_connections=50)) as port:
        half_open = [connect(port, PARTIAL_HEADERS, source) for _ in range(200)]
        start = time.monotonic()
        assert httpx.post(f"http://127.0.0.1:{port}/predict", content=b"abc", timeout=2).json() == {"bytes": 3}
        assert time.monotonic() - start < 2
        open_count = sum(not is_ended(connection, 0.01) for connection in half_open)
        assert 20 <= open_count <= 25
        for connection in half_open:
            connection.close()


def test_many_addresses_share_the_connections() -> None:
    with run_server(replace(SETTINGS, header_timeout=60, max_connections=50)) as port:
        half_open = [connect(port, PARTIAL_HEADERS, f"127.0.1.{1 + index % 5}") for index in range(200)]
        assert httpx.post(f"http://127.0.0.1:{port}/predict", content=b"abc", timeout=2).json() == {"bytes": 3}
        assert 40 <= sum(not is_ended(connection, 0.01) for connection in half_open) <= 50
        for connection in half_open:
            connection.close()


def test_one_client_holds_so_many_requests_and_bytes() -> None:
    slow_request = REQUEST_HEADERS.replace(b"900", b"0").replace(b"\r\n\r\n", b"\r\nX-Sleep: 1\r\n\r\n")
    with run_server() as port:
        waiting = [connect(port, slow_request) for _ in range(4)]
        time.sleep(0.2)
        response = httpx.post(f"http://127.0.0.1:{port}/predict")
        assert (response.status_code, response.headers["Retry-After"]) == (429, "1")
        assert response.json()["detail"] == "4 requests of yours are waiting already"
        other_client = connect(port, REQUEST_HEADERS.replace(b"900", b"0"), "127.0.0.2")
        assert b"200 OK" in other_client.recv(1_000)
        for connection in waiting:
            assert b"200 OK" in connection.recv(1_000)
        partial_request = connect(port, REQUEST_HEADERS + b"a" * 800)
        time.sleep(0.2)
        response = httpx.post(f"http://127.0.0.1:{port}/predict", content=b"a" * 201)
        assert response.status_code == 429
        assert response.json()["detail"] == "requests of yours hold more than 1,000 bytes already"
        assert httpx.post(f"http://127.0.0.1:{port}/predict", content=b"a" * 200).status_code == 200
        partial_request.close()
        time.sleep(0.2)
        assert httpx.post(f"http://127.0.0.1:{port}/predict", content=b"a" * 1000).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "", "10.0.0.1"])
def test_an_unknown_host_name_is_refused(host: str) -> None:
    with run_server() as port:
        for path in ("predict", "large", "docs", "nothing"):
            response = httpx.post(f"http://127.0.0.1:{port}/{path}", headers={"Host": host})
            assert response.status_code == 400
            assert "--allow-host NAME adds a name" in response.json()["detail"]


def test_allowed_host_names() -> None:
    with run_server(replace(SETTINGS, allow_host=("Models.example", "[fd00::1]"))) as port:
        for host in ("localhost", "LOCALHOST:80", "models.example", f"127.0.0.1:{port}", "[::1]:80", "[fd00::1]"):
            assert httpx.post(f"http://127.0.0.1:{port}/predict", headers={"Host": host}).status_code == 200
    with run_server(replace(SETTINGS, allow_host=("*",))) as port:
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
def test_the_host_name_of_a_header(headers: list[tuple[bytes, bytes]], expected: str) -> None:
    assert host_of(headers) == expected


def test_a_wildcard_address_is_no_host_name() -> None:
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
def test_addresses_of_one_client(address: str, client: str) -> None:
    assert client_key_of(address) == client


def test_connections_are_limited_by_open_files() -> None:
    assert connection_limit(ServingConfig(max_connections=10)) == 10
    assert connection_limit(ServingConfig(max_connections=10**9)) < 10**9


def test_clients_share_the_decoders_in_turns() -> None:
    async def serve_all() -> list[str]:
        pool: DecoderPool = DecoderPool(["decoder"])  # type: ignore[list-item]
        order: list[str] = []

        async def take_turn(client: str) -> None:
            decoder = await pool.take(client)
            order.append(client)
            await asyncio.sleep(0)
            pool.give_back(decoder)

        first_task = asyncio.ensure_future(take_turn("a"))
        tasks = [asyncio.ensure_future(take_turn(client)) for client in "aaaabac"]
        cancelled_task = asyncio.ensure_future(take_turn("b"))
        await asyncio.sleep(0)
        cancelled_task.cancel()
        await asyncio.gather(first_task, *tasks)
        await pool.take("d")  # the decoder was returned
        return order

    assert asyncio.run(serve_all()) == ["a", "a", "b", "c", "a", "a", "a", "a"]


def test_a_decoder_of_a_cancelled_request_is_passed_on() -> None:
    async def scenario() -> Any:
        pool: DecoderPool = DecoderPool(["decoder"])  # type: ignore[list-item]
        decoder = await pool.take("a")
        waiting = asyncio.ensure_future(pool.take("b"))
        await asyncio.sleep(0)
        pool.give_back(decoder)
        waiting.cancel()  # it got the decoder, but did not run yet
        with contextlib.suppress(asyncio.CancelledError):
            await waiting
        return await asyncio.wait_for(pool.take("c"), 1)

    assert asyncio.run(scenario()) == "decoder"
