"""Steps are kept within a bound of bytes, and what they can share is kept once."""

from __future__ import annotations

import gc
import tracemalloc

import pytest
import torch
from models.network_cases import inputs, usable
from runtime.weight_changes import as_module, network

from ddsm_ext.models.network import SlimmableNetwork
from ddsm_ext.ops._pages import HUGE_PAGE_BYTES, empty_on_huge_pages
from ddsm_ext.runtime.backend import StepKey
from ddsm_ext.runtime.cpu import PlanSteps
from ddsm_ext.runtime.step_cache import StepCache


def key(width: float, images: int = 2) -> StepKey:
    return StepKey(width, images, 8, 8, torch.float32)


def run(steps: PlanSteps, net: SlimmableNetwork, width: float, images: int = 2) -> torch.Tensor:
    x, t = inputs(net.config, torch.float32)
    x, t = x[:1].expand(images, -1, -1, -1), t[:1].expand(images)
    with torch.no_grad():
        y = steps.run(net, key(width, images), {"x": x, "t": t})
    expected = as_module(net, x.contiguous(), t, width)
    assert (y - expected).abs().max() <= 2e-5 * expected.abs().max()
    return y


def test_what_was_used_longest_ago_goes_first():
    cache: StepCache[str] = StepCache(100)
    assert cache.put(key(1.0), "a", 40) == []
    assert cache.put(key(0.5), "b", 40) == []
    assert cache.get(key(1.0)) == "a"
    assert cache.put(key(0.25), "c", 40) == [key(0.5)]
    assert cache.get(key(0.5)) is None
    assert cache.nbytes() == 80
    assert list(cache.values()) == ["a", "c"]


def test_a_step_beyond_the_bound_is_kept_alone():
    cache: StepCache[str] = StepCache(100)
    cache.put(key(1.0), "a", 40)
    cache.put(key(0.5), "b", 40)
    assert cache.put(key(0.25), "c", 1000) == [key(1.0), key(0.5)]
    assert list(cache.values()) == ["c"]
    assert cache.put(key(1.0), "a", 40) == [key(0.25)]
    cache.clear()
    assert cache.nbytes() == 0


def test_new_widths_and_batches_hold_no_more_than_the_bound():
    net = network()
    one = PlanSteps(net)
    run(one, net, 0.5)
    arena = one.activation_bytes(net, key(0.5))
    most = 4 * (one.held_bytes() - arena)  # of four steps, joined weights included
    steps = PlanSteps(net, most)
    first = run(steps, net, 0.5)
    held = []
    for images in range(1, 9):
        for width in usable(net.config):
            run(steps, net, width, images)
            held.append(steps.held_bytes())
    largest = max(steps.activation_bytes(net, key(width, 8)) for width in usable(net.config))
    assert max(held) <= most + largest + (one.held_bytes() - arena)
    assert torch.equal(run(steps, net, 0.5), first)


def test_bytes_are_those_of_the_objects():
    """As Python's own count of what compiling allocated, and the calls of the plan."""
    net = network()
    steps = PlanSteps(net)
    for images in (1, 2, 3):
        run(steps, net, 0.5, images)
    before = steps.held_bytes() - steps.activation_bytes(net, key(0.5, 3))
    gc.collect()
    tracemalloc.start()
    try:
        for images in (4, 5, 6):
            steps.prepare(net, key(0.5, images))
        gc.collect()
        allocated, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    counted = steps.held_bytes() - steps.activation_bytes(net, key(0.5, 3)) - before
    assert 0.9 * allocated <= counted <= 1.6 * allocated


def test_widths_share_joined_weights():
    net = network()
    steps = PlanSteps(net)
    read = []
    for width in usable(net.config):
        run(steps, net, width)
        program = steps._step(net, key(width)).program
        joined = [
            call.fields["panels"].data_ptr()
            for call in program.calls
            if call.kind == "Conv2dForwardArgs" and call.fields["parts"] == 3
        ]
        assert joined
        read.append(joined)
    assert all(joined == read[0] for joined in read)


@pytest.mark.parametrize("count", [0, 1000, HUGE_PAGE_BYTES // 4, 5 * HUGE_PAGE_BYTES // 8 + 3])
def test_memory_on_huge_pages(count: int):
    with torch.inference_mode():
        memory = empty_on_huge_pages(count, torch.float32)
    assert memory.shape == (count,)
    assert memory.dtype == torch.float32
    assert not memory.is_inference()
    if memory.nbytes >= HUGE_PAGE_BYTES:
        assert memory.data_ptr() % HUGE_PAGE_BYTES == 0
    memory.copy_(torch.arange(count))
    assert torch.equal(memory, torch.arange(count, dtype=torch.float32))
