"""Blocks called by themselves: attention against its textbook formula, residual paths, hooks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ddsm_ext.models.network import SlimmableNetwork
from ddsm_ext.models.unet import UNetConfig


def network(**changes: object) -> SlimmableNetwork:
    settings = {"image_size": 8, "ch": 16, "ch_mult": (1, 2), "attn": (), "num_res_blocks": 1,
                "groups": 4, "dropout": 0.0, **changes}  # fmt: skip
    return randomise(SlimmableNetwork(UNetConfig(**settings)))  # type: ignore[arg-type]


def randomise(net: SlimmableNetwork) -> SlimmableNetwork:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
    return net.double()


def randn(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(6)
    x = torch.randn(*shape, generator=generator, dtype=torch.float64)
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


@pytest.mark.parametrize("head_channels", [None, 8])
def test_attention_formula(head_channels: int | None) -> None:
    """24 of 32 channels in 3 of 4 groups."""
    net = network(head_channels=head_channels)
    block, counts = net.middle[0].attention, net.config.counts(0.75)
    x = randn(2, 24, 3, 3)
    h = torch.nn.functional.group_norm(x, 3, block.norm.weight[:24], block.norm.bias[:24])
    q, k, v = (
        torch.einsum("oc,nchw->nohw", conv.weight[:24, :24, 0, 0], h).flatten(2)
        + conv.bias[:24, None]
        for conv in (block.q, block.k, block.v)
    )  # [N, 24, T]
    size = head_channels or 24
    parts = []
    for start in range(0, 24, size):
        rows = slice(start, start + size)
        scores = torch.einsum("ndi,ndj->nij", q[:, rows], k[:, rows]) / size**0.5
        parts.append(torch.einsum("nij,ndj->ndi", scores.softmax(-1), v[:, rows]))
    out = torch.einsum("oc,nct->not", block.out.weight[:24, :24, 0, 0], torch.cat(parts, 1))
    expected = x + (out + block.out.bias[:24, None]).view_as(x)
    torch.testing.assert_close(block(x, counts=counts), expected)


def test_attention_projections_may_be_wider_than_the_input() -> None:
    """Whole heads: 8 active channels run with 16 queries, keys and values."""
    net = network(head_channels=16)
    block, counts = net.middle[0].attention, net.config.counts(0.25)
    seen = []
    block.q.register_forward_hook(lambda module, args, y: seen.append(y.shape[1]))
    x = randn(1, 8, 2, 2)
    assert block(x, counts=counts).shape == x.shape
    assert seen == [16]


def test_residual_block_without_shortcut_adds_its_input() -> None:
    net = network()
    block, counts = net.middle[1], net.config.counts(0.75)
    with torch.no_grad():
        block.conv2.weight.zero_()
        block.conv2.bias.zero_()
    x = randn(2, 24, 4, 4)
    assert torch.equal(block(x, randn(2, 48), counts=counts), x)


@pytest.mark.parametrize("concat_slicing", ["source", "prefix"])
def test_block_gradients(concat_slicing: str) -> None:
    """A joining block with attention, by finite differences."""
    net = network(ch=4, groups=2, attn=(1,), concat_slicing=concat_slicing)
    block, counts = net.up[0], net.config.counts(0.5)
    parameters = [p.detach().requires_grad_() for p in block.parameters()]
    names = [name for name, _ in block.named_parameters()]

    def run(x: Tensor, skip: Tensor, time: Tensor, *values: Tensor) -> Tensor:
        state = dict(zip(names, values, strict=True))
        more = {"counts": counts}
        return torch.func.functional_call(block, state, (x, skip, time), more, strict=True)

    x, skip = randn(1, 4, 3, 3).requires_grad_(), randn(2, 4, 3, 3)[1:].requires_grad_()
    time = randn(1, 8).requires_grad_()
    assert torch.autograd.gradcheck(run, (x, skip, time, *parameters), fast_mode=True)


@pytest.mark.parametrize(("name", "size"), [("up.2", 8), ("down.1", 2)])
def test_resample_sizes_and_memory_format(name: str, size: int) -> None:
    net = network()
    block, counts = net.get_submodule(name), net.config.counts(0.75)
    c = 24 if name == "up.2" else 12
    y = block(randn(2, c, 4, 4), counts=counts)
    assert y.shape == (2, c, size, size)
    assert y.is_contiguous(memory_format=torch.channels_last)


def test_hooks_and_replaced_forwards_see_every_block() -> None:
    net = network().float().eval()
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([3, 40])
    blocks = {n: m for n, m in net.named_modules() if n and not isinstance(m, nn.ModuleList)}
    seen: list[str] = []
    for name, module in blocks.items():
        module.register_forward_hook(lambda module, args, y, name=name: seen.append(name))
    with torch.no_grad():
        net(x, t, 0.5)
    assert sorted(seen) == sorted(blocks)


def test_an_error_names_its_node() -> None:
    net = network().float()
    net.up[0].conv2.weight.data = torch.zeros(1)
    with pytest.raises(ValueError, match="weight has shape") as caught:
        net(torch.randn(2, 3, 8, 8), torch.tensor([3, 40]), 0.5)
    assert "in up.0.conv2" in caught.value.__notes__
