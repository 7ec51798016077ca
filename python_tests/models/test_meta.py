"""Tensors without values: networks on "meta", under FakeTensorMode and of torch's defaults."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from models.network_cases import CONFIGS, build, inputs
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from ddsm_ext.models.network import SlimmableNetwork

DTYPES = [torch.float32, torch.bfloat16, torch.float64, torch.float16]
CONFIG = CONFIGS["heads"]


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    """But torch's own, and that of float16 on the CPU, which the meta device does not give."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "ddsm_ext: .* has no torch.float16 kernel for cpu")
        yield


@pytest.fixture(params=DTYPES, ids=str)
def default_dtype(request: pytest.FixtureRequest) -> Iterator[torch.dtype]:
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(torch.float32)


def described(tensor: Tensor | None) -> Any:
    return None if tensor is None else (tensor.shape, tensor.dtype, tensor.stride())


def step(net: SlimmableNetwork, x: Tensor, t: Tensor, *, accumulate: bool = False) -> list[Any]:
    """Describe the results of a training step and of one without gradients."""
    net.zero_grad()
    x = x.clone().requires_grad_()
    y = net(x, t, 0.5, accumulate_grad=accumulate)
    y.sum().backward()
    with torch.no_grad():
        plain = net(x, t, 0.5)
    return [described(z) for z in (y, plain, x.grad, *[p.grad for p in net.parameters()])]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("accumulate", [True, False])
def test_shapes_dtypes_and_strides_on_meta(
    dtype: torch.dtype, training: bool, accumulate: bool
) -> None:
    net, (x, t) = build(CONFIG, dtype).train(training), inputs(CONFIG, dtype)
    want = step(copy.deepcopy(net), x, t)
    got = step(net.to("meta"), x.to("meta"), t.to("meta"), accumulate=accumulate)
    assert got == want


def test_fake_tensors(default_dtype: torch.dtype) -> None:
    net, (x, t) = build(CONFIG, default_dtype), inputs(CONFIG, default_dtype)
    want = step(net, x, t)
    with FakeTensorMode():
        fake = SlimmableNetwork(CONFIG)
        got = step(fake, torch.empty(x.shape), torch.empty(t.shape))
    assert got == want


def test_networks_have_torchs_default_dtype_and_device(default_dtype: torch.dtype) -> None:
    plain = torch.nn.Linear(1, 1)
    parameters = list(SlimmableNetwork(CONFIG).parameters())
    assert {p.dtype for p in parameters} == {plain.weight.dtype} == {default_dtype}
    given = SlimmableNetwork(CONFIG, device="cpu", dtype=torch.float32)
    assert {p.dtype for p in given.parameters()} == {torch.float32}
    with torch.device("meta"):
        meta, cpu = SlimmableNetwork(CONFIG), SlimmableNetwork(CONFIG, device="cpu")
        seeded = SlimmableNetwork(CONFIG, generator=torch.Generator().manual_seed(1))
        exported = given.export_subnet(0.5)
    assert {p.device.type for p in meta.parameters()} == {"meta"}
    for net in (cpu, seeded, exported):
        assert {p.device.type for p in net.parameters()} == {"cpu"}


@pytest.mark.parametrize("name", ["reference", "heads"])
def test_the_defaults_change_no_result(name: str) -> None:
    config = CONFIGS[name]
    net, (x, t) = build(config, torch.float32), inputs(config, torch.float32)

    def results() -> list[Tensor]:
        net.zero_grad()
        net(x, t, 0.5).square().sum().backward()
        with torch.no_grad():
            plain = net.eval()(x, t, 0.5)
        dense = net.export_subnet(0.5)
        return [plain, dense(x, t), *[p.grad for p in net.train().parameters()]]

    want = results()
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    try:
        got = results()
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
