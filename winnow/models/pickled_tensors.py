"""Tensors of a file that torch.save wrote, as a safetensors file: run as a process of its own, which may be ended.

    python -m winnow.models.pickled_tensors FILE OUT CPU_SECONDS

A .pth file is a pickle. `weights_only=True` runs no foreign code; still a pickle may ask for endless work (a tuple of
pairs of pairs ... is hashed in 2^depth steps), contain itself, or raise whatever its reader raises. Time is counted as
this process's own, so that a busy machine does not refuse a good file. It imports torch and safetensors alone.
"""

from __future__ import annotations

import pickle
import resource
import sys

import torch
from safetensors.torch import save_file

WRAPPINGS = ("state_dict", "model", "backbone", "teacher")
MAX_WRAPPINGS = 8
HOLDS_CODE = 3
"""Exit status where the pickle asks for more than tensors."""


def unwrapped(raw: object) -> dict[str, torch.Tensor]:
    """Return the tensors of what torch.load gave, out of {'state_dict': ...} and the like; none where it is no dict."""
    for _ in range(MAX_WRAPPINGS):
        inner = next((raw[key] for key in WRAPPINGS if key in raw), None) if isinstance(raw, dict) else None
        if not isinstance(inner, dict):
            break
        raw = inner
    if not isinstance(raw, dict):
        return {}
    return {str(name): value for name, value in raw.items() if isinstance(value, torch.Tensor)}


def main(path: str, out: str, seconds: float) -> int:
    """Load, and write plain tensors to `out`. What goes wrong ends this process, SIGXCPU where it takes too long."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    most = int(used.ru_utime + used.ru_stime + seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (most, most + 1))
    try:
        raw = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        return HOLDS_CODE
    tensors = unwrapped(raw)
    plain = {name: value for name, value in tensors.items() if value.layout == torch.strided and not value.is_meta}
    save_file({name: value.detach().cpu().contiguous().clone() for name, value in plain.items()}, out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1], sys.argv[2], float(sys.argv[3])))
