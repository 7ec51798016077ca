"""Weights of EDM (github.com/NVlabs/edm): the names and shapes of its state dicts.

Its `SongUNet` is the network of `SongUNetConfig`, its `DhariwalUNet` that of `DhariwalUNetConfig`;
q, k and v of an attention, and scale and shift of a block, are the rows of one weight there, and a
linear map of one-hot labels is our table of their rows. The code itself is not for commercial use:
none of it is here, and its pickles, which are code, are not read.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddsm_ext.compat.fused import FusedLayer
from ddsm_ext.compat.weights_file import network_of, read_state_dict
from ddsm_ext.graph.count import layers
from ddsm_ext.graph.node import Node
from ddsm_ext.models.edm import DhariwalUNetConfig, SongUNetConfig
from ddsm_ext.models.network import SlimmableNetwork
from ddsm_ext.settings import Refusal, TypeRefusal, check_keys, is_int

Config = SongUNetConfig | DhariwalUNetConfig

REQUIRED = ("cls", "img_resolution", "in_channels", "out_channels")
# The constructors' other arguments and their defaults.
_BOTH: dict[str, Any] = {"label_dim": 0, "augment_dim": 0, "channel_mult_emb": 4, "dropout": 0.1,
                         "label_dropout": 0}  # fmt: skip
DEFAULTS: dict[str, dict[str, Any]] = {
    "SongUNet": {
        **_BOTH, "model_channels": 128, "channel_mult": (1, 2, 2, 2), "num_blocks": 4,
        "attn_resolutions": (16,), "embedding_type": "positional", "channel_mult_noise": 1,
        "encoder_type": "standard", "decoder_type": "standard", "resample_filter": (1, 1),
    },
    "DhariwalUNet": {
        **_BOTH, "model_channels": 192, "channel_mult": (1, 2, 3, 4), "num_blocks": 3,
        "attn_resolutions": (32, 16, 8),
    },
}  # fmt: skip
_SOURCE = "EDM config"
_FILTERS = {(1, 1): 2, (1, 3, 3, 1): 4}  # to taps

_WHOLE = {
    "time_embedding.augment": "map_augment",
    "time_embedding.linear1": "map_layer0",
    "time_embedding.linear2": "map_layer1",
}
_IN_BLOCK = {
    "norm1": "norm0",
    "conv1": "conv0",
    "time": "affine",
    "norm2": "norm1",
    "conv2": "conv1",
    "shortcut": "skip",
    "attention": "qkv",
    "attention.norm": "norm2",
    "attention.out": "proj",
}
_FREQUENCIES = ("time_embedding.table", "map_noise.freqs")
_LABELS = "map_label"
_BESIDE_LABELS = "map_layer1.bias"  # of DhariwalUNet, to which its labels are added


def edm_config(config: Mapping[str, Any]) -> Config:
    """Return the config that equals a `SongUNet` or `DhariwalUNet` of EDM.

    Args:
        config: the constructor's arguments by name, missing ones at its defaults, and the class's
            name as `cls`. `label_dropout` is a matter of training, not of the network.

    Raises:
        TypeError, ValueError: an argument is missing, unknown or of no use, or asks for what the
            configs here do not express.
    """
    values = _checked(config)
    sides = [values["img_resolution"] >> i for i in range(len(values["channel_mult"]))]
    common: dict[str, Any] = {
        "image_size": values["img_resolution"],
        "image_channels": values["in_channels"],
        "ch": values["model_channels"],
        "ch_mult": tuple(values["channel_mult"]),
        # A resolution without a level is passed over, as there.
        "attn": tuple(i for i, side in enumerate(sides) if side in values["attn_resolutions"]),
        "num_res_blocks": values["num_blocks"],
        "dropout": values["dropout"],
        "groups": 1,
        "num_classes": values["label_dim"] or None,
        "augment_channels": values["augment_dim"] or None,
    }
    if values["cls"] == "DhariwalUNet":
        return _most_slices(DhariwalUNetConfig(**common))
    return _most_slices(
        SongUNetConfig(
            **common,
            time_mult=values["channel_mult_noise"],
            fourier=values["embedding_type"] == "fourier",
            aux_residual=values["encoder_type"] == "residual",
            taps=_FILTERS[tuple(values["resample_filter"])],
        )
    )


def _most_slices(config: Config) -> Config:
    """The config with as many slices as all norms and the time embedding can be cut into."""
    norms = [node for node in config.graph.nodes if node.op == "norm"]
    channels = [source.out.c_max for node in norms for source in node.reads]
    groups = math.gcd(4 * config.ch, *channels, *(node.groups for node in norms))
    return replace(config, groups=groups)


def _checked(config: Mapping[str, Any]) -> dict[str, Any]:
    """The constructor's arguments, the defaults filled in, that the configs express."""
    if not isinstance(config, Mapping):
        raise TypeRefusal(f"{_SOURCE} is {type(config).__name__}; need a mapping of its arguments")
    kind = config.get("cls")
    if kind not in DEFAULTS:
        raise Refusal(f"{_SOURCE}: cls is {kind!r}; need {' or '.join(map(repr, DEFAULTS))}")
    check_keys(_SOURCE, config, [*REQUIRED, *DEFAULTS[kind]])
    missing = [name for name in REQUIRED if name not in config]
    if missing:
        raise Refusal(f"{_SOURCE} lacks {', '.join(missing)}; need {kind}'s arguments")
    values = {**DEFAULTS[kind], **config}
    for name in ("channel_mult", "attn_resolutions", "resample_filter"):
        value = values.get(name, ())
        if not isinstance(value, tuple | list) or not all(map(is_int, value)):
            raise TypeRefusal(f"{_SOURCE}: {name} is {values[name]!r}; need a sequence of integers")
    for name, holds, need in _needs(values):
        if not holds:
            raise Refusal(f"{_SOURCE}: {name} is {values[name]!r}; need {need}")
    return values


def _needs(values: Mapping[str, Any]) -> Iterator[tuple[str, bool, str]]:
    """Each argument's name, whether its value will do, and what would."""
    for name in ("img_resolution", "in_channels", "out_channels"):
        yield name, is_int(values[name], 1), "an integer >= 1"
    for name in ("label_dim", "augment_dim"):
        yield name, is_int(values[name], 0), "an integer >= 0"
    same = values["out_channels"] == values["in_channels"]
    yield "out_channels", same, f"in_channels, {values['in_channels']}"
    # What EDM builds and the configs do not express:
    yield "channel_mult_emb", values["channel_mult_emb"] == 4, "4"
    if values["cls"] == "DhariwalUNet":
        return
    embedding = values["embedding_type"] in ("positional", "fourier")
    yield "embedding_type", embedding, "'positional' or 'fourier'"
    encoder = values["encoder_type"] in ("standard", "residual")
    yield "encoder_type", encoder, "'standard' or 'residual'"
    yield "decoder_type", values["decoder_type"] == "standard", "'standard'"
    fits = tuple(values["resample_filter"]) in _FILTERS
    yield "resample_filter", fits, "[1, 1] or [1, 3, 3, 1]"


def _fused(config: Config) -> list[FusedLayer]:
    """Every layer of EDM's network with parameters but the map of labels, in execution order."""
    blocks, found = _block_names(config), []
    for node, ours in groupby(layers(config.graph), key=lambda layer: layer.node):
        if node.op != "embed":
            # One row of q, one of k, one of v, channel by channel.
            repeats = node.out.c_max if len(node.parts) == 3 else 1
            found.append(FusedLayer(_name(config, node, blocks), tuple(ours), repeats))
    return found


def _name(config: Config, node: Node, blocks: Mapping[str, str]) -> str:
    if node.name in _WHOLE:
        return _WHOLE[node.name]
    side, song = config.image_size, isinstance(config, SongUNetConfig)
    if node.name == "head":
        return f"enc.{side}x{side}_conv"
    if node.name in ("tail.norm", "tail.conv"):
        kind = node.name.removeprefix("tail.")
        return f"dec.{side}x{side}_aux_{kind}" if song else f"out_{kind}"
    # A joining block has a skip there, too: its inputs always outnumber its outputs.
    path = ".".join(node.name.split(".")[:2])
    inner = node.name.removeprefix(f"{path}.")
    if inner == "aux":
        return f"{blocks[path].removesuffix('_down')}_aux_residual"
    return f"{blocks[path]}.{_IN_BLOCK[inner]}"


def _block_names(config: Config) -> dict[str, str]:
    """Paths of our blocks -> EDM's."""
    names, blocks, levels = {}, config.num_res_blocks, len(config.ch_mult)
    sides = [config.image_size >> level for level in range(levels)]
    down = up = 0
    for level, side in enumerate(sides):
        own = ["_down"] if level else []
        for end in (*own, *(f"_block{i}" for i in range(blocks))):
            names[f"down.{down}"] = f"enc.{side}x{side}{end}"
            down += 1
    for i in range(2):
        names[f"middle.{i}"] = f"dec.{sides[-1]}x{sides[-1]}_in{i}"
    for level in reversed(range(levels)):
        side = sides[level]
        ends = [(side, f"_block{i}") for i in range(blocks + 1)]
        for at, end in (*ends, *([(2 * side, "_up")] if level else [])):
            names[f"up.{up}"] = f"dec.{at}x{at}{end}"
            up += 1
    return names


def _filters(config: Config) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the filters that EDM keeps in its state dicts."""
    taps = config.taps if isinstance(config, SongUNetConfig) else 2
    found = []
    for name in _block_names(config).values():
        if name.endswith(("_down", "_up")):
            found += [f"{name}.conv0", f"{name}.skip"]
        if name.endswith("_down") and isinstance(config, SongUNetConfig) and config.aux_residual:
            found.append(f"{name.removesuffix('_down')}_aux_residual")
    return {f"{name}.resample_filter": (1, 1, taps, taps) for name in found}


def edm_state_dict_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return every name of a state dict of EDM's network and its shape, buffers included.

    Args:
        config: as for `edm_config`.
    """
    return _shapes(edm_config(config))


def _shapes(config: Config) -> dict[str, tuple[int, ...]]:
    shapes = {
        f"{fused.name}.{suffix}": fused.shape(suffix)
        for fused in _fused(config)
        for suffix in fused.layers[0].suffixes
    }
    for node in config.graph.nodes:
        if node.op == "embed":
            shapes[f"{_LABELS}.weight"] = (node.out.c_max, node.rows - 1)
            if isinstance(config, SongUNetConfig):
                shapes[f"{_LABELS}.bias"] = (node.out.c_max,)
        if node.fourier:
            shapes[_FREQUENCIES[1]] = (node.out.c_max // 2,)
    return {**shapes, **_filters(config)}


def load_edm(
    path_or_state_dict: str | os.PathLike[str] | Mapping[str, Any],
    config: Mapping[str, Any],
    *,
    group: str = "",
) -> SlimmableNetwork:
    """Return a network equal to a `SongUNet` or `DhariwalUNet` of EDM at full width.

    Args:
        path_or_state_dict: a .safetensors or torch file or its content: a state dict of the
            network, or of the preconditioner around it (names that begin with `model.`).
        config: as for `edm_config`.
        group: which network of a checkpoint with several to take.

    Returns:
        The network in evaluation mode on the CPU, in the dtype of the weights; label `num_classes`
        stands for EDM's labels of zeros.

    Raises:
        FileNotFoundError: there is no such file.
        TypeError, ValueError: one sentence with the file or name, what it is and what is needed.
    """
    ours_config = edm_config(config)
    if isinstance(path_or_state_dict, str | os.PathLike):
        path = Path(path_or_state_dict)
        if path.suffix == ".pkl":
            raise Refusal(
                f"{path}: is a pickle of EDM's code, which is not run here; need its weights "
                "alone, written where that code is: torch.save(data['ema'].state_dict(), "
                "'weights.pt'), or a .safetensors of them"
            )
    state = read_state_dict(
        "EDM state dict",
        path_or_state_dict,
        _shapes(ours_config),
        optional=tuple(_filters(ours_config)),
        wanted=group,
    )
    ours: dict[str, Tensor] = {}
    for fused in _fused(ours_config):
        for suffix in fused.layers[0].suffixes:
            rows = fused.split(state[f"{fused.name}.{suffix}"])
            for layer, tensor in zip(fused.layers, rows, strict=True):
                ours[f"{layer.name}.{suffix}"] = tensor
    for node in ours_config.graph.nodes:
        if node.op == "embed":
            bias = state.get(f"{_LABELS}.bias")
            ours[f"{node.name}.weight"] = _table(state[f"{_LABELS}.weight"], bias)
        if node.fourier:
            ours[_FREQUENCIES[0]] = state[_FREQUENCIES[1]]
    return network_of(ours_config, ours)


def _table(weight: Tensor, bias: Tensor | None) -> Tensor:
    """Rows [K + 1, c] of a linear map [c, K] of one-hot labels, the last of zeros.

    A map with a bias (SongUNet's) takes labels times sqrt(K).
    """
    rows = weight.double().t()
    if bias is None:
        return torch.cat([rows, torch.zeros_like(rows[:1])]).to(weight.dtype)
    null = bias.double()[None]
    scaled = rows * math.sqrt(weight.shape[1])
    return torch.cat([scaled + null, null]).to(weight.dtype)


def _label_map(table: Tensor, has_bias: bool) -> dict[str, Tensor]:
    """`_table` reversed; without a bias less the row of no class, which then is zero."""
    rows, null = table[:-1].double(), table[-1].double()
    if not has_bias:
        return {f"{_LABELS}.weight": (rows - null).t().contiguous().to(table.dtype)}
    weight = ((rows - null) / math.sqrt(len(rows))).t().contiguous()
    return {f"{_LABELS}.weight": weight.to(table.dtype), f"{_LABELS}.bias": table[-1].clone()}


def to_edm_state_dict(net: SlimmableNetwork) -> dict[str, Tensor]:
    """Return the weights under EDM's names, as its `load_state_dict` takes them.

    Args:
        net: a network of a `SongUNetConfig` or `DhariwalUNetConfig`.

    Returns:
        Detached tensors; those that are one parameter in `net` share its memory. The map of labels
        equals one that was loaded up to rounding, everything else exactly.

    Raises:
        TypeError: `net` is no `SlimmableNetwork` of such a config.
        ValueError: EDM has no such network.
    """
    config = getattr(net, "config", None)
    if not isinstance(net, SlimmableNetwork) or not isinstance(config, Config):
        got = type(net if config is None else config).__name__
        raise TypeRefusal(
            f"to_edm_state_dict: got {got}; need a SlimmableNetwork of a SongUNetConfig or "
            "DhariwalUNetConfig"
        )
    need = None if isinstance(config, SongUNetConfig) else DhariwalUNetConfig.head_channels
    if config.head_channels != need:
        raise Refusal(
            f"to_edm_state_dict: head_channels is {config.head_channels}; need {need}, as in EDM"
        )
    ours, state = net.state_dict(), {}
    for fused in _fused(config):
        for suffix in fused.layers[0].suffixes:
            parts = [ours[f"{layer.name}.{suffix}"] for layer in fused.layers]
            state[f"{fused.name}.{suffix}"] = fused.joined(parts)
    for node in config.graph.nodes:
        if node.op == "embed":
            table, has_bias = ours[f"{node.name}.weight"], isinstance(config, SongUNetConfig)
            state |= _label_map(table, has_bias)
            if not has_bias:  # the row of no class is added for all, where the labels are
                state[_BESIDE_LABELS] = state[_BESIDE_LABELS] + table[-1]
        if node.fourier:
            state[_FREQUENCIES[1]] = ours[_FREQUENCIES[0]]
    for name, shape in _filters(config).items():
        one = torch.tensor([1.0, 1.0] if shape[-1] == 2 else [1.0, 3.0, 3.0, 1.0])
        state[name] = (torch.outer(one, one) / one.sum().square()).view(shape)
    return state
