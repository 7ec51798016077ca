"""Time embedding of DDPM networks for continuous t."""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from ddsm_ext.nn.layers import SlicedLinear
from ddsm_ext.nn.sinusoidal import embed_time, sinusoidal_embedding


class TimeEmbedding(nn.Module):
    """silu(linear2(silu(linear1(sinusoidal(t))))): what every residual block projects.

    Args:
        ch: size of the sinusoidal embedding.
        c_time: allocated channels of the result.
        table_rows: rows of a frozen embedding table to keep; 0 means none.
        generator: source of the initial weights; None means torch's default generator.
    """

    table: Tensor | None

    def __init__(
        self, ch: int, c_time: int, *, table_rows: int = 0, generator: Generator | None = None
    ) -> None:
        super().__init__()
        self.ch = ch
        self.linear1 = SlicedLinear(ch, c_time, generator=generator)
        self.linear2 = SlicedLinear(c_time, c_time, generator=generator)
        table = sinusoidal_embedding(torch.arange(table_rows), ch) if table_rows else None
        self.register_buffer("table", table)

    def forward(self, t: Tensor, c_time: int, *, accumulate_grad: bool = False) -> Tensor:
        """Embed t [N], integer or continuous, as [N, c_time]."""
        embedding = embed_time(t, self.ch, self.table, self.linear1.weight.dtype)  # [N, ch]
        h = self.linear1(embedding, c_time, accumulate_grad=accumulate_grad)  # [N, c_time]
        h = self.linear2(F.silu(h), c_time, accumulate_grad=accumulate_grad)
        # Each block's projection starts with SiLU: applied here once instead of in every block.
        return F.silu(h)
