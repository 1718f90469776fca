"""The device that networks run on, and whether it multiplies bf16 in hardware."""

from __future__ import annotations

import torch

from winnow.hardware import has_fast_bf16


def default_device() -> torch.device:
    """Return the GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def bf16_is_fast() -> bool:
    """Return True if this machine multiplies bf16 in hardware."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return has_fast_bf16()
