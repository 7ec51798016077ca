"""The CUDA kernels on a GPU: skipped where there is none, so that no result here stands for one."""

from __future__ import annotations

import warnings

import pytest
import torch
from cuda_kernels.bindings import checks, steps
from models.test_unet import CONFIGS, build, inputs

from ddsm_ext import _library
from ddsm_ext.diffusion import DiffusionConfig, make_schedule
from ddsm_ext.models.unet import SlimmableUNet
from ddsm_ext.ops.attention import sliced_attention
from ddsm_ext.ops.conv2d import sliced_conv2d
from ddsm_ext.runner.graphs import GraphPool
from ddsm_ext.sampling import SamplerConfig, sample

pytestmark = pytest.mark.skipif(
    not (torch.cuda.is_available() and _library.has_cuda()),
    reason=_library.cuda_missing_reason or "torch finds no GPU",
)


def test_ops_beside_fp64_references():
    torch.manual_seed(0)
    with torch.device("cuda"):
        checks.check_all()
        for check in (checks.check_conv2d, checks.check_linear, checks.check_group_norm):
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


def network(dtype: torch.dtype = torch.float32) -> SlimmableUNet:
    return build(CONFIGS["source"]).to(dtype).cuda().eval()


def test_steps_beside_fp64_references():
    torch.manual_seed(0)
    device = torch.device("cuda", torch.cuda.current_device())
    steps.check_all_steps(device)
    steps.check_step("source", 0.5, torch.float16, torch.float16, device)
    steps.check_captured_steps(device, GraphPool)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_runner_captures_without_a_warning(dtype):
    net = network(dtype)  # channels_last by being moved
    x, t = (tensor.cuda() for tensor in inputs(net.config, torch.float32))
    x = x.to(dtype)
    runner = net.step_runner()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*steps run uncompiled.*")
        runner.prepare([1.0, 0.5], tuple(x.shape), dtype, x.device)
        for width in (1.0, 0.5, 1.0):
            y = runner(x, t, width)
            exact = steps.exact_step(net, x, t, width)
            checks.check_close(y, exact, 3 * checks.tolerance(dtype))
    assert runner.activation_bytes(0.5, tuple(x.shape), dtype) > 0
    # Narrower steps lie in the widest one's memory.
    alone = runner.activation_bytes(1.0, tuple(x.shape), dtype)
    assert runner.held_bytes() < 2 * alone


@torch.no_grad()
def test_steps_on_several_streams_follow_each_other():
    net = network()
    x, t = (tensor.cuda() for tensor in inputs(net.config, torch.float32))
    runner = net.step_runner()
    expected = {width: runner(x, t, width) for width in (1.0, 0.5)}
    streams = [torch.cuda.Stream() for _ in range(3)]
    torch.cuda.synchronize()
    found = []
    for i in range(60):
        with torch.cuda.stream(streams[i % 3]):
            width = (1.0, 0.5)[i % 2]
            found.append((width, runner(x, t, width)))
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
