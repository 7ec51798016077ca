"""One family of kernels beside float64, in a process of its own.

    python families.py fused --json FILE
    python families.py forward --algo 5        # one tile of csrc/cuda/tile_choice.h, 1 + its index

Inputs are new in every run, outputs begin as NaN, what lies beyond a slice is NaN, and every call
is made twice and must give the same bits. Exit code 1: a result is wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "benchmarks"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from cuda_kernels.gpu.activated import activated_rows
from cuda_kernels.gpu.device import ON_GPU
from cuda_kernels.gpu.layer_calls import OURS, REFERENCE, leaves_of, results
from cuda_kernels.gpu.modulated import modulated_rows
from cuda_kernels.gpu.rows import TOLERANCE, Row, compare, normal
from gpu_suite.tiles import tiles

from ddsm_ext.graph.shapes import AttentionShape, LinearShape, NormShape, Shape
from ddsm_ext.ops import _fused
from ddsm_ext.ops._call import conv_tf32
from ddsm_ext.ops.conv2d import sliced_conv2d_ref
from ddsm_ext.ops.group_norm import sliced_group_norm_ref


@dataclass(frozen=True)
class Conv:
    """Images [n, c (+ c2), height, width] -> c_out."""

    n: int
    height: int
    width: int
    c: int
    c2: int
    c_out: int
    kernel: int
    stride: int = 1

    def __str__(self) -> str:
        c = f"{self.c}+{self.c2}" if self.c2 else str(self.c)
        size = f"{self.n}x{self.height}x{self.width}"
        return f"{size} {c}->{self.c_out} {self.kernel}x{self.kernel} /{self.stride}"


# Tails of pixels, of channels and of K, two sources, stride 2, one tap, and the network's own
# shapes with more tiles than multiprocessors and with few.
CONVS = (
    Conv(3, 7, 9, 40, 0, 24, 3),
    Conv(2, 5, 6, 8, 72, 136, 3),
    Conv(4, 9, 10, 72, 0, 40, 3, 2),
    Conv(2, 8, 8, 64, 0, 256, 1),
    *((
        Conv(64, 32, 32, 128, 0, 128, 3),
        Conv(128, 16, 16, 256, 256, 256, 3),
        Conv(1, 8, 8, 256, 0, 256, 3),
    ) if ON_GPU else ()),
)  # fmt: skip
LAYERS: dict[str, tuple[Shape, ...]] = {
    "group-norm": (
        NormShape(64, 32, 128, 32, 16, True),
        NormShape(21, 9, 64, 5, 5, True),
        NormShape(256, 0, 256, 32, 8, False),
        NormShape(128, 0, 128, 32, 32, True),
        NormShape(256, 256, 512, 32, 16, True),
        NormShape(32, 0, 128, 32, 32, True),
    ),
    "attention": (
        AttentionShape(1, 256, 256),
        AttentionShape(1, 256, 64),
        AttentionShape(1, 256, 120),
        AttentionShape(4, 64, 32),
        AttentionShape(2, 20, 19),
        AttentionShape(8, 256, 32, 77),
        AttentionShape(2, 20, 19, 1),
    ),
    "linear": (
        LinearShape(128, 512, 128, 512),
        LinearShape(512, 256, 512, 512),
        LinearShape(60, 120, 128, 512),
        LinearShape(19, 21, 60, 40),
    ),
}


def conv_inputs(conv: Conv, dtype: torch.dtype) -> tuple[list[Tensor], Tensor, Tensor, int]:
    """Sources, weight and bias with NaN beyond the slice, and where x2's channels begin."""
    sources = [
        normal(conv.n, c, conv.height, conv.width, dtype=dtype) for c in (conv.c, conv.c2) if c
    ]
    k, offset = conv.kernel, conv.c + 8 if conv.c2 else 0
    scale = ((conv.c + conv.c2) * k * k) ** -0.5
    weight = normal(conv.c_out + 8, conv.c + conv.c2 + 16, k, k, dtype=dtype, scale=scale)
    bias = normal(conv.c_out + 8, dtype=dtype)
    weight[conv.c_out :] = bias[conv.c_out :] = torch.nan
    weight[:, conv.c : conv.c + 8] = weight[:, conv.c + conv.c2 + 8 :] = torch.nan
    return sources, weight, bias, offset


def exact_conv(conv: Conv, sources: list[Tensor], weight: Tensor, bias: Tensor, offset: int):
    x2 = sources[1].double() if conv.c2 else None
    return sliced_conv2d_ref(
        sources[0].double(), weight.double(), bias.double(), conv.c_out, x2=x2,
        c_in2_offset=offset, stride=conv.stride, padding=conv.kernel // 2,
    )  # fmt: skip


def forward(conv: Conv, dtype: torch.dtype, algo: int) -> Row:
    sources, weight, bias, offset = conv_inputs(conv, dtype)
    x2 = sources[1] if conv.c2 else None
    numbers = (conv.c_out, offset or conv.c, conv.stride, conv.kernel // 2, False, None, algo)

    def call() -> Sequence[Tensor]:
        op = torch.ops.ddsm_ext.sliced_conv2d
        return [op(sources[0], x2, weight, bias, *numbers, conv_tf32(sources[0]))]

    exact = exact_conv(conv, sources, weight, bias, offset)
    return compare(f"{conv} {dtype}, tile {algo}", call, [exact], TOLERANCE[dtype])


def grad_x(conv: Conv, dtype: torch.dtype, algo: int) -> Row:
    _, weight, _, _ = conv_inputs(conv, dtype)
    size = [(s + conv.stride - 1) // conv.stride for s in (conv.height, conv.width)]
    grad_y = normal(conv.n, conv.c_out, *size, dtype=dtype)
    numbers = (conv.c, 0, conv.height, conv.width, conv.stride, conv.kernel // 2, False, None)
    exact = torch.nn.grad.conv2d_input(
        (conv.n, conv.c, conv.height, conv.width), weight[: conv.c_out, : conv.c].double(),
        grad_y.double(), stride=conv.stride, padding=conv.kernel // 2,
    )  # fmt: skip

    def call() -> Sequence[Tensor]:
        op = torch.ops.ddsm_ext.sliced_conv2d_grad_x
        return [op(grad_y, weight, *numbers, algo, conv_tf32(grad_y))]

    return compare(f"{conv} {dtype}, tile {algo}", call, [exact], TOLERANCE[dtype])


def grad_weight(conv: Conv, dtype: torch.dtype, algo: int) -> Row:
    sources, weight, bias, offset = conv_inputs(conv, dtype)
    y = exact_conv(conv, sources, weight, bias, offset)
    grad_y = normal(*y.shape, dtype=dtype)
    x = torch.cat(sources, dim=1).double()
    exact = torch.nn.grad.conv2d_weight(
        x, (conv.c_out, x.shape[1], conv.kernel, conv.kernel), grad_y.double(),
        stride=conv.stride, padding=conv.kernel // 2,
    )  # fmt: skip
    channels = [*range(conv.c), *range(offset, offset + conv.c2)]

    def call() -> Sequence[Tensor]:
        grad, grad_bias = torch.zeros_like(weight), torch.zeros_like(bias)
        torch.ops.ddsm_ext.sliced_conv2d_grad_weight(
            grad_y, sources[0], sources[1] if conv.c2 else None, offset or conv.c, conv.stride,
            conv.kernel // 2, False, grad, grad_bias, algo, conv_tf32(sources[0]),
        )  # fmt: skip
        return [grad[: conv.c_out, channels], grad_bias[: conv.c_out]]

    wanted = [exact, grad_y.double().sum(dim=(0, 2, 3))]
    return compare(f"{conv} {dtype}, tile {algo}", call, wanted, TOLERANCE[dtype])


def fused(conv: Conv, dtype: torch.dtype, _algo: int) -> Row:
    """A convolution with all that a step adds to it, and the norm by the moments it leaves."""
    sources, weight, bias, offset = conv_inputs(conv, dtype)
    exact = exact_conv(conv, sources, weight, bias, offset)
    n, c, height, width = exact.shape
    shift, residual = normal(n, c, dtype=dtype), normal(n, c, height, width, dtype=dtype)
    exact = exact + shift.double()[:, :, None, None] + residual.double()
    gamma, beta = normal(c + 8, dtype=dtype), normal(c + 8, dtype=dtype)
    norm = sliced_group_norm_ref(exact, gamma.double(), beta.double(), c // 8, silu=True)

    def call() -> Sequence[Tensor]:
        y, moments = _fused.conv2d_fused(
            sources, [weight], [bias], conv.c_out, c_in2_offset=offset or conv.c,
            stride=conv.stride, shift=shift, residual=residual, moments=True,
        )  # fmt: skip
        (normed,) = _fused.group_norm_apply(
            [y], [moments], gamma, beta, c // 8, eps=1e-5, silu=True
        )
        return [y, normed]

    # The norm is that of the rounded output, which it enlarges.
    return compare(f"{conv} {dtype}", call, [exact, norm], 3 * TOLERANCE[dtype])


def upsampled(dtype: torch.dtype, parts: int) -> Row:
    """Three weights side by side, or an image enlarged first."""
    x = normal(8, 64, 8, 8, dtype=dtype)
    kernel = 1 if parts == 3 else 3
    weights = [normal(72, 80, kernel, kernel, dtype=dtype, scale=0.1) for _ in range(parts)]
    biases = [normal(72, dtype=dtype) for _ in range(parts)]
    wide = x.double() if parts == 3 else F.interpolate(x.double(), scale_factor=2.0)
    exact = torch.cat([
        F.conv2d(wide, w[:64, :64].double(), b[:64].double(), padding=kernel // 2)
        for w, b in zip(weights, biases, strict=True)
    ], dim=1)  # fmt: skip

    def call() -> Sequence[Tensor]:
        return [_fused.conv2d_fused([x], weights, biases, 64, upsample=parts == 1)[0]]

    return compare(f"{parts} weights, upsample {parts == 1}", call, [exact], TOLERANCE[dtype])


def layer(shape: Shape, dtype: torch.dtype) -> Row:
    leaves = leaves_of(shape, 3, dtype, torch.channels_last)
    exact = results(REFERENCE, shape, [leaf.double() for leaf in leaves])
    return compare(f"{shape} {dtype}", lambda: results(OURS, shape, leaves), exact,
                   TOLERANCE[dtype])  # fmt: skip


def conv_rows(check: Callable[[Conv, torch.dtype, int], Row], algos: Sequence[int]) -> list[Row]:
    rows = [check(conv, torch.bfloat16, algo) for algo in algos for conv in CONVS]
    rows += [check(CONVS[0], torch.float16, algo) for algo in algos if ON_GPU]
    return rows + [
        check(CONVS[1], torch.float32, algo) for algo in algos if algo <= portable_tiles()
    ]


def portable_tiles() -> int:
    """How many tiles the sm_80 path has; they come first."""
    return sum(not tile.sm90a for tile in tiles())


def fused_rows() -> list[Row]:
    rows = conv_rows(fused, [0])
    return [*rows, upsampled(torch.bfloat16, 1), upsampled(torch.bfloat16, 3)]


def layer_rows(name: str) -> list[Row]:
    kinds = (torch.bfloat16, torch.float16, torch.float32) if ON_GPU else (torch.float32,)
    rows = [layer(shape, torch.bfloat16) for shape in LAYERS[name]]
    return rows + [layer(LAYERS[name][0], dtype) for dtype in kinds[1:] or kinds]


def rows_of(family: str, algo: int) -> list[Row]:
    """Return the rows of a family; algo 0: every tile of the sm_80 path where it can be forced."""
    products = {"forward": forward, "grad-x": grad_x, "grad-weight": grad_weight}
    if family in products:
        every = range(1, portable_tiles() + 1) if ON_GPU else [0]
        return conv_rows(products[family], [algo] if algo else list(every))
    beside = {"fused": fused_rows, "modulated": modulated_rows, "activated": activated_rows}
    return beside[family]() if family in beside else layer_rows(family)


def main() -> int:
    """Run one family."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    names = ("forward", "grad-x", "grad-weight", "fused", "modulated", "activated", *LAYERS)
    parser.add_argument("family", choices=names)
    parser.add_argument("--algo", type=int, default=0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    seed = int.from_bytes(os.urandom(4), "little")
    torch.manual_seed(seed)
    rows = rows_of(arguments.family, arguments.algo)
    if arguments.json is not None:
        content = {"family": arguments.family, "seed": seed, "rows": rows}
        arguments.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    faults = [f"{row['case']}: {row['fault']}" for row in rows if row["fault"]]
    chosen = [choice for row in rows for choice in row.get("chosen", ())]
    hopper = sum(choice["sm90a"] for choice in chosen)
    print("\n".join(faults[:10]))
    errors = [row["error"] / row["allowed"] for row in rows if "error" in row]
    print(json.dumps({
        "cases": len(rows),
        "refused": sum("refused" in row for row in rows),
        "faults": faults[:4],
        "largest_error_of_allowed": round(max(errors, default=0.0), 3),
        "launches": {"sm_90a": hopper, "sm_80": len(chosen) - hopper},
    }))  # fmt: skip
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
