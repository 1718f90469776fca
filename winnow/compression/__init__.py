"""Methods that make a network smaller or faster: one file each, named as in params.yaml. The config's type selects."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from winnow.compression.cluster import cluster
from winnow.compression.distill import distill
from winnow.compression.factorize import factorize
from winnow.compression.method_inputs import Inputs
from winnow.compression.prune import prune
from winnow.compression.quantize import quantize
from winnow.compression.sparsify import sparsify
from winnow.config import Cluster, Distill, Factorize, Prune, Quantize, Sparsify

METHODS: dict[type, Callable[[Any, Inputs, Path], dict[str, Any]]] = {
    Prune: prune,
    Sparsify: sparsify,
    Factorize: factorize,
    Cluster: cluster,
    Quantize: quantize,
    Distill: distill,
}
"""(the candidate's settings, what it is given, the folder to write into) -> details for the record."""
