"""`net(x, t, width)` without gradients: as the modules, or by the modules where these differ."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from models.test_network import CONFIGS, build
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from ddsm_ext.diffusion import DiffusionConfig, make_schedule
from ddsm_ext.graph import macs
from ddsm_ext.models import layers
from ddsm_ext.models.network import SlimmableBlock, SlimmableNetwork
from ddsm_ext.runtime import StepRunner
from ddsm_ext.sampling import SamplerConfig, sample


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def network(name: str = "source", **changes: Any) -> SlimmableNetwork:
    return build(dataclasses.replace(CONFIGS[name], **changes), torch.float32).eval()


def images(n: int = 2) -> tuple[Tensor, Tensor]:
    return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(5)), torch.tensor(7)


def distance(net: SlimmableNetwork, width: float = 0.5) -> float:
    """Between the call and the modules, of the largest output."""
    x, t = images()
    modules = net.run_modules(x, t, width)
    return float((net(x, t, width) - modules).abs().max() / modules.abs().max())


def doubled(module: nn.Module) -> Callable[..., Any]:
    forward = module.forward
    return lambda *args, **kwargs: forward(*args, **kwargs) * 2


class Wrapper(nn.Module):
    """As an adapter wraps a layer."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.base(*args, **kwargs) * 2


def replaced_forward(path: str) -> Callable[[SlimmableNetwork], None]:
    def change(net: SlimmableNetwork) -> None:
        module = net.get_submodule(path)
        module.forward = doubled(module)  # type: ignore[method-assign]

    return change


def wrapped(net: SlimmableNetwork) -> None:
    net.middle[0].attention.q = Wrapper(net.middle[0].attention.q)


def replaced_block(net: SlimmableNetwork) -> None:
    net.down[0] = Wrapper(net.down[0])


def hooked(**how: Any) -> Callable[[SlimmableNetwork], None]:
    def change(net: SlimmableNetwork) -> None:
        net.up[0].conv1.register_forward_hook(lambda *given: given[-1] * 2, **how)

    return change


def pre_hooked(net: SlimmableNetwork) -> None:
    net.down[0].conv1.register_forward_pre_hook(lambda _, args: (args[0] * 2, *args[1:]))


def hooks_forgotten_and_hooked(net: SlimmableNetwork) -> None:
    """The usual way to be rid of all hooks, then another one."""
    for module in net.modules():
        module._forward_hooks = OrderedDict()
    hooked()(net)


def block_compiled_otherwise(net: SlimmableNetwork) -> None:
    def backend(graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        return lambda *args: [y * 2 for y in graph(*args)]

    net.up[0].conv1.compile(backend=backend)


def another_eps(net: SlimmableNetwork) -> None:
    net.tail.norm.eps = 0.5


def without_silu(net: SlimmableNetwork) -> None:
    net.tail.norm.silu = False


def pruned(net: SlimmableNetwork) -> None:
    prune.l1_unstructured(net.up[0].conv1, "weight", 0.5)


def parametrized(net: SlimmableNetwork) -> None:
    parametrizations.weight_norm(net.up[0].conv1)
    net.up[0].conv1.parametrizations.weight.original0.mul_(2)


def with_other_parameter_dict(net: SlimmableNetwork) -> None:
    """As what shards weights does: no parameter, but a tensor of its name."""
    weight = net.head.weight
    del net.head.weight
    net.head.weight = weight.detach() * 2


def without_bias(net: SlimmableNetwork) -> None:
    net.middle[0].attention.q.bias = None


CHANGES: dict[str, Callable[[SlimmableNetwork], None]] = {
    "forward of a layer": replaced_forward("up.0.conv1"),
    "forward of a block": replaced_forward("down.0"),
    "forward of an inner block": replaced_forward("middle.0.attention"),
    "wrapped layer": wrapped,
    "wrapped block": replaced_block,
    "hook": hooked(),
    "hook with keywords": hooked(with_kwargs=True),
    "hook always called": hooked(always_call=True),
    "hook before": pre_hooked,
    "new dict of hooks": hooks_forgotten_and_hooked,
    "compiled layer": block_compiled_otherwise,
    "eps": another_eps,
    "silu": without_silu,
    "prune": pruned,
    "parametrize": parametrized,
    "weight as a tensor": with_other_parameter_dict,
    "no bias": without_bias,
}


@pytest.mark.parametrize("name", sorted(CHANGES))
def test_changed_modules_are_run(name: str) -> None:
    net = network()
    (x, t), before = images(), distance(net)
    y = net(x, t, 0.5)
    assert 0 < before < 1e-5  # a step, which sums in another order
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        CHANGES[name](net)
        assert distance(net) == 0
        assert (net(x, t, 0.5) - y).abs().max() > 1e-3  # the change shows


def test_sampling_follows_a_replaced_forward() -> None:
    net = network()
    sampler = SamplerConfig(kind="ddim", steps=3)
    schedule = make_schedule(DiffusionConfig(schedule="cosine", timesteps=50))

    def pictures(net: Callable[..., Tensor]) -> Tensor:
        return sample(net, schedule, 0.5, range(2), (3, 8, 8), sampler)

    before = pictures(net)
    replaced_forward("down.0")(net)
    assert torch.equal(pictures(net), pictures(net.run_modules))
    assert not torch.equal(pictures(net), before)


@pytest.mark.parametrize("kind", [layers.SlicedConv2d, SlimmableBlock])
@pytest.mark.parametrize("attribute", ["forward", "__call__"])
def test_a_class_changed_for_all(monkeypatch, kind: type[nn.Module], attribute: str) -> None:
    net = network()
    assert distance(net) > 0
    original = getattr(kind, attribute)

    def twice(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        y = original(self, *args, **kwargs)
        return y * 2 if isinstance(y, Tensor) and self is not net else y

    monkeypatch.setattr(kind, attribute, twice)
    if attribute == "__call__" and kind is SlimmableBlock:
        assert net.structure_problem() == "SlimmableBlock has another forward"
    assert distance(net) == 0


def test_hooks_of_all_modules() -> None:
    net = network()
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        assert distance(net) == 0
    finally:
        handle.remove()
    assert distance(net) > 0


def test_what_is_undone_runs_steps_again() -> None:
    net = network()
    prune.l1_unstructured(net.up[0].conv1, "weight", 0.5)
    prune.remove(net.up[0].conv1, "weight")
    assert 0 < distance(net) < 1e-5
    handle = net.up[0].register_forward_hook(lambda *_: None)
    handle.remove()
    net.down[0].forward = doubled(net.down[0])
    del net.down[0].forward
    assert 0 < distance(net) < 1e-5
    parametrize.register_parametrization(net.up[0].conv1, "weight", nn.Identity())
    assert distance(net) == 0


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
    another_eps(other)
    assert distance(other) == 0


def test_a_replica_has_weights_of_its_own() -> None:
    """As DataParallel makes one: weights are plain attributes, nothing is a parameter."""
    net = network()
    distance(net)
    replicas = {module: module._replicate_for_data_parallel() for module in net.modules()}
    for module, replica in replicas.items():
        for name, child in module._modules.items():
            replica._modules[name] = replicas[child]
        for name, weight in module._parameters.items():
            setattr(replica, name, weight.detach() * 2)
        for name, buffer in module._buffers.items():
            replica._buffers[name] = buffer
    expected = copy.deepcopy(net)
    for parameter in expected.parameters():
        parameter.mul_(2)
    x, t = images()
    y = replicas[net](x, t, 0.5)
    torch.testing.assert_close(y, expected.run_modules(x, t, 0.5), rtol=1e-4, atol=1e-4)


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
