"""Blocks: attention against its textbook formula, residual paths, finite differences."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ddsm_ext.nn.blocks import AttentionBlock, ResampleBlock, ResidualBlock


def randomise(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
    return module.double()


def randn(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(6)
    x = torch.randn(*shape, generator=generator, dtype=torch.float64)
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


@pytest.mark.parametrize("head_channels", [None, 4])
def test_attention_formula(head_channels: int | None) -> None:
    block = randomise(AttentionBlock(16, groups=4, head_channels=head_channels))
    x = randn(2, 12, 3, 3)
    h = torch.nn.functional.group_norm(x, 3, block.norm.weight[:12], block.norm.bias[:12])
    q, k, v = (
        torch.einsum("oc,nchw->nohw", conv.weight[:12, :12, 0, 0], h).flatten(2)
        + conv.bias[:12, None]
        for conv in (block.q, block.k, block.v)
    )  # [N, 12, T]
    size = head_channels or 12
    parts = []
    for start in range(0, 12, size):
        rows = slice(start, start + size)
        scores = torch.einsum("ndi,ndj->nij", q[:, rows], k[:, rows]) / size**0.5
        parts.append(torch.einsum("nij,ndj->ndi", scores.softmax(-1), v[:, rows]))
    out = torch.einsum("oc,nct->not", block.out.weight[:12, :12, 0, 0], torch.cat(parts, 1))
    expected = x + (out + block.out.bias[:12, None]).view_as(x)
    torch.testing.assert_close(block(x, 12), expected)


def test_attention_projections_may_be_wider_than_the_input() -> None:
    """Whole heads: 10 active channels run with 12 queries, keys and values."""
    block = randomise(AttentionBlock(16, groups=8, head_channels=4))
    x = randn(1, 10, 2, 2)
    assert block(x, 12).shape == x.shape


def test_residual_block_without_shortcut_adds_its_input() -> None:
    block = randomise(ResidualBlock(8, 8, 6, groups=4))
    with torch.no_grad():
        block.conv2.weight.zero_()
        block.conv2.bias.zero_()
    x = randn(2, 6, 4, 4)
    assert torch.equal(block(x, randn(2, 6), 6, 0), x)


@pytest.mark.parametrize("per_source", [True, False])
def test_residual_block_gradients(per_source: bool) -> None:
    block = randomise(
        ResidualBlock(
            4, 4, 6, groups=2, c_skip=4, per_source=per_source, shortcut=True, attention=True
        )
    )
    parameters = [p.detach().requires_grad_() for p in block.parameters()]
    names = [name for name, _ in block.named_parameters()]

    def run(x: Tensor, skip: Tensor, time: Tensor, *values: Tensor) -> Tensor:
        state = dict(zip(names, values, strict=True))
        return torch.func.functional_call(
            block, state, (x, time, 2, 2), {"skip": skip}, strict=True
        )

    x, skip = randn(1, 2, 3, 3).requires_grad_(), randn(2, 2, 3, 3)[1:].requires_grad_()
    time = randn(1, 4).requires_grad_()
    assert torch.autograd.gradcheck(run, (x, skip, time, *parameters), fast_mode=True)


@pytest.mark.parametrize(("upsample", "size"), [(True, 8), (False, 2)])
def test_resample_sizes_and_memory_format(upsample: bool, size: int) -> None:
    y = randomise(ResampleBlock(8, upsample=upsample))(randn(2, 6, 4, 4))
    assert y.shape == (2, 6, size, size)
    assert y.is_contiguous(memory_format=torch.channels_last)


def test_two_sources_need_a_shortcut() -> None:
    with pytest.raises(ValueError, match="c_skip is 4 and shortcut False; need a shortcut"):
        ResidualBlock(4, 8, 6, groups=2, c_skip=4)
