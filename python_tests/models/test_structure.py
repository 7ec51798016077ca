"""Which networks run their modules: those that are not as they were made."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from models.compiled import distance, images, network
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from ddsm_ext.diffusion import DiffusionConfig, make_schedule
from ddsm_ext.models.network import SlimmableNetwork
from ddsm_ext.models.structure import Structure
from ddsm_ext.sampling import SamplerConfig, sample


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


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


class Layer(nn.Module):
    """A kind of module that a network is made of."""

    def forward(self, x: Tensor) -> Tensor:
        return x


@pytest.mark.parametrize("attribute", ["forward", "__call__"])
def test_a_class_changed_for_all(monkeypatch, attribute: str) -> None:
    structure = Structure(nn.Sequential(Layer(), Layer()), {Layer: Layer.forward}, {}, drops=False)
    assert structure.problem() is None
    original = getattr(Layer, attribute)
    monkeypatch.setattr(Layer, attribute, lambda self, x: original(self, x) * 2)
    assert structure.problem() == "Layer has another forward"
    monkeypatch.undo()
    assert structure.problem() is None


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
