"""One process of a group that gathers moments; a spawned process imports it by this name."""

from __future__ import annotations

import numpy as np
import torch

from ddsm_ext.eval.distances import StreamingMoments, gather_moments


def gather_rank(rank: int, world: int, store: str, x: np.ndarray, out: str) -> None:
    """Take every second row of x [N, D] on ranks 0 and 1, none on others; save the sum of all."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=world
    )
    moments = StreamingMoments(x.shape[1])
    if rank < 2:
        moments.update(x[rank::2])
    np.save(f"{out}{rank}.npy", gather_moments(moments).to_vector())
    torch.distributed.destroy_process_group()
