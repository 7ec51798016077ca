"""Whole networks on the device: beside float64, trained, as compiled steps, sampled from."""

from __future__ import annotations

import copy

import pytest
import torch
from bench.small_network import SMALL
from cuda_kernels.gpu.device import DEVICE, ON_GPU, needs_device
from torch import Tensor

from ddsm_ext.bench.network import random_inputs, random_network
from ddsm_ext.bench.shapes import REFERENCE_CIFAR10
from ddsm_ext.diffusion import DiffusionConfig, make_schedule
from ddsm_ext.models import SlimmableUNet, UNetConfig
from ddsm_ext.sampling import SamplerConfig, Strategy, sample

pytestmark = needs_device
CONFIGS = {"small": SMALL, "cifar10": REFERENCE_CIFAR10}
# Of the largest output, through all layers: measured on the CPU 8e-3 in bfloat16.
TOLERANCE = {torch.float32: 1e-2 if ON_GPU else 2e-5, torch.bfloat16: 4e-2}


def network(config: UNetConfig, dtype: torch.dtype = torch.float32) -> SlimmableUNet:
    return random_network(config).to(DEVICE, dtype)


def check_close(got: Tensor, exact: Tensor, relative: float) -> None:
    error = float((got.double() - exact.double()).abs().max() / exact.double().abs().max())
    assert error <= relative, f"relative error {error:.2g}, allowed {relative:.2g}"


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_every_width_beside_the_dense_network_in_float64(name: str, dtype: torch.dtype) -> None:
    net = network(CONFIGS[name], dtype)
    x, t = random_inputs(net.config, 2, dtype, device=DEVICE)
    for width in (1.0, 0.5, 0.25):
        dense = net.export_subnet(width).double()
        with torch.no_grad():
            check_close(net(x, t, width), dense(x.double(), t), TOLERANCE[dtype])


def test_summed_gradients_beside_the_dense_networks_in_float64() -> None:
    net = network(SMALL)
    x, t = random_inputs(SMALL, 4, torch.float32, device=DEVICE)
    expected = torch.zeros_like(net.tail.conv.weight, dtype=torch.float64)
    for width in (1.0, 0.5):
        net(x, t, width, accumulate_grad=True).square().mean().backward()
        dense = net.export_subnet(width).double()
        dense(x.double(), t).square().mean().backward()
        gradient = dense.tail.conv.weight.grad
        expected[:, : gradient.shape[1]] += gradient
    check_close(net.tail.conv.weight.grad, expected, TOLERANCE[torch.float32])


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.filterwarnings("ignore:ddsm_ext. steps run uncompiled")
def test_steps_follow_inputs_widths_and_weights(dtype: torch.dtype) -> None:
    net = network(SMALL, dtype)
    runner = net.step_runner()
    device = torch.device(DEVICE)
    for seed in range(2):
        for width in (1.0, 0.5, 0.25):
            x, t = random_inputs(SMALL, 3, dtype, device=DEVICE)
            x = (x + seed).contiguous(memory_format=torch.channels_last)
            with torch.no_grad():
                runner.prepare([width], tuple(x.shape), dtype, device)
                expected = net(x, t, width)
                for _ in range(3):
                    check_close(runner(x, t, width), expected, TOLERANCE[dtype])
        with torch.no_grad():  # as an optimizer does
            for parameter in net.parameters():
                parameter.mul_(1.05)


@pytest.mark.filterwarnings("ignore:ddsm_ext. steps run uncompiled")
def test_a_seed_is_an_image_compiled_or_not_in_any_batch() -> None:
    net = network(SMALL)
    schedule = make_schedule(DiffusionConfig(schedule="cosine"))
    options = (net, schedule, Strategy(widths=(0.5, 1.0), cuts=(0.0,)))
    sampler = SamplerConfig(kind="ddim", steps=10)

    def draw(**more: object) -> Tensor:
        return sample(*options, range(8), (3, 8, 8), sampler, device=DEVICE, **more).cpu()

    images = draw()
    assert torch.isfinite(images).all()
    assert float(images.std()) > 0.05
    for more in ({"compiled": False}, {"batch_size": 1}, {"batch_size": 3}):
        assert float((draw(**more) - images).abs().max()) <= 1e-2


def test_a_copy_on_the_cpu_computes_the_same() -> None:
    net = network(SMALL)
    x, t = random_inputs(SMALL, 2, torch.float32, device=DEVICE)
    with torch.no_grad():
        expected = copy.deepcopy(net).cpu()(x.cpu(), t.cpu(), 0.5)
        check_close(net(x, t, 0.5).cpu(), expected, TOLERANCE[torch.float32])
