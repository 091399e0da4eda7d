"""Every random stream, derived from (seed, stage, item).

No stream carries hidden state from one step to the next: the numbers of a step depend on the seed and on the step's
own name alone. That is what makes a run resumable without saving generator states, and an image of a sampling job
independent of its batch.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

Part = str | int


def derive(seed: int, *path: Part) -> int:
    """A 63-bit seed for the stream named by ``path`` under ``seed``; different paths give unrelated streams."""
    text = repr((int(seed), *path)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "little") >> 1


def numpy_generator(seed: int, *path: Part) -> np.random.Generator:
    """A NumPy generator for the stream named by ``path``."""
    return np.random.default_rng(derive(seed, *path))


def torch_generator(seed: int, *path: Part) -> torch.Generator:
    """A CPU torch generator for the stream named by ``path``.

    Always on the CPU, so that the same numbers are drawn whatever device computes with them.
    """
    import torch  # most streams are NumPy's, and loading it takes seconds

    return torch.Generator().manual_seed(derive(seed, *path))


def permutation(seed: int, *path: Part, n: int) -> np.ndarray:
    """A permutation of 0..n-1 (int64) from the stream named by ``path``."""
    return numpy_generator(seed, *path).permutation(n)
