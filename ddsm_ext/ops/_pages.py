"""Memory on huge pages, for what is streamed from memory once a step."""

from __future__ import annotations

import torch
from torch import Tensor

from ddsm_ext import _library

# On x86-64 and, with pages of 4 KB, on AArch64.
HUGE_PAGE_BYTES = 2 << 20


def empty_on_huge_pages(count: int, dtype: torch.dtype) -> Tensor:
    """Return [count] uninitialised on the CPU, its whole huge pages as such if the system can.

    With pages of 4 KB the way through the page tables limits what one core reads: on a Zen 4 in a
    virtual machine 17 GB/s, with huge ones 25 GB/s. Only pages that are full are huge, so that no
    more memory is used than without.
    """
    nbytes = count * dtype.itemsize
    # Not an inference tensor even if made in inference mode: it may be written again outside.
    with torch.inference_mode(False):
        if nbytes < HUGE_PAGE_BYTES:
            return torch.empty(count, dtype=dtype, device="cpu")
        # What is never touched before and behind the pages takes no memory.
        room = torch.empty(nbytes + HUGE_PAGE_BYTES, dtype=torch.uint8, device="cpu")
        begin = -room.data_ptr() % HUGE_PAGE_BYTES
        memory = room[begin : begin + nbytes].view(dtype)
    pages = nbytes // HUGE_PAGE_BYTES
    _library.native.advise_huge_pages(memory.data_ptr(), pages * HUGE_PAGE_BYTES)
    return memory
