"""What every measured time depends on, and the thread count it is measured with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ddsm_ext import _library
from ddsm_ext.bench.timing import clock_of


@contextmanager
def using_threads(threads: int) -> Iterator[None]:
    """Run on so many torch threads and set the old number back.

    Raises:
        ValueError: threads is below 1.
    """
    if isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
        raise ValueError(f"bench: threads is {threads!r}; need an int >= 1")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def conditions(*, batch: int, dtype: str, threads: int) -> dict[str, Any]:
    """Return the conditions of a measurement as JSON values."""
    return {
        "batch": batch,
        "dtype": dtype,
        "threads": threads,
        "clock": clock_of(threads)[1],
        "device": "cpu",
        "torch": torch.__version__,
        "torch_isa": torch.backends.cpu.get_cpu_capability().lower(),
        "isa": _library.native.active_isa(),
    }


def check_batch(batch: int) -> int:
    """Return batch, or raise ValueError where it is no positive int."""
    if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
        raise ValueError(f"bench: batch is {batch!r}; need an int >= 1")
    return batch
