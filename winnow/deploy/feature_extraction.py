"""Compute the features of all images by a frozen network, and write them to disk, in blocks.

    features = open_features(model, architecture, folder, count=10_000)
    rows_ND = embed_images(features, images, folder)

On a processor OpenVINO computes convolutional networks several times as fast as PyTorch, most of all depthwise
convolutions. It needs some seconds to export and compile the network, so it serves only where there are many images.
An interrupted computation resumes after its last complete block.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from winnow.data.dataset import TRAIN, ImageSet
from winnow.deploy.batch_inference import make_network_input
from winnow.deploy.inference_runtimes import open_case
from winnow.deploy.onnx_export import export_onnx
from winnow.deploy.onnx_session import MODEL
from winnow.deploy.teacher_embeddings import EMBEDDINGS_FILE, ROWS_AT_ONCE, StoredEmbeddings
from winnow.errors import ArtifactError, MissingExtra
from winnow.eta import ProgressTimer
from winnow.hardware import has_fast_bf16
from winnow.models.backbones import Architecture
from winnow.models.classifier_head import remove_head
from winnow.records import read_json, write_json
from winnow.records.benchmark import BenchmarkCase, Precision
from winnow.timing_lock import compute_lock

log = logging.getLogger(__name__)

PROGRESS_FILE = "embedded.json"
BATCH = 64
"""The most images of one call."""
BATCHES_PER_BLOCK = 16
SECONDS_BETWEEN_LINES = 4.0
MANY_IMAGES = 2000
"""The number of images from which OpenVINO is worth its seconds of preparation."""
Features = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""Pixels, uint8 (B, S, S, 3) with at most BATCH images, -> features (B, D)."""


def open_features(model: nn.Module, architecture: Architecture, folder: Path, count: int) -> Features:
    """Return a function that computes the input of the head of `model`; the head is removed, in place.

    `folder`: where a file of the network is written meanwhile. `count`: images whose features will be computed.
    """
    backbone = remove_head(model).eval()
    device = next(backbone.parameters()).device
    if device.type == "cpu" and count >= MANY_IMAGES:
        try:
            return _by_openvino(backbone, architecture, folder)
        except (MissingExtra, ArtifactError, RuntimeError) as error:
            log.info("features are computed by PyTorch, which is slower: %s", " ".join(str(error).split())[:200])
    return _by_pytorch(backbone, device)


def _by_pytorch(backbone: nn.Module, device: torch.device) -> Features:
    backbone = backbone.to(memory_format=torch.channels_last)
    autocast = has_fast_bf16() or device.type == "cuda"

    def features(pixels_BHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            rows_BD = backbone(make_network_input(pixels_BHWC, np.arange(len(pixels_BHWC)), device)).flatten(1)
        return np.asarray(rows_BD.float().cpu().numpy())

    return features


def _by_openvino(backbone: nn.Module, architecture: Architecture, folder: Path) -> Features:
    folder.mkdir(parents=True, exist_ok=True)
    export_onnx(backbone, architecture, folder / MODEL)
    precision: Precision = "bf16" if has_fast_bf16() else "f32"
    case = BenchmarkCase("features", "openvino", precision, "file", BATCH, torch.get_num_threads())
    try:
        predict = open_case(folder, case)
    finally:
        (folder / MODEL).unlink()

    def features(pixels_BHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        padding = np.zeros((BATCH - len(pixels_BHWC), *pixels_BHWC.shape[1:]), np.uint8)
        rows_BD = predict(np.concatenate([pixels_BHWC, padding]))[: len(pixels_BHWC)]
        return rows_BD.reshape(len(rows_BD), -1).copy()

    return features


def embed_images(
    features: Features,
    images: ImageSet,
    selected_M: NDArray[np.int64],
    folder: Path,
    stored: StoredEmbeddings | None = None,
) -> NDArray[np.float16]:
    """Write the features of the images at the indices `selected_M` to EMBEDDINGS_FILE in `folder`; return the map.

    It is float16 (N, D); rows of other images are NaN. Images are those that the deployed network sees, without
    augmentation; those with a stored embedding of the same network get a copy of it. Raises OSError where the disk has
    no room for the file.
    """
    found_M = np.full(len(selected_M), -1) if stored is None else stored.find(images.keys_N16[selected_M])
    if stored is not None:
        log.info("embed: %d of %d images have an embedding already", int((found_M >= 0).sum()), len(selected_M))
    reused_M, selected_M = selected_M[found_M >= 0], selected_M[found_M < 0]
    rows_ND, done = _open(features, images, len(selected_M), folder)
    if stored is not None:
        for start in range(0, len(reused_M), ROWS_AT_ONCE):
            block = slice(start, start + ROWS_AT_ONCE)
            rows_ND[reused_M[block]] = stored.rows_ND[found_M[found_M >= 0][block]]
    timer = ProgressTimer(len(selected_M), SECONDS_BETWEEN_LINES, done)
    while done < len(selected_M):
        for _ in range(BATCHES_PER_BLOCK):
            batch_B = selected_M[done : done + BATCH]
            if not len(batch_B):
                break
            with compute_lock():
                rows_ND[batch_B] = features(images.images_NHWC[batch_B])
            done += len(batch_B)
        cast(np.memmap, rows_ND).flush()
        write_json(folder / PROGRESS_FILE, {"done": done, "images": len(selected_M)})
        if timer.is_due():
            log.info("embed: %d of %d images  %s left", done, len(selected_M), timer.left(done))
    return rows_ND


def _open(features: Features, images: ImageSet, count: int, folder: Path) -> tuple[NDArray[np.float16], int]:
    """Return the array on disk, new or of an interrupted computation of `count` images, and how many are done."""
    folder.mkdir(parents=True, exist_ok=True)
    file, progress = folder / EMBEDDINGS_FILE, folder / PROGRESS_FILE
    if file.is_file() and progress.is_file() and (state := read_json(progress)).get("images") == count:
        log.info("embed: resuming after %d images", state["done"])
        return np.lib.format.open_memmap(file, "r+"), int(state["done"])
    with compute_lock():
        dimension = features(images.images_NHWC[images.indices(TRAIN)[:1]]).shape[1]
    shape = (len(images.labels_N), dimension)
    np.lib.format.open_memmap(file, "w+", np.float16, shape).flush()
    with file.open("r+b") as opened:  # a full disk would end a process that writes to the map, without a message
        os.posix_fallocate(opened.fileno(), 0, file.stat().st_size)
    rows_ND = np.lib.format.open_memmap(file, "r+")
    rows_ND[:] = np.nan
    return rows_ND, 0
