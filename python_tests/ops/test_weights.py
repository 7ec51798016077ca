"""What notices a change of weights, and what must be told of one."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import ddsm_ext
from ddsm_ext.ops import sliced_conv2d, weights_changed
from ddsm_ext.ops._weights import WatchedPlaces, WatchedWeights, content_stamp


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(32, 32, 3, padding=1), nn.Linear(100, 7), nn.GroupNorm(4, 32))


def hidden_edit(weight: Tensor) -> None:
    """An edit through `.data` that spares the sampled values: the last one is never sampled."""
    weight.data.view(-1)[-1] += 1


@torch.no_grad()
def in_place(net: nn.Module) -> None:
    net[1].bias.view(-1)[-1] += 1


def through_data(net: nn.Module) -> None:
    net[0].weight.data.mul_(2)


def replaced(net: nn.Module) -> None:
    net[2].weight = nn.Parameter(net[2].weight.detach().clone())


def moved(net: nn.Module) -> None:
    net[1].weight.data = net[1].weight.data.clone()


def loaded(net: nn.Module) -> None:
    net.load_state_dict(copy.deepcopy(net.state_dict()))


def told_of_the_network(net: nn.Module) -> None:
    hidden_edit(net[0].weight)
    weights_changed(net)


def told_of_one(net: nn.Module) -> None:
    hidden_edit(net[1].weight)
    ddsm_ext.weights_changed(net[1].weight)


NOTICED = (in_place, through_data, replaced, moved, loaded, told_of_the_network, told_of_one)


@pytest.mark.parametrize("change", NOTICED, ids=lambda change: change.__name__)
def test_a_network_is_noticed_once(change: Callable[[nn.Module], None]) -> None:
    net = network()
    watched = WatchedWeights(net)
    assert watched.changed()
    assert not watched.changed()
    change(net)
    assert watched.changed()
    assert not watched.changed()


def test_places_change_by_moves_alone() -> None:
    for change, moves in ((in_place, False), (told_of_the_network, False), (moved, True)):
        net = network()
        places = WatchedPlaces(net)
        change(net)
        assert places.changed() == moves


def test_packed_weights_follow_what_is_told() -> None:
    conv = network()[0]
    x = torch.randn(8, 32, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        before = sliced_conv2d(x, conv.weight, conv.bias, 32, padding=1, algo="winograd_4x4")
        hidden_edit(conv.weight)
        stamp = content_stamp(conv.weight)
        weights_changed(conv)
        assert content_stamp(conv.weight) != stamp
        after = sliced_conv2d(x, conv.weight, conv.bias, 32, padding=1, algo="winograd_4x4")
        torch.testing.assert_close(after, conv(x), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(before, after)


def test_tensors_of_inference_mode() -> None:
    with torch.inference_mode():
        net = network()
        watched = WatchedWeights(net)
        assert watched.changed()
        assert not watched.changed()
        stamps = [content_stamp(p) for p in net.parameters()]
        hidden_edit(net[0].weight)
        weights_changed(net)
        assert watched.changed()
        assert not watched.changed()
        assert all(content_stamp(p) != s for p, s in zip(net.parameters(), stamps, strict=True))


def test_a_backward_that_is_yet_to_come_is_refused() -> None:
    linear = nn.Linear(4, 4)
    y = linear(torch.ones(2, 4, requires_grad=True)).sum()
    weights_changed(linear)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def test_other_things_are_refused() -> None:
    with pytest.raises(TypeError, match=r"^weights_changed: got list, need a torch\.nn\.Module or"):
        weights_changed([torch.ones(1)])  # type: ignore[arg-type]
