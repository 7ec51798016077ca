"""Layer shapes against the published MACs and against what torch itself is called with."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
import torch.nn.functional as F

from ddsm_ext.bench.shapes import REFERENCE_CIFAR10, WIDTHS, ConvShape, op_shapes
from ddsm_ext.models import SlimmableUNet, UNetConfig

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


def test_conv_shapes_are_what_a_dense_network_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts the calls of F.conv2d inside an exported network of plain torch layers."""
    config = UNetConfig(image_size=16, ch=32, ch_mult=(1, 2), attn=(1,), groups=8)
    seen: Counter[tuple[int, ...]] = Counter()
    convolve = torch.nn.Conv2d._conv_forward

    def record(self, x, weight, bias):
        y = convolve(self, x, weight, bias)
        seen[(x.shape[1], y.shape[1], weight.shape[2], self.stride[0], y.shape[2])] += 1
        return y

    monkeypatch.setattr(torch.nn.Conv2d, "_conv_forward", record)
    for width in (1.0, 0.5):
        seen.clear()
        SlimmableUNet(config).export_subnet(width)(torch.zeros(1, 3, 16, 16), torch.zeros(1))
        expected: Counter[tuple[int, ...]] = Counter()
        for shape, calls in op_shapes(config, width, "conv2d").items():
            assert isinstance(shape, ConvShape)
            key = (shape.c_in + shape.c_in2, shape.c_out, shape.kernel, shape.stride, shape.size)
            expected[key] += calls
        assert seen == expected


def test_norm_shapes_are_what_a_dense_network_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    config = UNetConfig(image_size=16, ch=32, ch_mult=(1, 2), attn=(1,), groups=8)
    seen: Counter[tuple[int, ...]] = Counter()
    group_norm = F.group_norm

    def record(x, groups, *args, **kwargs):
        seen[(x.shape[1], groups, x.shape[2])] += 1
        return group_norm(x, groups, *args, **kwargs)

    monkeypatch.setattr(F, "group_norm", record)
    SlimmableUNet(config).export_subnet(0.5)(torch.zeros(1, 3, 16, 16), torch.zeros(1))
    expected: Counter[tuple[int, ...]] = Counter()
    for shape, calls in op_shapes(config, 0.5, "group_norm").items():
        expected[(shape.c + shape.c2, shape.groups, shape.size)] += calls
    assert seen == expected


def test_unknown_op_is_named() -> None:
    with pytest.raises(ValueError, match="'conv3d'"):
        op_shapes(REFERENCE_CIFAR10, 1.0, "conv3d")
