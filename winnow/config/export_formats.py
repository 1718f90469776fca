"""The formats beside ONNX in which `winnow export` writes a model."""

from __future__ import annotations

from collections.abc import Mapping

OPENVINO, TORCH = "openvino", "torch"
FORMAT_FILES: Mapping[str, tuple[str, ...]] = {OPENVINO: ("model.bin", "model.xml"), TORCH: ("model.pt2",)}
"""Format -> the names of its files, in a folder of the format's name; the last is the one to open."""
