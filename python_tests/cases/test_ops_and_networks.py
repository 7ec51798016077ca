"""Cases of ops and networks under what torch and its users do to them."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from models.network_cases import inputs
from runtime.weight_changes import network
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ddsm_ext.diffusion import DiffusionConfig, make_schedule
from ddsm_ext.models.network import SlimmableNetwork
from ddsm_ext.ops import sliced_conv2d
from ddsm_ext.runtime.runner import StepRunner
from ddsm_ext.sampling import SamplerConfig, sample
from ddsm_ext.sampling.denoiser import Network


@pytest.fixture
def net() -> SlimmableNetwork:
    return network()


def test_forward_mode_ad() -> None:
    """K01: pytorch/functorch#207, pytorch/pytorch#187284. The tangent of a linear map is its map
    of the tangent; it was zero."""
    torch.manual_seed(0)
    w, x, v = torch.randn(8, 6, 3, 3), torch.randn(2, 4, 6, 6), torch.randn(2, 4, 6, 6)
    _, tangent = torch.func.jvp(lambda z: sliced_conv2d(z, w, None, 5, padding=1), (x,), (v,))
    torch.testing.assert_close(tangent, F.conv2d(v, w[:5, :4], padding=1), atol=1e-3, rtol=0)


def test_activation_checkpointing(net: SlimmableNetwork) -> None:
    """K02: pytorch/pytorch#82156, huggingface/pytorch-image-models#2394."""
    x, t = inputs(net.config, torch.float32)
    net(x, t, 1.0).square().sum().backward()
    wanted = {name: p.grad.clone() for name, p in net.named_parameters()}
    net.zero_grad()
    checkpoint(lambda a: net(a, t, 1.0), x, use_reentrant=False).square().sum().backward()
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name], rtol=1e-4, atol=1e-4)


def test_stale_rearranged_weights(net: SlimmableNetwork) -> None:
    """K03: ooples/AiDotNet.Tensors#583. Structured pruning, as older tools write it."""
    x, t = inputs(net.config, torch.float32)
    runner = StepRunner(net)
    with torch.no_grad():
        before = runner(x, t, 1.0), net(x, t, 1.0)
        for parameter in net.parameters():
            if parameter.dim() == 4 and parameter.shape[1] > 8:
                parameter.data[:, 5] = 0
        wanted = copy.deepcopy(net).run_modules(x, t, 1.0)
        assert (before[0] - wanted).abs().max() > 0.1
        for found in (runner(x, t, 1.0), net(x, t, 1.0)):
            torch.testing.assert_close(found, wanted, atol=1e-3, rtol=0)


def drawn(net: Network) -> Tensor:
    schedule, sampler = make_schedule(DiffusionConfig()), SamplerConfig(kind="ddim", steps=3)
    return sample(net, schedule, 1.0, range(2), (3, 8, 8), sampler)


def test_replaced_forward_ignored(net: SlimmableNetwork) -> None:
    """K04: horseee/DeepCache#26, which replaces block.forward."""
    before, block = drawn(net), net.down[0]
    own = block.forward
    block.forward = lambda *inputs, **more: own(*inputs, **more) * 0
    found = drawn(net)
    torch.testing.assert_close(found, drawn(net.run_modules), atol=1e-3, rtol=0)
    assert (found - before).abs().max() > 0.1


def test_default_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    """K05: yuanyue-liu-group/CP-MACE#5, pytorch/pytorch#121730 (kind)."""
    torch.manual_seed(0)
    w = torch.nn.Parameter(torch.randn(64, 64, 3, 3))
    x = torch.randn(4, 64, 32, 32)
    torch.set_default_dtype(torch.float64)
    try:
        y = sliced_conv2d(x, w, None, 64, padding=1)
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(y, F.conv2d(x, w, padding=1), atol=1e-3, rtol=0)


def test_meta_device(net: SlimmableNetwork) -> None:
    """K06: pytorch/pytorch#130067, huggingface/transformers#44984."""
    x, t = (given.to("meta") for given in inputs(net.config, torch.float32))
    assert net.to("meta")(x, t, 0.5).shape == x.shape
