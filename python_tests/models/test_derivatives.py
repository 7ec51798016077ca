"""Whole networks: tangents, second derivatives, gradients of each sample, checkpointing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from models.network_cases import CONFIGS, build, inputs
from torch import Tensor
from torch.autograd.graph import save_on_cpu
from torch.func import functional_call, grad, jvp, vmap
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

pytestmark = pytest.mark.filterwarnings("ignore:ddsm_ext")
CONFIG = CONFIGS["heads"]
WIDTH = 0.5


def difference(function: Callable[[float], Tensor]) -> Tensor:
    """The derivative at 0 by central differences."""
    with torch.no_grad():
        return (function(1e-6) - function(-1e-6)) / 2e-6


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("no_grad", [False, True])
def test_tangents_of_images(frozen: bool, training: bool, no_grad: bool) -> None:
    net = build(CONFIG).train(training).requires_grad_(not frozen)
    x, t = inputs(CONFIG)
    v = torch.randn_like(x)
    with torch.set_grad_enabled(not no_grad):
        y, tangent = jvp(lambda x: net(x, t, WIDTH), (x,), (v,))
    assert_close(y, net(x, t, WIDTH))
    want = difference(lambda step: net(x + step * v, t, WIDTH))
    assert_close(tangent, want, rtol=1e-6, atol=1e-7)


def test_tangents_of_parameters() -> None:
    net, (x, t) = build(CONFIG), inputs(CONFIG)
    parameters = {name: p.detach() for name, p in net.named_parameters()}
    tangents = {name: torch.randn_like(p) for name, p in parameters.items()}

    def run(parameters: dict[str, Tensor]) -> Tensor:
        return functional_call(net, parameters, (x, t, WIDTH))

    _, tangent = jvp(run, (parameters,), (tangents,))
    want = difference(
        lambda step: run({name: p + step * tangents[name] for name, p in parameters.items()})
    )
    assert_close(tangent, want, rtol=1e-5, atol=1e-7)


def test_gradients_of_each_sample() -> None:
    net, (x, t) = build(CONFIG), inputs(CONFIG)
    parameters = {name: p.detach() for name, p in net.named_parameters()}

    def loss(parameters: dict[str, Tensor], x: Tensor, t: Tensor) -> Tensor:
        return functional_call(net, parameters, (x[None], t[None], WIDTH)).square().sum()

    each = vmap(grad(loss), in_dims=(None, 0, 0))(parameters, x, t)
    for i in range(len(x)):
        net.zero_grad()
        net(x[i : i + 1], t[i : i + 1], WIDTH).square().sum().backward()
        for name, p in net.named_parameters():
            assert_close(each[name][i], p.grad)


def test_a_gradient_penalty_reaches_the_parameters() -> None:
    net, (x, t) = build(CONFIG), inputs(CONFIG)
    v = {name: torch.randn_like(p) for name, p in net.named_parameters()}

    def penalty(step: float) -> Tensor:
        moved = {name: p.detach() + step * v[name] for name, p in net.named_parameters()}
        leaf = x.clone().requires_grad_()
        with torch.enable_grad():
            y = functional_call(net, moved, (leaf, t, WIDTH)).square().sum()
        return torch.autograd.grad(y, leaf)[0].square().sum()

    x.requires_grad_()
    (first,) = torch.autograd.grad(net(x, t, WIDTH).square().sum(), x, create_graph=True)
    first.square().sum().backward()
    along = sum((p.grad * v[name]).sum() for name, p in net.named_parameters())
    x = x.detach()
    assert_close(along, difference(penalty), rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("way", ["reentrant", "not reentrant", "save_on_cpu"])
def test_checkpointing_changes_nothing(dtype: torch.dtype, accumulate: bool, way: str) -> None:
    net = build(CONFIG, dtype)
    x, t = inputs(CONFIG, dtype)

    def grads(way: str, accumulate: bool) -> list[Tensor]:
        net.zero_grad()
        leaf = x.clone().requires_grad_()

        def run(x: Tensor) -> Tensor:
            return net(x, t, WIDTH, accumulate_grad=accumulate)

        if way == "save_on_cpu":
            with save_on_cpu():
                y = run(leaf)
        elif way == "plain":
            y = run(leaf)
        else:
            y = checkpoint(run, leaf, use_reentrant=way == "reentrant")
        y.square().sum().backward()
        return [tensor.grad for tensor in (leaf, *net.parameters())]

    got, want = grads(way, accumulate), grads("plain", False)
    if way == "reentrant":  # its first forward has no gradients: other algorithms, other rounding
        scale = 2e-2 if dtype == torch.bfloat16 else 1e-4
        most = max(g.abs().max().item() for g in want)  # some are zero but for rounding
        assert_close(got, want, rtol=scale, atol=scale * most)
    else:
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_a_frozen_stem_of_the_exported_network_trains_the_rest() -> None:
    """torch 2.13's group norm reads beyond a channels_last input that needs no gradient."""
    dense = build(CONFIG, torch.float32).export_subnet(1.0)
    for name, parameter in dense.named_parameters():
        parameter.requires_grad_("norm" in name)
    x, t = inputs(CONFIG, torch.float32)
    y = dense(x.contiguous(memory_format=torch.channels_last), t)
    y.sum().backward()
    wide = build(CONFIG).export_subnet(1.0)
    wide(x.double(), t).sum().backward()
    for name, parameter in dense.named_parameters():
        if "norm" in name:
            want = wide.get_parameter(name).grad
            assert_close(parameter.grad.double(), want, rtol=1e-3, atol=1e-3 * want.abs().max())
