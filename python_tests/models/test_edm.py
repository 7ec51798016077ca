"""What EDM's U-Nets alone have: their block, norms, attention, augmentation and frequencies."""

from __future__ import annotations

import copy
import dataclasses
import math
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from models.family_cases import DHARIWAL, EDMS, NCSN, SONG, augmented, inputs
from models.network_cases import build
from torch import Tensor

from ddsm_ext.models import DhariwalUNetConfig, SlimmableNetwork, SongUNetConfig

Config = SongUNetConfig | DhariwalUNetConfig


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


@pytest.mark.parametrize("name", ["ddpm++", "dhariwal-told"])
def test_augmentation_is_told_or_not(name: str) -> None:
    """Zeros are as good as nothing, the map having no bias; each row is of its image alone."""
    config = EDMS[name]
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
    config = EDMS["ddpm++-untold"]
    with pytest.raises(ValueError, match="got augment, the network has no such input; need none"):
        build(config)(width=0.5, augment=torch.zeros(3, 9), **inputs(config))


@pytest.mark.parametrize("name", ["ddpm++-labels", "dhariwal"])
def test_labels_and_no_label(name: str) -> None:
    """Each is of its own image; the last row is as good as any; None is refused."""
    config = EDMS[name]
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
    config = EDMS["ncsn++"]
    net = SlimmableNetwork(config, device="meta")
    given = {name: tensor.to("meta") for name, tensor in augmented(config, torch.float32).items()}
    y = net(width=0.5, **given)
    assert y.is_meta
    assert y.shape == (3, 3, 8, 8)
    y.sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in net.parameters())


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
