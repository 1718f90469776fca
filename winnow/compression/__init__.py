"""Methods that make a network smaller or faster, one file each. `METHODS` maps the type of a config to its function."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from winnow.compression.cluster import cluster
from winnow.compression.distill import distill
from winnow.compression.factorize import factorize
from winnow.compression.method_inputs import MethodInputs
from winnow.compression.prune import prune
from winnow.compression.quantize import quantize
from winnow.compression.sparsify import sparsify
from winnow.config import Cluster, Distill, Factorize, Prune, Quantize, Sparsify
from winnow.records.candidate import MethodResult

METHODS: dict[type, Callable[[Any, MethodInputs, Path], MethodResult]] = {
    Prune: prune,
    Sparsify: sparsify,
    Factorize: factorize,
    Cluster: cluster,
    Quantize: quantize,
    Distill: distill,
}
"""Config type -> function of (settings, inputs, output folder) that returns the method's part of record.json."""
