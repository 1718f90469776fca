"""`winnow serve` at 1, 8 and 64 clients, beside what decoding and the model alone can do on the same cores.

    winnow export DIR && python -m benchmarks.serving DIR IMAGE

DIR holds an exported model of this machine, IMAGE an image file that every request sends. Clients keep their connection
and send the next request when the last one is answered; they run on the same cores as the server, in a process of
their own. "Bare" is one thread that decodes the image and answers it, again and again: no HTTP, no queue.
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

from benchmarks.chain import ROOT, leave, markdown
from winnow.cli.serve import START
from winnow.config.serving import ServingConfig
from winnow.data.dataset import decode
from winnow.deploy.request_predictor import RequestPredictor
from winnow.records import DeploymentCard

NAME, CLIENTS, ROUNDS, SECONDS = "serving", (1, 8, 64), 3, 6.0
PORT = 8765


def bare(folder: Path, image: bytes) -> list[float]:
    """Milliseconds of decoding and answering one image, many times."""
    model, taken = RequestPredictor(folder, max_batch=1), []
    side, stop = model.card.image_size, time.perf_counter() + SECONDS
    while time.perf_counter() < stop:
        began = time.perf_counter()
        model(decode(image, side)[0][None])
        taken.append((time.perf_counter() - began) * 1e3)
    return taken[len(taken) // 10 :]


async def load(image: bytes, clients: int) -> tuple[list[float], float]:
    """Milliseconds of every request, and requests a second."""
    import aiohttp

    taken: list[float] = []
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def client(stop: float) -> None:
            while time.perf_counter() < stop:
                began = time.perf_counter()
                async with session.post(f"http://127.0.0.1:{PORT}/predict", data=image) as answer:
                    await answer.read()
                    answer.raise_for_status()
                taken.append((time.perf_counter() - began) * 1e3)

        await asyncio.gather(*(client(time.perf_counter() + 1) for _ in range(clients)))
        taken.clear()
        began = time.perf_counter()
        await asyncio.gather(*(client(began + SECONDS) for _ in range(clients)))
        return taken, len(taken) / (time.perf_counter() - began)


def start(folder: Path) -> subprocess.Popen[bytes]:
    """The server, ready."""
    told = json.dumps({**asdict(ServingConfig()), "folder": str(folder), "title": "benchmark", "port": PORT})
    process = subprocess.Popen([sys.executable, "-c", START, told], cwd=ROOT)
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
    options = parser.parse_args()
    image = options.image.read_bytes()
    if options.client:
        taken, rate = asyncio.run(load(image, options.client))
        print(json.dumps({"ms": taken, "rate": rate}))
        return
    folder: Path = options.export.resolve()
    found: dict[int, list[Any]] = {clients: [] for clients in CLIENTS}
    alone: list[float] = []
    for _ in range(ROUNDS):
        alone += bare(folder, image)
        server = start(folder)
        try:
            for clients in CLIENTS:
                child = [sys.executable, "-m", "benchmarks.serving", options.export, options.image]
                done = subprocess.run(
                    [*child, "--client", str(clients)], cwd=ROOT, capture_output=True, text=True, check=True
                )
                found[clients].append(json.loads(done.stdout.strip().splitlines()[-1]))
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait()
    rows = [_row("bare, one thread", alone, 1e3 / float(np.mean(alone)))]
    for clients, rounds in found.items():
        every = [ms for one in rounds for ms in one["ms"]]
        name = f"{clients} client{'' if clients == 1 else 's'}"
        rows.append(_row(name, every, float(np.median([one["rate"] for one in rounds]))))
    card = DeploymentCard.read(folder)
    serving, asked = card.serving, ServingConfig()
    note = (
        f"{card.name} at {card.image_size} pixels on {serving.runtime} {serving.precision}, "
        f"{serving.threads} threads; {options.image.suffix[1:]} of {len(image):,} bytes; batches of at most "
        f"{asked.max_batch}, which wait {asked.max_wait_ms:g} ms; {ROUNDS} rounds of {SECONDS:g} s each."
    )
    leave(f"{NAME}_{card.image_size}", note, {"rows": rows}, markdown(rows))


def _row(name: str, taken: list[float], rate: float) -> dict[str, str]:
    p50, p99 = (float(np.percentile(taken, share)) for share in (50, 99))
    return {"": name, "images/s": f"{rate:,.0f}", "p50, ms": f"{p50:.2f}", "p99, ms": f"{p99:.2f}"}


if __name__ == "__main__":
    main()
