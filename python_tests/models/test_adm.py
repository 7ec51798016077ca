"""What ADM networks alone have: labels, learned sigma, heads of fixed size, zeros at first."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from models.family_cases import ADM, ADM_PLAIN, ADMS, inputs
from models.network_cases import build
from torch.nn import functional as F

from ddsm_ext.models import ADMConfig, SlimmableNetwork
from ddsm_ext.runtime.runner import StepRunner


def test_heads_of_fixed_size_are_kept_whole() -> None:
    def inner(name: str, width: float) -> int:
        state = build(ADMS[name]).export_subnet(width).state_dict()
        assert state["middle.0.attention.out.weight"].shape[1] == len(
            state["middle.0.attention.q.weight"]
        )
        return len(state["middle.0.attention.q.weight"])

    # 8 channels a head: of 48 channels 36 are four heads and a half: five; at least one stays.
    assert [inner("adm-uneven", w) for w in (1.0, 0.75, 0.5, 0.01)] == [48, 40, 24, 8]
    # Two heads of 16 channels: one and a half become two.
    assert [inner("adm-iddpm", w) for w in (1.0, 0.75, 0.5, 0.25)] == [32, 32, 16, 16]
    # One head over all channels shrinks with them.
    assert [inner("adm-one-head", w) for w in (1.0, 0.75, 0.5, 0.25)] == [32, 24, 16, 8]


def test_learned_sigma_doubles_the_outputs() -> None:
    for learned, channels in ((True, 6), (False, 3)):
        config = dataclasses.replace(ADM, learned_sigma=learned)
        assert build(config)(width=0.5, **inputs(config)).shape == (3, channels, 8, 8)


def test_labels_matter_and_only_to_their_own_image() -> None:
    net, given = build(ADM), inputs(ADM)
    before = net(width=0.5, **given)
    given["y"][1] = 1
    after = net(width=0.5, **given)
    assert torch.equal(after[[0, 2]], before[[0, 2]])
    assert (after[1] - before[1]).abs().max() > 1e-3


BAD_LABELS: list[tuple[Any, type[Exception], str]] = [
    (None, ValueError, "got no labels, the network is class-conditional; need y"),
    ([1, 2, 3], TypeError, "y is list; need a torch.Tensor"),
    (torch.zeros(3), ValueError, r"y is torch.float32 of shape \[3\], .*; need one int64 label"),
    (torch.zeros(3, dtype=torch.int32), ValueError, "y is torch.int32"),
    (torch.zeros(2, dtype=torch.int64), ValueError, r"of shape \[2\], x holds 3 images"),
    (torch.zeros(3, 1, dtype=torch.int64), ValueError, r"of shape \[3, 1\]"),
    (torch.tensor([0, 5, 1]), ValueError, "y holds 5, .* need 0 <= y < 5"),
    (torch.tensor([0, -1, 1]), ValueError, "y holds -1"),
    (torch.zeros(3, dtype=torch.int64, device="meta"), ValueError, "y is on meta"),
]


@pytest.mark.parametrize("compiled", [False, True], ids=["modules", "compiled"])
@pytest.mark.parametrize(("y", "error", "message"), BAD_LABELS)
def test_bad_labels(y: Any, error: type[Exception], message: str, compiled: bool) -> None:
    net, given = build(ADM, torch.float32).eval(), inputs(ADM, torch.float32)
    with torch.set_grad_enabled(not compiled), pytest.raises(error, match=message) as caught:
        net(width=0.5, **{**given, "y": y})
    assert "\n" not in str(caught.value)
    if compiled:  # and goes on
        with torch.no_grad():
            assert net(width=0.5, **given).isfinite().all()


def test_labels_of_an_unconditional_network() -> None:
    net, given = build(ADM_PLAIN), inputs(ADM_PLAIN)
    labels = torch.zeros(3, dtype=torch.int64)
    message = "got labels y, the network is unconditional; need none"
    with pytest.raises(ValueError, match=message):
        net(width=0.5, y=labels, **given)
    with pytest.raises(ValueError, match=message):
        net.export_subnet(0.5)(y=labels, **given)
    with pytest.raises(ValueError, match=message):
        StepRunner(net.float())(given["x"].float(), given["t"], 0.5, labels)


def test_which_layers_start_at_zero() -> None:
    """The last of every branch, of attention and of the network, and so does the output."""
    net = SlimmableNetwork(ADM, generator=torch.Generator().manual_seed(3))
    assert net(width=0.5, **inputs(ADM, torch.float32)).abs().max() == 0
    zero = {name for name, p in net.named_parameters() if name.endswith("weight") and not p.any()}
    ends = (".conv2.weight", ".attention.out.weight", "tail.conv.weight")
    assert zero == {name for name in dict(net.named_parameters()) if name.endswith(ends)}


def test_training_with_labels_lowers_the_loss() -> None:
    """What one image becomes by its label is learned at both widths of a sandwich."""
    generator = torch.Generator().manual_seed(4)
    net = SlimmableNetwork(ADM, generator=generator)
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    y = torch.arange(5)
    x = torch.randn(1, 3, 8, 8, generator=generator).expand(5, 3, 8, 8)
    t = torch.full((5,), 3)
    target = torch.linspace(-1, 1, 5).view(5, 1, 1, 1).expand(5, 6, 8, 8)
    losses: dict[float, list[float]] = {1.0: [], 0.25: []}
    for _ in range(40):
        optimizer.zero_grad()
        for width, history in losses.items():
            loss = F.mse_loss(net(x, t, width, y, accumulate_grad=True), target)
            loss.backward()
            history.append(loss.item())
        optimizer.step()
    for history in losses.values():
        assert history[0] == pytest.approx(0.5)  # the mean square of the targets: outputs are zero
        assert history[-1] < 0.1


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"image_size": 9}, ValueError, "image_size is 9; need a multiple of 2 for 2 levels"),
        ({"ch": 15}, ValueError, "ch is 15; need an even number"),
        ({"ch": "16"}, TypeError, "ch is '16'; need an int >= 1"),
        ({"ch": 20}, ValueError, "groups is 8; need a divisor of the 20 channels of"),
        ({"ch": 2, "ch_mult": (8, 8), "groups": 16}, ValueError,
         "groups is 16; need a divisor of 8, the channels of the time embedding"),
        ({"ch_mult": ()}, ValueError, "ch_mult is (); need one multiple a level"),
        ({"ch_mult": (1, 0.5)}, TypeError, "need integers >= 1"),
        ({"attn": (2,)}, ValueError, "need levels from 0 to 1, as many as ch_mult has"),
        ({"heads": 2}, ValueError, "heads is 2, head_channels is 8; need one of them"),
        ({"head_channels": None}, ValueError, "heads is None, head_channels is None; need one"),
        ({"head_channels": 12}, ValueError, "head_channels is 12; need a divisor of the 32"),
        ({"head_channels": None, "heads": 3}, ValueError, "need a divisor of 32 channels"),
        ({"num_classes": 0}, ValueError, "num_classes is 0; need None or an int >= 1"),
        ({"num_classes": True}, TypeError, "num_classes is True; need None or an int >= 1"),
        ({"dropout": 1.0}, ValueError, "dropout is 1.0; need 0 <= dropout < 1"),
        ({"scale_shift": 1}, TypeError, "scale_shift is 1; need True or False"),
        ({"learned_sigma": None}, TypeError, "learned_sigma is None; need True or False"),
        ({"widths": (1.0, 1)}, ValueError, "need each width once"),
        ({"widths": (2,)}, ValueError, "width is 2; need 0 < width <= 1"),
    ],
)  # fmt: skip
def test_bad_field(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        dataclasses.replace(ADM, **changes)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_field() -> None:
    with pytest.raises(ValueError, match="unknown key 'num_class'; did you mean num_classes"):
        ADMConfig.from_dict({**ADM.to_dict(), "num_class": 3})
