"""The process that `winnow serve` becomes: LitServe answers HTTP, gathers requests to batches, runs the model apart.

An image is decoded apart from its batch, in processes of their own, one for each core: so a bad one is this request's
error alone, also one at which a decoder dies or hangs, and memory is bounded. Pixels go to the worker, which holds the
model. What LitServe leaves open is closed: bodies beyond `max_bytes` get 413 here, before they are read whole;
winnow/servers/http_limits.py limits how many requests wait, for how long, and what one client holds;
winnow/servers/http_connections.py limits connections.

No `from __future__ import annotations` in this file: LitServe hands annotations on to FastAPI as they are. It is not
run as a script either: each process that it starts would import it again.
"""

import asyncio
import contextlib
import json
import os
import signal
from pathlib import Path
from typing import Annotated, Any

import litserve  # type: ignore[import-untyped]
import numpy as np
from fastapi import Depends, HTTPException, Request, Response
from fastapi.concurrency import run_in_threadpool
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from winnow.config.serving import Serving
from winnow.data.decoding import Decoder, Result, Sides
from winnow.data.preprocessing import Preprocessing
from winnow.deploy.request_predictor import Model, Unusable, is_json, pixels_of_json, told
from winnow.hardware import cores
from winnow.records import read_json
from winnow.servers.http_connections import client_of, connection_class
from winnow.servers.http_limits import DecoderPool, Limits, held_by

PREDICT = "/predict"
FORM_FIELD = "image"


class _Here:
    """What the process that speaks HTTP knows; set before LitServe forks it."""

    settings: Serving
    side: int
    preprocessing: Preprocessing
    pool: DecoderPool | None = None
    """Made where it is used."""


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
        return await _decoded(body, client_of(request.client.host) if request.client else "")
    except Unusable as error:
        raise HTTPException(400, str(error)) from error


def _decoder_pool() -> DecoderPool:
    if _Here.pool is None:
        sides = Sides(_Here.side, 0, _Here.preprocessing, _Here.settings.max_pixels)
        _Here.pool = DecoderPool(Decoder(sides) for _ in range(cores()))
    return _Here.pool


async def _decoded(body: bytes, client: str) -> np.ndarray:
    """By the next decoder that is free. It is given back when it is done, also where nobody waits any more."""
    pool = _decoder_pool()
    decoder = await pool.take(client)
    work = asyncio.ensure_future(run_in_threadpool(_decode, decoder, body))
    work.add_done_callback(lambda _: pool.give_back(decoder))
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
    parts, size, most, held = [], 0, _Here.settings.max_bytes, held_by(request)
    async for part in request.stream():
        size += len(part)
        if size > most:
            raise HTTPException(413, f"more than {most:,} bytes")
        held.add(len(part))
        parts.append(part)
    return b"".join(parts)


async def _form_file(request: Request) -> bytes:
    size = int(request.headers.get("content-length", _Here.settings.max_bytes + 1))
    if size > _Here.settings.max_bytes:
        raise HTTPException(413, f"more than {_Here.settings.max_bytes:,} bytes, or of unknown length")
    held_by(request).add(size)
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
        middlewares=[(Limits, {"settings": settings, "path": PREDICT, "prepare": _decoder_pool})],
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
        server.run(
            settings.host,
            settings.port,
            num_api_servers=1,
            generate_client_file=False,
            log_level="warning",
            http=connection_class(settings),
            ws="none",
        )
    return 0
