"""Whole networks on the device: beside float64, trained, as compiled steps, sampled from."""

from __future__ import annotations

import copy

import pytest
import torch
from bench.small_network import ADM, NCSN, SMALL
from cuda_kernels.gpu.device import DEVICE, ON_GPU, needs_device
from torch import Tensor

from ddsm_ext.bench.conditions import REFERENCE_CIFAR10
from ddsm_ext.bench.steps import channels_last, random_inputs, random_network
from ddsm_ext.diffusion import DiffusionConfig, make_schedule
from ddsm_ext.graph import NetworkConfig
from ddsm_ext.models import SlimmableNetwork
from ddsm_ext.runtime import StepRunner
from ddsm_ext.sampling import SamplerConfig, Strategy, sample

pytestmark = needs_device
CONFIGS = {"small": SMALL, "cifar10": REFERENCE_CIFAR10, "adm": ADM, "ncsn++": NCSN}
FAMILIES = pytest.mark.parametrize("config", [SMALL, ADM, NCSN], ids=["unet", "adm", "ncsn++"])
# Of the largest output, through all layers: measured on the CPU 8e-3 in bfloat16.
TOLERANCE = {torch.float32: 1e-2 if ON_GPU else 2e-5, torch.bfloat16: 4e-2}


def network(config: NetworkConfig, dtype: torch.dtype = torch.float32) -> SlimmableNetwork:
    return random_network(config).to(DEVICE, dtype)


def exact_step(net: SlimmableNetwork, inputs: dict[str, Tensor], width: float) -> Tensor:
    return net.export_subnet(width).double()(**{**inputs, "x": inputs["x"].double()})


def check_close(got: Tensor, exact: Tensor, relative: float) -> None:
    error = float((got.double() - exact.double()).abs().max() / exact.double().abs().max())
    assert error <= relative, f"relative error {error:.2g}, allowed {relative:.2g}"


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_every_width_beside_the_dense_network_in_float64(name: str, dtype: torch.dtype) -> None:
    net = network(CONFIGS[name], dtype)
    inputs = random_inputs(net.config, 2, dtype, device=DEVICE)
    with torch.no_grad():
        for width in (1.0, 0.5, 0.25):
            exact = exact_step(net, inputs, width)
            check_close(net(**inputs, width=width), exact, TOLERANCE[dtype])
            check_close(net.run_modules(**inputs, width=width), exact, TOLERANCE[dtype])


@FAMILIES
def test_summed_gradients_beside_the_dense_networks_in_float64(config: NetworkConfig) -> None:
    net = network(config)
    inputs = random_inputs(config, 4, torch.float32, device=DEVICE)
    exact_inputs = {**inputs, "x": inputs["x"].double()}
    expected = torch.zeros_like(net.tail.conv.weight, dtype=torch.float64)
    for width in (1.0, 0.5):
        net(**inputs, width=width, accumulate_grad=True).square().mean().backward()
        dense = net.export_subnet(width).double()
        dense(**exact_inputs).square().mean().backward()
        gradient = dense.tail.conv.weight.grad
        expected[:, : gradient.shape[1]] += gradient
    check_close(net.tail.conv.weight.grad, expected, TOLERANCE[torch.float32])


@FAMILIES
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.filterwarnings("ignore:ddsm_ext. steps run uncompiled")
def test_steps_follow_inputs_widths_and_weights(config: NetworkConfig, dtype: torch.dtype) -> None:
    net = network(config, dtype)
    runner = StepRunner(net)
    device = torch.device(DEVICE)
    for seed in range(2):
        for width in (1.0, 0.5, 0.25):
            inputs = channels_last(random_inputs(config, 3, dtype, device=DEVICE))
            inputs = {name: tensor + seed for name, tensor in inputs.items()}
            if "y" in inputs:
                inputs["y"] %= config.num_classes
            with torch.no_grad():
                runner.prepare([width], tuple(inputs["x"].shape), dtype, device)
                expected = net.run_modules(**inputs, width=width)
                for _ in range(3):
                    check_close(runner(**inputs, width=width), expected, TOLERANCE[dtype])
        with torch.no_grad():  # as an optimizer does
            for parameter in net.parameters():
                parameter.mul_(1.05)


@pytest.mark.parametrize("config", [ADM, NCSN], ids=["adm", "ncsn++"])
@pytest.mark.filterwarnings("ignore:ddsm_ext. steps run uncompiled")
def test_several_labels_of_each_image_are_blocks_of_separate_calls(config: NetworkConfig) -> None:
    net = network(config)
    inputs = channels_last(random_inputs(config, 3, torch.float32, device=DEVICE))
    x, t = inputs["x"], inputs["t"]
    labels = torch.arange(6, device=DEVICE) % config.num_classes
    with torch.no_grad():
        for width in (1.0, 0.5, 1.0):
            parts = [net.run_modules(x, t, width, part) for part in labels.split(3)]
            assert float((parts[0] - parts[1]).abs().max()) > 1e-3
            for _ in range(3):
                together = net(x, t, width, labels)
                check_close(together, torch.cat(parts), TOLERANCE[torch.float32])


@pytest.mark.filterwarnings("ignore:ddsm_ext. steps run uncompiled")
def test_a_seed_is_an_image_in_any_batch() -> None:
    net = network(SMALL)
    schedule = make_schedule(DiffusionConfig(schedule="cosine"))
    options = (net, schedule, Strategy(widths=(0.5, 1.0), cuts=(0.0,)))
    sampler = SamplerConfig(kind="ddim", steps=10)

    def draw(**more: object) -> Tensor:
        return sample(*options, range(8), (3, 8, 8), sampler, device=DEVICE, **more).cpu()

    images = draw()
    assert torch.isfinite(images).all()
    assert float(images.std()) > 0.05
    for size in (1, 3):
        assert float((draw(batch_size=size) - images).abs().max()) <= 1e-2


def test_output_that_is_not_finite_is_named_though_read_late() -> None:
    def net(x: Tensor, t: Tensor, width: float) -> Tensor:
        return torch.where(t.view(-1, 1, 1, 1) < 700, torch.nan, torch.zeros_like(x))

    schedule, sampler = make_schedule(DiffusionConfig()), SamplerConfig(kind="ddim", steps=4)
    with pytest.raises(ValueError, match=r"not finite in evaluation 2 \(t = 666\) at width 0\.5"):
        sample(net, schedule, 0.5, range(2), (3, 8, 8), sampler, device=DEVICE)


def test_a_copy_on_the_cpu_computes_the_same() -> None:
    net = network(SMALL)
    inputs = random_inputs(SMALL, 2, torch.float32, device=DEVICE)
    on_cpu = {name: tensor.cpu() for name, tensor in inputs.items()}
    with torch.no_grad():
        expected = copy.deepcopy(net).cpu()(**on_cpu, width=0.5)
        check_close(net(**inputs, width=0.5).cpu(), expected, TOLERANCE[torch.float32])
