"""SlimmableNetwork against dense plain-torch networks: outputs, gradients, isolation, refusals."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from models.network_cases import (
    ANY_WIDTHS,
    CONFIGS,
    SMALL,
    build,
    inputs,
    outside_slice,
    usable,
)
from torch import Tensor

from ddsm_ext.graph.count import layers, parameter_count
from ddsm_ext.models.dense import DenseNetwork
from ddsm_ext.models.network import SlimmableNetwork


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_every_width_equals_its_dense_export(name: str) -> None:
    config = CONFIGS[name]
    net, (x, t) = build(config), inputs(config)
    for width in usable(config):
        dense = net.export_subnet(width)
        y = net(x, t, width)
        assert y.shape == x.shape
        assert y.std() > 1e-3
        torch.testing.assert_close(y, dense(x, t), rtol=1e-9, atol=1e-11)


def test_float32_equals_the_dense_export() -> None:
    net, (x, t) = build(SMALL, torch.float32), inputs(SMALL, torch.float32)
    for width in ANY_WIDTHS:
        torch.testing.assert_close(
            net(x, t, width), net.export_subnet(width)(x, t), rtol=1e-4, atol=1e-5
        )


def sliced_gradients(net: SlimmableNetwork, width: float) -> dict[str, Tensor]:
    """The gradients of `net` in the shape of its subnet, and zeros checked everywhere else."""
    shell = SlimmableNetwork(net.config).to(torch.float64)
    state = {n: p.grad if p.grad is not None else torch.zeros_like(p)
             for n, p in net.named_parameters()}  # fmt: skip
    shell.load_state_dict(state, strict=False)
    inside = shell.export_subnet(width).state_dict()
    for name, gradient in state.items():
        # The prefix holds everything: as many non-zeros in the slice as in the whole.
        assert inside[name].count_nonzero() == gradient.count_nonzero(), name
    return inside


@pytest.mark.parametrize("accumulate", [False, True], ids=["autograd", "accumulate_grad"])
@pytest.mark.parametrize("name", ["source", "prefix", "heads", "reference"])
def test_gradients_equal_those_of_the_dense_network(name: str, accumulate: bool) -> None:
    config = CONFIGS[name]
    x, t = inputs(config)
    for width in (1.0, 0.5):
        net = build(config)
        dense = net.export_subnet(width)
        x_net, x_dense = x.clone().requires_grad_(), x.clone().requires_grad_()
        (net(x_net, t, width, accumulate_grad=accumulate) * x).sum().backward()
        (dense(x_dense, t) * x).sum().backward()
        torch.testing.assert_close(x_net.grad, x_dense.grad, rtol=1e-8, atol=1e-10)
        ours = sliced_gradients(net, width)
        for parameter_name, parameter in dense.named_parameters():
            torch.testing.assert_close(
                ours[parameter_name], parameter.grad, rtol=1e-7, atol=1e-10, msg=parameter_name
            )


def test_accumulate_grad_adds_up_over_widths() -> None:
    """A sandwich of three widths leaves the same gradients as ordinary autograd."""
    x, t = inputs(SMALL)
    sums = []
    for accumulate in (False, True):
        net = build(SMALL)
        for width in (1.0, 0.25, 0.5):
            net(x, t, width, accumulate_grad=accumulate).square().sum().backward()
        sums.append({n: p.grad for n, p in net.named_parameters()})
    assert sums[0].keys() == sums[1].keys()
    for name, gradient in sums[0].items():
        torch.testing.assert_close(sums[1][name], gradient, rtol=1e-9, atol=1e-9, msg=name)


@pytest.mark.parametrize("name", ["source", "prefix", "heads"])
def test_nothing_outside_the_slice_is_touched(name: str) -> None:
    net, (x, t) = build(CONFIGS[name]), inputs(CONFIGS[name])
    expected = net(x, t, 0.5)
    outside = outside_slice(net, 0.5)
    assert sum(mask.sum() for mask in outside.values()) > 0.5 * parameter_count(net.config)
    with torch.no_grad():
        for parameter_name, parameter in net.named_parameters():
            parameter[outside[parameter_name]] = torch.nan
            parameter.grad = torch.where(outside[parameter_name], torch.nan, 0.0).to(x.dtype)
    y = net(x, t, 0.5, accumulate_grad=True)
    assert torch.equal(y, expected)
    y.square().sum().backward()
    for parameter_name, parameter in net.named_parameters():
        assert torch.equal(parameter.grad.isnan(), outside[parameter_name]), parameter_name


def test_source_slicing_keeps_skip_features_on_their_weights() -> None:
    """At width 0.5 the skip's weights are the full network's skip columns, not h's."""
    net = build(SMALL)
    name = "up.0.conv1"  # 32 channels of h, 32 of the skip
    assert next(x for x in layers(SMALL.graph) if x.name == name).weight_shape[1] == 64
    full = net.state_dict()[f"{name}.weight"]
    half = net.export_subnet(0.5).state_dict()[f"{name}.weight"]
    assert torch.equal(half[:, :16], full[:16, :16])
    assert torch.equal(half[:, 16:], full[:16, 32:48])


def test_continuous_time() -> None:
    net, (x, _) = build(SMALL), inputs(SMALL)
    whole = net(x, torch.tensor([5, 6, 7]), 0.5)
    torch.testing.assert_close(net(x, torch.tensor([5.0, 6.0, 7.0]), 0.5), whole)
    near = net(x, torch.tensor([5.0, 6.0, 7.0], dtype=torch.float64) + 1e-7, 0.5)
    assert 0 < (near - whole).abs().max() < 1e-4
    assert torch.equal(net(x, torch.tensor(6), 0.5)[1], whole[1])


def test_frozen_time_table_serves_its_own_steps_only() -> None:
    config = CONFIGS["reference"]
    net, (x, _) = build(config), inputs(config)
    before = net(x, torch.tensor([3.0, 3.5, 60.0]), 0.5)
    net.time_embedding.table += 1.0
    after = net(x, torch.tensor([3.0, 3.5, 60.0]), 0.5)
    assert not torch.equal(after[0], before[0])
    assert torch.equal(after[1:], before[1:])


def test_initial_output_is_almost_zero_and_reproducible() -> None:
    nets = [SlimmableNetwork(SMALL, generator=torch.Generator().manual_seed(3)) for _ in range(2)]
    x, t = inputs(SMALL, torch.float32)
    outputs = [net(x, t, 0.5) for net in nets]
    assert outputs[0].abs().max() < 1e-3
    assert torch.equal(*outputs)


def test_dropout_only_in_training() -> None:
    net = build(dataclasses.replace(SMALL, dropout=0.5))
    x, t = inputs(SMALL)
    assert not torch.equal(net(x, t, 1.0), net(x, t, 1.0))
    assert net.export_subnet(1.0).training
    net.eval()
    assert torch.equal(net(x, t, 1.0), net(x, t, 1.0))
    assert not net.export_subnet(1.0).training


def test_export_is_an_ordinary_module(tmp_path: Path) -> None:
    net, (x, t) = build(SMALL), inputs(SMALL)
    dense = net.export_subnet(0.5)
    assert {type(m).__module__.split(".")[0] for m in dense.modules()} <= {"torch", "ddsm_ext"}
    torch.save(dense.state_dict(), tmp_path / "dense.pt")
    fresh = DenseNetwork(SMALL, 0.5).to(torch.float64)
    fresh.load_state_dict(torch.load(tmp_path / "dense.pt", weights_only=True))
    assert torch.equal(fresh(x, t), dense(x, t))
    with torch.no_grad():  # its weights are a copy
        next(net.parameters()).zero_()
    assert torch.equal(fresh(x, t), dense(x, t))


def test_export_compiles_as_one_graph() -> None:
    net, (x, t) = build(SMALL, torch.float32).eval(), inputs(SMALL, torch.float32)
    dense = net.export_subnet(0.5)
    torch._dynamo.reset()
    with torch.no_grad():
        compiled = torch.compile(dense, backend="eager", fullgraph=True)(x, t)
        torch.testing.assert_close(compiled, dense(x, t))


def test_parameter_count_equals_the_built_network() -> None:
    for config in CONFIGS.values():
        state = SlimmableNetwork(config).state_dict()
        assert sum(tensor.numel() for tensor in state.values()) == parameter_count(config)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"width": 0.0}, ValueError, "width is 0; need 0 < width <= 1"),
        ({"width": "half"}, TypeError, "width is 'half'; need a number"),
        ({"x": torch.zeros(2, 1, 8, 8)}, ValueError, r"x has shape \[2, 1, 8, 8\]; need \[N, 3"),
        ({"x": torch.zeros(2, 3, 9, 8)}, ValueError, "x is 9x8 pixels; need multiples of 2"),
        ({"x": torch.zeros(2, 3, 8, 8, dtype=torch.uint8)}, TypeError, "x is torch.uint8"),
        ({"x": [1.0]}, TypeError, "x is list; need a torch.Tensor"),
        ({"t": torch.zeros(3)}, ValueError, r"t has shape \[3\], x holds 2 images"),
        ({"t": 5}, TypeError, "t is int; need a torch.Tensor"),
        ({"t": torch.zeros(2, dtype=torch.bool)}, TypeError, "t is torch.bool"),
        ({"x": torch.zeros(2, 3, 8, 8, device="meta")}, ValueError, "x is on meta, the weights"),
    ],
)
def test_bad_argument(arguments: dict[str, object], error: type[Exception], message: str) -> None:
    net = SlimmableNetwork(SMALL)
    call = {"x": torch.zeros(2, 3, 8, 8), "t": torch.zeros(2), "width": 0.5, **arguments}
    with pytest.raises(error, match=message):
        net(**call)


def test_config_must_be_a_config() -> None:
    with pytest.raises(TypeError, match="config is dict; need a NetworkConfig"):
        SlimmableNetwork({"image_size": 8})  # type: ignore[arg-type]


def test_compiles_as_two_graphs_for_eleven_widths() -> None:
    config = dataclasses.replace(SMALL, ch_mult=(1,), attn=())
    net, (x, t) = build(config, torch.float32).eval(), inputs(config, torch.float32)
    graphs = []

    def backend(graph: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    compiled = torch.compile(net, backend=backend, fullgraph=True)
    with torch.no_grad():
        # 0.2 keeps 2 of 8 slices; one slice would be a third graph (a size of 1 is special).
        for width in (1.0, 0.9, 0.8, 0.75, 0.7, 0.6, 0.5, 0.4, 0.3, 0.25, 0.2):
            torch.testing.assert_close(compiled(x, t, width), net(x, t, width))
    assert len(graphs) <= 2


@pytest.mark.parametrize("autocast", [False, True], ids=["weights", "autocast"])
def test_bfloat16_errs_no_more_than_the_dense_network(autocast: bool) -> None:
    exact_net, (x, t) = build(SMALL), inputs(SMALL)
    exact = exact_net(x, t, 0.5)
    net = build(SMALL, torch.float32 if autocast else torch.bfloat16)
    images = x.float() if autocast else x.bfloat16()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        outputs = net(images, t, 0.5), net.export_subnet(0.5)(images, t)
    ours, dense = ((y.double() - exact).norm() for y in outputs)
    assert outputs[0].dtype == torch.bfloat16
    assert ours <= 2 * dense
