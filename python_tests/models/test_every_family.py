"""What networks of every family hold: every width beside dense plain torch, and beside autograd."""

from __future__ import annotations

import copy
import json
import pickle
import warnings

import pytest
import torch
from models.family_cases import CONFIGS, FAMILIES, augmented, inputs, widths_of
from models.network_cases import build, outside_slice
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ddsm_ext.graph import NetworkConfig, macs, parameter_count
from ddsm_ext.graph.count import layers
from ddsm_ext.models import SlimmableNetwork, UNetConfig
from ddsm_ext.models.dense import DenseNetwork
from ddsm_ext.runtime.runner import StepRunner

EVERY = pytest.mark.parametrize("name", CONFIGS)
OF_EACH_FAMILY = pytest.mark.parametrize("name", FAMILIES)


@EVERY
def test_every_width_equals_its_dense_export(name: str) -> None:
    config = CONFIGS[name]
    net = build(config)
    channels = config.image_channels * (2 if config.predicts_variance else 1)
    for given in (inputs(config), augmented(config)):
        for width in widths_of(config):
            y = net(width=width, **given)
            assert y.shape == (3, channels, 8, 8)
            assert y.std() > 1e-3
            dense = net.export_subnet(width)(**given)
            torch.testing.assert_close(y, dense, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@EVERY
def test_every_width_of_the_compiled_step(name: str, dtype: torch.dtype) -> None:
    config = CONFIGS[name]
    net, given = build(config).to(dtype).eval(), inputs(config, dtype)
    exact = copy.deepcopy(net).double()
    assert StepRunner(net).reason_against(dtype, torch.device("cpu")) is None
    tolerance = 2e-5 if dtype == torch.float32 else 0.03
    # All rows alike, too, as a sampler calls it.
    for t in (given["t"], given["t"][0]):
        for width in widths_of(config):
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("error")  # running as the modules would warn
                expected = exact(width=width, **{**given, "t": t, "x": given["x"].double()})
                y = net(width=width, **{**given, "t": t})
            assert y.dtype == dtype
            assert (y - expected).abs().max() <= tolerance * expected.abs().max()


def sliced_gradients(net: SlimmableNetwork, width: float) -> dict[str, Tensor]:
    """The gradients of `net` in the shape of its subnet, and zeros checked everywhere else."""
    shell = SlimmableNetwork(net.config).double()
    state = {n: p.grad if p.grad is not None else torch.zeros_like(p)
             for n, p in net.named_parameters()}  # fmt: skip
    shell.load_state_dict(state, strict=False)
    inside = shell.export_subnet(width).state_dict()
    for name, gradient in state.items():
        # As many non-zeros in the slice as in the whole.
        assert inside[name].count_nonzero() == gradient.count_nonzero(), name
    return inside


@pytest.mark.parametrize("accumulate", [False, True], ids=["autograd", "accumulate_grad"])
@EVERY
def test_gradients_equal_those_of_the_dense_network(name: str, accumulate: bool) -> None:
    config = CONFIGS[name]
    given = augmented(config)
    x = given.pop("x")
    for width in (1.0, 0.5 if widths_of(config) == config.widths else 0.6):
        net = build(config)
        dense = net.export_subnet(width)
        ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
        net(ours, width=width, accumulate_grad=accumulate, **given).square().sum().backward()
        dense(theirs, **given).square().sum().backward()
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-10)
        gradients = sliced_gradients(net, width)
        idle = idle_parameters(config)
        for parameter, value in dense.named_parameters():
            assert (value.grad is None) == (parameter in idle)
            expected = torch.zeros_like(value) if value.grad is None else value.grad
            torch.testing.assert_close(
                gradients[parameter], expected, rtol=1e-7, atol=1e-10, msg=parameter
            )


def idle_parameters(config: NetworkConfig) -> set[str]:
    """Those that a checkpoint has and no computation."""
    idle = [layer for layer in layers(config.graph) if layer.node.idle]
    return {f"{layer.name}.{suffix}" for layer in idle for suffix in layer.suffixes}


def sandwich(config: NetworkConfig, accumulate: bool) -> dict[str, Tensor]:
    """Gradients of three widths together."""
    net, given = build(config), augmented(config)
    for width in (1.0, widths_of(config)[-1], 0.5):
        net(width=width, accumulate_grad=accumulate, **given).square().sum().backward()
    return {name: p.grad for name, p in net.named_parameters() if p.grad is not None}


@EVERY
def test_accumulate_grad_adds_up_over_widths(name: str) -> None:
    ours, expected = (sandwich(CONFIGS[name], accumulate) for accumulate in (True, False))
    idle = idle_parameters(CONFIGS[name])
    assert ours.keys() == expected.keys()
    assert expected.keys() | idle == dict(build(CONFIGS[name]).named_parameters()).keys()
    assert not expected.keys() & idle
    for parameter, gradient in expected.items():
        torch.testing.assert_close(ours[parameter], gradient, rtol=1e-9, atol=1e-9, msg=parameter)


@EVERY
def test_nothing_outside_the_slice_is_touched(name: str) -> None:
    net, given = build(CONFIGS[name]), augmented(CONFIGS[name])
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


def stored(net: SlimmableNetwork | DenseNetwork) -> int:
    """The parameters and a U-Net's frozen time table; frequencies drawn at random are neither."""
    table = net.buffers() if isinstance(net.config, UNetConfig) else ()
    return sum(tensor.numel() for tensor in (*net.parameters(), *table))


@EVERY
def test_counts_equal_the_dense_network(name: str) -> None:
    """torch counts the products that run, the filters' too, which are counted aside here."""
    config = CONFIGS[name]
    net, given = build(config), augmented(config)
    assert stored(net) == parameter_count(config)
    for width in widths_of(config):
        dense, counts = net.export_subnet(width), config.counts(width)
        assert stored(dense) == parameter_count(config, width)
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            dense(**given)
        filters = 0
        for node in config.graph.nodes:
            if node.resample and node.taps == 4:
                # torch counts 16 products a pixel of the smaller image.
                side = node.size or 0
                c = sum(counts[source.index] for source in node.reads)
                filters += 16 * c * (side // 2 if node.resample == "up" else side) ** 2
        assert counter.get_total_flops() == 2 * 3 * (macs(config, width) + filters)


@EVERY
def test_configs_survive_json(name: str) -> None:
    config = CONFIGS[name]
    assert type(config).from_dict(json.loads(json.dumps(config.to_dict()))) == config


@OF_EACH_FAMILY
def test_copies_are_independent(name: str) -> None:
    config = CONFIGS[name]
    net, given = build(config, torch.float32).eval(), inputs(config, torch.float32)
    with torch.no_grad():
        expected = net(width=0.5, **given)  # by a compiled step
        for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
            assert torch.equal(other(width=0.5, **given), expected)
            next(other.parameters()).zero_()
            assert not torch.equal(other(width=0.5, **given), expected)
        assert torch.equal(net(width=0.5, **given), expected)


@OF_EACH_FAMILY
def test_dropout_only_in_training(name: str) -> None:
    config = CONFIGS[name]
    changed = type(config).from_dict({**config.to_dict(), "dropout": 0.5})
    net, given = build(changed), inputs(changed)
    assert not torch.equal(net(width=1.0, **given), net(width=1.0, **given))
    assert net.export_subnet(1.0).training
    net.eval()
    assert torch.equal(net(width=1.0, **given), net(width=1.0, **given))
    assert not net.export_subnet(1.0).training


@OF_EACH_FAMILY
def test_initial_output_is_almost_zero_and_reproducible(name: str) -> None:
    """The last layers of branches and of the network start there."""
    config = CONFIGS[name]
    given = inputs(config, torch.float32)
    first, second = (
        SlimmableNetwork(config, generator=torch.Generator().manual_seed(3))(width=0.5, **given)
        for _ in range(2)
    )
    assert first.abs().max() < 1e-4
    assert torch.equal(first, second)


@OF_EACH_FAMILY
def test_a_few_graphs_serve_all_widths(name: str) -> None:
    """One for every width; a size of 1, such as one slice or head, may take one more."""
    config = CONFIGS[name]
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
