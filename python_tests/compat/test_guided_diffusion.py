"""guided-diffusion checkpoints: outputs and gradients of the reference code, names, refusals."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from compat.official_weights import formula_weights
from compat.openai_goldens import read
from safetensors.torch import save_file
from torch import Tensor

from ddsm_ext.compat.guided_diffusion import (
    guided_diffusion_config,
    guided_diffusion_state_dict_shapes,
    load_guided_diffusion,
    to_guided_diffusion_state_dict,
)
from ddsm_ext.graph import macs, parameter_count
from ddsm_ext.models import ADMConfig, SlimmableNetwork, preset

TINY = {"image_size": 8, "in_channels": 3, "model_channels": 32, "out_channels": 6,
        "num_res_blocks": 1, "attention_resolutions": (2,), "channel_mult": (1, 2),
        "num_classes": 4, "num_head_channels": 16, "use_scale_shift_norm": True,
        "resblock_updown": True}  # fmt: skip


def openai(size: int, channels: int, mult: tuple[int, ...], blocks: int, factors: tuple[int, ...],
           **more: Any) -> dict[str, Any]:  # fmt: skip
    return {"image_size": size, "in_channels": 3, "model_channels": channels, "out_channels": 6,
            "num_res_blocks": blocks, "attention_resolutions": factors, "channel_mult": mult,
            "use_scale_shift_norm": True, "resblock_updown": True, **more}  # fmt: skip


BIG = openai(256, 256, (1, 1, 2, 2, 4, 4), 2, (8, 16, 32), num_head_channels=64)
FULL_SIZE = {
    "ADM_ImageNet_64_cond": openai(
        64, 192, (1, 2, 3, 4), 3, (2, 4, 8), num_classes=1000, dropout=0.1, num_head_channels=64,
        use_new_attention_order=True,
    ),
    "ADM_ImageNet_128_cond": openai(
        128, 256, (1, 1, 2, 3, 4), 2, (4, 8, 16), num_classes=1000, num_heads=4
    ),
    "ADM_ImageNet_256_uncond": BIG,
    "ADM_style_LSUN_256_guided_diffusion_lsun": {**BIG, "dropout": 0.1},
    "iDDPM_CIFAR_10_128_3_blocks_4_heads": openai(
        32, 128, (1, 2, 2, 2), 3, (2, 4), num_heads=4, dropout=0.3, resblock_updown=False
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FULL_SIZE)
def test_full_size_names_shapes_and_macs(name: str) -> None:
    data, config = read("full_size_shapes"), guided_diffusion_config(FULL_SIZE[name])
    shapes = {key: tuple(shape) for key, shape in json.loads(str(data[name])).items()}
    assert guided_diffusion_state_dict_shapes(FULL_SIZE[name]) == shapes
    assert parameter_count(config) == sum(math.prod(shape) for shape in shapes.values())
    expected = json.loads(str(data["macs"]))[json.loads(str(data["tags"]))[name]]
    for width, counts in expected.items():
        whole = macs(config, float(width))
        products = whole - macs(config, float(width), attention_products=False)
        assert round(whole / 1e9, 3) == counts["gmac"]
        assert round((whole - products) / 1e9, 3) == counts["gmac_without_attention_products"]


# Counted from the reference's modules: parameters (millions), GMACs at the four widths, and at full
# width without the products of attention.
COUNTS = {
    "ADM_ImageNet_64_cond": (295.90, (109.678, 63.670, 29.085, 8.684), 103.462),
    "iDDPM_CIFAR_10_128_3_blocks_4_heads": (52.55, (8.387, 4.766, 2.162, 0.573), 8.137),
}


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_and_macs(name: str) -> None:
    config = guided_diffusion_config(FULL_SIZE[name])
    parameters, counts, without = COUNTS[name]
    assert round(parameter_count(config) / 1e6, 2) == parameters
    assert tuple(round(macs(config, width) / 1e9, 3) for width in config.widths) == counts
    assert round(macs(config, 1.0, attention_products=False) / 1e9, 3) == without


def tiny_state(config: dict[str, Any] = TINY) -> dict[str, Tensor]:
    return formula_weights(guided_diffusion_state_dict_shapes(config))


def same_weights(net: SlimmableNetwork, state: dict[str, Tensor], **more: bool) -> None:
    back = to_guided_diffusion_state_dict(net, **more)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)


@pytest.mark.parametrize(
    "change",
    [
        {}, {"use_new_attention_order": True}, {"resblock_updown": False},
        {"use_scale_shift_norm": False, "num_classes": None, "out_channels": 3},
        {"num_head_channels": -1, "num_heads": 2}, {"num_head_channels": -1},
        {"attention_resolutions": ()}, {"attention_resolutions": [1, 2], "num_res_blocks": 2},
        {"channel_mult": (1, 2, 3), "image_size": 16, "resblock_updown": False},
    ],
)  # fmt: skip
def test_round_trip_of_names_and_weights(change: dict[str, Any]) -> None:
    config = {**TINY, **change}
    state, order = tiny_state(config), config.get("use_new_attention_order", False)
    net = load_guided_diffusion(state, config)
    same_weights(net, state, use_new_attention_order=order)
    # The same network, written for a reference that is built with the other order.
    other = to_guided_diffusion_state_dict(net, use_new_attention_order=not order)
    again = load_guided_diffusion(other, {**config, "use_new_attention_order": not order})
    ours = net.state_dict()
    assert all(torch.equal(ours[name], tensor) for name, tensor in again.state_dict().items())


def test_rows_of_fused_weights() -> None:
    """Legacy order: per head q, k, v; new order: all heads' q, then k, then v."""
    name, ours = "middle_block.1.qkv.weight", "middle.0.attention"
    state = tiny_state()
    rows = state[name][:, :, 0].view(4, 3, 16, 64)  # heads, parts, channels of a head
    net = load_guided_diffusion(state, TINY)
    for part, layer in enumerate("qkv"):
        weight = net.get_parameter(f"{ours}.{layer}.weight")[:, :, 0, 0]
        assert torch.equal(weight.view(4, 16, 64), rows[:, part])
    net = load_guided_diffusion(state, {**TINY, "use_new_attention_order": True})
    for part, layer in enumerate("qkv"):
        weight = net.get_parameter(f"{ours}.{layer}.weight")[:, :, 0, 0]
        assert torch.equal(weight, state[name][64 * part : 64 * (part + 1), :, 0])
    film = state["middle_block.0.emb_layers.1.bias"]
    assert torch.equal(net.get_parameter("middle.0.time.scale.bias"), film[:64])
    assert torch.equal(net.get_parameter("middle.0.time.shift.bias"), film[64:])


def test_dtype_follows_the_weights() -> None:
    state = {name: tensor.double() for name, tensor in tiny_state().items()}
    for dtype in (torch.float64, torch.float32):
        net = load_guided_diffusion(state, TINY)
        assert {p.dtype for p in net.parameters()} == {dtype}
        assert not net.training
        state["out.2.bias"] = state["out.2.bias"].float()  # weights of several dtypes


def test_loading_leaves_the_random_state_and_the_weights_alone() -> None:
    state, before = tiny_state(), torch.get_rng_state()
    net = load_guided_diffusion(state, TINY)
    assert torch.equal(torch.get_rng_state(), before)
    for parameter in net.parameters():
        parameter.data.zero_()
    assert all(torch.equal(state[name], tensor) for name, tensor in tiny_state().items())


def test_files(tmp_path: Path) -> None:
    state = tiny_state()
    torch.save(state, tmp_path / "ema_0.9999_500000.pt")
    torch.save({f"module.{n}": t for n, t in state.items()}, tmp_path / "parallel.pt")
    save_file(state, tmp_path / "weights.safetensors")
    for path in tmp_path.iterdir():
        same_weights(load_guided_diffusion(path, TINY), state)
    same_weights(load_guided_diffusion(str(tmp_path / "parallel.pt"), TINY), state)


class Evil:
    """Pickles as a call that leaves a file behind."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.trace,)


def test_files_that_are_refused(tmp_path: Path) -> None:
    trace, path = tmp_path / "executed", tmp_path / "evil.pt"
    torch.save({**tiny_state(), "extra": Evil(trace)}, path)
    with pytest.raises(ValueError, match="holds Python objects"):
        load_guided_diffusion(path, TINY)
    assert not trace.exists()
    with pytest.raises(FileNotFoundError, match=r"does not exist; need a \.pt"):
        load_guided_diffusion(tmp_path / "none.pt", TINY)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("out.2.bias"), "lacks 'out.2.bias'; need exactly the"),
        (lambda s: s.update(extra=torch.zeros(1)), "has an unknown 'extra'"),
        (lambda s: s.update({"out.2.bias": torch.zeros(3)}), r"has shape \[3\]; need \[6\]"),
        (lambda s: s.update({"out.2.bias": 3}), "'out.2.bias' is a int; need a state dict of .*s$"),
        (lambda s: s.clear(), "is empty"),
    ],
)
def test_wrong_state_dict(change: Any, message: str) -> None:
    state = tiny_state()
    change(state)
    with pytest.raises(ValueError, match=message) as caught:
        load_guided_diffusion(state, TINY)
    assert str(caught.value).startswith("guided-diffusion state dict")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"num_channels": 3}, ValueError, "unknown key 'num_channels'; did you mean"),
        ({"dims": 3}, ValueError, "dims is 3; need 2"),
        ({"out_channels": 4}, ValueError, "out_channels is 4; need in_channels or twice as many"),
        ({"out_channels": "6"}, ValueError, "out_channels is '6'; need an integer >= 1"),
        ({"conv_resample": False, "resblock_updown": False}, ValueError, "conv_resample is False"),
        ({"conv_resample": 1}, TypeError, "conv_resample is 1; need True or False"),
        ({"num_head_channels": -1, "num_heads": 4, "num_heads_upsample": 2}, ValueError,
         r"num_heads_upsample is 2; need num_heads \(4\), or -1"),
        ({"num_head_channels": 0}, ValueError, "num_head_channels is 0; need an integer >= 1"),
        ({"num_head_channels": 24}, ValueError, "head_channels is 24; need a divisor of the 64"),
        ({"num_head_channels": -1, "num_heads": 3}, ValueError, "need a divisor of 64 channels"),
        ({"channel_mult": (0.5, 1)}, ValueError, r"channel_mult is \(0.5, 1\); need integers"),
        ({"channel_mult": "1,2"}, TypeError, "channel_mult is '1,2'; need a sequence"),
        ({"channel_mult": ()}, ValueError, r"ch_mult is \(\); need one"),
        ({"attention_resolutions": "2"}, TypeError, "attention_resolutions is '2'; need a seq"),
        ({"model_channels": 48}, ValueError, "groups is 32"),
        ({"image_size": 9}, ValueError, "image_size is 9; need a multiple of 2 for 2 levels"),
    ],
)  # fmt: skip
def test_wrong_config(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        guided_diffusion_config({**TINY, **change})
    assert "\n" not in str(caught.value)


def test_wrong_types() -> None:
    with pytest.raises(TypeError, match="config is list; need a mapping"):
        guided_diffusion_config([])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"lacks image_size, in_channels, .*; need UNetModel's"):
        guided_diffusion_config({})
    with pytest.raises(TypeError, match="got int; need a path"):
        load_guided_diffusion(3, TINY)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="got UNetConfig; need a SlimmableNetwork of an ADMConfig"):
        to_guided_diffusion_state_dict(SlimmableNetwork(preset("digits")))
    small = ADMConfig(8, ch=8, ch_mult=(1,), attn=(), num_res_blocks=1, groups=8, head_channels=8)
    with pytest.raises(ValueError, match="groups is 8; need 32"):
        to_guided_diffusion_state_dict(SlimmableNetwork(small))


def test_defaults_and_what_is_passed_over() -> None:
    least = {"image_size": 32, "in_channels": 1, "model_channels": 32, "out_channels": 1,
             "num_res_blocks": 1, "attention_resolutions": {4, 64}}  # fmt: skip
    expected = ADMConfig(
        32, image_channels=1, ch=32, ch_mult=(1, 2, 4, 8), attn=(2,), num_res_blocks=1,
        dropout=0, head_channels=None, heads=1, scale_shift=False, resample_blocks=False,
        learned_sigma=False,
    )  # fmt: skip
    assert guided_diffusion_config(least) == expected
    ignored = {"use_checkpoint": True, "use_fp16": True, "use_new_attention_order": True,
               "num_heads_upsample": 1}  # fmt: skip
    assert guided_diffusion_config({**least, **ignored}) == expected
