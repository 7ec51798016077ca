"""SlimmableNetwork: its inputs, its exports, its refusals, in float32, bfloat16 and compiled."""

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
)

from ddsm_ext.graph.count import layers
from ddsm_ext.models.dense import DenseNetwork
from ddsm_ext.models.network import SlimmableNetwork


def test_float32_equals_the_dense_export() -> None:
    net, (x, t) = build(SMALL, torch.float32), inputs(SMALL, torch.float32)
    for width in ANY_WIDTHS:
        torch.testing.assert_close(
            net(x, t, width), net.export_subnet(width)(x, t), rtol=1e-4, atol=1e-5
        )


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
