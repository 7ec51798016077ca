"""The CUDA kernels on a GPU: skipped where there is none, so that no result here stands for one."""

from __future__ import annotations

import pytest
import torch
from cuda_kernels.bindings import checks

from ddsm_ext import _library
from ddsm_ext.ops.attention import sliced_attention
from ddsm_ext.ops.conv2d import sliced_conv2d

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


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    with torch.device("cuda"):
        x, weight = torch.randn(4, 64, 16, 16), torch.randn(96, 128, 3, 3)
    return tuple(t.bfloat16().contiguous(memory_format=torch.channels_last) for t in (x, weight))


def test_repeatable():
    x, weight = inputs()
    first = sliced_conv2d(x, weight, None, 80, padding=1)
    for _ in range(20):
        assert sliced_conv2d(x, weight, None, 80, padding=1).equal(first)


def test_runs_on_the_current_stream_and_in_a_graph():
    x, weight = inputs()
    expected = sliced_conv2d(x, weight, None, 80, padding=1)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):  # a launch on any other stream would end the capture
        y = sliced_conv2d(x, weight, None, 80, padding=1)
    y.zero_()
    graph.replay()
    torch.cuda.synchronize()
    assert y.equal(expected)


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
