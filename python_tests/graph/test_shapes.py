"""Layer shapes against the published MACs and against what torch itself is called with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from graph.descriptions import Described, halved_at_the_end
from torch.overrides import TorchFunctionMode

from ddsm_ext.bench.conditions import REFERENCE_CIFAR10, WIDTHS
from ddsm_ext.graph.shapes import OPS, op_shapes
from ddsm_ext.models import ADMConfig, SlimmableNetwork, SongUNetConfig, UNetConfig

# MMACs a step without the attention products: the reference code's own figures at the four widths.
PUBLISHED_MMACS = {1.0: 6070, 0.75: 3420, 0.5: 1520, 0.25: 382.5}


@pytest.mark.parametrize("width", WIDTHS)
def test_macs_of_all_shapes_are_the_published_ones(width: float) -> None:
    macs = sum(
        shape.macs * calls
        for op in ("conv2d", "linear")
        for shape, calls in op_shapes(REFERENCE_CIFAR10, width, op).items()
    )
    # Theirs include bias additions and norms, 0.3 to 1 % of the products.
    assert macs / 1e6 == pytest.approx(PUBLISHED_MMACS[width], rel=0.012)
    assert macs / 1e6 < PUBLISHED_MMACS[width]


def test_attention_products_are_the_difference_of_the_two_published_figures() -> None:
    published = {1.0: 6221.9 - 6070, 0.5: 1599.2 - 1520, 0.25: 421.7 - 382.5}
    for width, mmacs in published.items():
        shapes = op_shapes(REFERENCE_CIFAR10, width, "attention")
        total = sum(shape.macs * calls for shape, calls in shapes.items())
        # 6070, 1520 and 382.5 are rounded to three digits.
        assert total / 1e6 == pytest.approx(mmacs, abs=25)


CONFIGS = {
    "U-Net": UNetConfig(image_size=16, ch=32, ch_mult=(1, 2), attn=(1,), groups=8),
    "ADM": ADMConfig(
        image_size=16, ch=32, ch_mult=(1, 2, 2), attn=(1,), num_res_blocks=1, groups=8,
        head_channels=16, num_classes=7,
    ),
}  # fmt: skip


class Calls(TorchFunctionMode):
    """Counts what torch is called with, by torch's own names."""

    DESCRIBED: ClassVar[dict[Any, Callable[..., Any]]] = {
        F.conv2d: lambda y, x, weight, bias, stride, *_: (
            x.shape[1], y.shape[1], weight.shape[2], stride[0], y.shape[2]),
        F.linear: lambda y, x, *_: (x.shape[1], y.shape[1]),
        F.group_norm: lambda y, x, groups, *_: (x.shape[1], groups, x.shape[2]),
        F.scaled_dot_product_attention: lambda y, q, *_: q.shape[1:],
        F.avg_pool2d: lambda y, *_: (y.shape[1], y.shape[2]),
        F.interpolate: lambda y, *_: (y.shape[1], y.shape[2]),
        F.embedding: lambda y, y_, table, *_: tuple(table.shape),
    }  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self.seen = {function.__name__: Counter[Any]() for function in self.DESCRIBED}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        y = func(*args, **(kwargs or {}))
        if func in self.DESCRIBED:
            self.seen[func.__name__][self.DESCRIBED[func](y, *args)] += 1
        return y


def calls_of(name: str, width: float) -> dict[str, Counter[Any]]:
    """What a dense network of plain torch layers calls torch with."""
    config = CONFIGS[name]
    inputs = {"x": torch.zeros(1, 3, 16, 16), "t": torch.zeros(1), "y": torch.tensor([3])}
    dense = SlimmableNetwork(config).export_subnet(width)
    with Calls() as calls:
        dense(**{key: tensor for key, tensor in inputs.items() if key in config.graph.inputs})
    return calls.seen


@pytest.mark.parametrize("width", [1.0, 0.5])
@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_shapes_are_what_a_dense_network_calls(name: str, width: float) -> None:
    seen = calls_of(name, width)
    described: dict[str, Callable[[Any], Any]] = {
        "conv2d": lambda s: (s.c_in + s.c_in2, s.c_out, s.kernel, s.stride, s.size),
        "linear": lambda s: (s.c_in, s.c_out),
        "group_norm": lambda s: (s.c + s.c2, s.groups, s.size),
        "attention": lambda s: (s.heads, s.tokens, s.head_size),
        "resample": lambda s: (s.c, s.size, s.up),
        "embedding": lambda s: (s.rows, s.c),
    }
    found: dict[str, Counter[Any]] = {op: Counter() for op in OPS}
    for op in OPS:
        for shape, calls in op_shapes(CONFIGS[name], width, op).items():
            found[op][described[op](shape)] += calls
    # A convolution that enlarges its input is one op of ours and two of torch.
    enlarged: Counter[Any] = Counter()
    for shape, calls in op_shapes(CONFIGS[name], width, "conv2d").items():
        if shape.upsample:
            enlarged[shape.c_in, shape.size] += calls
    ups, downs = Counter(), Counter()
    for (c, size, up), calls in found["resample"].items():
        (ups if up else downs)[c, size] += calls
    assert found["conv2d"] == seen["conv2d"]
    assert found["linear"] == seen["linear"]
    assert found["group_norm"] == seen["group_norm"]
    assert found["attention"] == seen["scaled_dot_product_attention"]
    assert found["embedding"] == seen["embedding"]
    assert downs == seen["avg_pool2d"]
    assert ups + enlarged == seen["interpolate"]


def test_modulated_norms_by_hand() -> None:
    """Three levels of one block down and two up, the middle's two, and four that resample."""
    shapes = op_shapes(CONFIGS["ADM"], 1.0, "group_norm")
    modulated = {shape: calls for shape, calls in shapes.items() if shape.modulated}
    assert sum(modulated.values()) == 3 + 2 + 3 * 2 + 4
    assert all(shape.silu and not shape.c2 for shape in modulated)
    assert str(next(iter(modulated))) == "32 /8 @16 modulated silu"


def test_filters_and_rings_by_hand() -> None:
    """Each way one before a convolution, one before a shortcut; one of the image and its ring."""
    config = SongUNetConfig(
        image_size=16, ch=32, ch_mult=(1, 2), num_res_blocks=1, groups=8, aux_residual=True, taps=4
    )
    shapes = op_shapes(config, 0.5, "resample")
    assert {str(shape): calls for shape, calls in shapes.items()} == {
        "16 @8 /2 4 taps": 2,
        "32 @16 x2 4 taps": 2,
        "16 @8 /2 4 taps ring + residual": 1,
    }
    assert sum(shape.activations * calls for shape, calls in shapes.items()) == (
        2 * 16 * (256 + 64) + 2 * 32 * (64 + 256) + 16 * (18 * 18 + 64 + 64)
    )
    (ring,) = (shape for shape in op_shapes(config, 0.5, "conv2d") if shape.ring)
    assert str(ring) == "3->16 3x3 @18 ring"
    assert ring.in_size == 16
    assert ring.macs == 3 * 16 * 9 * 18 * 18


def test_zeros_at_the_end_by_hand() -> None:
    shapes = op_shapes(Described(halved_at_the_end), 0.5, "conv2d")
    halves = {str(shape): shape for shape in shapes if shape.pad_end}
    assert sorted(halves) == ["4+4->4 3x3 @2 /2 pad_end", "4->4 3x3 @4 /2 pad_end"]
    half = halves["4->4 3x3 @4 /2 pad_end"]
    assert (half.in_size, half.macs) == (8, 4 * 4 * 9 * 4 * 4)


def test_unknown_op_is_named() -> None:
    with pytest.raises(ValueError, match="'conv3d'"):
        op_shapes(REFERENCE_CIFAR10, 1.0, "conv3d")
