"""Sliced layers against torch.nn.functional on hand-cut weights."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from ddsm_ext.models.layers import SlicedConv2d, SlicedGroupNorm, SlicedLinear


def randn(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("per_source", [True, False])
def test_conv_over_two_sources(per_source: bool) -> None:
    conv = SlicedConv2d(8, 12, 3, c_skip=6, per_source=per_source).double()
    x, skip = randn(2, 5, 4, 4), randn(2, 3, 4, 4)
    first = 8 if per_source else 5  # full count of the first source, or its active one
    weight = torch.cat([conv.weight[:7, :5], conv.weight[:7, first : first + 3]], dim=1)
    expected = F.conv2d(torch.cat([x, skip], 1), weight, conv.bias[:7], padding=1)
    torch.testing.assert_close(conv(x, 7, x2=skip), expected)


def test_conv_halves_and_doubles() -> None:
    x = randn(2, 5, 4, 4)
    down = SlicedConv2d(8, 8, 3, stride=2).double()
    torch.testing.assert_close(
        down(x, 6), F.conv2d(x, down.weight[:6, :5], down.bias[:6], stride=2, padding=1)
    )
    up = SlicedConv2d(8, 8, 3, upsample=True).double()
    large = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(up(x, 6), F.conv2d(large, up.weight[:6, :5], up.bias[:6], padding=1))


def test_conv_halves_with_zeros_at_the_end() -> None:
    x = randn(2, 5, 6, 4)
    for kernel in (3, 5):
        down = SlicedConv2d(8, 8, kernel, stride=2, pad_end=True).double()
        before, after = kernel // 2 - 1, kernel // 2
        padded = F.pad(x, (before, after, before, after))
        expected = F.conv2d(padded, down.weight[:6, :5], down.bias[:6], stride=2)
        torch.testing.assert_close(down(x, 6), expected)
        assert expected.shape[2:] == (3, 2)


def test_linear() -> None:
    linear = SlicedLinear(8, 12).double()
    x = randn(3, 5)
    torch.testing.assert_close(linear(x, 7), x @ linear.weight[:7, :5].T + linear.bias[:7])


@pytest.mark.parametrize(("fixed", "groups"), [(True, 4), (False, 2)])
def test_norm_keeps_the_group_count_or_the_group_size(fixed: bool, groups: int) -> None:
    norm = SlicedGroupNorm(16, 4, fixed_groups=fixed, silu=True).double()
    with torch.no_grad():
        norm.weight.copy_(randn(16))
        norm.bias.copy_(randn(17)[:16])
    x = randn(2, 8, 3, 3)
    expected = F.silu(F.group_norm(x, groups, norm.weight[:8], norm.bias[:8]))
    torch.testing.assert_close(norm(x), expected)


@pytest.mark.parametrize("per_source", [True, False])
def test_norm_over_two_sources_with_a_group_across_them(per_source: bool) -> None:
    # 12 channels a group at full width; 16 + 8 active ones: the second group straddles.
    norm = SlicedGroupNorm(32, 4, c_skip=16, per_source=per_source).double()
    with torch.no_grad():
        norm.weight.copy_(randn(48))
    x, skip = randn(2, 16, 3, 3), randn(2, 8, 3, 3)
    first = 32 if per_source else 16
    weight = torch.cat([norm.weight[:16], norm.weight[first : first + 8]])
    joined = F.group_norm(torch.cat([x, skip], 1), 2, weight)
    y, y_skip = norm(x, skip)
    torch.testing.assert_close(torch.cat([y, y_skip], 1), joined)


def test_initial_weights_are_xavier_uniform() -> None:
    """Bound sqrt(6 / (fan_in + fan_out)) of Glorot & Bengio 2010, zero bias."""
    conv = SlicedConv2d(32, 16, 3, c_skip=16, generator=torch.Generator().manual_seed(0))
    bound = (6 / ((48 + 16) * 9)) ** 0.5
    assert conv.weight.abs().max().item() == pytest.approx(bound, rel=0.01)
    assert conv.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.03)
    assert not conv.bias.any()


def test_weights_lie_channels_last_on_cuda_only() -> None:
    assert SlicedConv2d.wanted_format(torch.device("cuda", 1)) == torch.channels_last
    assert SlicedConv2d.wanted_format(torch.device("cpu")) == torch.preserve_format
    conv = SlicedConv2d(8, 12, 3).double()
    assert conv.weight.is_contiguous()
    moved = conv.to(memory_format=torch.channels_last).float()
    assert moved.weight.is_contiguous(memory_format=torch.channels_last)


class AsOnCuda(SlicedConv2d):
    """The CPU stands for a device that wants channels_last."""

    @staticmethod
    def wanted_format(device: torch.device) -> torch.memory_format:
        return SlicedConv2d.wanted_format(torch.device("cuda"))


def test_weights_are_laid_out_wherever_they_come_from() -> None:
    """Made, moved or converted."""
    conv = AsOnCuda(8, 12, 3)
    parameter, values = conv.weight, conv.weight.detach().clone()
    assert parameter.is_contiguous(memory_format=torch.channels_last)
    parameter.data = parameter.data.contiguous()
    parameter.grad = torch.ones_like(parameter)
    assert torch.nn.Sequential(conv).double()[0].weight is parameter
    assert parameter.equal(values.double())
    for tensor in (parameter, parameter.grad):
        assert tensor.is_contiguous(memory_format=torch.channels_last)
