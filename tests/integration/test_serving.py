"""Test `winnow serve` and `mlflow models serve` on a champion, by HTTP, as a client."""

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
ROOT = Path(__file__).resolve().parent.parent.parent


def encoded_image(label: int, image_format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(draw(label, (SIZE, SIZE), np.random.default_rng(label))).save(buffer, image_format)
    return buffer.getvalue()


@contextmanager
def run_server(paths: ProjectPaths, command: list[str], address: str, health: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server and yield once it is healthy; at the end, terminate it and check that no process remains."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
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
        children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.terminate()
        process.wait(timeout=30)
        _, remaining = psutil.wait_procs(children, timeout=10)
        for child in remaining:
            child.kill()
    assert remaining == [], "processes were left behind"


def healthy(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).status_code == 200
    except httpx.TransportError:
        return False


FEW_FILES = "import os, resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200)); "
FEW_FILES += "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"


@pytest.fixture
def serve(paths: ProjectPaths, config: Config) -> Callable[..., Iterator[str]]:
    """Return a context manager that starts `winnow serve` with these options."""
    promote(paths, config)

    @contextmanager
    def start_serving(**options: float) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
        (port,) = free_ports(1)
        arguments = [f"--{key.replace('_', '-')}={value}" for key, value in {"port": port, **options}.items()]
        address = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-c", FEW_FILES, "-m", "winnow.cli.main", "serve", *arguments]
        with run_server(paths, command, address, "/health") as process:
            yield address, process

    return start_serving


def post(address: str, content: bytes, content_type: str = "image/png", timeout: float = 30) -> httpx.Response:
    return httpx.post(f"{address}/predict", content=content, headers={"Content-Type": content_type}, timeout=timeout)


@pytest.mark.thorough
def test_responses_to_a_client(serve: Callable, paths: ProjectPaths) -> None:
    with serve(top=2, max_bytes=100_000) as (address, process):
        for label, name in enumerate(CLASSES):
            response = post(address, encoded_image(label))
            assert response.status_code == 200, response.text
            prediction = response.json()
            assert prediction["class"] == name
            assert prediction["model"] == f"{MODEL}, version 1 (quick)"
            assert prediction["top"][0] == {"class": name, "probability": prediction["probability"]}
            assert len(prediction["top"]) == 2
            pixels = {"pixels": decode(encoded_image(label), SIZE)[0].tolist()}
            assert httpx.post(f"{address}/predict", json=pixels).json() == prediction
            assert httpx.post(f"{address}/predict", files={"image": encoded_image(label)}).json() == prediction
        for content, kind, status, message in [
            (b"no image", "image/png", 400, "not a supported image format"),
            (encoded_image(0)[:60], "image/png", 400, "damaged"),
            (b'{"pixels": [[1]]}', "application/json", 400, f"{SIZE} rows of {SIZE}"),
            (b"x" * 100_001, "image/png", 413, "more than 100,000 bytes"),
        ]:
            error_response = post(address, content, kind)
            assert error_response.status_code == status
            assert message in error_response.json()["detail"]
        assert httpx.post(f"{address}/predict", files={"other": b"x"}).status_code == 400
        with ThreadPoolExecutor(32) as pool:
            predictions = list(
                pool.map(lambda index: post(address, encoded_image(index % 3)).json()["class"], range(200))
            )
        assert predictions == [CLASSES[index % 3] for index in range(200)]
        metrics = httpx.get(f"{address}/metrics").text
        assert 'winnow_requests_total{status="200"} 209.0' in metrics
        assert 'winnow_requests_total{status="413"} 1.0' in metrics
        assert "winnow_waiting 0.0" in metrics
        os.killpg(process.pid, signal.SIGINT)  # Ctrl-C in a terminal
        assert process.wait(timeout=30) == 0
        assert "Traceback" not in (paths.root / "server.log").read_text()


@pytest.mark.services
def test_nobody_starves_the_others(serve: Callable, paths: ProjectPaths) -> None:
    partial_request = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n"
    with serve(header_timeout=3) as (address, process):
        server_address = ("127.0.0.1", int(address.rpartition(":")[2]))
        assert post(address, encoded_image(0)).status_code == 200  # decoders have started
        connections = [socket.create_connection(server_address) for _ in range(200)]
        for connection in connections:
            connection.sendall(partial_request)
        start = time.monotonic()
        assert post(address, encoded_image(0), timeout=2).status_code == 200
        assert time.monotonic() - start < 2
        while not all(is_ended(connection) for connection in connections):
            assert time.monotonic() - start < 6
        cancelled = socket.create_connection(server_address)
        cancelled.sendall(partial_request + b"\r\nhalf of a body")
        cancelled.close()

        large_image, scan_image = io.BytesIO(), io.BytesIO()
        Image.new("RGB", (9990, 9990)).save(large_image, "WEBP", lossless=True)
        Image.new("RGB", (64, 64)).save(scan_image, "JPEG", progressive=True)
        scan = scan_image.getvalue().rindex(b"\xff\xda")
        scans = scan_image.getvalue()[:scan] + scan_image.getvalue()[scan:-2] * 400
        start = time.monotonic()
        with ThreadPoolExecutor(20) as pool:
            responses = list(pool.map(lambda _: post(address, large_image.getvalue(), "image/webp"), range(20)))
        assert time.monotonic() - start < 3
        assert {response.status_code for response in responses} == {400}
        assert responses[0].json()["detail"] == "9990x9990 pixels are more than 25,000,000"
        assert "more than 64 scans" in post(address, scans, "image/jpeg").json()["detail"]
        pids = [process.pid, *(child.pid for child in psutil.Process(process.pid).children(recursive=True))]
        assert max(psutil.Process(pid).memory_info().rss for pid in pids) < 1e9
        refused = httpx.post(f"{address}/predict", content=encoded_image(0), headers={"Host": "evil.example"})
        assert refused.status_code == 400
        assert "not 'evil.example'" in refused.json()["detail"]
        assert 'winnow_requests_total{status="499"} 1.0' in httpx.get(f"{address}/metrics").text
    assert "Traceback" not in (paths.root / "server.log").read_text()


@pytest.mark.services
def test_requests_beyond_the_limits_get_an_error(serve: Callable) -> None:
    with serve(timeout=2, max_waiting=3) as (address, process):
        children = psutil.Process(process.pid).children(recursive=True)
        workers = [child for child in children if "spawn_main" in str(child.cmdline())]
        assert workers
        for worker in workers:
            worker.suspend()
        start = time.monotonic()
        with ThreadPoolExecutor(8) as pool:
            responses = list(pool.map(lambda _: post(address, encoded_image(0)), range(8)))
        assert time.monotonic() - start < 8
        statuses = sorted(response.status_code for response in responses)
        assert statuses == [503] * 5 + [504] * 3
        assert {response.headers.get("Retry-After") for response in responses if response.status_code == 503} == {"1"}
        assert {response.json()["detail"] for response in responses} <= {
            "no response within 2 s",
            "3 requests are waiting already",
        }
        for worker in workers:
            worker.resume()
        deadline = time.monotonic() + 20
        while post(address, encoded_image(1)).status_code != 200:
            assert time.monotonic() < deadline


@pytest.mark.services
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--host", "10.0.0.1"], "--host 10.0.0.1: it must be 127.0.0.1"),
        (["--port", "80"], "--port 80: it must be from 1024 to 65535"),
        (["--max-pixels", "0"], "--max-pixels 0: it must be a positive number"),
        (["--timeout", "0"], "--timeout 0.0: it must be a positive number"),
        (["--model", "17"], "17"),
    ],
)
def test_invalid_options_are_refused(paths: ProjectPaths, config: Config, options: list[str], message: str) -> None:
    promote(paths, config)
    command = [sys.executable, "-m", "winnow.cli.main", "serve", *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, cwd=paths.root, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert message in result.stderr


@pytest.mark.services
def test_mlflow_serves_the_champion(paths: ProjectPaths, config: Config) -> None:
    promote(paths, config)
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", f"models:/{MODEL}@champion"]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    address = f"http://127.0.0.1:{port}"
    with run_server(paths, command, address, "/health"):
        for count in (1, 3):
            pixels = np.stack([decode(encoded_image(label), SIZE)[0] for label in range(count)])
            response = httpx.post(f"{address}/invocations", json={"inputs": pixels.tolist()}, timeout=30)
            assert response.status_code == 200, response.text
            logits = np.array(response.json()["predictions"]["logits"])
            assert logits.argmax(1).tolist() == list(range(count))
