"""Derive independent random streams: the seed of each is a hash of (seed, purpose, step).

    torch.manual_seed(stream_seed(plan.seed, "augmentation", step))
    order = np.random.default_rng(stream_seed(seed, "order", epoch)).permutation(indices)

Sums would not do: seed 0 at step 1 and seed 1 at step 0 would draw the same numbers. Nor would a seed in the upper half
of 64 bits: PyTorch's generator on the CPU (mt19937) reads the lower 32 bits alone. So the hash has 32 bits, which
PyTorch, NumPy, scikit-learn and Optuna all take. Of n streams about n^2 / 2^33 pairs coincide: with a hundred thousand
steps, one pair of single steps, which does no harm.

Splits and label budgets need no generator: they rank images by a hash of their pixels (winnow/data/splits.py). Fixed
patterns that only time or check a file are not part of an experiment, and keep constant seeds.
"""

from __future__ import annotations

import hashlib

SEED_BYTES = 4


def stream_seed(seed: int, purpose: str, step: int = 0) -> int:
    """Return the seed, 0 to 2^32 - 1, of the stream for one purpose ("augmentation", "order", ...) at one step.

    It is the BLAKE2b hash (RFC 7693) of the three, the same on every machine.
    """
    content = f"{seed} {step} {purpose}".encode()  # two whole numbers first: no two triples give the same text
    return int.from_bytes(hashlib.blake2b(content, digest_size=SEED_BYTES).digest(), "big")
