"""Layers of a plan that activate, gate and take linear layers' weights; see test_layers."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from ops.op_checks import ISAS, forced_isa, normal, seeded
from runtime.test_layers import DTYPES, Block, N, Steps, check, resampled
from torch import Tensor, nn

from ddsm_ext.ops._packed import ALGORITHMS, packed_bytes
from ddsm_ext.runtime.operands import ConvWeight, JoinedWeights

C_IN_MAX, C_OUT_MAX = 70, 60


def parameter(generator: torch.Generator, *shape: int, dtype: torch.dtype) -> nn.Parameter:
    values = normal(generator, *shape, dtype=torch.float64) / 8
    return nn.Parameter(values.to(dtype), requires_grad=False)


def exact(x: Tensor, weight: Tensor, bias: Tensor | None, c_out: int, kind: str | None) -> Tensor:
    """The activation [N, c, H, W] of a linear layer over pixels, in float64."""
    weight = weight.double() if weight.dim() == 3 else weight.double()[None]
    rows = [block[:c_out, : x.shape[1], None, None] for block in weight]
    row = None
    if bias is not None:
        row = torch.cat([b[:c_out] for b in bias.double().view(len(weight), -1)])
    z = F.conv2d(x.double(), torch.cat(rows), row)
    if kind == "geglu":
        value, half = z.chunk(2, dim=1)
        return value * F.gelu(half)
    return z if kind is None else F.gelu(z, approximate="tanh" if kind == "gelu_tanh" else "none")


# c, c_out, size: halves of vectors, ragged ones, a single pixel
SHAPES = ((33, 20, (3, 5)), (64, 48, (8, 8)), (20, 3, (1, 1)), (70, 37, (4, 4)))
FORMS = ((0, None), (0, "gelu"), (3, "gelu_tanh"), (2, "geglu"), (3, None))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    ("dtype", "weight_dtype"),
    [(torch.float32, torch.float32), (torch.bfloat16, torch.float32), (torch.bfloat16,) * 2],
    ids=str,
)
@pytest.mark.parametrize(("blocks", "kind"), FORMS)
def test_linear_layers_over_pixels(
    isa: str, dtype: torch.dtype, weight_dtype: torch.dtype, blocks: int, kind: str | None
) -> None:
    """(residual + gate * act(z)) * scale, with and without each of them and the bias."""
    cases = itertools.product(SHAPES, (False, True), (False, True), (False, True))
    for (c, c_out, size), gated, added, biased in cases:
        generator = seeded(c)
        many = [blocks] if blocks else []
        columns = c_out * (1 if kind == "geglu" else max(blocks, 1))
        weight = parameter(generator, *many, C_OUT_MAX, C_IN_MAX, dtype=weight_dtype)
        bias = parameter(generator, *many, C_OUT_MAX, dtype=weight_dtype) if biased else None
        x = normal(generator, N, c, *size, dtype=dtype)
        gate, residual = normal(generator, N, columns), normal(generator, N, columns, *size)
        residual = residual.to(dtype)
        steps = Steps(dtype)
        with forced_isa(isa):
            y = steps.layers.conv2d(
                (steps.image(x),), ConvWeight((weight,), (bias,)), c_out, activation=kind,
                gate=steps.rows(gate) if gated else None,
                residual=steps.image(residual) if added else None, scale=0.7,
            )  # fmt: skip
            ours = steps.run(y)
        expected = exact(x, weight, bias, c_out, kind)
        if gated:
            expected = gate.double()[:, :, None, None] * expected
        check(ours, (residual.double() + expected if added else expected) * 0.7)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("resample", [None, "up", "down"])
def test_after_norms_shifts_and_kernels_of_three(
    isa: str, dtype: torch.dtype, resample: str | None
) -> None:
    """A kernel that Winograd would take goes a direct way where its sums are activated."""
    block, steps = Block(dtype, 40, 23), Steps(dtype)
    shift, gate = normal(seeded(5), N, 24), normal(seeded(6), N, 24)
    with forced_isa(isa):
        sources = block.sources(steps)
        y = steps.layers.conv2d(
            sources, block.conv(3, resample), 24, norm=block.norm(steps, sources, film=True),
            shift=steps.rows(shift), activation="gelu", gate=steps.rows(gate), moments=True,
        )  # fmt: skip
        after = steps.layers.norm((y,), torch.ones(24), torch.zeros(24), 3)
        normed = steps.run(steps.layers.joined((y,), after, torch.float32))
    z = block.convolved(resampled(block.normed(film=True), resample), 3)
    z = F.gelu(z + shift.double()[:, :, None, None]) * gate.double()[:, :, None, None]
    expected = torch.group_norm(z, 3, None, None, 1e-5)
    check(normed.view(N, *z.shape[2:], 24).permute(0, 3, 1, 2).to(dtype), expected)


@pytest.mark.parametrize("kind", ["gelu", "geglu"])
def test_moments_of_all_blocks(kind: str) -> None:
    generator = seeded(7)
    weight = parameter(generator, 2, C_OUT_MAX, C_IN_MAX, dtype=torch.float32)
    x, steps = normal(generator, N, 33, 4, 4), Steps()
    conv = ConvWeight((weight,), (None,))
    y = steps.layers.conv2d((steps.image(x),), conv, 24, activation=kind, moments=True)
    after = steps.layers.norm((y,), torch.ones(y.c), torch.zeros(y.c), 3)
    ours = steps.run(steps.layers.joined((y,), after, torch.float32))
    expected = torch.group_norm(exact(x, weight, None, 24, kind), 3, None, None, 1e-5)
    check(ours.view(N, 4, 4, y.c).permute(0, 3, 1, 2), expected)


@pytest.mark.parametrize("kernel", [1, 3])
def test_convolutions_without_a_bias(kernel: int) -> None:
    for dtype, algorithm in itertools.product(DTYPES, ("direct", "winograd_4x4")):
        block = Block(dtype, 40, 0)
        block.bias = torch.zeros(40)
        conv = ConvWeight(block.conv(kernel).weights, (None,))
        number = ALGORITHMS.index(algorithm if kernel == 3 else "direct")
        steps = Steps(dtype, choose=lambda *_, number=number: number)
        ours = steps.run(steps.layers.conv2d(block.sources(steps), conv, 24))
        check(ours, block.convolved(block.z.double(), kernel))


@pytest.mark.parametrize("given", ["all", "one", "none"])
def test_weights_side_by_side(given: str) -> None:
    """Linear layers of one input, one of them of two blocks, with and without biases."""
    generator = seeded(3)
    shapes = ((), (2,), ())
    weights = [parameter(generator, *s, C_OUT_MAX, C_IN_MAX, dtype=torch.float32) for s in shapes]
    biases: list[Any] = [
        parameter(generator, *s, C_OUT_MAX, dtype=torch.float32)
        if given == "all" or (given == "one" and s)
        else None
        for s in shapes
    ]
    x, joined = normal(generator, N, 33, 4, 4), JoinedWeights()
    for c_out in (20, 41):
        steps = Steps(joined=joined)
        conv = ConvWeight(tuple(weights), tuple(biases))
        y = steps.layers.conv2d((steps.image(x),), conv, c_out, activation="gelu_tanh")
        parts = [
            exact(x, weight, bias, c_out, "gelu_tanh")
            for weight, bias in zip(weights, biases, strict=True)
        ]
        check(steps.run(y), torch.cat(parts, dim=1))
    of_bias = 0 if given == "none" else 4 * C_OUT_MAX * 4
    assert joined.nbytes() == packed_bytes(weights) + of_bias


def test_all_widths_read_one_packed_weight() -> None:
    """Of GEGLU, too, whose blocks lie there vector by vector; it is made again after a change."""
    generator = seeded(4)
    weight = nn.Parameter(normal(generator, 2, C_OUT_MAX, C_IN_MAX), requires_grad=False)
    held = set()
    for kind in ("geglu", None):
        for c, c_out in ((70, 60), (33, 20), (8, 5)):
            x = normal(generator, N, c, 2, 2)
            steps = Steps()
            conv = ConvWeight((weight,), (None,))
            y = steps.layers.conv2d((steps.image(x),), conv, c_out, activation=kind)
            check(steps.run(y), exact(x, weight, None, c_out, kind))
            held.add(packed_bytes([weight]))
        assert len(held) == (1 if kind else 2)
    weight += 1
    steps = Steps()
    y = steps.layers.conv2d((steps.image(x),), conv, 5, activation="geglu")
    check(steps.run(y), exact(x, weight, None, 5, "geglu"))
    assert {packed_bytes([weight])} < held


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"activation": "relu"}, "the activation is 'relu'; need None or one of"),
        ({"blocks": 3}, "geglu of 1 weights with 3 blocks; need one weight of 2 blocks"),
        ({"weights": 2}, "geglu of 2 weights with 4 blocks; need one weight of 2 blocks"),
        ({"shift": True}, "geglu beside a shift; need no shift"),
        ({"shortcut": True}, "a shortcut beside an activation or a gate; need a residual"),
    ],
)
def test_what_is_not_computed_is_refused(change: dict[str, Any], text: str) -> None:
    steps = Steps()
    weights = [torch.ones(change.get("blocks", 2), 8, 8) for _ in range(change.get("weights", 1))]
    more: dict[str, Any] = {"activation": change.get("activation", "geglu")}
    if "shift" in change:
        more["shift"] = steps.rows(torch.ones(N, 4))
    conv = ConvWeight(tuple(weights), (None,) * len(weights))
    if "shortcut" in change:
        more["shortcut"] = ((steps.image(torch.ones(N, 8, 2, 2)),), conv)
    with pytest.raises(ValueError, match=f"^Layers.conv2d: {text}"):
        steps.layers.conv2d((steps.image(torch.ones(N, 8, 2, 2)),), conv, 4, **more)
