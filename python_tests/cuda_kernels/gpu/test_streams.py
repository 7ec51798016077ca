"""Kernels run on the current stream and device, and in graphs."""

from __future__ import annotations

import pytest
import torch
from cuda_kernels.gpu.device import needs_gpu
from cuda_kernels.gpu.layer_calls import OURS, call, leaves_of
from torch import Tensor

from ddsm_ext.graph.shapes import AttentionShape, ConvShape, LinearShape, NormShape, Shape

pytestmark = needs_gpu
# The first takes many splits along K, whose partial sums lie in a workspace.
SHAPES = (
    ConvShape(256, 0, 80, 256, 96, 3, 1, False, 4),
    ConvShape(64, 0, 80, 128, 96, 3, 1, False, 16),
    LinearShape(512, 256, 512, 512),
    NormShape(64, 32, 128, 32, 16, True),
    AttentionShape(1, 256, 128),
)


def inputs(shape: Shape, seed: int) -> list[Tensor]:
    torch.manual_seed(seed)
    return leaves_of(shape, 2, torch.bfloat16, torch.channels_last)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_two_streams_do_not_disturb_each_other(shape: Shape) -> None:
    leaves = [inputs(shape, seed) for seed in range(2)]
    expected = [call(OURS, shape, part) for part in leaves]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in leaves]
    outputs: list[list[Tensor]] = [[], []]
    for _ in range(50):
        for stream, part, kept in zip(streams, leaves, outputs, strict=True):
            with torch.cuda.stream(stream):
                kept.append(call(OURS, shape, part))
    torch.cuda.synchronize()
    for kept, y in zip(outputs, expected, strict=True):
        assert all(other.equal(y) for other in kept)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_work_waits_for_what_the_stream_did_before(shape: Shape) -> None:
    leaves = inputs(shape, 0)
    expected = call(OURS, shape, leaves)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(20_000_000)  # cycles, about 10 ms
        late = [leaf * 1 for leaf in leaves]
        y = call(OURS, shape, late)
    torch.cuda.synchronize()
    assert y.equal(expected)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_graph_computes_from_what_its_inputs_hold_at_replay(shape: Shape) -> None:
    leaves, others = inputs(shape, 0), inputs(shape, 1)
    expected = call(OURS, shape, others)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):  # a launch on any other stream would end the capture
        y = call(OURS, shape, leaves)
    for leaf, other in zip(leaves, others, strict=True):
        leaf.copy_(other)
    for _ in range(3):
        y.zero_()
        graph.replay()
    torch.cuda.synchronize()
    assert y.equal(expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one GPU")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_device_of_the_tensors_is_used(shape: Shape) -> None:
    leaves = inputs(shape, 0)
    expected = call(OURS, shape, leaves)
    y = call(OURS, shape, [leaf.to("cuda:1") for leaf in leaves])
    assert y.device.index == 1
    assert y.cpu().equal(expected.cpu())
