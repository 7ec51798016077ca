"""Weights of guided-diffusion (github.com/openai/guided-diffusion, commit 22e0df8).

Its `UNetModel` is the network of `ADMConfig`; q, k and v of an attention, and scale and shift of a
block, are the rows of one weight there.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Any

from torch import Tensor

from ddsm_ext.compat.fused import FusedLayer
from ddsm_ext.compat.weights_file import network_of, read_state_dict
from ddsm_ext.graph.count import layers
from ddsm_ext.graph.node import Node
from ddsm_ext.models.adm import ADMConfig
from ddsm_ext.models.network import SlimmableNetwork
from ddsm_ext.settings import Refusal, TypeRefusal, check_keys, is_int

REQUIRED = (
    "image_size", "in_channels", "model_channels", "out_channels", "num_res_blocks",
    "attention_resolutions",
)  # fmt: skip
# The constructor's other arguments and their defaults (unet.py).
DEFAULTS: dict[str, Any] = {
    "dropout": 0,
    "channel_mult": (1, 2, 4, 8),
    "conv_resample": True,
    "dims": 2,
    "num_classes": None,
    "use_checkpoint": False,
    "use_fp16": False,
    "num_heads": 1,
    "num_head_channels": -1,
    "num_heads_upsample": -1,
    "use_scale_shift_norm": False,
    "resblock_updown": False,
    "use_new_attention_order": False,
}
_TYPES: dict[str, tuple[type | tuple[type, ...], str]] = {
    "conv_resample": (bool, "True or False"),
    "use_new_attention_order": (bool, "True or False"),
    "attention_resolutions": ((tuple, list, set, frozenset), "a sequence of integers"),
    "channel_mult": ((tuple, list), "a sequence of integers"),
}
GROUPS = 32  # of every GroupNorm (nn.py)
_SOURCE = "guided-diffusion config"

_WHOLE = {
    "time_embedding.linear1": "time_embed.0",
    "time_embedding.linear2": "time_embed.2",
    "label_embedding": "label_emb",
    "head": "input_blocks.0.0",
    "tail.norm": "out.0",
    "tail.conv": "out.2",
}
_IN_BLOCK = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "shortcut": "skip_connection",
    "norm": "norm",
    "out": "proj_out",
}
_RESAMPLING = {"input_blocks": "op", "output_blocks": "conv"}  # plain convolutions


def guided_diffusion_config(config: Mapping[str, Any]) -> ADMConfig:
    """Return the `ADMConfig` that equals a `UNetModel` of guided-diffusion.

    Args:
        config: the constructor's arguments by name; missing ones take its defaults.
            `attention_resolutions` are factors of downsampling, as the constructor takes them (its
            scripts divide the image size by the sizes on their command line). `use_checkpoint`,
            `use_fp16` and `use_new_attention_order` do not change what the network is.

    Raises:
        TypeError, ValueError: an argument is missing, unknown or of no use, or asks for what
            `ADMConfig` does not express.
    """
    values = _checked(config)
    factors, multiples = values["attention_resolutions"], values["channel_mult"]
    counted = values["num_head_channels"] == -1
    return ADMConfig(
        image_size=values["image_size"],
        image_channels=values["in_channels"],
        ch=values["model_channels"],
        ch_mult=tuple(multiples),
        # A factor without a level is passed over, as there.
        attn=tuple(level for level in range(len(multiples)) if 2**level in factors),
        num_res_blocks=values["num_res_blocks"],
        dropout=values["dropout"],
        groups=GROUPS,
        head_channels=None if counted else values["num_head_channels"],
        heads=values["num_heads"] if counted else None,
        scale_shift=values["use_scale_shift_norm"],
        resample_blocks=values["resblock_updown"],
        num_classes=values["num_classes"],
        learned_sigma=values["out_channels"] == 2 * values["in_channels"],
    )


def _checked(config: Mapping[str, Any]) -> dict[str, Any]:
    """The constructor's arguments, the defaults filled in, that `ADMConfig` expresses."""
    if not isinstance(config, Mapping):
        raise TypeRefusal(
            f"{_SOURCE} is {type(config).__name__}; need a mapping of UNetModel's arguments"
        )
    check_keys(_SOURCE, config, [*REQUIRED, *DEFAULTS])
    missing = [name for name in REQUIRED if name not in config]
    if missing:
        raise Refusal(f"{_SOURCE} lacks {', '.join(missing)}; need UNetModel's arguments")
    values = {**DEFAULTS, **config}
    for name, (kind, need) in _TYPES.items():
        if not isinstance(values[name], kind):
            raise TypeRefusal(f"{_SOURCE}: {name} is {values[name]!r}; need {need}")
    for name, holds, need in _needs(values):
        if not holds:
            raise Refusal(f"{_SOURCE}: {name} is {values[name]!r}; need {need}")
    return values


def _needs(values: Mapping[str, Any]) -> Iterator[tuple[str, bool, str]]:
    """Each argument's name, whether its value will do, and what would."""
    for name in ("in_channels", "out_channels", "num_heads"):
        yield name, is_int(values[name], 1), "an integer >= 1"
    for name in ("num_head_channels", "num_heads_upsample"):
        yield name, values[name] == -1 or is_int(values[name], 1), "an integer >= 1, or -1"
    yield "channel_mult", all(is_int(mult, 1) for mult in values["channel_mult"]), "integers"
    # What the reference builds and `ADMConfig` does not express:
    yield "dims", values["dims"] == 2, "2: images"
    resamples = values["conv_resample"] or values["resblock_updown"] is not False
    yield "conv_resample", resamples, "True, or resblock_updown"
    c, heads = values["in_channels"], values["num_heads"]
    twice = f"in_channels or twice as many: {c} or {2 * c}"
    yield "out_channels", values["out_channels"] in (c, 2 * c), twice
    if values["num_head_channels"] == -1:
        same = values["num_heads_upsample"] in (-1, heads)
        yield "num_heads_upsample", same, f"num_heads ({heads}), or -1"


class _Entry(FusedLayer):
    """A layer of the reference; q, k and v come once a head in the legacy order."""

    def shape(self, suffix: str) -> tuple[int, ...]:
        """Shape of its parameter; pixels are one dimension in attention there."""
        shape = super().shape(suffix)
        in_attention = self.name.endswith((".qkv", ".proj_out"))
        return shape[:-1] if in_attention and suffix == "weight" else shape


def _entries(config: ADMConfig, new_order: bool) -> list[_Entry]:
    """Every layer of the reference with parameters, in execution order."""
    blocks, found = _block_names(config), []
    for node, ours in groupby(layers(config.graph), key=lambda layer: layer.node):
        name, repeats = _name(node, blocks), 1
        if name.endswith(".qkv") and not new_order:
            repeats = node.out.c_max // (node.out.head or node.out.c_max)
        found.append(_Entry(name, tuple(ours), repeats))
    return found


def _name(node: Node, blocks: Mapping[str, str]) -> str:
    # A joining block has a shortcut there, too: its inputs always outnumber its outputs.
    if node.name in _WHOLE:
        return _WHOLE[node.name]
    if node.name in blocks:
        return f"{blocks[node.name]}.qkv"
    path, _, inner = node.name.rpartition(".")
    block = blocks[path]
    return f"{block}.{_IN_BLOCK.get(inner) or _RESAMPLING[block.partition('.')[0]]}"


def _block_names(config: ADMConfig) -> dict[str, str]:
    """Paths of our blocks and attentions -> the reference's."""
    names = {"middle.0": "middle_block.0", "middle.0.attention": "middle_block.1",
             "middle.1": "middle_block.2"}  # fmt: skip
    blocks = config.num_res_blocks + 1  # a level, the one that resamples included
    for i in range(len(config.ch_mult) * blocks - 1):
        names[f"down.{i}"] = f"input_blocks.{i + 1}.0"
        names[f"down.{i}.attention"] = f"input_blocks.{i + 1}.1"
    ours = theirs = 0
    for level in reversed(range(len(config.ch_mult))):
        for _ in range(blocks):
            names[f"up.{ours}"] = f"output_blocks.{theirs}.0"
            names[f"up.{ours}.attention"] = f"output_blocks.{theirs}.1"
            ours, theirs = ours + 1, theirs + 1
        if level:  # on the way up it is the last part of the block before
            last = 2 if level in config.attn else 1
            names[f"up.{ours}"] = f"output_blocks.{theirs - 1}.{last}"
            ours += 1
    return names


def guided_diffusion_state_dict_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return every parameter name of the reference's network and its shape.

    Args:
        config: as for `guided_diffusion_config`.
    """
    return {
        f"{entry.name}.{suffix}": entry.shape(suffix)
        for entry in _entries(guided_diffusion_config(config), new_order=False)
        for suffix in entry.layers[0].suffixes
    }


def load_guided_diffusion(
    path_or_state_dict: str | os.PathLike[str] | Mapping[str, Any],
    config: Mapping[str, Any],
    *,
    group: str = "",
) -> SlimmableNetwork:
    """Return a network equal to a `UNetModel` of guided-diffusion at full width.

    Args:
        path_or_state_dict: a .pt or .safetensors file or its content: a state dict, or a checkpoint
            that holds one.
        config: as for `guided_diffusion_config`; `use_new_attention_order` says how the rows of
            q, k and v lie.
        group: which network of a checkpoint with several to take.

    Returns:
        The network in evaluation mode on the CPU, in the dtype of the weights.

    Raises:
        FileNotFoundError: there is no such file.
        TypeError, ValueError: one sentence with the file or name, what it is and what is needed.
    """
    adm = guided_diffusion_config(config)
    state = read_state_dict(
        "guided-diffusion state dict",
        path_or_state_dict,
        guided_diffusion_state_dict_shapes(config),
        wanted=group,
    )
    ours: dict[str, Tensor] = {}
    for entry in _entries(adm, config.get("use_new_attention_order", False)):
        for suffix in entry.layers[0].suffixes:
            rows = entry.split(state[f"{entry.name}.{suffix}"])
            for layer, tensor in zip(entry.layers, rows, strict=True):
                shape = layer.weight_shape if suffix == "weight" else layer.weight_shape[:1]
                ours[f"{layer.name}.{suffix}"] = tensor.reshape(shape)
    return network_of(adm, ours)


def to_guided_diffusion_state_dict(
    net: SlimmableNetwork, *, use_new_attention_order: bool = False
) -> dict[str, Tensor]:
    """Return the weights under the reference's names, as its `load_state_dict` takes them.

    Args:
        net: a network of an `ADMConfig`.
        use_new_attention_order: the argument that the reference's network is built with.

    Returns:
        Detached tensors; those that are one parameter in `net` share its memory.

    Raises:
        TypeError: `net` is no `SlimmableNetwork` of an `ADMConfig`.
        ValueError: the reference has no such network.
    """
    config = getattr(net, "config", None)
    if not isinstance(net, SlimmableNetwork) or not isinstance(config, ADMConfig):
        got = type(net if config is None else config).__name__
        raise TypeRefusal(
            f"to_guided_diffusion_state_dict: got {got}; need a SlimmableNetwork of an ADMConfig"
        )
    if config.groups != GROUPS:
        raise Refusal(
            f"to_guided_diffusion_state_dict: groups is {config.groups}; need {GROUPS}, as in the "
            "reference's network"
        )
    ours, state = net.state_dict(), {}
    for entry in _entries(config, use_new_attention_order):
        for suffix in entry.layers[0].suffixes:
            fused = entry.joined([ours[f"{layer.name}.{suffix}"] for layer in entry.layers])
            state[f"{entry.name}.{suffix}"] = fused.reshape(entry.shape(suffix))
    return state
