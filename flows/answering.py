"""The process that `winnow serve` becomes: LitServe answers HTTP, gathers requests to batches, runs the model apart.

An image is decoded apart from its batch, in processes of their own, one for each core: so a bad one is this request's
error alone, also one at which a decoder dies or hangs, and memory is bounded. Pixels go to the worker, which holds the
model. What LitServe leaves open is closed here: requests beyond `max_waiting` get 503 at once, bodies beyond
`max_bytes` 413 before they are read whole, and whoever waits longer than `timeout` gets 504, also if the worker hangs.

No `from __future__ import annotations` in this file: LitServe hands annotations on to FastAPI as they are. It is not
run as a script either: each process that it starts would import it again.
"""

import asyncio
import contextlib
import json
import os
import signal
import time
from pathlib import Path
from typing import Annotated, Any

import litserve  # type: ignore[import-untyped]
import numpy as np
from fastapi import Depends, HTTPException, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, Counter, Gauge, Histogram, generate_latest

from winnow.config.serving import Serving
from winnow.data.decoding import Decoder, Result, Sides
from winnow.data.preprocessing import Preprocessing
from winnow.machine import cores
from winnow.records import read_json
from winnow.serving import Model, Unusable, is_json, pixels_of_json, told

PREDICT = "/predict"
FORM_FIELD = "image"


class _Here:
    """What the process that speaks HTTP knows; set before LitServe forks it."""

    settings: Serving
    side: int
    preprocessing: Preprocessing
    decoders: asyncio.Queue[Decoder] | None = None
    """Those that have nothing to do; made where they are used."""


ANSWERS = Counter("winnow_requests", "Requests by status.", ["status"])
WAITING = Gauge("winnow_waiting", "Requests that are being read or answered.")
SECONDS = Histogram(
    "winnow_seconds",
    "From the first byte of a request to the last of its answer.",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)


class Limits:
    """ASGI middleware: how many may wait and how long, and the metrics of what they got."""

    def __init__(self, app: Any) -> None:
        self.app, self.waiting = app, 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass on, or answer 503 or 504."""
        if scope["type"] != "http" or scope["path"] != PREDICT:
            if scope["type"] == "http":
                _free_decoders()  # whoever asks for health finds them on their way
            await self.app(scope, receive, send)
            return
        settings, began = _Here.settings, time.perf_counter()
        status = 0  # none was sent: LitServe answers 500 further out

        async def noted(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self.waiting += 1
        WAITING.set(self.waiting)
        try:
            if self.waiting > settings.max_waiting:
                text = f"{settings.max_waiting} requests are waiting already"
                await JSONResponse({"detail": text}, 503, {"Retry-After": "1"})(scope, receive, noted)
            else:
                await asyncio.wait_for(self.app(scope, receive, noted), settings.timeout)
        except TimeoutError:
            if not status:
                text = f"no answer within {settings.timeout:g} s"
                await JSONResponse({"detail": text}, 504)(scope, receive, noted)
        finally:
            self.waiting -= 1
            WAITING.set(self.waiting)
            ANSWERS.labels(str(status or 500)).inc()
            SECONDS.observe(time.perf_counter() - began)


async def request_pixels(request: Request) -> np.ndarray:
    """Pixels of the request: the bytes of an image file, a form with a file, or JSON. Raises HTTPException."""
    kind = request.headers.get("content-type", "")
    try:
        if kind.startswith("multipart/form-data"):
            body = await _form_file(request)
        else:
            body = await _limited(request)
        if is_json(kind):
            return await run_in_threadpool(pixels_of_json, body, _Here.side)
        return await _decoded(body)
    except Unusable as error:
        raise HTTPException(400, str(error)) from error


def _free_decoders() -> asyncio.Queue[Decoder]:
    if _Here.decoders is None:
        _Here.decoders = asyncio.Queue()
        for _ in range(cores()):
            _Here.decoders.put_nowait(Decoder(Sides(_Here.side, 0, _Here.preprocessing)))
    return _Here.decoders


async def _decoded(body: bytes) -> np.ndarray:
    """By the next decoder that is free. It is given back when it is done, also where nobody waits any more."""
    free = _free_decoders()
    decoder = await free.get()
    work = asyncio.ensure_future(run_in_threadpool(_decode, decoder, body))
    work.add_done_callback(lambda _: free.put_nowait(decoder))
    result = await asyncio.shield(work)
    if isinstance(result, str):
        raise Unusable(result)
    if result.reasons:
        raise Unusable(result.reasons[0])
    pixels: np.ndarray = result.pixels_KHWC[0]
    return pixels


def _decode(decoder: Decoder, body: bytes) -> Result | str:
    decoder.give([body])
    return decoder.answer(_Here.settings.timeout)


async def _limited(request: Request) -> bytes:
    parts, size, most = [], 0, _Here.settings.max_bytes
    async for part in request.stream():
        size += len(part)
        if size > most:
            raise HTTPException(413, f"more than {most:,} bytes")
        parts.append(part)
    return b"".join(parts)


async def _form_file(request: Request) -> bytes:
    if int(request.headers.get("content-length", _Here.settings.max_bytes + 1)) > _Here.settings.max_bytes:
        raise HTTPException(413, f"more than {_Here.settings.max_bytes:,} bytes, or of unknown length")
    async with request.form(max_files=1, max_fields=1) as form:
        file = form.get(FORM_FIELD)
        if file is None or isinstance(file, str):
            raise Unusable(f"the form is to hold a file named {FORM_FIELD}")
        return await file.read()


class Classifier(litserve.LitAPI):  # type: ignore[misc]
    """What LitServe runs: `setup`, `predict` and what follows in the worker."""

    def __init__(self, settings: Serving) -> None:
        super().__init__(max_batch_size=settings.max_batch, batch_timeout=settings.max_wait_ms / 1e3, api_path=PREDICT)
        self.settings = settings

    def setup(self, device: str) -> None:
        """Open the model, in a worker, which the server ends."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self.model = Model(Path(self.settings.folder), self.settings.max_batch)

    def decode_request(self, request: Annotated[np.ndarray, Depends(request_pixels)]) -> np.ndarray:
        """Decoded already."""
        return request

    def predict(self, pixels_NHWC: np.ndarray) -> np.ndarray:
        """Probabilities (N, C); a server that makes no batches gives a single image."""
        return self.model(pixels_NHWC if pixels_NHWC.ndim == 4 else pixels_NHWC[None])

    def encode_response(self, chances_C: np.ndarray) -> dict[str, Any]:
        """One answer."""
        top = min(self.settings.top, len(self.model.card["classes"]))
        return {**told(np.atleast_2d(chances_C)[0], self.model.card, top), "model": self.settings.title}


def metrics() -> Response:
    """Prometheus' text."""
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)


def main(told: str) -> int:
    """Serve until Ctrl-C or SIGTERM; `told`: Serving as JSON."""
    settings = Serving(**json.loads(told))
    card = read_json(Path(settings.folder) / "card.json")
    _Here.settings, _Here.side, _Here.preprocessing = settings, card["image_size"], Preprocessing.of(card)
    server = litserve.LitServer(
        Classifier(settings),
        accelerator="cpu",
        timeout=settings.timeout,
        middlewares=[Limits],
    )
    server.app.add_api_route("/metrics", metrics)
    first = os.getpid()

    def end(*_: object) -> None:
        """Here as Ctrl-C does, else LitServe would leave its processes behind; those that were forked just leave."""
        if os.getpid() == first:
            raise KeyboardInterrupt
        raise SystemExit(0)

    for ending in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ending, end)
    with contextlib.suppress(KeyboardInterrupt):
        server.run(settings.host, settings.port, num_api_servers=1, generate_client_file=False, log_level="warning")
    return 0
