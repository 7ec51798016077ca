"""Activations, gates and linear layers of several blocks, beside float64.

What lies beyond a block's prefix is NaN, and gradients there keep it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from cuda_kernels.gpu.device import ON_GPU
from cuda_kernels.gpu.rows import TOLERANCE, Row, compare, normal
from torch import Tensor

from ddsm_ext.ops import _fused
from ddsm_ext.ops._call import matmul_tf32
from ddsm_ext.ops.activation import KINDS, activation_ref
from ddsm_ext.ops.group_norm import sliced_group_norm_ref
from ddsm_ext.runtime.cuda_layers import Activation, CudaLayers
from ddsm_ext.runtime.operands import ConvWeight


@dataclass(frozen=True)
class Tokens:
    """A linear layer of `blocks` blocks on [n, t, c] tokens, with what becomes of its result."""

    kind: str | None
    blocks: int
    n: int
    t: int
    c: int
    c_out: int
    spare: int = 8  # channels that a weight has beyond the active ones

    def columns(self) -> int:
        """Of the result."""
        return self.c_out if self.kind == "geglu" else self.blocks * self.c_out

    def parameters(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Weight and bias of all blocks."""
        rows, columns = self.c_out + self.spare, self.c + self.spare
        weight = normal(self.blocks, rows, columns, dtype=dtype, scale=self.c**-0.5)
        bias = normal(self.blocks, rows, dtype=dtype)
        weight[:, self.c_out :] = bias[:, self.c_out :] = torch.nan
        weight[:, :, self.c :] = torch.nan
        return weight, bias

    def active(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Of all blocks as one matrix and one row, in fp64."""
        matrix = weight[:, : self.c_out, : self.c].flatten(0, 1)
        return matrix.double(), bias[:, : self.c_out].flatten().double()


# Images of a multiple of 64 tokens and others, one token each, tails of everything; blocks that
# share a launch and that do not; feed-forward layers of transformers.
TOKENS = (
    *(Tokens(kind, blocks, 3, 64, 72, 40)
      for kind, blocks in ((None, 3), ("gelu", 1), ("gelu_tanh", 2), ("geglu", 2))),
    *(Tokens(kind, 2, 3, 50, 24, 24) for kind in KINDS),
    Tokens("geglu", 2, 2, 9, 19, 21, spare=3),
    Tokens(None, 6, 5, 1, 64, 48),
    *((
        Tokens("geglu", 2, 2, 4096, 320, 1280),
        Tokens("geglu", 2, 8, 256, 1280, 5120),
        Tokens("gelu_tanh", 1, 16, 256, 1152, 4608),
        Tokens(None, 1, 16, 256, 4608, 1152),
        Tokens(None, 2, 8, 77, 768, 1280),
        Tokens(None, 6, 64, 1, 1152, 1152),
    ) if ON_GPU else ()),
)  # fmt: skip


def activation(tokens: Tokens, dtype: torch.dtype) -> Row:
    """The op on its own, forward and backward."""
    width = tokens.columns() * (2 if tokens.kind == "geglu" else 1)
    z = normal(tokens.n, tokens.t, width, dtype=dtype)
    gate = normal(tokens.n, tokens.columns(), dtype=dtype)
    residual, grad_y = (normal(tokens.n, tokens.t, tokens.columns(), dtype=dtype) for _ in range(2))
    leaves = [t.double().requires_grad_() for t in (z, gate)]
    y = activation_ref(leaves[0], tokens.kind, gate=leaves[1], residual=residual.double())
    exact = [y.detach(), *torch.autograd.grad(y, leaves, grad_y.double())]
    number = KINDS.index(tokens.kind)

    def call() -> Sequence[Tensor]:
        ops = torch.ops.ddsm_ext
        grad_gate = torch.full(gate.shape, torch.nan, dtype=torch.float32, device=z.device)
        grad_z = ops.sliced_activation_backward(grad_y, z, number, gate, grad_gate)
        return [ops.sliced_activation(z, number, gate, residual), grad_z, grad_gate]

    return compare(f"{tokens} {dtype}, activation", call, exact, 2 * TOLERANCE[dtype])


def linear(tokens: Tokens, dtype: torch.dtype) -> Row:
    """The product with all in its store."""
    x, (weight, bias) = normal(tokens.n, tokens.t, tokens.c, dtype=dtype), tokens.parameters(dtype)
    gate = normal(tokens.n, tokens.columns(), dtype=dtype)
    residual = normal(tokens.n, tokens.t, tokens.columns(), dtype=dtype)
    z = F.linear(x.double(), *tokens.active(weight, bias))
    exact = activation_ref(z, tokens.kind, gate=gate.double(), residual=residual.double())

    def call() -> Sequence[Tensor]:
        numbers = (tokens.c_out, matmul_tf32(x), KINDS.index(tokens.kind))
        return [torch.ops.ddsm_ext.sliced_linear(x, weight, bias, *numbers, gate, residual)]

    return compare(f"{tokens} {dtype}, linear", call, [exact], 2 * TOLERANCE[dtype])


def linear_gradients(tokens: Tokens, dtype: torch.dtype) -> Row:
    """Those of the product alone."""
    x, (weight, bias) = normal(tokens.n, tokens.t, tokens.c, dtype=dtype), tokens.parameters(dtype)
    grad_z = normal(tokens.n, tokens.t, tokens.blocks * tokens.c_out, dtype=dtype)
    matrix, _ = tokens.active(weight, bias)
    rows, x_rows = grad_z.flatten(0, 1).double(), x.flatten(0, 1).double()
    exact = [grad_z.double() @ matrix, rows.T @ x_rows, rows.sum(0)]
    beyond = weight.isnan(), bias.isnan()

    def call() -> Sequence[Tensor]:
        ops, tf32 = torch.ops.ddsm_ext, matmul_tf32(x)
        grads = [torch.where(nan, torch.nan, 0.0).to(dtype) for nan in beyond]
        ops.sliced_linear_grad_weight(grad_z, x, *grads, tf32)
        if any(not g.isnan().equal(nan) for g, nan in zip(grads, beyond, strict=True)):
            raise RuntimeError("a gradient beyond the prefixes was written")
        grad_x = ops.sliced_linear_grad_x(grad_z, weight, tokens.c, tf32)
        active = grads[0][:, : tokens.c_out, : tokens.c].flatten(0, 1)
        return [grad_x, active, grads[1][:, : tokens.c_out].flatten()]

    return compare(f"{tokens} {dtype}, gradients", call, exact, TOLERANCE[dtype])


def fused(tokens: Tokens, dtype: torch.dtype) -> Row:
    """As a step has it: a 1x1 convolution of images, and the norm by the moments it leaves."""
    c, (weight, bias) = tokens.columns(), tokens.parameters(dtype)
    x = normal(tokens.n, tokens.c, tokens.t, 2, dtype=dtype)
    gate, residual = normal(tokens.n, c, dtype=dtype), normal(tokens.n, c, tokens.t, 2, dtype=dtype)
    gamma, beta = normal(c, dtype=dtype), normal(c, dtype=dtype)
    z = F.linear(x.double().permute(0, 2, 3, 1), *tokens.active(weight, bias))
    added = residual.double().permute(0, 2, 3, 1)
    y = activation_ref(z, tokens.kind, gate=gate.double(), residual=added).permute(0, 3, 1, 2)
    norm = sliced_group_norm_ref(y, gamma.double(), beta.double(), 1)
    run, conv = CudaLayers(), ConvWeight((weight,), (bias,))

    def call() -> Sequence[Tensor]:
        more = {"activation": tokens.kind, "gate": gate, "residual": Activation(residual)}
        found = run.conv2d((Activation(x),), conv, tokens.c_out, moments=True, **more)
        (normed,) = _fused.group_norm_apply(
            [found.tensor], [found.moments], gamma, beta, 1, eps=1e-5, silu=False
        )
        return [found.tensor, normed]

    return compare(f"{tokens} {dtype}, fused", call, [y, norm], 3 * TOLERANCE[dtype])


def activated_rows() -> list[Row]:
    """Every path, in all dtypes."""
    return [
        row
        for dtype in TOLERANCE
        for tokens in TOKENS
        for row in (
            activation(tokens, dtype),
            linear(tokens, dtype),
            linear_gradients(tokens, dtype),
            *([fused(tokens, dtype)] if tokens.blocks <= 3 else []),
        )
    ]
