"""The CUDA kernels on a GPU: skipped where there is none, so that no result here stands for one."""

from __future__ import annotations

import os
import warnings

import pytest
import torch
from cuda_kernels.bindings import checks, layers, steps
from cuda_kernels.networks import CONFIGS

from ddsm_ext import _library
from ddsm_ext.bench.steps import random_network
from ddsm_ext.diffusion import DiffusionConfig, make_schedule
from ddsm_ext.models import SlimmableNetwork
from ddsm_ext.ops.attention import sliced_attention
from ddsm_ext.ops.conv2d import sliced_conv2d, sliced_conv2d_ref
from ddsm_ext.runtime import StepRunner
from ddsm_ext.runtime.cuda import GraphPool
from ddsm_ext.sampling import SamplerConfig, sample

pytestmark = pytest.mark.skipif(
    bool(_library.cuda_missing_reason) or not torch.cuda.is_available(),
    reason=_library.cuda_missing_reason or "torch finds no GPU",
)


def test_ops_beside_fp64_references():
    torch.manual_seed(0)
    with torch.device("cuda"):
        checks.check_all()
        for check in (
            checks.check_conv2d,
            checks.check_linear,
            checks.check_activated_linear,
            checks.check_group_norm,
            checks.check_modulated_group_norm,
            checks.check_layer_norm,
        ):
            check(torch.float16, torch.float16)
        checks.check_attention(torch.float16)


def image_and_weight() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    with torch.device("cuda"):
        x, weight = torch.randn(4, 64, 16, 16), torch.randn(96, 128, 3, 3)
    return tuple(t.bfloat16().contiguous(memory_format=torch.channels_last) for t in (x, weight))


def test_repeatable():
    x, weight = image_and_weight()
    first = sliced_conv2d(x, weight, None, 80, padding=1)
    for _ in range(20):
        assert sliced_conv2d(x, weight, None, 80, padding=1).equal(first)


def test_runs_on_the_current_stream_and_in_a_graph():
    x, weight = image_and_weight()
    expected = sliced_conv2d(x, weight, None, 80, padding=1)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):  # a launch on any other stream would end the capture
        y = sliced_conv2d(x, weight, None, 80, padding=1)
    y.zero_()
    graph.replay()
    torch.cuda.synchronize()
    assert y.equal(expected)


# images, height, width, c, c2, c_out, kernel, stride: tails of pixels, of channels and of K, more
# tiles than a GPU has multiprocessors, and the shapes of the CIFAR-10 network.
SM90A_SHAPES = (
    (3, 7, 9, 40, 0, 24, 3, 1),
    (2, 5, 6, 8, 72, 136, 3, 1),
    (4, 9, 9, 72, 0, 40, 3, 2),
    (5, 8, 8, 64, 0, 64, 1, 1),
    (1, 1, 1, 128, 0, 256, 1, 1),
    (64, 32, 32, 128, 0, 128, 3, 1),
    (128, 16, 16, 256, 256, 256, 3, 1),
    (16, 4, 4, 64, 0, 64, 3, 1),
)


@pytest.mark.skipif(
    not torch.cuda.is_available()
    or torch.cuda.get_device_capability() != (9, 0)
    or os.environ.get("DDSM_SM90A") == "0",
    reason="the GPU is not of compute capability 9.0, or DDSM_SM90A is 0",
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tile", [5, 6, 7, 8, 9, 10])
@pytest.mark.parametrize("shape", SM90A_SHAPES)
def test_the_sm90a_path_beside_fp64_and_the_sm80_path(dtype, tile, shape):
    n, height, width, c, c2, c_out, kernel, stride = shape
    torch.manual_seed(0)
    with torch.device("cuda"):
        sources = [torch.randn(n, channels, height, width) for channels in (c, c2) if channels]
        weight = torch.randn(c_out + 8, c + c2 + 16, kernel, kernel)
        bias = torch.randn(c_out + 8).to(dtype)
    sources = [x.to(dtype).contiguous(memory_format=torch.channels_last) for x in sources]
    weight = weight.to(dtype).contiguous(memory_format=torch.channels_last)
    weight[c_out:] = torch.nan  # beyond the slice
    x, x2 = sources[0], sources[1] if c2 else None
    padding, offset = kernel // 2, c + 8 if c2 else 0
    window = {"stride": stride, "padding": padding, "c_in2_offset": offset}
    exact = sliced_conv2d_ref(
        x.double(), weight.double(), bias.double(), c_out,
        x2=None if x2 is None else x2.double(), **window,
    )  # fmt: skip
    ops = torch.ops.ddsm_ext
    numbers = (c_out, offset, stride, padding, False, None)
    y, portable = (ops.sliced_conv2d(x, x2, weight, bias, *numbers, forced) for forced in (tile, 1))
    checks.check_close(y, exact, checks.tolerance(dtype))
    checks.check_close(y, portable.double(), checks.tolerance(dtype))
    if stride > 1 or tile in (7, 9):  # gradients of narrow tiles have no kernel
        return
    grad_y = torch.randn_like(exact).to(dtype).contiguous(memory_format=torch.channels_last)
    exact = torch.nn.grad.conv2d_input(
        x.shape, weight[:c_out, :c].double(), grad_y.double(), padding=padding
    )
    more = (c, 0, height, width, 1, padding, False, None)
    grad_x, portable = (ops.sliced_conv2d_grad_x(grad_y, weight, *more, t) for t in (tile, 1))
    checks.check_close(grad_x, exact, checks.tolerance(dtype))
    checks.check_close(grad_x, portable.double(), checks.tolerance(dtype))


def network(dtype: torch.dtype = torch.float32, name: str = "source") -> SlimmableNetwork:
    return random_network(CONFIGS[name]).to(dtype).cuda()


def test_steps_beside_fp64_references():
    torch.manual_seed(0)
    device = torch.device("cuda", torch.cuda.current_device())
    layers.check_all_layers(device)
    steps.check_all_steps(device)
    for name in ("source", "adm"):
        steps.check_step(name, 0.5, torch.float16, torch.float16, device)
    steps.check_captured_steps(device, GraphPool)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["source", "adm"])
def test_the_runner_captures_without_a_warning(name, dtype):
    net = network(dtype, name)  # channels_last by being moved
    inputs = steps.inputs_of(net, dtype)
    runner, x = StepRunner(net), inputs["x"]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*steps run uncompiled.*")
        runner.prepare([1.0, 0.5], tuple(x.shape), dtype, x.device)
        for width in (1.0, 0.5, 1.0):
            y = runner(**inputs, width=width)
            exact = steps.exact_step(net, inputs, width)
            checks.check_close(y, exact, 3 * checks.tolerance(dtype))
    assert runner.activation_bytes(0.5, tuple(x.shape), dtype) > 0
    # Narrower steps lie in the widest one's memory.
    alone = runner.activation_bytes(1.0, tuple(x.shape), dtype)
    assert runner.held_bytes() < 2 * alone


@torch.no_grad()
def test_steps_on_several_streams_follow_each_other():
    net = network()
    inputs, runner = steps.inputs_of(net, torch.float32), StepRunner(net)
    expected = {width: runner(**inputs, width=width) for width in (1.0, 0.5)}
    streams = [torch.cuda.Stream() for _ in range(3)]
    torch.cuda.synchronize()
    found = []
    for i in range(60):
        with torch.cuda.stream(streams[i % 3]):
            width = (1.0, 0.5)[i % 2]
            found.append((width, runner(**inputs, width=width)))
    torch.cuda.synchronize()
    for width, y in found:
        assert y.equal(expected[width])


def test_a_seed_is_the_same_image_as_on_the_cpu():
    net = network()
    schedule = make_schedule(DiffusionConfig(schedule="cosine", timesteps=50))
    sampler = SamplerConfig(kind="ddpm", steps=10)

    def images(device: str) -> torch.Tensor:
        return sample(net.to(device), schedule, 0.5, range(4), (3, 8, 8), sampler, device=device)

    precision = torch.backends.cudnn.conv.fp32_precision
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    try:
        torch.testing.assert_close(images("cuda").cpu(), images("cpu"), rtol=1e-3, atol=1e-3)
    finally:
        torch.backends.cudnn.conv.fp32_precision = precision


def qkv(d: int = 128) -> list[torch.Tensor]:
    torch.manual_seed(0)
    memory = torch.randn(4, 256, 1, 3 * d, device="cuda", dtype=torch.bfloat16)
    return [x.transpose(1, 2) for x in memory.split(d, dim=-1)]  # [N, heads, T, d]


def test_attention_is_repeatable():
    leaves = [x.requires_grad_() for x in qkv()]
    out = sliced_attention(*leaves)
    grads = torch.autograd.grad(out, leaves, torch.ones_like(out), retain_graph=True)
    for _ in range(20):
        assert sliced_attention(*leaves).equal(out)
        again = torch.autograd.grad(out, leaves, torch.ones_like(out), retain_graph=True)
        assert all(a.equal(b) for a, b in zip(again, grads, strict=True))


@pytest.mark.parametrize("backend", ["kernel", "sdpa"])
def test_attention_in_a_graph(backend):
    tensors = qkv()
    expected = sliced_attention(*tensors, backend=backend)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = sliced_attention(*tensors, backend=backend)
    out.zero_()
    graph.replay()
    torch.cuda.synchronize()
    assert out.equal(expected)


@pytest.mark.parametrize("d", [64, 120, 256])
def test_torchs_attention_needs_no_copy_where_it_is_chosen(d):
    q, k, v = qkv(d)
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    assert out.transpose(1, 2).is_contiguous()
    torch.testing.assert_close(out, sliced_attention(q, k, v, backend="kernel"), atol=1e-2, rtol=0)
