"""Configs of diffusers' `UNet2DModel` and ours: what becomes what, and what has no equal."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from golden import golden

from ddsm_ext.compat import diffusers_config, diffusers_state_dict_shapes, to_diffusers_config
from ddsm_ext.compat.unet2d_config import slimmable_config
from ddsm_ext.graph import macs, parameter_count
from ddsm_ext.models import ADMConfig, UNetConfig, preset

TINY: dict[str, Any] = {
    "sample_size": 8, "block_out_channels": [16, 32], "layers_per_block": 1,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"], "norm_num_groups": 8,
}  # fmt: skip
# As they lie on the hub: the configurations that the golden shapes are of.
CIFAR: dict[str, Any] = {
    "_class_name": "UNet2DModel", "_diffusers_version": "0.0.4", "act_fn": "silu",
    "attention_head_dim": None, "block_out_channels": [128, 256, 256, 256],
    "center_input_sample": False,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    "downsample_padding": 0, "flip_sin_to_cos": False, "freq_shift": 1, "in_channels": 3,
    "layers_per_block": 2, "mid_block_scale_factor": 1, "norm_eps": 1e-06, "norm_num_groups": 32,
    "out_channels": 3, "sample_size": 32, "time_embedding_type": "positional",
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
}  # fmt: skip
CELEBA: dict[str, Any] = {
    "attention_head_dim": 32, "block_out_channels": [224, 448, 672, 896], "sample_size": 64,
    "down_block_types": ["DownBlock2D", *["AttnDownBlock2D"] * 3],
    "up_block_types": [*["AttnUpBlock2D"] * 3, "UpBlock2D"],
}  # fmt: skip


def test_the_networks_of_ddpm_and_latent_diffusion() -> None:
    assert diffusers_config(CIFAR) == ADMConfig(
        32, ch=128, ch_mult=(1, 2, 2, 2), attn=(1,), num_res_blocks=2, dropout=0.0,
        head_channels=None, heads=1, scale_shift=False, resample_blocks=False, learned_sigma=False,
        pad_end=True, eps=1e-6, freq_shift=1, sines_first=True,
    )  # fmt: skip
    assert diffusers_config(CELEBA) == preset("ldm4-celebahq")


@pytest.mark.parametrize(
    ("name", "config", "parameters", "gmacs"),
    [
        ("google_ddpm_cifar10_32", CIFAR, 35.75, 6.05),
        ("CompVis_ldm_celebahq_256_unet", CELEBA, 274.06, 96.02),
    ],
)
def test_full_size_names_shapes_and_macs(
    name: str, config: dict[str, Any], parameters: float, gmacs: float
) -> None:
    network, counted = diffusers_config(config), json.loads(str(golden("full_size_shapes")[name]))
    shapes = {key: tuple(shape) for key, shape in counted.items()}
    assert diffusers_state_dict_shapes(config) == shapes
    assert parameter_count(network) == sum(map(math.prod, shapes.values()))
    assert round(parameter_count(network) / 1e6, 2) == parameters
    assert round(macs(network, 1.0, attention_products=False) / 1e9, 2) == gmacs


@pytest.mark.parametrize(
    "change",
    [
        {}, {"attention_head_dim": None}, {"attention_head_dim": 16}, {"out_channels": 6},
        {"downsample_padding": 0, "norm_eps": 1e-6, "freq_shift": 1, "flip_sin_to_cos": False},
        {"resnet_time_scale_shift": "scale_shift"}, {"num_class_embeds": 7, "dropout": 0.1},
        {"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 8},
        {"downsample_type": "resnet", "upsample_type": "resnet"}, {"add_attention": False},
        {"down_block_types": ["ResnetDownsampleBlock2D", "DownBlock2D"], "in_channels": 1,
         "out_channels": 2},
        {"down_block_types": ["AttnDownBlock2D"] * 2, "downsample_type": "resnet"},
        {"up_block_types": ["UpBlock2D", "AttnUpBlock2D"]}, {"block_out_channels": [32, 48]},
        {"block_out_channels": [16], "down_block_types": ["DownBlock2D"],
         "up_block_types": ["UpBlock2D"]},
    ],
)  # fmt: skip
def test_round_trips(change: dict[str, Any]) -> None:
    """Both ways lead to the same network, and every argument that shapes it comes back."""
    given = {**TINY, **change}
    config = diffusers_config(given)
    back = to_diffusers_config(config)
    assert diffusers_config(back) == config
    switches = ("downsample_type", "upsample_type")  # of blocks with attention alone
    assert {k: back[k] for k in given if k not in switches} == {
        k: v for k, v in given.items() if k not in switches
    }


def test_blocks_that_change_the_resolution_by_either_means() -> None:
    kinds = {
        "block_out_channels": [16, 16, 32], "sample_size": 8, "downsample_type": "resnet",
        "down_block_types": ["AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
        "up_block_types": ["ResnetUpsampleBlock2D", "UpBlock2D", "UpBlock2D"],
    }  # fmt: skip
    config = diffusers_config({**TINY, **kinds})
    assert config.resample_blocks == (True, False, True, False)
    assert (config.attn, config.attn_up) == ((0,), ())
    assert diffusers_config(to_diffusers_config(config)) == config


def test_a_ddpm_unet_is_one_whose_sines_come_first() -> None:
    found = to_diffusers_config(preset("cifar10"))
    assert (found["freq_shift"], found["flip_sin_to_cos"]) == (0, False)
    assert found["attention_head_dim"] is None
    assert found["block_out_channels"] == [128, 256, 256, 256]
    # 41.03 of 82.06 GFLOPs is the paper's; the official code's rules at half of it
    fixed = UNetConfig(32, norm="fixed_groups", concat_slicing="prefix", widths=(1.0, 0.5))
    half = to_diffusers_config(fixed, 0.5)
    assert (half["block_out_channels"], half["norm_num_groups"]) == ([64, 128, 128, 128], 32)


def test_widths_keep_channels_a_group() -> None:
    for width, groups in ((1.0, 8), (0.75, 6), (0.5, 4), (0.25, 2)):
        found = to_diffusers_config(diffusers_config({**TINY, "attention_head_dim": None}), width)
        assert found["norm_num_groups"] == groups
        assert found["block_out_channels"] == [2 * groups, 4 * groups]


def test_keys_of_its_ema_and_private_ones_are_passed_over() -> None:
    beside = {"decay": 0.9999, "optimization_step": 3, "_use_default_values": ["act_fn"]}
    assert diffusers_config({**TINY, **beside}) == diffusers_config(TINY)
    old = {"down_block_types": ["UNetResDownBlock2D", "UNetResAttnDownBlock2D"], "act_fn": "swish"}
    assert diffusers_config({**TINY, **old, "sample_size": [8, 8]}) == diffusers_config(TINY)


def test_what_a_slimmable_unet_has_beside() -> None:
    more = {"widths": [0.5, 1.0], "heads": 2, "null_class": True, "num_class_embeds": 11,
            "strategy": None, "time_kind": "ddpm"}  # fmt: skip
    config = slimmable_config({**TINY, **more})
    assert (config.widths, config.heads, config.head_channels) == ((1.0, 0.5), 2, None)
    assert (config.num_classes, config.null_label) == (10, 10)
    with pytest.raises(ValueError, match="null_class is True; need False, as num_classes is None"):
        slimmable_config({**TINY, "null_class": True})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"center_input_sample": True}, "center_input_sample is True; need False"),
        ({"time_embedding_type": "fourier"}, "time_embedding_type is 'fourier'; need 'positional'"),
        ({"time_embedding_dim": 128}, r"time_embedding_dim is 128; need None, or .*: 64"),
        ({"down_block_types": ["SkipDownBlock2D", "DownBlock2D"]}, "down_block_types is .*Skip"),
        ({"up_block_types": ["AttnSkipUpBlock2D", "UpBlock2D"]}, "need a list of UpBlock2D, Attn"),
        ({"down_block_types": "DownBlock2D"}, "down_block_types is 'DownBlock2D'; need a list"),
        ({"up_block_types": ["UpBlock2D"]}, "up_block_types is .*; need 2 of them"),
        ({"mid_block_type": None}, "mid_block_type is None; need 'UNetMidBlock2D'"),
        ({"mid_block_scale_factor": 1.4}, "mid_block_scale_factor is 1.4; need 1"),
        ({"act_fn": "mish"}, "act_fn is 'mish'; need 'silu'"),
        ({"class_embed_type": "timestep"}, "class_embed_type is 'timestep'; need None"),
        ({"resnet_time_scale_shift": "spatial"}, "is 'spatial'; need 'default' or 'scale_shift'"),
        ({"attn_norm_num_groups": 4}, "attn_norm_num_groups is 4; need None, or .*: 8"),
        ({"out_channels": 4}, "out_channels is 4; need in_channels or twice as many: 3 or 6"),
        ({"downsample_padding": 2}, "downsample_padding is 2; need 0 or 1"),
        ({"downsample_type": "fir"}, "downsample_type is 'fir'; need 'conv' or 'resnet'"),
        ({"sample_size": None}, "sample_size is None; need the side of square images"),
        ({"sample_size": [8, 16]}, r"sample_size is \[8, 16\]; need the side"),
        ({"block_out_channels": [16]}, r"block_out_channels is \[16\]; need 2 integers"),
        ({"block_out_channels": "16"}, "block_out_channels is '16'; need 2 integers"),
        ({"norm_num_groups": None}, "norm_num_groups is None; need an integer >= 1"),
        ({"attention_head_dim": 24}, "head_channels is 24; need a divisor"),
        ({"norm_groups": 8}, "unknown key 'norm_groups'; did you mean norm_num_groups"),
        ({"freq_shift": -1}, "freq_shift is -1; need a number >= 0"),
        (
            {"_class_name": "UNet2DConditionModel", "cross_attention_dim": 8},
            "_class_name is 'UNet2DConditionModel'; need 'UNet2DModel'",
        ),
        (
            {"time_embedding_type": "learned", "time_embedding_dim": 64},
            "time_embedding_type is 'learned'; need 'positional', which a width below 1 that was",
        ),
    ],
)
def test_what_has_no_equal_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        diffusers_config({**TINY, **change})
    assert "\n" not in str(caught.value)


def test_networks_that_it_has_not() -> None:
    with pytest.raises(TypeError, match="config is list; need a mapping"):
        diffusers_config([])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="attends to a context; need one that does not"):
        to_diffusers_config(preset("ldm4-imagenet"))
    with pytest.raises(ValueError, match=r"heads is 8, of \[24, 48, 96\] channels at its levels"):
        to_diffusers_config(preset("ldm8-lsun-church"))
    plain = diffusers_config(TINY)
    with pytest.raises(ValueError, match="norm_middle is False with scale_shift False"):
        to_diffusers_config(ADMConfig.from_dict({**plain.to_dict(), "norm_middle": False}))
    mixed = ADMConfig(8, ch=16, ch_mult=(1, 1, 1), attn=(0, 1, 2), num_res_blocks=1, groups=8,
                      head_channels=8, resample_blocks=(True, False, True, True))  # fmt: skip
    with pytest.raises(ValueError, match="resample_blocks differs among levels with attention"):
        to_diffusers_config(mixed)
    # 336 of 448 channels are ten heads and a half of 32: ours run eleven
    with pytest.raises(ValueError, match=r"has 11 heads of 32 channels at width 0.75, .* need 10"):
        to_diffusers_config(diffusers_config(CELEBA), 0.75)
    with pytest.raises(ValueError, match="width is 2"):
        to_diffusers_config(plain, 2.0)
