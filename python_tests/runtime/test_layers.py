"""Layers of a plan against PyTorch: norms with scale and shift, resampling, moments, sums."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from ops.op_checks import ISAS, forced_isa, normal, seeded
from torch import Tensor

from ddsm_ext.ops._packed import ALGORITHMS
from ddsm_ext.runtime.cpu_layers import Activation, Buffer, ConvWeight, Layers, Linear
from ddsm_ext.runtime.program import Program, Struct

N, C_MAX, OFFSET, EPS = 2, 96, 48, 1e-5
DTYPES = [torch.float32, torch.bfloat16]


class Steps:
    """A program under construction, its inputs' values, and what runs it."""

    def __init__(self, dtype: torch.dtype = torch.float32, images: int = N, **choose: Any) -> None:
        self.program, self.dtype, self.images = Program(), dtype, images
        self.layers = Layers(self.program, images, dtype, **choose)
        self.values: dict[Buffer, Tensor] = {}

    def image(self, values: Tensor) -> Activation:
        _, c, height, width = values.shape
        activation = self.layers.activation(c, height, width)
        self.feed(activation.buffer, values.permute(0, 2, 3, 1).to(self.dtype))
        return activation

    def rows(self, values: Tensor) -> Buffer:
        buffer = self.layers.floats(values.numel())
        self.feed(buffer, values.float())
        return buffer

    def feed(self, buffer: Buffer, values: Tensor) -> None:
        self.program.pinned.append(buffer)
        self.values[buffer] = values

    def run(self, result: Activation | Buffer, dtype: torch.dtype | None = None) -> Tensor:
        """Return the result as [N, c, height, width] or flat float32; memory begins as NaN."""
        buffer = result.buffer if isinstance(result, Activation) else result
        self.program.pinned.append(buffer)
        arena = torch.full((self.program.arena_bytes,), 0xFF, dtype=torch.uint8)
        plan = self.program.bind(arena)
        for fed, values in self.values.items():
            plan.view(fed, values.dtype, tuple(values.shape)).copy_(values)
        plan.run()
        if isinstance(result, Buffer):
            return plan.view(buffer, torch.float32, (self.images, -1))
        shape = (self.images, result.height, result.width, result.c)
        return plan.view(buffer, self.dtype, shape).permute(0, 3, 1, 2)


def check(ours: Tensor, exact: Tensor) -> None:
    """Within what rounding on the way can do, in float32 as Winograd's transforms multiply it."""
    steps = 16 if ours.dtype == torch.float32 else 4
    error = steps * torch.finfo(ours.dtype).eps * exact.abs().max().item()
    torch.testing.assert_close(ours.double(), exact, rtol=0, atol=error)


def resampled(x: Tensor, resample: str | None) -> Tensor:
    if resample == "up":
        return F.interpolate(x, scale_factor=2, mode="nearest")
    return F.avg_pool2d(x, 2) if resample == "down" else x


class Block:
    """Two sources, a norm with scale and shift, and convolutions of them."""

    def __init__(self, dtype: torch.dtype, c: int, c2: int, size: int = 8) -> None:
        generator = seeded(c + c2)
        self.c, self.c2, self.total, self.dtype = c, c2, c + c2, dtype
        self.z = (normal(generator, N, c + c2, size, size) + 0.5).to(dtype)
        self.gamma, self.beta = (normal(generator, C_MAX) for _ in range(2))
        self.modulation = normal(generator, N, 2 * self.total) / 2
        self.weights = {
            kernel: normal(generator, 40, C_MAX, kernel, kernel) / (kernel * self.total**0.5)
            for kernel in (1, 3)
        }
        self.bias = normal(generator, 40)

    def sources(self, steps: Steps) -> tuple[Activation, ...]:
        parts = [self.z[:, : self.c], self.z[:, self.c :]] if self.c2 else [self.z]
        return tuple(steps.image(part) for part in parts)

    def active(self, values: Tensor, dim: int = 0) -> Tensor:
        return torch.cat([values.narrow(dim, 0, self.c), values.narrow(dim, OFFSET, self.c2)], dim)

    def normed(self, *, film: bool, groups: int = 3) -> Tensor:
        gamma, beta = self.active(self.gamma).double(), self.active(self.beta).double()
        y = torch.group_norm(self.z.double(), groups, gamma, beta, EPS)
        if film:
            scale, shift = self.modulation.double()[:, :, None, None].chunk(2, 1)
            y = y * (1 + scale) + shift
        return F.silu(y)

    def convolved(self, x: Tensor, kernel: int, c_out: int = 24) -> Tensor:
        weight = self.active(self.weights[kernel], 1)[:c_out].double()
        return F.conv2d(x, weight, self.bias[:c_out].double(), padding=kernel // 2)

    def conv(self, kernel: int, resample: str | None = None) -> ConvWeight:
        weight = torch.nn.Parameter(self.weights[kernel], requires_grad=False)
        return ConvWeight((weight,), (self.bias,), 1, resample, OFFSET)

    def norm(self, steps: Steps, sources: tuple[Activation, ...], *, film: bool) -> Any:
        more: dict[str, Any] = {}
        if film:
            scale, shift = self.modulation.chunk(2, dim=1)
            more = {"scale": steps.rows(scale), "shift": steps.rows(shift)}
        return steps.layers.norm(
            sources, self.gamma, self.beta, 3, skip_offset=OFFSET, silu=True, **more
        )


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize(("c", "c2"), [(33, 0), (40, 23)])
@pytest.mark.parametrize("resample", [None, "up", "down"])
def test_norm_resample_convolution(
    isa: str, dtype: torch.dtype, kernel: int, c: int, c2: int, resample: str | None
):
    block, steps = Block(dtype, c, c2), Steps(dtype)
    with forced_isa(isa):
        sources = block.sources(steps)
        norm = block.norm(steps, sources, film=True)
        y = steps.layers.conv2d(sources, block.conv(kernel, resample), 24, norm=norm)
        ours = steps.run(y)
    check(ours, block.convolved(resampled(block.normed(film=True), resample), kernel))


@pytest.mark.parametrize("algorithm", ["direct", "winograd_2x2", "winograd_4x4"])
def test_norm_and_residual_of_every_algorithm(algorithm: str):
    """The residual has half the size, in odd numbers of a tile's pixels too."""
    for resample, dtype, c_out in itertools.product((None, "up", "down"), DTYPES, (5, 24)):
        block = Block(dtype, 40, 23, 12)
        steps = Steps(dtype, choose=lambda *_: ALGORITHMS.index(algorithm))
        sources = block.sources(steps)
        norm = block.norm(steps, sources, film=True)
        half = {None: 6, "up": 12, "down": 3}[resample]
        residual = normal(seeded(6), N, c_out, half, half, dtype=dtype)
        y = steps.layers.conv2d(
            sources, block.conv(3, resample), c_out, norm=norm, residual=steps.image(residual)
        )
        exact = block.convolved(resampled(block.normed(film=True), resample), 3, c_out)
        check(steps.run(y), exact + resampled(residual.double(), "up"))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("algorithm", ["direct", "winograd_2x2", "winograd_4x4"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_channels_that_fill_no_vector(isa: str, algorithm: str, dtype: torch.dtype):
    """They share vectors with other pixels, inputs and outputs alike; so do their moments."""
    inputs = [(3, 0, 8), (12, 0, 6), (4, 8, 8), (16, 8, 12), (20, 7, 5), (24, 0, 4)]
    for (c, c2, size), c_out in itertools.product(inputs, (1, 4, 5, 8, 12, 20, 24)):
        block = Block(dtype, c, c2, size)
        steps = Steps(dtype, choose=lambda *_: ALGORITHMS.index(algorithm))
        gamma, beta = torch.ones(c_out), torch.zeros(c_out)
        with forced_isa(isa):
            sources = block.sources(steps)
            norm = block.norm(steps, sources, film=True)
            residual = normal(seeded(7), N, c_out, size, size, dtype=dtype)
            y = steps.layers.conv2d(
                sources, block.conv(3), c_out, norm=norm, residual=steps.image(residual),
                moments=True,
            )  # fmt: skip
            after = steps.layers.norm((y,), gamma, beta, 1)
            normed = steps.layers.joined((y,), after, torch.float32)
            ours = steps.run(normed)
        exact = block.convolved(block.normed(film=True), 3, c_out) + residual.double()
        exact = torch.group_norm(exact, 1, None, None, EPS)
        check(ours.view(N, size, size, c_out).permute(0, 3, 1, 2).to(dtype), exact)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [7, 8])
def test_stride_two_with_zeros_at_the_end(isa: str, dtype: torch.dtype, size: int):
    block, steps = Block(dtype, 40, 23, size), Steps(dtype)
    conv = dataclasses.replace(block.conv(3), stride=2, pad_end=True)
    with forced_isa(isa):
        sources = block.sources(steps)
        y = steps.layers.conv2d(
            sources, conv, 24, norm=block.norm(steps, sources, film=True), moments=True
        )
        ours = steps.run(y)
    weight = block.active(block.weights[3], 1)[:24].double()
    padded = F.pad(block.normed(film=True), (0, 1, 0, 1))
    check(ours, F.conv2d(padded, weight, block.bias[:24].double(), stride=2))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_block_that_halves(dtype: torch.dtype):
    """ADM's: h = conv(down(norm(x))), plus a 1x1 convolution of down(x), plus a shift."""
    block, steps = Block(dtype, 40, 23), Steps(dtype)
    shift = normal(seeded(5), N, 24)
    sources = block.sources(steps)
    y = steps.layers.conv2d(
        sources,
        block.conv(3, "down"),
        24,
        norm=block.norm(steps, sources, film=False),
        shift=steps.rows(shift),
        shortcut=(tuple(steps.layers.resample(x, up=False) for x in sources), block.conv(1)),
    )
    expected = block.convolved(resampled(block.normed(film=False), "down"), 3)
    expected += block.convolved(resampled(block.z.double(), "down"), 1)
    check(steps.run(y), expected + shift.double()[:, :, None, None])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kernel", [1, 3])
def test_residual_of_half_the_size_is_enlarged(dtype: torch.dtype, kernel: int):
    block, steps = Block(dtype, 40, 0), Steps(dtype)
    residual = normal(seeded(6), N, 24, 8, 8, dtype=dtype)
    y = steps.layers.conv2d(
        block.sources(steps), block.conv(kernel, "up"), 24, residual=steps.image(residual)
    )
    expected = block.convolved(resampled(block.z.double(), "up"), kernel)
    check(steps.run(y), expected + resampled(residual.double(), "up"))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("up", [False, True])
def test_moments_of_what_left_none(dtype: torch.dtype, up: bool):
    """A resampled activation is normalised: its producer leaves no moments."""
    x = (normal(seeded(8), N, 33, 12, 10) * 3 + 6).to(dtype)
    steps = Steps(dtype)
    y = steps.layers.resample(steps.image(x), up=up)
    assert y.moments is None
    again = steps.layers.moments(steps.layers.moments(y))
    assert [call.kind for call in steps.program.calls].count("GroupNormMomentsArgs") == 1
    gamma, beta = torch.ones(33), torch.zeros(33)
    norm = steps.layers.norm((again,), gamma, beta, 3)
    eye = torch.nn.Parameter(torch.eye(33)[:, :, None, None], requires_grad=False)
    conv = ConvWeight((eye,), (beta,))
    exact = resampled(x.double(), "up" if up else "down")
    found = steps.run(steps.layers.conv2d((again,), conv, 33, norm=norm))
    # Normalised is the activation as it was stored.
    exact = torch.group_norm(exact.to(dtype).double(), 3, None, None, EPS)
    check(found, exact)


@pytest.mark.parametrize("rows", [1, N, 16, 17, 64])
def test_linears(rows: int):
    """Layers of one input, a slice of each: few rows are computed together, many one by one."""
    generator = seeded(9)
    x = normal(generator, rows, 37)
    counts = (1, 17, 3, 30, 8)
    weights = [normal(generator, 30, 40) for _ in counts]
    biases = [normal(generator, 30) for _ in counts]
    exact = [
        F.linear(x.double(), weight[:c, :37].double(), bias[:c].double())
        for weight, bias, c in zip(weights, biases, counts, strict=True)
    ]
    layers = list(map(Linear, weights, biases, counts))
    for isa, silu in itertools.product(ISAS, (False, True)):
        steps = Steps(images=rows)
        with forced_isa(isa):
            results = steps.layers.linears(steps.rows(x), 37, layers, silu=silu)
            steps.program.pinned += results
            for y, expected in zip(results, exact, strict=True):
                check(steps.run(y), F.silu(expected) if silu else expected)


@pytest.mark.parametrize("rows", [1, N, 64])
def test_linears_with_shift(rows: int):
    generator = seeded(9)
    x, shift = normal(generator, rows, 20), normal(generator, rows, 17)
    weight, bias = normal(generator, 30, 20), normal(generator, 30)
    expected = F.linear(x.double(), weight[:17].double(), bias[:17].double()) + shift.double()
    for silu in (False, True):
        steps = Steps(images=rows)
        (y,) = steps.layers.linears(
            steps.rows(x), 20, [Linear(weight, bias, 17)], shift=steps.rows(shift), silu=silu
        )
        check(steps.run(y), F.silu(expected) if silu else expected)


@pytest.mark.parametrize("heads", [1, 3])
def test_attention(heads: int):
    qkv, steps = normal(seeded(10), N, 36, 4, 6), Steps()
    ours = steps.run(steps.layers.attention(steps.image(qkv), heads))
    q, k, v = qkv.double().flatten(2).view(N, 3, heads, -1, 24).transpose(3, 4).unbind(1)
    exact = F.scaled_dot_product_attention(q, k, v).transpose(2, 3).reshape(N, 12, 4, 6)
    check(ours, exact)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("heads", "tokens"), [(1, 77), (3, 1), (3, 5)])
def test_cross_attention(isa: str, dtype: torch.dtype, heads: int, tokens: int):
    """The context has any number of tokens, one below the other."""
    generator, steps = seeded(11), Steps(dtype)
    q = normal(generator, N, 48, 4, 6, dtype=dtype)
    kv = normal(generator, N, 96, tokens, 1, dtype=dtype)
    with forced_isa(isa):
        ours = steps.run(steps.layers.cross_attention(steps.image(q), steps.image(kv), heads))
    parts = [part.double().flatten(2).view(N, heads, 48 // heads, -1).mT
             for part in (q, *kv.chunk(2, 1))]  # fmt: skip
    exact = F.scaled_dot_product_attention(*parts).mT.reshape(N, 48, 4, 6)
    check(ours, exact)


def test_a_residual_of_another_size_is_refused():
    steps = Steps()
    x, residual = steps.image(torch.ones(N, 3, 8, 8)), steps.image(torch.ones(N, 4, 8, 4))
    conv = ConvWeight((torch.ones(4, 3, 1, 1),), (torch.ones(4),))
    with pytest.raises(ValueError, match="the residual has 8x4 pixels; need 8x8, or half of both"):
        steps.layers.conv2d((x,), conv, 4, residual=residual)


def test_odd_sizes_are_not_halved():
    steps = Steps()
    x = steps.image(torch.ones(N, 3, 5, 4))
    with pytest.raises(ValueError, match="5x4 pixels are to be halved; need even"):
        steps.layers.resample(x, up=False)
    conv = ConvWeight((torch.ones(4, 3, 1, 1),), (torch.ones(4),), 1, "down")
    with pytest.raises(ValueError, match="5x4 pixels are to be halved; need even"):
        steps.layers.conv2d((x,), conv, 4)


def test_a_field_too_many_or_too_few_is_refused():
    fields = {
        "images": 1, "height": 2, "width": 2, "out_height": 2, "out_width": 2, "stride": 1,
        "padding": 0, "scale": 1, "padding_end": 0,
    }  # fmt: skip
    Struct("Conv2dShape", fields).sketch()
    with pytest.raises(TypeError, match="__init__"):
        Struct("Conv2dShape", {**fields, "dilation": 1}).sketch()
    with pytest.raises(TypeError, match="__init__"):
        Struct("Conv2dShape", {k: v for k, v in fields.items() if k != "scale"}).sketch()
    program = Program()
    program.add("Conv2dForwardArgs", shape=Struct("Conv2dShape", fields))
    with pytest.raises(TypeError):
        program.bind(torch.empty(0, dtype=torch.uint8))


@pytest.mark.parametrize("count", [0, 3])
def test_a_call_of_no_source_or_three_is_refused_by_name(count: int):
    shape = Struct("Conv2dShape", dict.fromkeys(
        ("images", "height", "width", "out_height", "out_width", "stride", "padding", "scale",
         "padding_end"), 1
    ))  # fmt: skip
    image = Struct("Conv2dImage", dict.fromkeys(
        ("data", "n_stride", "h_stride", "w_stride", "channels", "weight_offset"), 1
    ))  # fmt: skip
    fields = dict.fromkeys(
        ("weight_dtype", "kernel", "algo", "panels", "c_out_max", "c_in_max", "bias", "norm",
         "shift", "activation", "gate", "residual", "residual_scale", "gain", "y", "y_dtype",
         "c_out", "parts", "moments"), 0
    )  # fmt: skip
    call = {**fields, "shape": shape, "sources": [image] * count, "norm_silu": False}
    with pytest.raises(ValueError, match=f"^Conv2dForwardArgs: has {count} sources; need 1 or 2$"):
        Struct("Conv2dForwardArgs", call).sketch()
