"""Linear layers over tokens with what is fused into them: PyTorch slicing, dense weights, ours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ddsm_ext.bench.candidates import Call
from ddsm_ext.graph.shapes import Shape
from ddsm_ext.ops import sliced_linear

OP = "linear"


@dataclass(frozen=True)
class TokenShape(Shape):
    """A linear layer over an image's tokens, perhaps times a gate and plus a residual."""

    tokens: int
    c_in: int
    c_out: int
    c_in_max: int
    c_out_max: int
    blocks: int = 1
    activation: str | None = None
    gated: bool = False

    def _counted(self) -> tuple[int, int, int]:
        columns = self.blocks * self.c_out
        results = self.c_out if self.activation == "geglu" else columns
        macs = self.tokens * self.c_in * columns
        return macs, self.tokens * (self.c_in + results), columns * (self.c_in + 1)

    def __str__(self) -> str:
        many = f"{self.blocks}x" if self.blocks > 1 else ""
        after = " ".join(filter(None, (self.activation, "gated" if self.gated else "")))
        return f"{self.c_in}->{many}{self.c_out} T={self.tokens} {after}".strip()


# LDM-4 ImageNet's feed-forward layers and DiT-B/2's layers, at full width: c_in, c_out, tokens and
# what follows.
FULL: tuple[tuple[int, int, int, dict[str, Any]], ...] = (
    (384, 1536, 1024, {"blocks": 2, "activation": "geglu"}),
    (768, 3072, 256, {"activation": "gelu_tanh"}),
    (3072, 768, 256, {"gated": True}),
    (768, 768, 256, {"blocks": 3}),
    (576, 2304, 256, {"blocks": 2, "activation": "geglu"}),
    (960, 3840, 64, {"blocks": 2, "activation": "geglu"}),
    (768, 768, 1, {"blocks": 6}),
)


def shapes(width: float) -> list[TokenShape]:
    """Return the shapes at a width, the one most worth its time first."""
    return [
        TokenShape(tokens, round(c_in * width), round(c_out * width), c_in, c_out, **more)
        for c_in, c_out, tokens, more in FULL
    ]


def plain(
    x: Tensor, weight: Tensor, bias: Tensor, kind: str | None, gate: Any, residual: Any
) -> Tensor:
    """Return what a user writes in torch of a weight [columns, c_in]."""
    y = F.linear(x, weight, bias)
    if kind == "geglu":
        value, half = y.chunk(2, dim=-1)
        y = value * F.gelu(half)
    elif kind is not None:
        y = F.gelu(y, approximate="tanh" if kind == "gelu_tanh" else "none")
    return y if gate is None else residual + gate[:, None] * y


def candidates(shape: TokenShape, batch: int, dtype: torch.dtype) -> dict[str, Call]:
    """Return name -> call of the same function on the same values."""
    generator = torch.Generator().manual_seed(0)

    def normal(*size: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(*size, generator=generator) * scale).to(dtype)

    c_in, c_out, kind = shape.c_in, shape.c_out, shape.activation
    weight = normal(shape.blocks, shape.c_out_max, shape.c_in_max, scale=c_in**-0.5)
    bias, x = normal(shape.blocks, shape.c_out_max), normal(batch, shape.tokens, c_in)
    gate = normal(batch, c_out) if shape.gated else None
    residual = normal(batch, shape.tokens, c_out) if shape.gated else None

    def slices() -> tuple[Tensor, Tensor]:
        if shape.blocks == 1:
            return weight[0, :c_out, :c_in], bias[0, :c_out]
        rows = torch.cat([block[:c_out, :c_in] for block in weight])
        return rows, torch.cat([row[:c_out] for row in bias])

    dense = tuple(t.contiguous() for t in slices())
    calls: dict[str, Callable[[], Tensor]] = {
        "slicing": lambda: plain(x, *slices(), kind, gate, residual),
        "dense_cl": lambda: plain(x, *dense, kind, gate, residual),
        "ours": lambda: sliced_linear(
            x, weight, bias, c_out, activation=kind, gate=gate, residual=residual
        ),
    }
    return dict(calls)


def test_feed_forward(case: Any, candidate: str, time_candidate: Any) -> None:
    time_candidate(case, candidate)
