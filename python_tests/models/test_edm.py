"""EDM's U-Nets: labels, augmentation, filters and frequencies beside dense plain torch."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import pickle
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from models.network_cases import build, outside_slice
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ddsm_ext.graph import macs, parameter_count
from ddsm_ext.models import DhariwalUNetConfig, SlimmableNetwork, SongUNetConfig
from ddsm_ext.runtime.runner import StepRunner

SONG = SongUNetConfig(
    image_size=8, ch=16, ch_mult=(1, 2), attn=(1,), num_res_blocks=1, dropout=0.0, groups=4
)
DHARIWAL = DhariwalUNetConfig(
    image_size=8, ch=16, ch_mult=(1, 2), attn=(1,), num_res_blocks=1, dropout=0.0, groups=4,
    head_channels=8, num_classes=5,
)  # fmt: skip
NCSN = dataclasses.replace(SONG, time_mult=2, fourier=True, aux_residual=True, taps=4)
Config = SongUNetConfig | DhariwalUNetConfig
CONFIGS: dict[str, Config] = {
    "ddpm++": SONG,
    "labels": dataclasses.replace(SONG, num_classes=5),
    "untold": dataclasses.replace(SONG, augment_channels=None, taps=4),
    "heads": dataclasses.replace(SONG, head_channels=8, attn=(0, 1)),
    "ncsn++": dataclasses.replace(NCSN, num_classes=5),
    "levels": dataclasses.replace(NCSN, ch_mult=(2, 1, 2), num_res_blocks=2, image_channels=1),
    "adm": DHARIWAL,
    "adm-told": dataclasses.replace(DHARIWAL, num_classes=None, augment_channels=9),
}
ANY_WIDTHS = (1.0, 0.9, 0.75, 0.6, 0.5, 0.375, 0.25, 0.01)


def inputs(config: Config, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Noise levels of both signs; the last label means no class."""
    generator = torch.Generator().manual_seed(2)
    side = config.image_size
    x = torch.randn(3, config.image_channels, side, side, generator=generator, dtype=dtype)
    labels = {"y": torch.tensor([0, 4, 5])} if config.num_classes else {}
    return {"x": x, "t": torch.tensor([-1.7, 0.25, 1.1]), **labels}


def augmented(config: Config, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    if config.augment_channels is None:
        return inputs(config, dtype)
    generator = torch.Generator().manual_seed(3)
    labels = torch.randn(3, config.augment_channels, generator=generator, dtype=dtype)
    return {**inputs(config, dtype), "augment": labels}


@pytest.mark.parametrize("name", CONFIGS)
def test_every_width_equals_its_dense_export(name: str) -> None:
    config = CONFIGS[name]
    net = build(config)
    for given in (inputs(config), augmented(config)):
        for width in ANY_WIDTHS:
            y = net(width=width, **given)
            assert y.shape == (3, config.image_channels, 8, 8)
            assert y.std() > 1e-3
            dense = net.export_subnet(width)(**given)
            torch.testing.assert_close(y, dense, rtol=1e-9, atol=1e-11)


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
            # All rows alike, as a sampler calls it.
            one = net(width=width, **{**given, "t": given["t"][0]})
            first = exact(width=width, **{**given, "x": given["x"].double(), "t": given["t"][0]})
        tolerance = 2e-5 if dtype == torch.float32 else 0.04
        assert y.dtype == dtype
        assert (y - expected).abs().max() <= tolerance * expected.abs().max()
        assert (one - first).abs().max() <= tolerance * first.abs().max()


def sandwich(config: Config, accumulate: bool) -> tuple[dict[str, Tensor], Tensor]:
    """Gradients of three widths together."""
    net, given = build(config), augmented(config)
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
        net, given = build(config), augmented(config)
        dense = net.export_subnet(width)
        net(width=width, **given).square().mean().backward()
        dense(**given).square().mean().backward()
        shell = SlimmableNetwork(config).double()
        shell.load_state_dict({n: p.grad for n, p in net.named_parameters()}, strict=False)
        inside = shell.export_subnet(width).state_dict()
        for parameter, expected in dense.named_parameters():
            torch.testing.assert_close(
                inside[parameter], expected.grad, rtol=1e-7, atol=1e-10, msg=parameter
            )


@pytest.mark.parametrize("name", CONFIGS)
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


@pytest.mark.parametrize("name", [name for name in CONFIGS if CONFIGS[name].num_classes is None])
def test_counts_equal_the_dense_network(name: str) -> None:
    """torch counts the products that run, the filters' too, which are counted aside here."""
    config = CONFIGS[name]
    net, given = build(config), augmented(config)
    assert sum(p.numel() for p in net.parameters()) == parameter_count(config)
    for width in (1.0, 0.75, 0.25):
        dense, counts = net.export_subnet(width), config.counts(width)
        assert sum(p.numel() for p in dense.parameters()) == parameter_count(config, width)
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


def test_what_a_block_computes() -> None:
    """(conv2(silu(norm2(conv1(silu(norm1(x))) + time))) + x) / sqrt(2), by torch alone."""
    net = build(SONG)
    block, found = net.get_submodule("down.0"), {}
    block.register_forward_hook(lambda _, args, y: found.update(args=args, y=y))
    net(width=1.0, **inputs(SONG))
    (x, time), y = found["args"], found["y"]
    p = dict(block.named_parameters())

    def norm(name: str, v: Tensor) -> Tensor:
        return F.silu(F.group_norm(v, 4, p[f"{name}.weight"], p[f"{name}.bias"], 1e-6))

    def conv(name: str, v: Tensor) -> Tensor:
        return F.conv2d(v, p[f"{name}.weight"], p[f"{name}.bias"], padding=1)

    shift = F.linear(time, p["time.weight"], p["time.bias"])[:, :, None, None]
    h = conv("conv2", norm("norm2", conv("conv1", norm("norm1", x)) + shift))
    torch.testing.assert_close(y, (h + x) / math.sqrt(2), rtol=1e-10, atol=1e-12)


def test_norms_have_at_least_four_channels_a_group() -> None:
    for config, channels in ((SONG, 16), (SongUNetConfig(image_size=32), 128)):
        groups = {node.out.c_max: node.groups for node in config.graph.nodes if node.op == "norm"}
        assert groups[channels] == channels // 4
        assert all(count == min(32, c // 4) for c, count in groups.items())


def test_a_width_keeps_whole_groups_of_every_norm() -> None:
    config = SongUNetConfig(
        image_size=8, ch=64, ch_mult=(1, 2), attn=(), num_res_blocks=1, groups=16
    )
    for width in (1.0, 0.3, 0.0625):
        dense = SlimmableNetwork(config).export_subnet(width)
        k = max(1, round(16 * width))
        for node in config.graph.nodes:
            if node.op == "norm":
                layer = dense.get_submodule(node.name)
                assert layer.num_groups == node.groups * k // 16
                assert layer.num_channels // layer.num_groups == node.out.c_max // node.groups


def test_attention_on_the_way_up_is_in_the_last_block_of_a_level() -> None:
    config = dataclasses.replace(SONG, attn=(0, 1), num_res_blocks=2)
    attended = {n.name.removesuffix(".attention.products") for n in config.graph.nodes
                if n.op == "attention"}  # fmt: skip
    assert attended == {"down.0", "down.1", "down.3", "down.4", "middle.0", "up.2", "up.6"}
    config = dataclasses.replace(DHARIWAL, attn=(0, 1), num_res_blocks=2)
    assert sum(node.op == "attention" for node in config.graph.nodes) == 4 + 1 + 6


@pytest.mark.parametrize("name", ["ddpm++", "adm-told"])
def test_augmentation_is_told_or_not(name: str) -> None:
    """Zeros are as good as nothing, the map having no bias; each row is of its image alone."""
    config = CONFIGS[name]
    net, given = build(config), augmented(config)
    told = net(width=0.5, **given)
    assert (told - net(width=0.5, **inputs(config))).abs().max() > 1e-3
    given["augment"] = torch.zeros_like(given["augment"])
    torch.testing.assert_close(net(width=0.5, **given), net(width=0.5, **inputs(config)))
    given["augment"][1] = 1
    changed = net(width=0.5, **given) - net(width=0.5, **inputs(config))
    assert [bool(row.abs().max() > 1e-6) for row in changed] == [False, True, False]


def test_with_augmentation_the_modules_run() -> None:
    net, given = build(SONG, torch.float32).eval(), augmented(SONG, torch.float32)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        y = net(width=0.5, **given)
        augment = given.pop("augment")
        assert torch.equal(y, net.run_modules(width=0.5, augment=augment, **given))
        # In the dtype of the weights, whatever theirs is.
        assert torch.equal(y, net(width=0.5, augment=augment.double(), **given))


BAD_AUGMENT: list[tuple[Any, type[Exception], str]] = [
    (torch.zeros(3, 8), ValueError, r"augment is torch.float32 of shape \[3, 8\]; need .*\[3, 9\]"),
    (torch.zeros(2, 9), ValueError, r"of shape \[2, 9\]"),
    (torch.zeros(3, 9, dtype=torch.int64), ValueError, "augment is torch.int64"),
    ([0.0] * 9, TypeError, "augment is list; need a torch.Tensor"),
    (torch.zeros(3, 9, device="meta"), ValueError, "augment is on meta"),
]


@pytest.mark.parametrize(("augment", "error", "message"), BAD_AUGMENT)
def test_bad_augmentation(augment: Any, error: type[Exception], message: str) -> None:
    net, given = build(SONG), inputs(SONG)
    for call in (lambda: net(width=0.5, augment=augment, **given),
                 lambda: net.export_subnet(0.5)(augment=augment, **given)):  # fmt: skip
        with pytest.raises(error, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_augmentation_of_a_network_that_is_not_told() -> None:
    config = CONFIGS["untold"]
    with pytest.raises(ValueError, match="got augment, the network has no such input; need none"):
        build(config)(width=0.5, augment=torch.zeros(3, 9), **inputs(config))


@pytest.mark.parametrize("name", ["labels", "adm"])
def test_labels_and_no_label(name: str) -> None:
    """Each is of its own image; the last row is as good as any; None is refused."""
    config = CONFIGS[name]
    for compiled in (False, True):
        net, given = build(config, torch.float32).eval(), inputs(config, torch.float32)
        with torch.set_grad_enabled(not compiled):
            before = net(width=0.5, **given)
            after = net(width=0.5, **{**given, "y": torch.tensor([0, 5, 5])})
            assert torch.equal(after[[0, 2]], before[[0, 2]])
            assert (after[1] - before[1]).abs().max() > 1e-3
            with pytest.raises(ValueError, match=r"y holds 6, .* need 0 <= y < 6"):
                net(width=0.5, **{**given, "y": torch.tensor([0, 6, 5])})
            with pytest.raises(ValueError, match="got no labels, the network is class-conditional"):
                net(width=0.5, **{**given, "y": None})


def test_frequencies_are_kept_and_never_rounded() -> None:
    """They are drawn once, with 16 for standard deviation, and stay float32 in a 16-bit network."""
    config = dataclasses.replace(NCSN, time_mult=64)
    generator = torch.Generator().manual_seed(5)
    net = SlimmableNetwork(config, generator=generator, device="cpu")
    frequencies = net.get_buffer("time_embedding.table")
    assert frequencies.shape == (512,)
    assert 14.5 < frequencies.std() < 17.5
    kept = frequencies.clone()
    assert torch.equal(
        copy.deepcopy(net).to(torch.bfloat16).get_buffer("time_embedding.table"), kept
    )
    assert net.half().get_buffer("time_embedding.table").dtype == torch.float32
    assert net.double().get_buffer("time_embedding.table").dtype == torch.float64
    dense = net.to(torch.bfloat16).export_subnet(0.5)
    assert torch.equal(dense.get_buffer("time_embedding.table").float(), kept)


def test_other_frequencies_are_seen_by_compiled_steps() -> None:
    net, given = build(NCSN, torch.float32).eval(), inputs(NCSN, torch.float32)
    with torch.no_grad():
        for _ in range(2):
            expected = net.run_modules(width=0.5, **{**given, "t": given["t"][0]})
            y = net(width=0.5, **{**given, "t": given["t"][0]})
            assert (y - expected).abs().max() <= 2e-5 * expected.abs().max()
            net.get_buffer("time_embedding.table").mul_(1.1)


def test_shapes_on_meta() -> None:
    """Nothing is computed, forward or backward, and shapes are those that are."""
    config = CONFIGS["ncsn++"]
    net = SlimmableNetwork(config, device="meta")
    given = {name: tensor.to("meta") for name, tensor in augmented(config, torch.float32).items()}
    y = net(width=0.5, **given)
    assert y.is_meta
    assert y.shape == (3, 3, 8, 8)
    y.sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in net.parameters())


def test_copies_are_independent() -> None:
    config = CONFIGS["ncsn++"]
    net, given = build(config, torch.float32).eval(), inputs(config, torch.float32)
    with torch.no_grad():
        expected = net(width=0.5, **given)  # by a compiled step
        for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
            assert torch.equal(other(width=0.5, **given), expected)
            next(other.parameters()).zero_()
            assert not torch.equal(other(width=0.5, **given), expected)
        assert torch.equal(net(width=0.5, **given), expected)


@pytest.mark.parametrize("name", ["ncsn++", "adm"])
def test_initial_output_is_almost_zero(name: str) -> None:
    """The last layers of branches and of the network start there."""
    config = CONFIGS[name]
    net = SlimmableNetwork(config, generator=torch.Generator().manual_seed(3))
    y = net(width=0.5, **inputs(config, torch.float32))
    assert y.abs().max() < 1e-4


@pytest.mark.parametrize("name", ["ncsn++", "adm-told"])
def test_compiles_as_few_graphs(name: str) -> None:
    config = CONFIGS[name]
    net, given = build(config, torch.float32).eval(), inputs(config, torch.float32)
    graphs = []

    def backend(graph: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    compiled = torch.compile(net, backend=backend, fullgraph=True)
    with torch.no_grad():
        for width in (1.0, 0.75, 0.5, 0.25):
            torch.testing.assert_close(
                compiled(width=width, **given), net(width=width, **given), rtol=1e-4, atol=1e-5
            )
    assert len(graphs) <= 3


@pytest.mark.parametrize(
    ("config", "changes", "error", "message"),
    [
        (SONG, {"image_size": 9}, ValueError, "image_size is 9; need a multiple of 2"),
        (SONG, {"groups": 8}, ValueError, "groups is 8; need a divisor of the 4 of down.0.norm1"),
        (SONG, {"ch": 2, "groups": 16}, ValueError, "groups is 16; need a divisor of 8, the chan"),
        (SONG, {"ch": 18, "groups": 1}, ValueError, "has 4 groups; need a divisor of its 18"),
        (SONG, {"taps": 3}, ValueError, "taps is 3; need 2 or 4"),
        (SONG, {"aux_residual": True}, ValueError, "taps is 2; need 4 beside aux_residual"),
        (SONG, {"fourier": 1}, TypeError, "fourier is 1; need True or False"),
        (SONG, {"time_mult": 0}, ValueError, "time_mult is 0; need an int >= 1"),
        (SONG, {"augment_channels": 0}, ValueError, "augment_channels is 0; need None or an int"),
        (SONG, {"num_classes": 0}, ValueError, "num_classes is 0; need None or an int >= 1"),
        (DHARIWAL, {"head_channels": 12}, ValueError, "head_channels is 12; need a divisor of"),
        (DHARIWAL, {"widths": (2,)}, ValueError, "width is 2; need 0 < width <= 1"),
    ],
)
def test_bad_field(
    config: Config, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as caught:
        dataclasses.replace(config, **changes)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", CONFIGS)
def test_configs_survive_json(name: str) -> None:
    config = CONFIGS[name]
    assert type(config).from_dict(json.loads(json.dumps(config.to_dict()))) == config
