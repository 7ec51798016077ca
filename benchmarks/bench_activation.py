"""GELU and GEGLU of tokens, with a gate and a residual: PyTorch, activation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ddsm_ext.bench.candidates import Call
from ddsm_ext.graph.shapes import Shape
from ddsm_ext.ops import activation

OP = "activation"


@dataclass(frozen=True)
class ActivationShape(Shape):
    """An activation of an image's tokens; `fused`: times a gate, plus a residual."""

    tokens: int
    c: int
    kind: str | None
    fused: bool = False

    def _counted(self) -> tuple[int, int, int]:
        read = (2 if self.kind == "geglu" else 1) + (1 if self.fused else 0)
        return 0, self.tokens * self.c * (read + 1), 0

    def __str__(self) -> str:
        return f"{self.kind or 'gate'} c={self.c} T={self.tokens}{' fused' if self.fused else ''}"


# Of LDM-4 ImageNet's feed-forward layers and of DiT-B/2's blocks, at full width.
FULL = (
    ActivationShape(1024, 1536, "geglu"),
    ActivationShape(256, 3072, "gelu_tanh"),
    ActivationShape(256, 768, None, True),
    ActivationShape(256, 3072, "gelu"),
    ActivationShape(64, 3840, "geglu"),
)


def shapes(width: float) -> list[ActivationShape]:
    """Return the shapes at a width, the one most worth its time first."""
    return [ActivationShape(s.tokens, round(s.c * width), s.kind, s.fused) for s in FULL]


def candidates(shape: ActivationShape, batch: int, dtype: torch.dtype) -> dict[str, Call]:
    """Return name -> call of the same function on the same values."""
    generator = torch.Generator().manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator).to(dtype)

    columns = 2 * shape.c if shape.kind == "geglu" else shape.c
    z = normal(batch, shape.tokens, columns)
    gate = normal(batch, shape.c) if shape.fused else None
    residual = normal(batch, shape.tokens, shape.c) if shape.fused else None

    def plain() -> Tensor:
        y = z
        if shape.kind == "geglu":
            value, half = z.chunk(2, dim=-1)
            y = value * F.gelu(half)
        elif shape.kind is not None:
            y = F.gelu(z, approximate="tanh" if shape.kind == "gelu_tanh" else "none")
        return y if gate is None or residual is None else residual + gate[:, None] * y

    return {
        "slicing": plain,
        "dense_cl": plain,
        "ours": lambda: activation(z, shape.kind, gate=gate, residual=residual),
    }


def test_activation(case: Any, candidate: str, time_candidate: Any) -> None:
    time_candidate(case, candidate)
