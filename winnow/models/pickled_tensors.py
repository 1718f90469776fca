"""Convert a file of torch.save to safetensors, in a process of its own that can be killed.

    python -m winnow.models.pickled_tensors FILE OUT CPU_SECONDS

A .pth file is a pickle. `weights_only=True` runs no foreign code; still a pickle may cause endless work (a tuple of
pairs of pairs ... is hashed in 2^depth steps), contain itself, or make its reader raise anything. The limit counts
processor time, so that a busy machine does not reject a good file. Only torch and safetensors are imported.
"""

from __future__ import annotations

import pickle
import resource
import sys

import torch
from safetensors.torch import save_file

WRAPPINGS = ("state_dict", "model", "backbone", "teacher")
MAX_WRAPPINGS = 8
UNSAFE_PICKLE_STATUS = 3
"""The exit status for a pickle that needs more than tensors."""


def unwrap_tensors(raw: object) -> dict[str, torch.Tensor]:
    """Return the tensors of a loaded object, also from inside {'state_dict': ...} and the like; {} for no dict."""
    for _ in range(MAX_WRAPPINGS):
        inner = next((raw[key] for key in WRAPPINGS if key in raw), None) if isinstance(raw, dict) else None
        if not isinstance(inner, dict):
            break
        raw = inner
    if not isinstance(raw, dict):
        return {}
    return {str(name): value for name, value in raw.items() if isinstance(value, torch.Tensor)}


def main(path: str, out: str, seconds: float) -> int:
    """Write the file's dense tensors to `out` and return the exit status. The process dies by SIGXCPU at its limit."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    limit = int(usage.ru_utime + usage.ru_stime + seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 1))
    try:
        raw = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        return UNSAFE_PICKLE_STATUS
    tensors = unwrap_tensors(raw)
    dense = {name: value for name, value in tensors.items() if value.layout == torch.strided and not value.is_meta}
    save_file({name: value.detach().cpu().contiguous().clone() for name, value in dense.items()}, out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1], sys.argv[2], float(sys.argv[3])))
