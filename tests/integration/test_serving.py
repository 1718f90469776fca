"""`winnow serve` and `mlflow models serve` on a champion, by HTTP, as a client sees them."""

from __future__ import annotations

import io
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
from PIL import Image

from tasks.project.paths import ProjectPaths
from tasks.registry.promotion import promote
from tests.conftest import CLASSES, SIZE, draw
from tests.connections import is_ended
from tests.handmade import MODEL
from tests.integration.running import free_ports
from winnow.config import Config
from winnow.data.dataset import decode

pytest_plugins = "tests.stores"
CODE = Path(__file__).resolve().parent.parent.parent


def encoded(label: int, form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(draw(label, (SIZE, SIZE), np.random.default_rng(label))).save(buffer, form)
    return buffer.getvalue()


@contextmanager
def served(paths: ProjectPaths, command: list[str], address: str, health: str) -> Iterator[subprocess.Popen[bytes]]:
    """The server, once it is healthy; at the end it is told to end, and nothing of it may be left."""
    environment = {**os.environ, "PYTHONPATH": str(CODE), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    with (paths.root / "server.log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=paths.root, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 120
        while not healthy(f"{address}{health}"):
            assert process.poll() is None, (paths.root / "server.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.2)
        yield process
    finally:
        family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.terminate()
        process.wait(timeout=30)
        _, left = psutil.wait_procs(family, timeout=10)
        for member in left:
            member.kill()
    assert left == [], "processes were left behind"


def healthy(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).status_code == 200
    except httpx.TransportError:
        return False


FEW_FILES = "import os, resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200)); "
FEW_FILES += "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"


@pytest.fixture
def serve(paths: ProjectPaths, config: Config) -> Callable[..., Iterator[str]]:
    """Starts `winnow serve` with these options."""
    promote(paths, config)

    @contextmanager
    def start(**options: float) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
        (port,) = free_ports(1)
        asked = [f"--{key.replace('_', '-')}={value}" for key, value in {"port": port, **options}.items()]
        address = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-c", FEW_FILES, "-m", "winnow.cli.main", "serve", *asked]
        with served(paths, command, address, "/health") as process:
            yield address, process

    return start


def post(address: str, content: bytes, kind: str = "image/png", timeout: float = 30) -> httpx.Response:
    return httpx.post(f"{address}/predict", content=content, headers={"Content-Type": kind}, timeout=timeout)


@pytest.mark.thorough
def test_what_a_client_sees(serve: Callable, paths: ProjectPaths) -> None:
    with serve(top=2, max_bytes=100_000) as (address, process):
        for label, name in enumerate(CLASSES):
            answer = post(address, encoded(label))
            assert answer.status_code == 200, answer.text
            told = answer.json()
            assert told["class"] == name
            assert told["model"] == f"{MODEL}, version 1 (quick)"
            assert told["top"][0] == {"class": name, "probability": told["probability"]}
            assert len(told["top"]) == 2
            pixels = {"pixels": decode(encoded(label), SIZE)[0].tolist()}
            assert httpx.post(f"{address}/predict", json=pixels).json() == told
            assert httpx.post(f"{address}/predict", files={"image": encoded(label)}).json() == told
        for content, kind, status, said in [
            (b"no image", "image/png", 400, "not a supported image format"),
            (encoded(0)[:60], "image/png", 400, "damaged"),
            (b'{"pixels": [[1]]}', "application/json", 400, f"{SIZE} rows of {SIZE}"),
            (b"x" * 100_001, "image/png", 413, "more than 100,000 bytes"),
        ]:
            refused = post(address, content, kind)
            assert refused.status_code == status
            assert said in refused.json()["detail"]
        assert httpx.post(f"{address}/predict", files={"other": b"x"}).status_code == 400
        with ThreadPoolExecutor(32) as pool:
            answers = list(pool.map(lambda at: post(address, encoded(at % 3)).json()["class"], range(200)))
        assert answers == [CLASSES[at % 3] for at in range(200)]
        counted = httpx.get(f"{address}/metrics").text
        assert 'winnow_requests_total{status="200"} 209.0' in counted
        assert 'winnow_requests_total{status="413"} 1.0' in counted
        assert "winnow_waiting 0.0" in counted
        os.killpg(process.pid, signal.SIGINT)  # Ctrl-C in a terminal
        assert process.wait(timeout=30) == 0
        assert "Traceback" not in (paths.root / "server.log").read_text()


@pytest.mark.services
def test_nobody_starves_the_others(serve: Callable, paths: ProjectPaths) -> None:
    half = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n"
    with serve(header_timeout=3) as (address, process):
        where = ("127.0.0.1", int(address.rpartition(":")[2]))
        assert post(address, encoded(0)).status_code == 200  # decoders have started
        held = [socket.create_connection(where) for _ in range(200)]
        for each in held:
            each.sendall(half)
        began = time.monotonic()
        assert post(address, encoded(0), timeout=2).status_code == 200
        assert time.monotonic() - began < 2
        while not all(is_ended(each) for each in held):
            assert time.monotonic() - began < 6
        left = socket.create_connection(where)
        left.sendall(half + b"\r\nhalf of a body")
        left.close()

        huge, many_scans = io.BytesIO(), io.BytesIO()
        Image.new("RGB", (9990, 9990)).save(huge, "WEBP", lossless=True)
        Image.new("RGB", (64, 64)).save(many_scans, "JPEG", progressive=True)
        scan = many_scans.getvalue().rindex(b"\xff\xda")
        scans = many_scans.getvalue()[:scan] + many_scans.getvalue()[scan:-2] * 400
        began = time.monotonic()
        with ThreadPoolExecutor(20) as pool:
            answers = list(pool.map(lambda _: post(address, huge.getvalue(), "image/webp"), range(20)))
        assert time.monotonic() - began < 3
        assert {answer.status_code for answer in answers} == {400}
        assert answers[0].json()["detail"] == "9990x9990 pixels are more than 25,000,000"
        assert "more than 64 scans" in post(address, scans, "image/jpeg").json()["detail"]
        family = [process.pid, *(child.pid for child in psutil.Process(process.pid).children(recursive=True))]
        assert max(psutil.Process(member).memory_info().rss for member in family) < 1e9
        foreign = httpx.post(f"{address}/predict", content=encoded(0), headers={"Host": "evil.example"})
        assert foreign.status_code == 400
        assert "not 'evil.example'" in foreign.json()["detail"]
        assert 'winnow_requests_total{status="499"} 1.0' in httpx.get(f"{address}/metrics").text
    assert "Traceback" not in (paths.root / "server.log").read_text()


@pytest.mark.services
def test_whoever_waits_too_long_or_behind_too_many_is_told(serve: Callable) -> None:
    with serve(timeout=2, max_waiting=3) as (address, process):
        family = psutil.Process(process.pid).children(recursive=True)
        workers = [child for child in family if "spawn_main" in str(child.cmdline())]
        assert workers
        for worker in workers:
            worker.suspend()
        began = time.monotonic()
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: post(address, encoded(0)), range(8)))
        assert time.monotonic() - began < 8
        statuses = sorted(answer.status_code for answer in answers)
        assert statuses == [503] * 5 + [504] * 3
        assert {answer.headers.get("Retry-After") for answer in answers if answer.status_code == 503} == {"1"}
        assert {answer.json()["detail"] for answer in answers} <= {
            "no answer within 2 s",
            "3 requests are waiting already",
        }
        for worker in workers:
            worker.resume()
        deadline = time.monotonic() + 20
        while post(address, encoded(1)).status_code != 200:
            assert time.monotonic() < deadline


@pytest.mark.services
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--host", "10.0.0.1"], "--host 10.0.0.1: it must be 127.0.0.1"),
        (["--port", "80"], "--port 80: it must be from 1024 to 65535"),
        (["--max-pixels", "0"], "--max-pixels 0: it must be a positive number"),
        (["--timeout", "0"], "--timeout 0.0: it must be a positive number"),
        (["--model", "17"], "17"),
    ],
)
def test_what_cannot_be_served_is_said(paths: ProjectPaths, config: Config, options: list[str], said: str) -> None:
    promote(paths, config)
    command = [sys.executable, "-m", "winnow.cli.main", "serve", *options]
    environment = {**os.environ, "PYTHONPATH": str(CODE)}
    done = subprocess.run(command, cwd=paths.root, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert said in done.stderr


@pytest.mark.services
def test_mlflow_serves_the_champion_too(paths: ProjectPaths, config: Config) -> None:
    promote(paths, config)
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", f"models:/{MODEL}@champion"]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    address = f"http://127.0.0.1:{port}"
    with served(paths, command, address, "/health"):
        for count in (1, 3):
            pixels = np.stack([decode(encoded(label), SIZE)[0] for label in range(count)])
            answer = httpx.post(f"{address}/invocations", json={"inputs": pixels.tolist()}, timeout=30)
            assert answer.status_code == 200, answer.text
            logits = np.array(answer.json()["predictions"]["logits"])
            assert logits.argmax(1).tolist() == list(range(count))
