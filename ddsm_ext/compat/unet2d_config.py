"""Configs of diffusers' U-Nets (github.com/huggingface/diffusers, 0.42) and ours.

The network of its `UNet2DModel` is that of `ADMConfig`. Nothing here imports diffusers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ddsm_ext.compat.ddpm_as_adm import adm_form
from ddsm_ext.models.adm import ADMConfig
from ddsm_ext.models.unet import UNetConfig
from ddsm_ext.settings import Refusal, TypeRefusal, check_keys, is_int, shown

# The constructor's arguments and their defaults (unet_2d.py).
DEFAULTS: dict[str, Any] = {
    "sample_size": None,
    "in_channels": 3,
    "out_channels": 3,
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "freq_shift": 0,
    "flip_sin_to_cos": True,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
    "mid_block_type": "UNetMidBlock2D",
    "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (224, 448, 672, 896),
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "downsample_padding": 1,
    "downsample_type": "conv",
    "upsample_type": "conv",
    "dropout": 0.0,
    "act_fn": "silu",
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "attn_norm_num_groups": None,
    "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default",
    "add_attention": True,
    "class_embed_type": None,
    "num_class_embeds": None,
    "num_train_timesteps": None,
}
# What its EMA keeps in the same file.
_OF_EMA = ("decay", "inv_gamma", "min_decay", "optimization_step", "power", "update_after_step",
           "use_ema_warmup")  # fmt: skip
_DOWN = ("DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D")
_UP = ("UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D")
# Argument -> the values that `ADMConfig` expresses, and how errors say so.
_CHOICES: dict[str, tuple[tuple[Any, ...], str]] = {
    "center_input_sample": ((False,), "False"),
    "time_embedding_type": (
        ("positional",), "'positional', which a width below 1 that was exported has no more"
    ),
    "flip_sin_to_cos": ((True, False), "True or False"),
    "mid_block_type": (("UNetMidBlock2D",), "'UNetMidBlock2D'"),
    "mid_block_scale_factor": ((1,), "1"),
    "downsample_padding": ((0, 1), "0 or 1"),
    "downsample_type": (("conv", "resnet"), "'conv' or 'resnet'"),
    "upsample_type": (("conv", "resnet"), "'conv' or 'resnet'"),
    "act_fn": (("silu", "swish"), "'silu'"),
    "resnet_time_scale_shift": (("default", "scale_shift"), "'default' or 'scale_shift'"),
    "add_attention": ((True, False), "True or False"),
    "class_embed_type": ((None,), "None"),
}
_SOURCE = "UNet2DModel config"
SLIMMABLE = "SlimmableUNet2D"  # the class of `slimmable_unet2d`


def diffusers_config(config: Mapping[str, Any]) -> ADMConfig:
    """Return the `ADMConfig` that equals a `UNet2DModel`.

    Args:
        config: the content of its config.json; missing arguments take the constructor's defaults.

    Raises:
        TypeError, ValueError: an argument is unknown or of no use, or asks for what `ADMConfig`
            does not express.
    """
    values = _checked(config)
    channels, head = values["block_out_channels"], values["attention_head_dim"]
    ch, levels = math.gcd(*channels), range(len(channels))
    down, up = values["down_block_types"], values["up_block_types"]
    attn = tuple(level for level in levels if down[level] == _DOWN[1])
    attn_up = tuple(level for level in levels if up[-1 - level] == _UP[1])
    blocks = [
        *_resamples(down, values["downsample_type"]), *_resamples(up, values["upsample_type"])
    ]  # fmt: skip
    film = values["resnet_time_scale_shift"] == "scale_shift"
    return ADMConfig(
        image_size=values["sample_size"],
        image_channels=values["in_channels"],
        ch=ch,
        ch_mult=tuple(c // ch for c in channels),
        attn=attn,
        num_res_blocks=values["layers_per_block"],
        dropout=values["dropout"],
        groups=values["norm_num_groups"],
        head_channels=head,
        heads=1 if head is None else None,
        scale_shift=film,
        resample_blocks=tuple(blocks) if len({*blocks}) == 2 else True in blocks,
        num_classes=values["num_class_embeds"],
        learned_sigma=values["out_channels"] == 2 * values["in_channels"],
        attn_up=None if attn_up == attn else attn_up,
        attn_middle=values["add_attention"],
        norm_middle=not film or values["attn_norm_num_groups"] is not None,
        pad_end=values["downsample_padding"] == 0,
        eps=values["norm_eps"],
        freq_shift=values["freq_shift"],
        sines_first=not values["flip_sin_to_cos"],
        time_ch=None if channels[0] == ch else channels[0],
    )


def slimmable_config(config: Mapping[str, Any]) -> ADMConfig:
    """Return the `ADMConfig` of a `SlimmableUNet2D`.

    Args:
        config: the content of its config.json.

    Raises:
        TypeError, ValueError: as of `diffusers_config`.
    """
    adm = diffusers_config({name: config[name] for name in DEFAULTS if name in config})
    own: dict[str, Any] = {}
    if "widths" in config:
        own["widths"] = config["widths"]
    if config.get("heads") is not None:
        own |= {"heads": config["heads"], "head_channels": None}
    if config.get("null_class"):
        own |= {"num_classes": (adm.num_classes or 1) - 1 or None, "null_class": True}
    return replace(adm, **own)


def _resamples(blocks: Sequence[str], kind: str) -> Iterator[bool]:
    """Whether a residual block changes the resolution after each of these but the last."""
    for block in blocks[:-1]:
        yield block.startswith("Resnet") or (block.startswith("Attn") and kind == "resnet")


def _checked(config: Mapping[str, Any]) -> dict[str, Any]:
    """The constructor's arguments, defaults filled in, that `ADMConfig` expresses."""
    if not isinstance(config, Mapping):
        raise TypeRefusal(
            f"{_SOURCE} is {type(config).__name__}; need a mapping of UNet2DModel's arguments"
        )
    kind = config.get("_class_name", "UNet2DModel")
    if kind != "UNet2DModel":
        raise Refusal(f"{_SOURCE}: _class_name is {shown(kind)}; need 'UNet2DModel'")
    given = {k: v for k, v in config.items() if not str(k).startswith("_") and k not in _OF_EMA}
    check_keys(_SOURCE, given, DEFAULTS)
    values = {**DEFAULTS, **given}
    for name, known in (("down_block_types", _DOWN), ("up_block_types", _UP)):
        types = values[name]
        if isinstance(types, list | tuple) and all(isinstance(kind, str) for kind in types):
            values[name] = tuple(kind.removeprefix("UNetRes") for kind in types)
        listed = isinstance(values[name], tuple) and {*values[name]} <= {*known}
        _need(name, values, listed, f"a list of {', '.join(known)}")
    size = values["sample_size"]
    if isinstance(size, list | tuple) and len(size) == 2 and size[0] == size[1]:
        values["sample_size"] = size[0]
    for name, (choices, need) in _CHOICES.items():
        found = [choice for choice in choices if choice == values[name]]
        _need(name, values, bool(found), need)
        values[name] = found[0]  # True of 1
    for name, holds, need in _needs(values):
        _need(name, values, holds, need)
    return values


def _needs(values: Mapping[str, Any]) -> Iterator[tuple[str, bool, str]]:
    """Each argument's name, whether its value will do, and what would."""
    channels, levels = values["block_out_channels"], len(values["down_block_types"])
    integers = isinstance(channels, list | tuple) and all(is_int(c, 1) for c in channels)
    fits = integers and len(channels) == levels > 0
    yield "block_out_channels", fits, f"{levels} integers, one a block"
    yield "up_block_types", len(values["up_block_types"]) == levels, f"{levels} of them"
    yield "sample_size", is_int(values["sample_size"], 1), "the side of square images"
    for name in ("in_channels", "norm_num_groups"):
        yield name, is_int(values[name], 1), "an integer >= 1"
    # What the reference builds and `ADMConfig` does not express:
    c, groups, usual = values["in_channels"], values["norm_num_groups"], 4 * channels[0]
    twice = f"in_channels or twice as many: {c} or {2 * c}"
    yield "out_channels", values["out_channels"] in (c, 2 * c), twice
    size = values["time_embedding_dim"]
    yield "time_embedding_dim", size in (None, usual), f"None, or 4 block_out_channels[0]: {usual}"
    own = values["attn_norm_num_groups"]
    yield "attn_norm_num_groups", own in (None, groups), f"None, or norm_num_groups: {groups}"


def _need(name: str, values: Mapping[str, Any], holds: bool, need: str) -> None:
    if not holds:
        raise Refusal(f"{_SOURCE}: {name} is {shown(values[name])}; need {need}")


def to_diffusers_config(config: ADMConfig | UNetConfig, width: float = 1.0) -> dict[str, Any]:
    """Return the arguments of the `UNet2DModel` that has the form of a network at a width.

    Its time embedding is the full width's: see `to_unet2d` for narrower ones.

    Raises:
        TypeError, ValueError: `UNet2DModel` has no such network, or the network no such width.
    """
    adm, slicing, width = adm_form(config), config.slicing, config.check_width(width)
    if adm.context_channels is not None:
        raise Refusal("UNet2DModel: the network attends to a context; need one that does not")
    if not adm.scale_shift and not adm.norm_middle:
        raise Refusal("UNet2DModel: norm_middle is False with scale_shift False; need one of them")
    full = [adm.ch * mult for mult in adm.ch_mult]
    channels = [slicing.active(c, width) for c in full]
    if len({*channels}) < len({*full}):  # there a block has a shortcut where channels change
        raise Refusal(
            f"UNet2DModel: levels of {full} channels have {channels} at width {width:g}; need "
            "others to stay others: another width"
        )
    groups = slicing.group_count(full[0], channels[0])
    levels, changes, blocks = [*range(len(full))], len(full) - 1, adm.resample_blocks
    whole = blocks if isinstance(blocks, tuple) else (blocks,) * (2 * changes)
    attn_up = adm.attn if adm.attn_up is None else adm.attn_up
    down, down_type = _block_types(_DOWN, levels, adm.attn, whole[:changes])
    up, up_type = _block_types(_UP, levels[::-1], attn_up, whole[changes:])
    return {
        **DEFAULTS,
        "sample_size": adm.image_size,
        "in_channels": adm.image_channels,
        "out_channels": adm.image_channels * (2 if adm.learned_sigma else 1),
        "freq_shift": adm.freq_shift,
        "flip_sin_to_cos": not adm.sines_first,
        "down_block_types": down,
        "up_block_types": up,
        "block_out_channels": channels,
        "layers_per_block": adm.num_res_blocks,
        "downsample_padding": 0 if adm.pad_end else 1,
        "downsample_type": down_type,
        "upsample_type": up_type,
        "dropout": adm.dropout,
        "attention_head_dim": _head_dim(config, adm, width),
        "norm_num_groups": groups,
        "attn_norm_num_groups": groups if adm.scale_shift and adm.norm_middle else None,
        "norm_eps": adm.eps,
        "resnet_time_scale_shift": "scale_shift" if adm.scale_shift else "default",
        "add_attention": adm.attn_middle,
        "num_class_embeds": None if adm.num_classes is None else adm.num_classes + adm.null_class,
    }


def _block_types(
    kinds: tuple[str, str, str],
    levels: Sequence[int],
    attn: Sequence[int],
    changes: Sequence[bool],
) -> tuple[list[str], str]:
    """Types of the blocks of one way, and how those with attention change the resolution."""
    plain, attending, resnet = kinds
    both = list(zip(levels, (*changes, False), strict=True))
    of_attention = {change for level, change in both[:-1] if level in attn}
    if len(of_attention) > 1:
        raise Refusal(
            "UNet2DModel: resample_blocks differs among levels with attention; need the same at all"
        )
    types = [attending if level in attn else resnet if change else plain for level, change in both]
    return types, "resnet" if True in of_attention else "conv"


def _head_dim(config: ADMConfig | UNetConfig, adm: ADMConfig, width: float) -> int | None:
    """Channels of a head, as `attention_head_dim`; None: one head of all channels."""
    attended = [node for node in config.graph.nodes if node.op == "attention"]
    heads = {node.out.head for node in attended}
    if len(heads) > 1:
        raise Refusal(
            f"UNet2DModel: heads is {adm.heads}, of {sorted(h or 0 for h in heads)} channels at "
            "its levels; need the same channels a head at all"
        )
    head = heads.pop() if heads else None
    for node in attended:
        if head is None:
            break
        inner = config.counts(width)[node.index]
        c = config.slicing.active(node.out.c_max, width)
        if inner != c // head * head:
            raise Refusal(
                f"UNet2DModel: {node.name} has {inner // head} heads of {head} channels at width "
                f"{width:g}, where its level has {c} channels; need {c // head}, as there: another "
                "width"
            )
    return head
