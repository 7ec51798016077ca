"""Every layer shape of the CIFAR-10 U-Net beside float64: outputs and all gradients."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from cuda_kernels.gpu.device import needs_device
from cuda_kernels.gpu.layer_calls import LAYOUTS, OURS, REFERENCE, call, leaves_of, results
from torch import Tensor

from ddsm_ext.bench.conditions import REFERENCE_CIFAR10, config_at
from ddsm_ext.graph.shapes import AttentionShape, Shape, op_shapes
from ddsm_ext.ops import sliced_attention
from ddsm_ext.ops._call import runs_native

pytestmark = needs_device
BATCH = 2
ODD_WIDTH = 0.46875  # 60 and 120 channels, which fill no block of 16 or 32
WIDTHS = (1.0, 0.5, 0.25, ODD_WIDTH)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
OPS = ("conv2d", "linear", "group_norm", "attention")


def tolerance(op: str, dtype: torch.dtype) -> float:
    """Of the largest result: a rounding step of 16 bits, as sums are float32; two of tf32."""
    if dtype == torch.float32:
        return 2.0**-9 if op in ("conv2d", "attention") else 1e-5
    return torch.finfo(dtype).eps


def shapes_of(op: str, width: float) -> list[Shape]:
    return list(op_shapes(config_at(REFERENCE_CIFAR10, width), width, op))


def names_of(shape: Shape, count: int) -> list[str]:
    sources = ("q", "k", "v") if isinstance(shape, AttentionShape) else ("x", "x2")[: count - 2]
    return [*sources, "weight", "bias"][:count]


def error(got: Tensor, exact: Tensor) -> float:
    return float((got.double() - exact).abs().max() / exact.abs().max().clamp_min(1e-30))


def faults_of(
    op: str, shape: Shape, dtype: torch.dtype, layout: torch.memory_format, allowed: float
) -> list[str]:
    torch.manual_seed(0)
    leaves = leaves_of(shape, BATCH, dtype, layout)
    with torch.no_grad():
        torch.manual_seed(1)
        y = call(OURS, shape, leaves)
        grad_y = torch.randn(y.shape, device=y.device).to(dtype)
    got = results(OURS, shape, leaves, grad_y)
    exact = results(REFERENCE, shape, [leaf.double() for leaf in leaves], grad_y.double())
    assert torch.equal(got[0], y), f"{shape}: with gradients the output is another"
    faults = []
    if isinstance(shape, AttentionShape):  # what a step calls, which may be torch's
        with torch.no_grad():
            relative = error(sliced_attention(*leaves), exact[0])
        if not relative <= allowed:
            faults.append(f"{shape}, y without gradients: relative error {relative:.2g}")
    for name, ours, expected in zip(("y", *names_of(shape, len(leaves))), got, exact, strict=True):
        assert ours.shape == expected.shape
        assert ours.dtype == dtype
        relative = error(ours, expected)
        if not relative <= allowed:
            faults.append(f"{shape} {layout}, {name}: relative error {relative:.2g}")
    return faults


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("op", OPS)
def test_every_layer(op: str, width: float, dtype: torch.dtype) -> None:
    shapes = shapes_of(op, width)
    probe = leaves_of(shapes[0], 1, dtype, torch.contiguous_format)[0]
    if not runs_native(f"sliced_{op}", probe, needs_grad=True):
        pytest.skip(f"no kernel of {op} for {dtype} on {probe.device.type}")
    layouts = LAYOUTS if op in ("conv2d", "group_norm") else LAYOUTS[:1]
    allowed = tolerance(op, dtype)
    faults = [
        fault
        for shape in shapes
        for layout in layouts
        for fault in faults_of(op, shape, dtype, layout, allowed)
    ]
    assert not faults, f"allowed {allowed:.2g}\n" + "\n".join(faults)


@pytest.fixture
def _without_tf32() -> Iterator[None]:
    convolutions = torch.backends.cudnn.conv
    before = convolutions.fp32_precision
    convolutions.fp32_precision = "ieee"
    yield
    convolutions.fp32_precision = before


@pytest.mark.usefixtures("_without_tf32")
@pytest.mark.parametrize("width", [0.25, ODD_WIDTH])
def test_convolutions_without_tf32(width: float) -> None:
    faults = [
        fault
        for shape in shapes_of("conv2d", width)
        for fault in faults_of("conv2d", shape, torch.float32, torch.channels_last, 1e-5)
    ]
    assert not faults, "\n".join(faults)
