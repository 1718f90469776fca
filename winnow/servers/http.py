"""The process that `winnow serve` becomes: LitServe answers HTTP, forms batches and runs the model in a worker.

Images are decoded outside the batches, in processes of their own, one per core: so a bad image fails only its own
request, even one at which a decoder dies or hangs, and memory is bounded. Pixels go to the worker, which holds the
model. Limits that LitServe lacks are set here: bodies beyond `max_bytes` get 413 before they are read whole;
winnow/servers/http_limits.py limits how many requests wait, for how long, and what one client holds;
winnow/servers/http_connections.py limits connections.

No `from __future__ import annotations` in this file: LitServe passes annotations to FastAPI unchanged. It is not run as
a script either: each process that it starts would import it again.
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

from winnow.config.serving import ServingConfig
from winnow.data.chunk_decoding import DecodedChunk, DecodeSettings
from winnow.data.decoder_process import DecoderProcess
from winnow.data.preprocessing import Preprocessing
from winnow.deploy.request_predictor import (
    RequestPredictor,
    UnusableRequest,
    format_prediction,
    is_json,
    parse_json_pixels,
)
from winnow.hardware import cores
from winnow.records import DeploymentCard
from winnow.servers.http_connections import client_key_of, connection_class
from winnow.servers.http_limits import DecoderPool, Limits, share_of

PREDICT = "/predict"
FORM_FIELD = "image"


class _ServerState:
    """The state of the HTTP process, set before LitServe forks it."""

    settings: ServingConfig
    card: DeploymentCard
    pool: DecoderPool | None = None
    """Made at the first use, in the process that uses it."""


async def request_pixels(request: Request) -> np.ndarray:
    """Return the pixels of a request: an image file's bytes, a form with a file, or JSON. Raises HTTPException."""
    kind = request.headers.get("content-type", "")
    try:
        if kind.startswith("multipart/form-data"):
            body = await _form_file(request)
        else:
            body = await _read_body(request)
        if is_json(kind):
            return await run_in_threadpool(parse_json_pixels, body, _ServerState.card.image_size)
        return await _decode_image(body, client_key_of(request.client.host) if request.client else "")
    except UnusableRequest as error:
        raise HTTPException(400, str(error)) from error


def _decoder_pool() -> DecoderPool:
    if _ServerState.pool is None:
        card, max_pixels = _ServerState.card, _ServerState.settings.max_pixels
        decoding = DecodeSettings(card.image_size, 0, Preprocessing.of(card), max_pixels)
        _ServerState.pool = DecoderPool(DecoderProcess(decoding) for _ in range(cores()))
    return _ServerState.pool


async def _decode_image(body: bytes, client: str) -> np.ndarray:
    """Decode in the next free decoder, which is returned to the pool when done, even if the request was cancelled."""
    pool = _decoder_pool()
    decoder = await pool.take(client)
    work = asyncio.ensure_future(run_in_threadpool(_decode, decoder, body))
    work.add_done_callback(lambda _: pool.give_back(decoder))
    result = await asyncio.shield(work)
    if isinstance(result, str):
        raise UnusableRequest(result)
    if result.reasons:
        raise UnusableRequest(result.reasons[0])
    pixels: np.ndarray = result.pixels_KHWC[0]
    return pixels


def _decode(decoder: DecoderProcess, body: bytes) -> DecodedChunk | str:
    decoder.give([body])
    return decoder.answer(_ServerState.settings.timeout)


async def _read_body(request: Request) -> bytes:
    parts, size, limit, request_share = [], 0, _ServerState.settings.max_bytes, share_of(request)
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise HTTPException(413, f"more than {limit:,} bytes")
        request_share.add(len(part))
        parts.append(part)
    return b"".join(parts)


async def _form_file(request: Request) -> bytes:
    size = int(request.headers.get("content-length", _ServerState.settings.max_bytes + 1))
    if size > _ServerState.settings.max_bytes:
        raise HTTPException(413, f"more than {_ServerState.settings.max_bytes:,} bytes, or of unknown length")
    share_of(request).add(size)
    async with request.form(max_files=1, max_fields=1) as form:
        file = form.get(FORM_FIELD)
        if file is None or isinstance(file, str):
            raise UnusableRequest(f"the form must contain a file named {FORM_FIELD}")
        return await file.read()


class Classifier(litserve.LitAPI):  # type: ignore[misc]
    """The API that LitServe runs; `setup` and `predict` run in the worker."""

    def __init__(self, settings: ServingConfig) -> None:
        super().__init__(max_batch_size=settings.max_batch, batch_timeout=settings.max_wait_ms / 1e3, api_path=PREDICT)
        self.settings = settings

    def setup(self, device: str) -> None:
        """Load the model in a worker process, which the server ends."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self.model = RequestPredictor(Path(self.settings.folder), self.settings.max_batch)

    def decode_request(self, request: Annotated[np.ndarray, Depends(request_pixels)]) -> np.ndarray:
        """Return the pixels, which `request_pixels` has decoded."""
        return request

    def predict(self, pixels_NHWC: np.ndarray) -> np.ndarray:
        """Return probabilities (N, C); a server without batching passes a single image."""
        return self.model(pixels_NHWC if pixels_NHWC.ndim == 4 else pixels_NHWC[None])

    def encode_response(self, probabilities_C: np.ndarray) -> dict[str, Any]:
        """Return the response to one request."""
        classes = self.model.card.classes
        top = min(self.settings.top, len(classes))
        return {
            **format_prediction(np.atleast_2d(probabilities_C)[0], classes, top),
            "model": self.settings.title,
        }


def metrics() -> Response:
    """Return the metrics in Prometheus' text format."""
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)


def main(settings_json: str) -> int:
    """Serve until Ctrl-C or SIGTERM. `settings_json`: Serving as JSON."""
    settings = ServingConfig(**json.loads(settings_json))
    _ServerState.settings, _ServerState.card = settings, DeploymentCard.read(Path(settings.folder))
    server = litserve.LitServer(
        Classifier(settings),
        accelerator="cpu",
        timeout=settings.timeout,
        middlewares=[(Limits, {"settings": settings, "path": PREDICT, "prepare": _decoder_pool})],
    )
    server.app.add_api_route("/metrics", metrics)
    main_pid = os.getpid()

    def stop(*_: object) -> None:
        """Stop as Ctrl-C does, so that LitServe ends its processes; forked processes just exit."""
        if os.getpid() == main_pid:
            raise KeyboardInterrupt
        raise SystemExit(0)

    for ending in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ending, stop)
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
