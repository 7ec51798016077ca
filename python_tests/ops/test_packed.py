"""Packed weights: made again exactly when the weight changed, in every way it can."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

from ddsm_ext.ops._packed import DIRECT, WINOGRAD_4X4, packed_bytes, packed_weight
from ddsm_ext.ops.conv2d import sliced_conv2d
from ddsm_ext.training.ema import Ema


def layer() -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(32, 32, 3, padding=1)


def result(conv: nn.Conv2d, x: Tensor) -> Tensor:
    with torch.no_grad():
        return sliced_conv2d(x, conv.weight, conv.bias, 32, padding=1)


def adam_step(conv: nn.Conv2d) -> None:
    optimizer = torch.optim.Adam(conv.parameters(), lr=0.1)
    conv.weight.grad = torch.ones_like(conv.weight)
    optimizer.step()


def load_state(conv: nn.Conv2d) -> None:
    conv.load_state_dict({name: t + 1 for name, t in conv.state_dict().items()})


def load_assigned(conv: nn.Conv2d) -> None:
    conv.load_state_dict({name: t + 1 for name, t in conv.state_dict().items()}, assign=True)


def ema_swap(conv: nn.Conv2d) -> None:
    ema = Ema(conv)
    for tensor in ema.tensors.values():
        tensor.add_(1)
    with ema.applied_to(conv):
        changed = copy.deepcopy(conv.state_dict())
        check_fresh(conv)
    conv.load_state_dict(changed)


@torch.no_grad()
def in_place(conv: nn.Conv2d) -> None:
    conv.weight[0, 0, 0, 0] += 1


def through_data(conv: nn.Conv2d) -> None:
    conv.weight.data.add_(1)


def new_data(conv: nn.Conv2d) -> None:
    conv.weight.data = conv.weight.data + 1


def replaced(conv: nn.Conv2d) -> None:
    conv.weight = nn.Parameter(conv.weight.detach() + 1)


WAYS: dict[str, Callable[[nn.Conv2d], None]] = {
    way.__name__: way
    for way in (
        adam_step,
        load_state,
        load_assigned,
        ema_swap,
        in_place,
        through_data,
        new_data,
        replaced,
    )
}


def check_fresh(conv: nn.Conv2d) -> None:
    """The result is that of plain torch with the present weights."""
    x = torch.randn(8, 32, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(result(conv, x), conv(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("way", sorted(WAYS))
def test_made_again_after(way):
    conv = layer()
    check_fresh(conv)
    before = packed_bytes(conv.parameters())
    assert before > 0  # else nothing would be tested
    WAYS[way](conv)
    check_fresh(conv)
    assert packed_bytes(conv.parameters()) == before


def test_made_again_for_another_dtype():
    conv = layer()
    check_fresh(conv)
    conv.to(torch.bfloat16)
    x = torch.randn(8, 32, 16, 16).to(torch.bfloat16)
    with torch.no_grad():
        expected = conv(x)
        torch.testing.assert_close(result(conv, x), expected, rtol=0.05, atol=0.05)
    conv.to(torch.float32)
    check_fresh(conv)


def test_made_again_in_training():
    """Forward and backward of a second step see the weights of the second step."""
    conv = layer()
    optimizer = torch.optim.SGD(conv.parameters(), lr=0.5)
    x = torch.randn(8, 32, 16, 16)
    for _ in range(3):
        mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
        y = sliced_conv2d(mine, conv.weight, conv.bias, 32, padding=1)
        y.square().mean().backward()
        grad = conv.weight.grad.clone()
        optimizer.zero_grad()
        conv(theirs).square().mean().backward()
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-3, atol=1e-7)
        torch.testing.assert_close(grad, conv.weight.grad, rtol=1e-3, atol=1e-6)
        optimizer.step()
        optimizer.zero_grad()


def test_kept_while_nothing_changes_and_freed_with_the_weight():
    conv = layer()
    first = packed_weight(conv.weight, WINOGRAD_4X4)
    assert packed_weight(conv.weight, WINOGRAD_4X4) is first
    assert packed_bytes(conv.parameters()) == first.numel() * 4
    with torch.no_grad():
        conv.weight.add_(1)
    content = first.clone()
    # The same memory, as a plan or another width may hold it; new content.
    assert packed_weight(conv.weight, WINOGRAD_4X4) is first
    assert not torch.equal(first, content)
    packed = weakref.ref(first)
    del conv, first
    gc.collect()
    assert packed() is None


def test_made_in_inference_mode_and_used_in_training():
    conv = layer()
    with torch.inference_mode():
        packed_weight(conv.weight, WINOGRAD_4X4)
    with torch.no_grad():
        conv.weight.mul_(2)
    check_fresh(conv)


def test_copies_have_packed_forms_of_their_own():
    conv = layer()
    check_fresh(conv)
    other = copy.deepcopy(conv)
    with torch.no_grad():
        other.weight.mul_(-3)
    check_fresh(other)
    check_fresh(conv)


def test_several_threads_at_once():
    conv = layer()
    x = torch.randn(8, 32, 16, 16)
    expected = conv(x).detach()
    with ThreadPoolExecutor(4) as pool:
        for y in pool.map(lambda _: result(conv, x), range(16)):
            torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kernel", [3, 5])
def test_panels_of_phases_are_for_one_padding(kernel: int) -> None:
    weight, x = torch.randn(8, 4, kernel, kernel), torch.randn(1, 4, 6, 6)
    panels = packed_weight(weight, DIRECT, upsample=True)

    def convolved(padding: int, panels: Tensor | None) -> Tensor:
        window = (1, padding, True)
        return torch.ops.ddsm_ext.sliced_conv2d(
            x, None, weight, None, 8, 4, *window, panels, DIRECT, False, False
        )

    torch.testing.assert_close(convolved(kernel // 2, panels), convolved(kernel // 2, None))
    with pytest.raises(RuntimeError, match="no direct panels for this geometry"):
        convolved(kernel // 2 - 1, panels)
