"""What captures steps, with a stand-in for CUDA graphs: keys, changes, memory, reasons."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch
from models.network_cases import inputs
from runtime.recorder import Recorder
from runtime.weight_changes import as_module, in_place, network, replaced, sgd_step, through_data
from torch import Tensor

from ddsm_ext.diffusion import DiffusionConfig, make_schedule
from ddsm_ext.models.network import SlimmableNetwork
from ddsm_ext.ops._fused import why_missing
from ddsm_ext.runtime import StepRunner
from ddsm_ext.runtime.backend import StepError, StepKey
from ddsm_ext.runtime.cuda import GraphSteps
from ddsm_ext.sampling import SamplerConfig, sample
from ddsm_ext.training.ema import Ema

CPU = torch.device("cpu")


def as_step(
    net: SlimmableNetwork, width: float, inputs: Mapping[str, Tensor], tickets: Tensor
) -> Tensor:
    """The modules in place of the CUDA layers, which the tests of the bindings run."""
    return net.run_modules(inputs["x"], inputs["t"], width)


def recording(net: SlimmableNetwork) -> GraphSteps:
    Recorder.made.clear()
    return GraphSteps(net, CPU, Recorder, as_step)


def captures() -> int:
    return sum(recorder.captures for recorder in Recorder.made)


@torch.no_grad()
def check(steps: GraphSteps, net: SlimmableNetwork, width: float = 0.5, n: int = 3) -> None:
    x, t = inputs(net.config, torch.float32)
    x, t = x[:n].to(net.head.weight.dtype), t[:n]
    steps.renew(net)
    y = steps.run(net, StepKey(width, *x.shape[::2], x.shape[3], x.dtype), {"x": x, "t": t})
    expected = as_module(net, x, t, width)
    tolerance = 2e-5 if x.dtype == torch.float32 else 0.05
    assert (y - expected).abs().max() <= tolerance * expected.abs().max()
    assert y.is_contiguous(memory_format=torch.channels_last)


def test_one_capture_for_each_key_in_one_pool():
    net = network()
    steps = recording(net)
    for _ in range(3):
        for width in (1.0, 0.5, 0.75):
            for n in (3, 2):
                check(steps, net, width, n)
    assert captures() == 6
    assert len(Recorder.made) == 1
    assert Recorder.made[0].replays == 18
    assert steps.held_bytes() == 6000


def test_results_do_not_change_with_later_steps():
    """A replay leaves its prediction where the one before it did."""
    net = network()
    x, t = inputs(net.config, torch.float32)
    place = torch.empty_like(x)
    steps = GraphSteps(net, CPU, Recorder, lambda *step: place.copy_(as_step(*step)))
    key = StepKey(0.5, 3, 8, 8, torch.float32)
    with torch.no_grad():
        first = steps.run(net, key, {"x": x, "t": t})
        kept = first.clone()
        steps.run(net, key, {"x": -x, "t": t})
    assert torch.equal(first, kept)


@pytest.mark.parametrize("way", [sgd_step, in_place, through_data])
def test_new_values_in_the_same_memory_need_no_capture(way):
    net = network()
    steps = recording(net)
    check(steps, net)
    way(net)
    check(steps, net)
    assert captures() == 1


def test_averaged_weights_and_back_need_no_capture():
    net = network()
    ema = Ema(net)
    for tensor in ema.tensors.values():
        tensor.mul_(1.1)
    steps = recording(net)
    check(steps, net)
    with ema.applied_to(net):
        check(steps, net)
    check(steps, net)
    assert captures() == 1


def assigned_data(net: SlimmableNetwork) -> None:
    net.tail.conv.weight.data = net.tail.conv.weight.data * 2


def another_dtype(net: SlimmableNetwork) -> None:
    net.to(torch.bfloat16)


def another_layout(net: SlimmableNetwork) -> None:
    net.head.weight.data = net.head.weight.data.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("way", [replaced, assigned_data, another_dtype, another_layout])
def test_parameters_elsewhere_are_captured_again_in_a_new_pool(way):
    net = network()
    steps = recording(net)
    check(steps, net, 0.5)
    check(steps, net, 1.0)
    way(net)
    check(steps, net, 0.5)
    assert captures() == 3
    # What may still run is waited for before its memory goes.
    assert [recorder.finishes for recorder in Recorder.made] == [1, 0]
    assert steps.held_bytes() == 1000


def test_reinterpreted_memory_is_captured_again():
    net = network()
    steps = recording(net)
    check(steps, net)
    square = net.time_embedding.linear2.weight
    square.data = square.data.t()
    check(steps, net)
    assert captures() == 2


@pytest.fixture
def torch_switches() -> Iterator[None]:
    before = torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision
    yield
    torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision = before


def test_tf32_is_part_of_the_key(torch_switches):
    net = network()
    steps = recording(net)
    for _ in range(2):
        for conv, matmul in (("tf32", "ieee"), ("ieee", "ieee"), ("ieee", "tf32")):
            torch.backends.cudnn.conv.fp32_precision = conv
            torch.backends.cuda.matmul.fp32_precision = matmul
            check(steps, net)
    assert captures() == 3


def test_inference_mode_and_back():
    net = network()
    steps = recording(net)
    with torch.inference_mode():
        check(steps, net)
    check(steps, net)
    assert captures() == 1


def test_memory_of_one_step_is_that_of_a_pool_of_its_own():
    net = network()
    steps = recording(net)
    check(steps, net, 1.0)
    check(steps, net, 0.5)
    assert steps.activation_bytes(net, StepKey(0.5, 3, 8, 8, torch.float32)) == 1000
    assert steps.held_bytes() == 2000
    check(steps, net, 0.5)
    assert captures() == 3


def test_a_capture_that_fails_is_not_tried_again():
    net = network()
    tried = []

    def fails(net: SlimmableNetwork, width: float, *more: Tensor) -> Tensor:
        tried.append(width)
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    steps = GraphSteps(net, CPU, Recorder, fails)
    reason = r"^capturing it failed \(operation not permitted when stream is capturing\)$"
    for _ in range(2):
        with pytest.raises(StepError, match=reason):
            check(steps, net)
        with pytest.raises(StepError, match=reason):
            steps.prepare(net, StepKey(0.5, 3, 8, 8, torch.float32))
    assert len(tried) == 1


def capturing(
    net: SlimmableNetwork,
    step: Any = as_step,
    missing: Callable[[str], str | None] = lambda device_type: None,
) -> StepRunner:
    """A runner whose steps on the CPU are captured ones; their ops count as there."""
    Recorder.made.clear()
    return StepRunner(net, lambda net, device: GraphSteps(net, CPU, Recorder, step, missing))


def channels_last_network() -> SlimmableNetwork:
    return network().to(memory_format=torch.channels_last)


def test_the_runner_captures():
    net = channels_last_network()
    runner = capturing(net)
    x, t = inputs(net.config, torch.float32)
    shape = tuple(x.shape)
    runner.prepare([1.0, 0.5], shape, torch.float32, CPU)
    assert captures() == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a fallback would warn
        y = runner(x, t, 0.5)
    torch.testing.assert_close(y, net.run_modules(x, t, 0.5).detach())
    assert captures() == 2
    assert runner.held_bytes() == 2000
    assert runner.activation_bytes(0.5, shape, torch.float32) == 1000
    assert runner.packed_bytes() >= 0


def test_the_sampler_replays():
    net = channels_last_network()
    schedule = make_schedule(DiffusionConfig(schedule="cosine", timesteps=50))

    def images(net: Callable[..., Tensor]) -> Tensor:
        sampler = SamplerConfig(kind="ddpm", steps=5)
        return sample(net, schedule, 0.5, range(4), (3, 8, 8), sampler, batch_size=2)

    captured = images(capturing(net))
    assert captures() == 1
    assert Recorder.made[0].replays == 2 * 5
    torch.testing.assert_close(captured, images(net.run_modules), rtol=1e-3, atol=1e-3)


@torch.no_grad()
def fallback_reason(net: SlimmableNetwork, *how: Any) -> str:
    """Why the runner runs the module, said once, in `prepare` or in calls."""
    x, t = inputs(net.config, torch.float32)
    runner = capturing(net, *how)
    with warnings.catch_warnings(record=True) as caught:
        for _ in range(2):
            runner.prepare([0.5], tuple(x.shape), x.dtype, CPU)
            assert torch.equal(runner(x, t, 0.5), net.run_modules(x, t, 0.5))
    assert len(caught) == 1
    assert "steps run uncompiled" in str(caught[0].message)
    return str(caught[0].message)


def test_reasons_to_run_the_module():
    assert "head.weight is not channels_last" in fallback_reason(network())
    net = channels_last_network()

    def refused(*args: object) -> Tensor:
        raise RuntimeError("no kernel")

    assert "capturing it failed (no kernel)" in fallback_reason(net, refused)
    assert why_missing("cpu") in fallback_reason(net, as_step, why_missing)
