"""`net(x, t, width)` without gradients: as the modules, or by the modules where these differ."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from models.compiled import distance, images, network, replica
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from ddsm_ext.graph import macs
from ddsm_ext.models.network import SlimmableNetwork
from ddsm_ext.runtime import StepRunner


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def test_blocks_in_training_mode_drop() -> None:
    net = network(dropout=0.5)
    net.middle.train()
    x, t = images()
    runs = []
    for call in (net, net.run_modules):
        torch.manual_seed(0)
        runs.append(call(x, t, 1.0))
    assert torch.equal(*runs)
    assert not torch.equal(net(x, t, 1.0), runs[0])


@pytest.mark.parametrize("together", [True, False])
def test_an_edited_time_table(together: bool) -> None:
    net = network("reference")
    x, _ = images()
    t = torch.tensor(7).expand(2) if together else torch.tensor([7, 9])
    for edit in ("add_", "mul_"):
        before = net(x, t, 1.0)
        getattr(net.time_embedding.table, edit)(2)
        torch.testing.assert_close(net(x, t, 1.0), net.run_modules(x, t, 1.0))
        assert not torch.allclose(net(x, t, 1.0), before)
    net.time_embedding.table = net.time_embedding.table * 2
    torch.testing.assert_close(net(x, t, 1.0), net.run_modules(x, t, 1.0))
    plain = network()
    plain(x, t, 1.0)
    plain.time_embedding.table = net.time_embedding.table[:, :16].clone()
    torch.testing.assert_close(plain(x, t, 1.0), plain.run_modules(x, t, 1.0))


def test_timesteps_by_value() -> None:
    net, t = network(), torch.tensor([3.0])
    x, _ = images()
    for value in (3.0, 9.0, 9.5):
        t.fill_(value)
        torch.testing.assert_close(net(x, t.expand(2), 1.0), net.run_modules(x, t.expand(2), 1.0))


def test_functional_call_with_other_weights() -> None:
    net = network("reference")
    x, t = images()
    net(x, t, 0.5)
    other = {name: tensor * 1.1 for name, tensor in net.state_dict().items()}
    y = torch.func.functional_call(net, other, (x, t, 0.5))
    expected = copy.deepcopy(net)
    expected.load_state_dict(other)
    torch.testing.assert_close(y, expected.run_modules(x, t, 0.5), rtol=1e-4, atol=1e-5)
    assert distance(net) < 1e-5


class Seen(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += "sliced_conv2d" in str(func)
        return func(*args, **(kwargs or {}))


class Called(TorchFunctionMode):
    count = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_modes_see_the_modules() -> None:
    net = network()
    x, t = images()
    net(x, t, 0.5)
    with Seen() as operators, Called() as functions:
        net(x, t, 0.5)
    assert operators.count
    assert functions.count
    with FlopCounterMode(display=False) as counter:
        net(x, t, 0.5)
    assert counter.get_total_flops() == 2 * len(x) * macs(net.config, 0.5)


def test_a_default_device_or_dtype_changes_nothing() -> None:
    net = network()
    x, t = images()
    expected = net(x, t, 0.5)
    for device in ("cpu", "meta"):  # memory of the steps stays on the CPU
        with torch.device(device):
            assert torch.equal(StepRunner(net)(x, t, 0.5), expected)
            assert torch.equal(net(x, t, 0.5), expected)
    fresh = copy.deepcopy(net)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(fresh(x, t, 0.5), expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_traced_and_transformed() -> None:
    net = network()
    x, t = images()
    net(x, t, 0.5)
    expected = net.run_modules(x, t, 0.5)
    traced = torch.fx.experimental.proxy_tensor.make_fx(lambda x: net(x, t, 0.5))(x)
    torch.testing.assert_close(traced(x * 2), net.run_modules(x * 2, t, 0.5))
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, t, 0.5), expected)
    gradient = torch.func.grad(lambda x: net(x, t, 0.5).sum())(x)
    assert torch.equal(gradient, torch.func.grad(lambda x: net.run_modules(x, t, 0.5).sum())(x))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert net(x, t, 0.5).dtype == torch.bfloat16
    net.up[0] = torch.compile(net.up[0], backend="eager")
    assert distance(net) == 0


@pytest.mark.parametrize("how", [copy.deepcopy, copy.copy, lambda n: pickle.loads(pickle.dumps(n))])
def test_copies(how: Callable[[SlimmableNetwork], SlimmableNetwork]) -> None:
    net = network("reference")
    distance(net)
    other = how(net)
    x, t = images()
    assert torch.equal(other(x, t, 0.5), net(x, t, 0.5))
    other.head.weight.mul_(2)
    assert distance(other) < 1e-5
    other.tail.norm.eps = 0.5
    assert distance(other) == 0


def test_a_replica_has_weights_of_its_own() -> None:
    net = network()
    distance(net)
    x, t = images()
    expected = copy.deepcopy(net)
    for parameter in expected.parameters():
        parameter.mul_(2)
    y = expected.run_modules(x, t, 0.5)
    torch.testing.assert_close(replica(net, 2)(x, t, 0.5), y, rtol=1e-4, atol=1e-4)
    dense = net.export_subnet(0.5)
    torch.testing.assert_close(replica(dense, 2)(x, t), y, rtol=1e-4, atol=1e-4)


def test_weights_that_steps_cannot_read() -> None:
    x, t = images()
    short = network()
    short(x, t, 1.0)
    short.head.bias = nn.Parameter(torch.zeros(3))
    with (
        pytest.warns(UserWarning, match="head.bias is not as described"),
        pytest.raises(ValueError, match="bias has 3 elements"),
    ):
        short(x, t, 1.0)
    elsewhere = network()
    elsewhere(x, t, 1.0)
    elsewhere.to("meta")
    with (
        pytest.warns(UserWarning, match="is on meta"),
        pytest.raises(ValueError, match="x is on cpu, the weights are on meta"),
    ):
        elsewhere(x, t, 1.0)


def test_weights_shared_and_tied() -> None:
    a, b = network(), network()
    for module, other in zip(a.modules(), b.modules(), strict=True):
        other._parameters.update(module._parameters)
    a.up[0].conv2.weight = a.middle[1].conv2.weight
    assert 0 < distance(a) < 1e-5
    assert 0 < distance(b) < 1e-5
    a.head.weight.mul_(2)
    assert 0 < distance(a) < 1e-5
    assert 0 < distance(b) < 1e-5


def test_float32_weights_take_bfloat16_images() -> None:
    net = network()
    x, t = images()
    expected = net.run_modules(x, t, 0.5)
    for y in (net(x.bfloat16(), t, 0.5), net.run_modules(x.bfloat16(), t, 0.5)):
        assert y.dtype == torch.bfloat16
        assert (y - expected).abs().max() <= 0.03 * expected.abs().max()


@pytest.mark.parametrize("shape", [(), (3, 8, 8), (2, 3, 7, 8), (2, 4, 8, 8), None])
def test_refusals_are_the_same(shape: tuple[int, ...] | None) -> None:
    x: Any = None if shape is None else torch.zeros(shape)
    net, sentences = network(), []
    for call in (net, net.run_modules):
        with pytest.raises((TypeError, ValueError)) as caught:
            call(x, torch.tensor(7), 0.5)
        sentences.append(str(caught.value))
    assert sentences[0] == sentences[1]
    assert sentences[0].startswith("SlimmableNetwork: x ")


def test_first_calls_from_several_threads() -> None:
    net = network()
    x, t = images()
    expected = net.run_modules(x, t, 0.5)

    def call(_: int) -> Tensor:
        with torch.no_grad():
            return net(x, t, 0.5)

    with ThreadPoolExecutor(6) as pool:
        for y in pool.map(call, range(24)):
            torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
