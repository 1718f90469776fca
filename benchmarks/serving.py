"""Measure `winnow serve` with 1, 8 and 64 clients, beside decoding and the model alone on the same cores.

    winnow export DIR && python -m benchmarks.serving DIR IMAGE

DIR holds a model exported on this machine, IMAGE is the image file that every request sends. Clients keep their
connection and send the next request when the last one is answered. They run on the server's cores, in their own
process. "bare" is one thread that decodes the image and predicts in a loop: no HTTP, no queue.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from benchmarks.chain import ROOT, markdown_table, write_results
from winnow.cli.serve import START
from winnow.config.serving import ServingConfig
from winnow.data.dataset import decode
from winnow.deploy.request_predictor import RequestPredictor
from winnow.records import DeploymentCard

NAME, CLIENTS, ROUNDS, SECONDS = "serving", (1, 8, 64), 3, 6.0
PORT = 8765


def time_bare(folder: Path, image: bytes) -> list[float]:
    """Return the milliseconds of each decoding and prediction of the image, without the first tenth of them."""
    model, latencies_ms = RequestPredictor(folder, max_batch=1), []
    side, end = model.card.image_size, time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        start = time.perf_counter()
        model(decode(image, side)[0][None])
        latencies_ms.append((time.perf_counter() - start) * 1e3)
    return latencies_ms[len(latencies_ms) // 10 :]


async def send_requests(image: bytes, clients: int) -> tuple[list[float], float]:
    """Return the milliseconds of each request, and requests per second, after 1 s of warm-up."""
    import aiohttp

    latencies_ms: list[float] = []
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def run_client(end: float) -> None:
            while time.perf_counter() < end:
                start = time.perf_counter()
                async with session.post(f"http://127.0.0.1:{PORT}/predict", data=image) as response:
                    await response.read()
                    response.raise_for_status()
                latencies_ms.append((time.perf_counter() - start) * 1e3)

        await asyncio.gather(*(run_client(time.perf_counter() + 1) for _ in range(clients)))
        latencies_ms.clear()
        start = time.perf_counter()
        await asyncio.gather(*(run_client(start + SECONDS) for _ in range(clients)))
        return latencies_ms, len(latencies_ms) / (time.perf_counter() - start)


def start_server(folder: Path) -> subprocess.Popen[bytes]:
    """Start the server and return it when it is ready. Raises RuntimeError if it ends before."""
    options = json.dumps({**asdict(ServingConfig()), "folder": str(folder), "title": "benchmark", "port": PORT})
    process = subprocess.Popen([sys.executable, "-c", START, options], cwd=ROOT)
    while process.poll() is None:
        try:
            if httpx.get(f"http://127.0.0.1:{PORT}/health").status_code == 200:
                return process
        except httpx.TransportError:
            time.sleep(0.2)
    raise RuntimeError("the server ended before it was ready")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("export", type=Path)
    parser.add_argument("image", type=Path)
    parser.add_argument("--client", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    image = args.image.read_bytes()
    if args.client:
        latencies_ms, rate = asyncio.run(send_requests(image, args.client))
        print(json.dumps({"ms": latencies_ms, "rate": rate}))
        return
    folder: Path = args.export.resolve()
    rounds: dict[int, list[Any]] = {clients: [] for clients in CLIENTS}
    bare_ms: list[float] = []
    for _ in range(ROUNDS):
        bare_ms += time_bare(folder, image)
        server = start_server(folder)
        try:
            for clients in CLIENTS:
                command = [sys.executable, "-m", "benchmarks.serving", args.export, args.image]
                process = subprocess.run(
                    [*command, "--client", str(clients)], cwd=ROOT, capture_output=True, text=True, check=True
                )
                rounds[clients].append(json.loads(process.stdout.strip().splitlines()[-1]))
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait()
    rows = [_table_row("bare, one thread", bare_ms, 1e3 / float(np.mean(bare_ms)))]
    for clients, results in rounds.items():
        latencies_ms = [ms for result in results for ms in result["ms"]]
        name = f"{clients} client{'' if clients == 1 else 's'}"
        rows.append(_table_row(name, latencies_ms, float(np.median([result["rate"] for result in results]))))
    card, config = DeploymentCard.read(folder), ServingConfig()
    conditions = (
        f"{card.name} at {card.image_size} pixels on {card.serving.runtime} {card.serving.precision}, "
        f"{card.serving.threads} threads; {args.image.suffix[1:]} of {len(image):,} bytes; batches of at most "
        f"{config.max_batch}, which wait {config.max_wait_ms:g} ms; {ROUNDS} rounds of {SECONDS:g} s each."
    )
    write_results(f"{NAME}_{card.image_size}", conditions, {"rows": rows}, markdown_table(rows))


def _table_row(name: str, latencies_ms: list[float], rate: float) -> dict[str, str]:
    p50, p99 = (float(np.percentile(latencies_ms, percent)) for percent in (50, 99))
    return {"": name, "images/s": f"{rate:,.0f}", "p50, ms": f"{p50:.2f}", "p99, ms": f"{p99:.2f}"}


if __name__ == "__main__":
    main()
