"""MACs and parameters against published figures and PyTorch's own counter."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ddsm_ext.graph.count import layer_macs, parameter_count
from ddsm_ext.graph.count import macs as network_macs
from ddsm_ext.models.dense import DenseNetwork
from ddsm_ext.models.families import preset
from ddsm_ext.models.unet import UNetConfig

CIFAR10 = preset("cifar10")
REFERENCE = dataclasses.replace(CIFAR10, norm="fixed_groups", concat_slicing="prefix")


@pytest.mark.parametrize("config", [CIFAR10, REFERENCE], ids=["default", "reference"])
@pytest.mark.parametrize(
    # MMACs of the DDSM paper's network with attention products, to the printed digit.
    ("width", "mmacs"), [(1.0, 6221.9), (0.75, 3532.6), (0.5, 1599.2), (0.25, 421.7)]
)  # fmt: skip
def test_cifar10_with_attention_products(config: UNetConfig, width: float, mmacs: float) -> None:
    assert network_macs(config, width) / 1e6 == pytest.approx(mmacs, abs=0.05)


@pytest.mark.parametrize(
    # The figures typed into the reference's search (main.py), made with ptflops: three of them from
    # its "6.07 GMac" style of two decimals, the last from "382.59 MMac".
    ("width", "mmacs", "printed"),
    [(1.0, 6070, 5), (0.75, 3420, 5), (0.5, 1520, 5), (0.25, 382.5, 0.1)],
)
def test_cifar10_as_ptflops_counts(width: float, mmacs: float, printed: float) -> None:
    macs = network_macs(REFERENCE, width, attention_products=False, elementwise=True)
    assert macs / 1e6 == pytest.approx(mmacs, abs=printed)


@pytest.mark.parametrize(
    # GFLOPs a step of the full network: DDSM paper, table of main results.
    ("name", "gflops"), [("cifar10", 12.14), ("celeba64", 49.88), ("imagenet64", 82.06)]
)  # fmt: skip
def test_presets_cost_what_the_paper_reports(name: str, gflops: float) -> None:
    macs = network_macs(preset(name), 1.0, attention_products=False, elementwise=True)
    # The paper doubles MACs that were rounded to 0.01 G.
    assert 2 * macs / 1e9 == pytest.approx(gflops, abs=0.011)


def test_cifar10_equals_ddpm_of_diffusers() -> None:
    """google/ddpm-cifar10-32: 35.746 M parameters, 12.108 GFLOPs without attention products."""
    assert parameter_count(CIFAR10) == 35_746_307
    assert 2 * network_macs(CIFAR10, 1.0, attention_products=False) / 1e9 == pytest.approx(
        12.108, abs=5e-4
    )


def test_cifar10_parameters_with_the_frozen_time_table() -> None:
    """The reference's printed size counts its table of 1000 x 128 as parameters: 35.87 M."""
    config = dataclasses.replace(REFERENCE, time_table_rows=1000)
    assert parameter_count(config) / 1e6 == pytest.approx(35.87, abs=0.005)


@pytest.mark.parametrize("width", [1.0, 0.75, 0.3, 0.05])
@pytest.mark.parametrize(
    "config",
    [
        preset("digits"),
        UNetConfig(image_size=16, ch=32, ch_mult=(1, 3), attn=(0, 1), groups=8, head_channels=16),
        UNetConfig(image_size=8, ch=16, ch_mult=(2, 1), attn=(), groups=4, num_res_blocks=2),
    ],
    ids=["digits", "heads", "narrowing"],
)
def test_equals_the_flop_counter_of_torch(config: UNetConfig, width: float) -> None:
    net = DenseNetwork(config, width).eval()
    x = torch.zeros(1, config.image_channels, config.image_size, config.image_size)
    # The counter has no formula for CPU flash attention; the math backend is two counted products.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        net(x, torch.zeros(1))
    assert network_macs(config, width) * 2 == counter.get_total_flops()
    assert parameter_count(config, width) == sum(p.numel() for p in net.parameters())


def test_table_adds_up() -> None:
    counted = layer_macs(preset("digits"), 0.5)
    assert sum(counted.values()) == network_macs(preset("digits"), 0.5)
    assert "middle.0.attention.qk" in counted


def test_width_is_checked() -> None:
    with pytest.raises(ValueError, match=r"width 0\.3 gives 40 of 128 channels"):
        network_macs(REFERENCE, 0.3)
