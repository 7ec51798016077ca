"""A random sample of rows that pass by once, however many there will be."""

from __future__ import annotations

import numpy as np


class Reservoir:
    """A uniform sample of rows, without replacement, in random order.

    Each row draws a number, and those with the smallest ones are kept, in their order: so a prefix
    of the sample is one as well. The rows kept do not depend on how the rows arrive in batches.

    Args:
        size: rows to keep at most.
        dim: number of features D of a row.
        seed: which rows are kept.

    Source: Efraimidis and Spirakis, "Weighted random sampling with a reservoir", 2006, with equal
    weights.
    """

    def __init__(self, size: int, dim: int, seed: int) -> None:
        self.size, self.seed = size, seed
        self._rng = np.random.RandomState(seed)  # its numbers are frozen for good
        self._keys = np.empty(0)  # [M], rising
        self.rows = np.empty((0, dim), dtype=np.float32)  # [M, D]

    def update(self, rows: np.ndarray) -> None:
        """Let rows [N, D] pass by."""
        keys = self._rng.random_sample(len(rows))  # [N]
        if self.size == 0:
            return
        if len(self._keys) == self.size:
            new = keys < self._keys[-1]
            keys, rows = keys[new], rows[new]
        if len(keys):
            keys = np.concatenate([self._keys, keys])
            order = np.argsort(keys)[: self.size]
            self._keys = keys[order]
            self.rows = np.concatenate([self.rows, rows])[order]

    @property
    def drawn(self) -> str:
        """How the rows were chosen, in words."""
        return f"reservoir, seed {self.seed}"
