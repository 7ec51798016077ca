"""Compiled U-Net steps beside the network as a module, which has its own outside references."""

from __future__ import annotations

import copy
import ctypes
import dataclasses
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from weakref import WeakKeyDictionary

import pytest
import torch
import torch.nn.utils.parametrize
from models.network_cases import CONFIGS, inputs, usable
from ops import op_checks
from ops.weight_edits import EDITS, one_process, received
from runtime.weight_changes import as_module, in_place, network, replaced, sgd_step, through_data
from torch import Tensor

from ddsm_ext._fixed_weights import fixed_weights
from ddsm_ext.diffusion import DiffusionConfig, make_schedule
from ddsm_ext.models.network import SlimmableNetwork
from ddsm_ext.ops import weights_changed
from ddsm_ext.runtime import StepRunner
from ddsm_ext.sampling import Evaluation, SamplerConfig, sample
from ddsm_ext.training.ema import Ema

COMPILED = sorted(CONFIGS)


_runners: WeakKeyDictionary[SlimmableNetwork, StepRunner] = WeakKeyDictionary()


def runner_of(net: SlimmableNetwork) -> StepRunner:
    """One runner a network, which lives through its changes."""
    return _runners.setdefault(net, StepRunner(net))


def check(net: SlimmableNetwork, width: float = 0.5, tolerance: float = 2e-5) -> None:
    x, t = inputs(net.config, net.head.weight.dtype)
    expected = as_module(net, x, t, width)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a fallback would warn
        y = runner_of(net)(x, t, width)
    assert y.dtype == x.dtype
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert (y - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("isa", op_checks.ISAS)
@pytest.mark.parametrize("name", COMPILED)
def test_every_width(isa, name):
    net = network(name)
    with op_checks.forced_isa(isa):
        for width in usable(net.config):
            check(net, width)


@pytest.mark.parametrize("name", COMPILED)
def test_bfloat16(name):
    net = network(name, torch.bfloat16)
    for width in net.config.widths:
        check(net, width, tolerance=0.03)


def test_float32_weights_with_bfloat16_images():
    net = network()
    x, t = inputs(net.config, torch.float32)
    expected = as_module(net, x.to(torch.bfloat16), t, 0.5)
    y = runner_of(net)(x.to(torch.bfloat16), t, 0.5)
    assert y.dtype == torch.bfloat16
    assert (y - expected).abs().max() <= 0.03 * expected.abs().max()


def test_weights_as_a_gpu_leaves_them():
    check(network().to(memory_format=torch.channels_last))


def test_other_sizes_and_batches():
    """One runner serves all of them, in any order, on memory that grows."""
    net = network()
    runner = runner_of(net)
    generator = torch.Generator().manual_seed(3)
    for shape in ((1, 3, 8, 8), (4, 3, 16, 12), (2, 3, 8, 8), (1, 3, 24, 32), (4, 3, 16, 12)):
        x = torch.randn(shape, generator=generator)
        t = torch.full((shape[0],), 7)
        expected = as_module(net, x, t, 0.75)
        assert (runner(x, t, 0.75) - expected).abs().max() <= 2e-5 * expected.abs().max()


def test_no_images():
    net = network()
    y = runner_of(net)(torch.empty(0, 3, 8, 8), torch.empty(0), 0.5)
    assert y.shape == (0, 3, 8, 8)


def test_repeatable_and_independent_of_threads():
    net = network()
    x, t = inputs(net.config, torch.float32)
    runner = runner_of(net)
    op_checks.check_repeatable(lambda: [runner(x, t, 0.75)], 50)
    with op_checks.threads(1):
        one = runner(x, t, 0.75)
    with op_checks.threads(2):
        torch.testing.assert_close(runner(x, t, 0.75), one, rtol=1e-5, atol=1e-5)


def test_several_threads_at_once():
    net = network()
    x, t = inputs(net.config, torch.float32)
    runner = runner_of(net)
    expected = {width: runner(x, t, width) for width in net.config.widths}
    widths = list(net.config.widths) * 8
    with ThreadPoolExecutor(4) as pool:
        for width, y in zip(widths, pool.map(lambda w: runner(x, t, w), widths), strict=True):
            assert torch.equal(y, expected[width])


def load_state(net: SlimmableNetwork) -> None:
    net.load_state_dict({name: t * 1.1 for name, t in net.state_dict().items()})


def bias_only(net: SlimmableNetwork) -> None:
    with torch.no_grad():
        net.middle[0].attention.q.bias.add_(1)


@pytest.mark.parametrize("way", [sgd_step, in_place, through_data, replaced, load_state, bias_only])
def test_compiled_again_after(way):
    net = network()
    check(net)
    way(net)
    check(net)


LAYERS = ("down.0.conv1.weight", "middle.0.attention.q.bias", "tail.norm.weight", "head.bias")


@pytest.mark.parametrize("edit", EDITS)
def test_every_edit_is_seen(edit):
    net = network()
    parameters = dict(net.named_parameters())
    for name in LAYERS:
        check(net)
        EDITS[edit](parameters[name])
        check(net)
    check(net)


def test_edits_between_two_samplings_are_seen():
    net = network()
    schedule = make_schedule(DiffusionConfig(schedule="cosine", timesteps=50))

    def check_images() -> None:
        sampler = SamplerConfig(kind="ddim", steps=3)
        got, expected = (
            sample(n, schedule, 0.5, range(2), (3, 8, 8), sampler) for n in (net, net.run_modules)
        )
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)

    address = net.head.weight.data_ptr()
    check_images()
    for edit in EDITS.values():
        edit(net.middle[0].attention.q.bias)
        check_images()
    ctypes.memset(address, 0, 64)  # which torch cannot know of
    check_images()


def test_an_edit_by_a_callback_is_seen_when_told():
    net = network()
    schedule = make_schedule(DiffusionConfig(schedule="cosine", timesteps=50))
    sampler = SamplerConfig(kind="ddim", steps=4)
    start = copy.deepcopy(net.state_dict())

    def images(net: Callable[..., Tensor], owner: SlimmableNetwork) -> Tensor:
        def callback(evaluation: Evaluation, x: Tensor, x0: Tensor) -> None:
            owner.head.weight.data.mul_(0.5)
            weights_changed(owner)

        owner.load_state_dict(start)
        return sample(net, schedule, 0.5, range(2), (3, 8, 8), sampler, callback=callback)

    torch.testing.assert_close(images(net, net), images(net.run_modules, net), rtol=1e-3, atol=1e-3)


def test_two_networks_and_several_samplings_at_once():
    nets = network(), network()
    through_data(nets[1])
    schedule = make_schedule(DiffusionConfig(schedule="cosine", timesteps=50))
    sampler = SamplerConfig(kind="ddim", steps=4)

    def images(number: int, modules: bool = False) -> Tensor:
        def mixed(x: Tensor, t: Tensor, width: float) -> Tensor:
            parts = [(net.run_modules if modules else net)(x, t, width) for net in nets]
            return parts[0] + number * parts[1]

        return sample(mixed, schedule, 0.5, range(2), (3, 8, 8), sampler)

    with ThreadPoolExecutor(4) as pool:
        for number, got in enumerate(pool.map(images, range(4))):
            torch.testing.assert_close(got, images(number, modules=True), rtol=2e-3, atol=2e-3)


def test_trained_by_ddp():
    net = network()
    with one_process():
        ddp = torch.nn.parallel.DistributedDataParallel(net)
        optimizer = torch.optim.AdamW(ddp.parameters(), lr=0.05, fused=True)
        x, t = inputs(net.config, torch.float32)
        for _ in range(2):
            check(net)
            ddp(x, t, 1.0).square().mean().backward()
            optimizer.step()
        with torch.no_grad():
            y = ddp(x, t, 0.5)
            torch.testing.assert_close(y.double(), as_module(net, x, t, 0.5), rtol=1e-3, atol=1e-4)
            received(net.head.weight)
        check(net)


def test_autocast_that_begins_while_weights_are_fixed():
    net = network()
    x, t = inputs(net.config, torch.float32)
    runner = StepRunner(net)
    with fixed_weights(), torch.no_grad():
        runner(x, t, 0.5)
        with torch.autocast("cpu"):
            with pytest.warns(UserWarning, match="autocast is on"):
                y = runner(x, t, 0.5)
            assert torch.equal(y, net.run_modules(x, t, 0.5))


@pytest.mark.parametrize("name", ["x", "t", "y", "width"])
def test_arguments_unlike_the_ones_found_good_are_checked(name):
    net = network()
    x, t = inputs(net.config, torch.float32)
    good = {"x": x, "t": t, "width": 0.5, "y": None}
    bad = {
        "x": [x[:, :, 1:], x.long(), x[:1]],
        "t": [t[:1], t.bool(), [3]],
        "y": [torch.zeros_like(t)],
        "width": [2.0, "wide"],
    }
    runner = StepRunner(net)
    with fixed_weights(), torch.no_grad():
        expected = runner(**good)
        for value in bad[name]:
            with pytest.raises((TypeError, ValueError), match=name):
                runner(**{**good, name: value})
        assert torch.equal(runner(**good), expected)
        torch.testing.assert_close(
            runner(x, t[0], 0.5), net.run_modules(x, t[0], 0.5), rtol=1e-4, atol=1e-5
        )


def test_parametrised_after_the_runner_was_made():
    class Half(torch.nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return weight / 2

    net = network()
    x, t = inputs(net.config, torch.float32)
    runner = StepRunner(net)
    runner(x, t, 0.5)
    torch.nn.utils.parametrize.register_parametrization(net.head, "weight", Half())
    with pytest.warns(UserWarning, match="head is a Parametrized"):
        y = runner(x, t, 0.5)
    torch.testing.assert_close(y.double(), as_module(net, x, t, 0.5), rtol=1e-4, atol=1e-4)


def test_compiled_again_for_averaged_weights_and_back():
    net = network()
    ema = Ema(net)
    for tensor in ema.tensors.values():
        tensor.mul_(1.1)
    check(net)
    with ema.applied_to(net):
        check(net)
    check(net)


def test_compiled_again_for_another_dtype_and_replaced_modules():
    net = network()
    check(net)
    check(net.to(torch.bfloat16), tolerance=0.03)
    check(net.float())
    with torch.no_grad():
        net.head = copy.deepcopy(net.head)
        net.head.weight.mul_(2)
    runner = runner_of(net)
    runner.prepare([0.5], (3, 3, 8, 8), torch.float32, torch.device("cpu"))
    check(net)


@torch.no_grad()
def test_copies_make_steps_of_their_own():
    net = network()
    x, t = inputs(net.config, torch.float32)
    net(x, t, 0.5)
    for other in (copy.deepcopy(net), copy.copy(net)):
        torch.testing.assert_close(other(x, t, 0.5), net(x, t, 0.5), rtol=0, atol=0)
    in_place(other := copy.deepcopy(net))
    expected = as_module(other, x, t, 0.5)
    torch.testing.assert_close(other(x, t, 0.5).double(), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def fallback_reason(net: SlimmableNetwork, x: Tensor) -> str:
    runner = StepRunner(net)
    t = torch.zeros(len(x), dtype=torch.int64)
    with pytest.warns(UserWarning, match="steps run uncompiled") as caught:
        y = runner(x, t, 1.0)
    assert torch.equal(y, net.run_modules(x, t, 1.0))
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        runner(x, t, 1.0)
    return str(caught[0].message)


def test_reasons_to_run_the_module():
    net = network()
    x, _ = inputs(net.config, torch.float32)
    assert "dtype is torch.float64" in fallback_reason(copy.deepcopy(net).double(), x.double())
    hooked = copy.deepcopy(net)
    hooked.up[0].conv1.register_forward_hook(lambda module, args, y: y * 2)
    assert "up.0.conv1 has forward hooks" in fallback_reason(hooked, x)
    wrapped = copy.deepcopy(net)
    wrapped.tail.norm = type("Other", (type(net.tail.norm),), {})(16, 8, silu=True).eval()
    assert "tail.norm is a Other" in fallback_reason(wrapped, x)
    dropout = SlimmableNetwork(dataclasses.replace(net.config, dropout=0.5)).train()
    assert StepRunner(dropout).reason_against(x.dtype, x.device) == (
        "the network is in training mode with dropout"
    )


def test_the_sampler_runs_compiled_steps():
    net = network()
    schedule = make_schedule(DiffusionConfig(schedule="cosine", timesteps=50))
    sampler = SamplerConfig(kind="ddim", steps=5)

    def images(net: Callable[..., Tensor]) -> Tensor:
        return sample(net, schedule, 0.5, range(3), (3, 8, 8), sampler)

    modules = images(net.run_modules)
    compiled = images(net)
    torch.testing.assert_close(compiled, modules, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(images(runner_of(net)), compiled, rtol=0, atol=0)
    assert not torch.equal(compiled, modules)  # another order of sums


def test_memory_is_reported():
    net = network()
    runner = runner_of(net)
    shape = (2, 3, 8, 8)
    narrow = runner.activation_bytes(0.25, shape, torch.float32)
    full = runner.activation_bytes(1.0, shape, torch.float32)
    # At least the two largest tensors of the first level, and less than all of them.
    assert 2 * 2 * 64 * 16 * 4 <= full <= 40 * 2 * 64 * 48 * 4
    assert narrow < full
    assert runner.activation_bytes(1.0, (4, *shape[1:]), torch.float32) > full
    check(net)
    assert runner.packed_bytes() > 0
