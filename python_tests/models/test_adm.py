"""ADM networks: labels, learned sigma, heads and resampling blocks beside dense plain torch."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
import warnings
from typing import Any

import pytest
import torch
from models.network_cases import build, outside_slice
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ddsm_ext.graph import macs, parameter_count
from ddsm_ext.models import ADMConfig, SlimmableNetwork
from ddsm_ext.runtime.runner import StepRunner

SMALL = ADMConfig(
    image_size=8, ch=16, ch_mult=(1, 2), attn=(1,), num_res_blocks=1, dropout=0.0, groups=8,
    head_channels=8, num_classes=5,
)  # fmt: skip
PLAIN = dataclasses.replace(
    SMALL, scale_shift=False, resample_blocks=False, num_classes=None, learned_sigma=False
)
CONFIGS = {
    "adm": SMALL,
    "plain": PLAIN,
    "iddpm": dataclasses.replace(SMALL, resample_blocks=False, head_channels=None, heads=2),
    "one-head": dataclasses.replace(SMALL, head_channels=None, heads=1),
    "levels": dataclasses.replace(SMALL, ch_mult=(1, 2, 3), attn=(0, 1, 2), image_channels=1),
    "narrowing": dataclasses.replace(PLAIN, ch_mult=(3, 1), resample_blocks=True, attn=()),
    # 48 channels hold six of these heads, and no width but 1, 2/3 and 1/3 a whole number of them.
    "uneven": dataclasses.replace(SMALL, ch=24, ch_mult=(1, 2), attn=(0, 1), num_classes=None),
}
ANY_WIDTHS = (1.0, 0.9, 0.75, 0.6, 0.5, 0.375, 0.25, 0.01)


def inputs(config: ADMConfig, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)
    side = config.image_size
    x = torch.randn(3, config.image_channels, side, side, generator=generator, dtype=dtype)
    labels = {"y": torch.tensor([0, 4, 2])} if config.num_classes else {}
    return {"x": x, "t": torch.tensor([0.0, 7.25, 40.0]), **labels}


@pytest.mark.parametrize("name", CONFIGS)
def test_every_width_equals_its_dense_export(name: str) -> None:
    config = CONFIGS[name]
    net, given = build(config), inputs(config)
    channels = config.image_channels * (2 if config.learned_sigma else 1)
    for width in ANY_WIDTHS:
        y = net(width=width, **given)
        assert y.shape == (3, channels, 8, 8)
        assert y.std() > 1e-3
        torch.testing.assert_close(y, net.export_subnet(width)(**given), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CONFIGS)
def test_every_width_of_the_compiled_step(name: str, dtype: torch.dtype) -> None:
    config = CONFIGS[name]
    net, given = build(config).to(dtype).eval(), inputs(config, dtype)
    exact = copy.deepcopy(net).double()
    assert StepRunner(net).reason_against(dtype, torch.device("cpu")) is None
    for width in ANY_WIDTHS:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("error")  # running as the modules would warn
            expected = exact(width=width, **{**given, "x": given["x"].double()})
            y = net(width=width, **given)
        tolerance = 2e-5 if dtype == torch.float32 else 0.03
        assert y.dtype == dtype
        assert (y - expected).abs().max() <= tolerance * expected.abs().max()


def sandwich(config: ADMConfig, accumulate: bool) -> tuple[dict[str, Tensor], Tensor]:
    """Gradients of three widths together."""
    net, given = build(config), inputs(config)
    given["x"].requires_grad_()
    for width in (1.0, 0.25, 0.5):
        net(width=width, accumulate_grad=accumulate, **given).square().sum().backward()
    gradients = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    assert given["x"].grad is not None
    return gradients, given["x"].grad


@pytest.mark.parametrize("name", CONFIGS)
def test_accumulate_grad_equals_autograd(name: str) -> None:
    (ours, x), (expected, x_expected) = (sandwich(CONFIGS[name], a) for a in (True, False))
    assert ours.keys() == expected.keys() == dict(build(CONFIGS[name]).named_parameters()).keys()
    torch.testing.assert_close(x, x_expected, rtol=1e-9, atol=1e-9)
    for parameter, gradient in expected.items():
        torch.testing.assert_close(ours[parameter], gradient, rtol=1e-8, atol=1e-8, msg=parameter)


@pytest.mark.parametrize("name", CONFIGS)
def test_gradients_equal_those_of_the_dense_network(name: str) -> None:
    config = CONFIGS[name]
    for width in (1.0, 0.6):
        net, given = build(config), inputs(config)
        dense = net.export_subnet(width)
        net(width=width, **given).square().mean().backward()
        dense(**given).square().mean().backward()
        shell = SlimmableNetwork(config).double()
        shell.load_state_dict({n: p.grad for n, p in net.named_parameters()})
        inside = shell.export_subnet(width).state_dict()
        for parameter, expected in dense.named_parameters():
            # A zero outside the slice: as many non-zeros in the slice as in the whole.
            whole = net.get_parameter(parameter).grad
            assert inside[parameter].count_nonzero() == whole.count_nonzero(), parameter
            torch.testing.assert_close(
                inside[parameter], expected.grad, rtol=1e-7, atol=1e-10, msg=parameter
            )


@pytest.mark.parametrize("name", CONFIGS)
def test_nothing_outside_the_slice_is_touched(name: str) -> None:
    net, given = build(CONFIGS[name]), inputs(CONFIGS[name])
    expected = net(width=0.5, **given)
    outside = outside_slice(net, 0.5)
    assert sum(mask.sum() for mask in outside.values()) > 0.5 * parameter_count(net.config)
    with torch.no_grad():
        for parameter, value in net.named_parameters():
            value[outside[parameter]] = torch.nan
            value.grad = torch.where(outside[parameter], torch.nan, 0.0).double()
    y = net(width=0.5, accumulate_grad=True, **given)
    assert torch.equal(y, expected)
    y.square().sum().backward()
    for parameter, value in net.named_parameters():
        assert torch.equal(value.grad.isnan(), outside[parameter]), parameter


@pytest.mark.parametrize("name", CONFIGS)
def test_counts_equal_the_dense_network(name: str) -> None:
    """torch counts the products that run."""
    config = CONFIGS[name]
    net, given = build(config), inputs(config)
    images = len(given["x"])
    assert sum(p.numel() for p in net.parameters()) == parameter_count(config)
    for width in (1.0, 0.75, 0.3):
        dense = net.export_subnet(width)
        assert sum(p.numel() for p in dense.parameters()) == parameter_count(config, width)
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            dense(**given)
        assert counter.get_total_flops() == 2 * images * macs(config, width)


def test_heads_of_fixed_size_are_kept_whole() -> None:
    def inner(name: str, width: float) -> int:
        state = build(CONFIGS[name]).export_subnet(width).state_dict()
        assert state["middle.0.attention.out.weight"].shape[1] == len(
            state["middle.0.attention.q.weight"]
        )
        return len(state["middle.0.attention.q.weight"])

    # 8 channels a head: of 48 channels 36 are four heads and a half: five; at least one stays.
    assert [inner("uneven", w) for w in (1.0, 0.75, 0.5, 0.01)] == [48, 40, 24, 8]
    # Two heads of 16 channels: one and a half become two.
    assert [inner("iddpm", w) for w in (1.0, 0.75, 0.5, 0.25)] == [32, 32, 16, 16]
    # One head over all channels shrinks with them.
    assert [inner("one-head", w) for w in (1.0, 0.75, 0.5, 0.25)] == [32, 24, 16, 8]


def test_learned_sigma_doubles_the_outputs() -> None:
    for learned, channels in ((True, 6), (False, 3)):
        config = dataclasses.replace(SMALL, learned_sigma=learned)
        assert build(config)(width=0.5, **inputs(config)).shape == (3, channels, 8, 8)


def test_labels_matter_and_only_to_their_own_image() -> None:
    net, given = build(SMALL), inputs(SMALL)
    before = net(width=0.5, **given)
    after = net(width=0.5, **{**given, "y": torch.tensor([0, 1, 2])})
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
    net, given = build(SMALL, torch.float32).eval(), inputs(SMALL, torch.float32)
    with torch.set_grad_enabled(not compiled), pytest.raises(error, match=message) as caught:
        net(width=0.5, **{**given, "y": y})
    assert "\n" not in str(caught.value)
    if compiled:  # and goes on
        with torch.no_grad():
            assert net(width=0.5, **given).isfinite().all()


def test_labels_of_an_unconditional_network() -> None:
    net, given = build(PLAIN), inputs(PLAIN)
    labels = torch.zeros(3, dtype=torch.int64)
    message = "got labels y, the network is unconditional; need none"
    with pytest.raises(ValueError, match=message):
        net(width=0.5, y=labels, **given)
    with pytest.raises(ValueError, match=message):
        net.export_subnet(0.5)(y=labels, **given)
    with pytest.raises(ValueError, match=message):
        StepRunner(net.float())(given["x"].float(), given["t"], 0.5, labels)


def test_dropout_only_in_training() -> None:
    config = dataclasses.replace(SMALL, dropout=0.5)
    net, given = build(config), inputs(config)
    assert not torch.equal(net(width=1.0, **given), net(width=1.0, **given))
    net.eval()
    assert torch.equal(net(width=1.0, **given), net(width=1.0, **given))


def test_initial_output_is_zero() -> None:
    """The last layers of branches, of attention and of the network start at zero."""
    net = SlimmableNetwork(SMALL, generator=torch.Generator().manual_seed(3))
    y = net(width=0.5, **inputs(SMALL, torch.float32))
    assert y.abs().max() == 0
    zero = {name for name, p in net.named_parameters() if name.endswith("weight") and not p.any()}
    ends = (".conv2.weight", ".attention.out.weight", "tail.conv.weight")
    assert zero == {name for name in dict(net.named_parameters()) if name.endswith(ends)}


def test_training_with_labels_lowers_the_loss() -> None:
    """What one image becomes by its label is learned at both widths of a sandwich."""
    generator = torch.Generator().manual_seed(4)
    net = SlimmableNetwork(SMALL, generator=generator)
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


def test_copies_are_independent() -> None:
    net, given = build(SMALL, torch.float32).eval(), inputs(SMALL, torch.float32)
    with torch.no_grad():
        expected = net(width=0.5, **given)  # by a compiled step
        for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
            assert torch.equal(other(width=0.5, **given), expected)
            next(other.parameters()).zero_()
            assert not torch.equal(other(width=0.5, **given), expected)
        assert torch.equal(net(width=0.5, **given), expected)


def test_compiles_as_few_graphs_for_eleven_widths() -> None:
    config = dataclasses.replace(SMALL, attn=())  # the middle has attention
    net, given = build(config, torch.float32).eval(), inputs(config, torch.float32)
    graphs = []

    def backend(graph: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    compiled = torch.compile(net, backend=backend, fullgraph=True)
    with torch.no_grad():
        for width in (1.0, 0.9, 0.8, 0.75, 0.7, 0.6, 0.5, 0.4, 0.35, 0.3, 0.25):
            torch.testing.assert_close(
                compiled(width=width, **given), net(width=width, **given), rtol=1e-4, atol=1e-5
            )
    assert len(graphs) <= 3


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
        dataclasses.replace(SMALL, **changes)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", CONFIGS)
def test_configs_survive_json(name: str) -> None:
    config = CONFIGS[name]
    assert ADMConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with pytest.raises(ValueError, match="unknown key 'num_class'; did you mean num_classes"):
        ADMConfig.from_dict({**config.to_dict(), "num_class": 3})
