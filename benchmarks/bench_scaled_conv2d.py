"""The last convolution of DDPM++'s blocks, (conv + residual) / sqrt(2): PyTorch, a step's call."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddsm_ext.bench.candidates import Call
from ddsm_ext.graph.shapes import ConvShape
from ddsm_ext.models import PRESETS
from ddsm_ext.runtime.cpu_layers import Activation, Layers
from ddsm_ext.runtime.operands import ConvWeight
from ddsm_ext.runtime.program import Program

NETWORK = PRESETS["edm-cifar10-vp"]
OP = "conv2d"
SCALE = 0.5**0.5


def wanted(shape: ConvShape) -> bool:
    """True for the shapes that are timed."""
    return shape.kernel == 3 and shape.c_in == shape.c_out and not shape.c_in2


def candidates(shape: ConvShape, batch: int, dtype: torch.dtype) -> dict[str, Call]:
    """Return name -> call of the same function on the same values."""
    generator = torch.Generator().manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator).to(dtype)

    c, size = shape.c_out, shape.size
    weight = nn.Parameter(normal(shape.c_out_max, shape.c_in_max, 3, 3) / (3 * c**0.5), False)
    bias, x = normal(shape.c_out_max), normal(batch, c, size, size)
    residual = normal(batch, c, size, size)
    x_cl, residual_cl = (t.contiguous(memory_format=torch.channels_last) for t in (x, residual))
    dense = weight[:c, :c].contiguous(memory_format=torch.channels_last)

    def plain(source: Tensor, added: Tensor, w: Tensor) -> Tensor:
        return (F.conv2d(source, w, bias[:c], padding=1) + added) * SCALE

    return {
        "slicing": lambda: plain(x, residual, weight[:c, :c]),
        "dense_cl": lambda: plain(x_cl, residual_cl, dense),
        "ours": step_call(x, residual, ConvWeight((weight,), (bias,)), c),
    }


def step_call(x: Tensor, residual: Tensor, conv: ConvWeight, c_out: int) -> Call:
    """Return what a compiled step calls, on copies of the images."""
    n, c, height, width = x.shape
    program = Program()
    layers = Layers(program, n, x.dtype)
    source, added = (layers.activation(c, height, width) for _ in range(2))
    y = layers.conv2d((source,), conv, c_out, residual=added, scale=SCALE)
    program.pinned += [source.buffer, added.buffer, y.buffer]
    plan = program.bind(torch.empty(program.arena_bytes, dtype=torch.uint8))

    def view(activation: Activation) -> Tensor:
        shape = (n, height, width, activation.c)
        return plan.view(activation.buffer, x.dtype, shape).permute(0, 3, 1, 2)

    view(source).copy_(x)
    view(added).copy_(residual)

    def call() -> Tensor:
        plan.run()
        return view(y)

    return call


def test_scaled_conv2d(case: Any, candidate: str, time_candidate: Any) -> None:
    time_candidate(case, candidate)
