"""Weights of diffusers' `UNet2DModel`: its outputs, its names, its folders, and widths as one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from compat.official_weights import formula_weights
from compat.test_unet2d_config import TINY
from diffusers_there import diffusers
from safetensors.torch import save_file
from torch import Tensor

from ddsm_ext.compat import (
    diffusers_state_dict_shapes,
    load_diffusers,
    to_diffusers_config,
    to_diffusers_state_dict,
    to_unet2d,
)
from ddsm_ext.models import SlimmableNetwork, UNetConfig, preset

# Changes of TINY: all kinds of blocks, embeddings, norms and heads.
CASES: dict[str, dict[str, Any]] = {
    "ddpm": {"downsample_padding": 0, "freq_shift": 1, "flip_sin_to_cos": False, "norm_eps": 1e-6,
             "attention_head_dim": None},
    "film": {"resnet_time_scale_shift": "scale_shift", "attention_head_dim": 16,
             "num_class_embeds": 5, "out_channels": 6, "upsample_type": "resnet",
             "down_block_types": ["ResnetDownsampleBlock2D", "AttnDownBlock2D"]},
    "uneven": {"block_out_channels": [32, 48, 32], "attention_head_dim": None,
               "down_block_types": ["AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
               "up_block_types": ["UpBlock2D", "UpBlock2D", "UpBlock2D"],
               "add_attention": False},
}  # fmt: skip


def tiny_state(config: dict[str, Any], dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return formula_weights(diffusers_state_dict_shapes(config), dtype)


def built(config: dict[str, Any], state: dict[str, Tensor], dtype: torch.dtype) -> Any:
    model = diffusers().UNet2DModel(**config).to(dtype=dtype)
    model.load_state_dict(state)
    return model.eval()


def inputs(config: dict[str, Any], t: list[float]) -> tuple[Tensor, Tensor, Tensor | None]:
    g = torch.Generator().manual_seed(1)
    x = torch.randn(len(t), config.get("in_channels", 3), 8, 8, generator=g, dtype=torch.float64)
    labels = config.get("num_class_embeds")
    y = torch.arange(len(t)) % labels if labels else None
    return x, torch.tensor(t), y


@torch.no_grad()
def theirs(model: Any, x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
    return model(x, t, class_labels=y).sample


@pytest.mark.parametrize("name", CASES)
def test_outputs_equal_those_of_diffusers(name: str) -> None:
    config = {**TINY, **CASES[name]}
    state = tiny_state(config, torch.float64)
    x, t, y = inputs(config, [0.0, 3.5, 999.0])
    expected = theirs(built(config, state, torch.float64), x, t, y)
    net = load_diffusers(state, config)
    assert not net.training
    # Its sinusoids are float32 in any network.
    torch.testing.assert_close(net(x, t, 1.0, y), expected, rtol=1e-6, atol=1e-6)
    with torch.no_grad():
        step = net.float()(x.float(), t, 1.0, y)
    torch.testing.assert_close(step.double(), expected, rtol=1e-4, atol=1e-4)
    back = to_diffusers_state_dict(net.double())
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name].float(), state[name].float()) for name in state)


@pytest.mark.parametrize("width", [1.0, 0.75, 0.5, 0.25])
@pytest.mark.parametrize("name", ["ddpm", "film"])
def test_a_width_as_a_plain_unet(name: str, width: float) -> None:
    config = {**TINY, **CASES[name]}
    net = load_diffusers(tiny_state(config, torch.float64), config)
    if name == "film" and width in (0.75, 0.25):  # a head and a half run as two, half a one as one
        with pytest.raises(ValueError, match="heads of 16 channels at width"):
            to_unet2d(net, width)
        return
    settings, state = to_unet2d(net, width, timesteps=1000)
    x, t, y = inputs(config, [0, 1, 437, 998, 999])
    expected = net.run_modules(x, t, width, y)
    plain = theirs(built(json.loads(json.dumps(settings)), state, torch.float64), x, t, y)
    torch.testing.assert_close(plain, expected, rtol=1e-6, atol=1e-6)
    learned = settings["time_embedding_type"] == "learned"
    assert learned == (width < 1)
    if learned:
        half = {name: tensor.float() for name, tensor in state.items()}
        plain = theirs(built(settings, half, torch.float32), x.float(), t, y)
        torch.testing.assert_close(plain.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("width", "norm"), [(1.0, "fixed_groups"), (0.5, "fixed_groups"),
                                             (0.5, "channels_per_group")])  # fmt: skip
def test_a_ddpm_unet_as_a_plain_unet(width: float, norm: str) -> None:
    """The official code's networks, too, whose widths keep the groups and slice concats at once."""
    concat = "prefix" if norm == "fixed_groups" else "source"
    config = UNetConfig(8, ch=32, ch_mult=(1, 2), attn=(1,), num_res_blocks=1, groups=8, norm=norm,
                        concat_slicing=concat, widths=(1.0, 0.5), time_table_rows=50)  # fmt: skip
    net = SlimmableNetwork(config, generator=torch.Generator().manual_seed(0)).double().eval()
    torch.manual_seed(0)
    for parameter in net.parameters():
        parameter.data.normal_(std=0.2)
    settings, state = to_unet2d(net, width, timesteps=50)
    x, t, _ = inputs({}, [0, 7, 49])
    plain = theirs(built(settings, state, torch.float64), x, t, None)
    torch.testing.assert_close(plain, net.run_modules(x, t, width), rtol=1e-5, atol=1e-5)


def test_timesteps_that_the_network_is_given_scaled() -> None:
    """improved-diffusion's 4000 steps are told as 0 ... 999.75."""
    config = {**TINY, **CASES["ddpm"]}
    net = load_diffusers(tiny_state(config, torch.float64), config)
    settings, state = to_unet2d(net, 1.0, timesteps=40, time_scale=25.0)
    assert settings["time_embedding_type"] == "learned"
    x, t, _ = inputs(config, [0, 13, 39])
    plain = theirs(built(settings, state, torch.float64), x, t, None)
    torch.testing.assert_close(plain, net(x, 25.0 * t, 1.0), rtol=1e-9, atol=1e-9)


def test_widths_that_are_no_plain_unet() -> None:
    config = {**TINY, **CASES["ddpm"]}
    net = load_diffusers(tiny_state(config), config)
    with pytest.raises(ValueError, match=r"has 8 sinusoids at width 0.5, the network 16.* width 1"):
        to_unet2d(net, 0.5)
    with pytest.raises(ValueError, match=r"has 4 channels at width 0.25, too few to tell 100000"):
        to_unet2d(net, 0.25, timesteps=100_000)
    for wrong in (SlimmableNetwork(preset("edm-cifar10-vp"), device="meta"), 3):
        with pytest.raises(TypeError, match="need a SlimmableNetwork of an ADMConfig or a UNetC"):
            to_unet2d(wrong)  # type: ignore[arg-type]


def test_names_of_earlier_files() -> None:
    config = {**TINY, **CASES["ddpm"]}
    state = tiny_state(config)
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    before = {}
    for name, tensor in state.items():
        for new, old in names.items():
            name = name.replace(f".{new}.", f".{old}.")
        before[name] = tensor
    assert "mid_block.attentions.0.proj_attn.weight" in before
    again = load_diffusers(before, config).state_dict()
    for name, tensor in load_diffusers(state, config).state_dict().items():
        assert torch.equal(again[name], tensor)


@pytest.mark.parametrize("inner", ["", "unet"])
@pytest.mark.parametrize("shards", [False, True])
def test_folders_that_diffusers_writes(inner: str, shards: bool, tmp_path: Path) -> None:
    config = {**TINY, **CASES["film"]}
    state = tiny_state(config)
    size = "20KB" if shards else "10GB"
    model = built(config, state, torch.float32)
    model.save_pretrained(tmp_path / inner, max_shard_size=size)
    assert len([*(tmp_path / inner).glob("*.safetensors")]) > 1 or not shards
    back = to_diffusers_state_dict(load_diffusers(tmp_path))
    assert all(torch.equal(back[name], tensor) for name, tensor in state.items())


def test_files_beside_a_config(tmp_path: Path) -> None:
    config = {**TINY, **CASES["ddpm"]}
    state = tiny_state(config)
    save_file(state, tmp_path / "w.safetensors")
    net = load_diffusers(tmp_path / "w.safetensors", config)
    assert diffusers_state_dict_shapes(to_diffusers_config(net.config)).keys() == state.keys()
    with pytest.raises(ValueError, match=r"w.safetensors: got no config; need that of its UNet2D"):
        load_diffusers(tmp_path / "w.safetensors")
    with pytest.raises(FileNotFoundError, match=r"config.json"):
        load_diffusers(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(FileNotFoundError, match=r"diffusion_pytorch_model.safetensors"):
        load_diffusers(tmp_path)
    (tmp_path / "diffusion_pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ValueError, match=r"weights as a pickle; need diffusion_pytorch_model.safe"):
        load_diffusers(tmp_path)
    with pytest.raises(TypeError, match="got int; need a path or a state dict"):
        load_diffusers(3, config)  # type: ignore[arg-type]
    state.pop("conv_out.bias")
    with pytest.raises(ValueError, match=r"UNet2DModel state dict lacks 'conv_out.bias'"):
        load_diffusers(state, config)


def test_levels_that_a_width_makes_alike() -> None:
    """A third of 32 channels is rounded to 16 by the official code's rules, as one of 48 is."""
    config = UNetConfig(8, ch=16, ch_mult=(2, 3), attn=(), num_res_blocks=1, groups=8,
                        norm="fixed_groups", concat_slicing="prefix", widths=(1.0,))  # fmt: skip
    with pytest.raises(ValueError, match=r"levels of \[32, 48\] channels have \[16, 16\] at width"):
        to_diffusers_config(config, 1 / 3)
