"""Weights of the reference DDSM code (github.com/EnVision-Research/DDSM, commit 9e15f46).

Its network is a `UNetConfig` with a fixed group count and one weight prefix over a concat; its
parameter names map one to one to ours.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ddsm_ext.compat.weights_file import network_of, read_state_dict
from ddsm_ext.graph.count import layers
from ddsm_ext.models.network import SlimmableNetwork
from ddsm_ext.models.unet import UNetConfig
from ddsm_ext.ops.embedding import sinusoidal_embedding
from ddsm_ext.settings import Refusal, TypeRefusal, check_keys, is_int
from ddsm_ext.width import check_width

# The reference's flags and their defaults (main.py); groups is 16 in slimmable_model_g16.py.
DEFAULTS: dict[str, Any] = {
    "T": 1000,
    "ch": 128,
    "ch_mult": [1, 2, 2, 2],
    "attn": [1],
    "num_res_blocks": 2,
    "groups": 32,
    "image_size": 32,
    "dropout": 0.1,
    "candidate_width": [0.75, 0.5],
    "min_width": 0.25,
}
CHECKPOINT_GROUPS = ("ema_model", "net_model")
TIME_TABLE = "time_embedding.timembedding.0.weight"
_OUR_TABLE = "time_embedding.table"

_WHOLE = {
    "time_embedding.linear1": "time_embedding.timembedding.1",
    "time_embedding.linear2": "time_embedding.timembedding.3",
    "head": "head",
    "tail.norm": "tail.0",
    "tail.conv": "tail.2",
}
_PARTS = {"down": "downblocks", "middle": "middleblocks", "up": "upblocks"}
_IN_BLOCK = {
    "norm1": "block1.0",
    "conv1": "block1.2",
    "time": "temb_proj.1",
    "norm2": "block2.0",
    "conv2": "block2.3",
    "shortcut": "shortcut",
    "attention.norm": "attn.group_norm",
    "attention.q": "attn.proj_q",
    "attention.k": "attn.proj_k",
    "attention.v": "attn.proj_v",
    "attention.out": "attn.proj",
    "conv": "main",
}


def official_config(config: Mapping[str, Any]) -> UNetConfig:
    """Return the `UNetConfig` that equals a network of the reference code.

    Args:
        config: any of T, ch, ch_mult, attn, num_res_blocks, groups, image_size, dropout, and
            candidate_width and min_width, the widths below 1 that it was trained at; missing ones
            take the reference's defaults. Widths that its groups do not divide are left out.

    Raises:
        TypeError, ValueError: a key is unknown (with a suggestion) or a value cannot work.
    """
    if not isinstance(config, Mapping):
        raise TypeRefusal(
            f"official DDSM config is {type(config).__name__}; need a mapping with keys "
            f"{', '.join(DEFAULTS)}"
        )
    check_keys("official DDSM config", config, list(DEFAULTS))
    values = {**DEFAULTS, **config}
    steps = values.pop("T")
    if not is_int(steps, 1):
        raise Refusal(f"official DDSM config: T is {steps!r}; need a number of steps >= 1")
    candidates = values.pop("candidate_width")
    if not isinstance(candidates, (list, tuple)):
        raise TypeRefusal(f"official DDSM config: candidate_width is {candidates!r}; need a list")
    given = {"candidate_width": candidates, "min_width": [values.pop("min_width")]}
    trained = {1.0, *(_width(key, width) for key, each in given.items() for width in each)}
    widths = sorted(trained, reverse=True)
    full = UNetConfig(
        **values,
        norm="fixed_groups",
        concat_slicing="prefix",
        widths=(1.0,),
        time_table_rows=steps,
    )
    return dataclasses.replace(full, widths=tuple(filter(full.runs_at, widths)))


def _width(key: str, width: Any) -> float:
    try:
        return check_width(width)
    except Refusal as error:
        raise type(error)(f"{error}, as each {key}") from None


def official_names(config: UNetConfig) -> dict[str, str]:
    """Map each name in our state dict to the reference's, in execution order."""
    names = {_OUR_TABLE: TIME_TABLE} if config.time_table_rows else {}
    for layer in layers(config.graph):
        name = _WHOLE.get(layer.name)
        if name is None:
            part, index, inner = layer.name.split(".", 2)
            name = f"{_PARTS[part]}.{index}.{_IN_BLOCK[inner]}"
        for suffix in ("weight", "bias"):
            names[f"{layer.name}.{suffix}"] = f"{name}.{suffix}"
    return names


def official_state_dict_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return every parameter name of the reference's network and its shape.

    Args:
        config: as for `official_config`.

    Returns:
        name -> shape, the frozen time table included.
    """
    unet = official_config(config)
    names = official_names(unet)
    shapes: dict[str, tuple[int, ...]] = {TIME_TABLE: (unet.time_table_rows, unet.ch)}
    for layer in layers(unet.graph):
        shapes[names[f"{layer.name}.weight"]] = layer.weight_shape
        shapes[names[f"{layer.name}.bias"]] = layer.weight_shape[:1]
    return shapes


def load_official_ddsm(
    path_or_state_dict: str | os.PathLike[str] | Mapping[str, Any],
    config: Mapping[str, Any],
    *,
    group: str = "",
) -> SlimmableNetwork:
    """Return a network equal to the reference's at every width that the reference can run.

    Args:
        path_or_state_dict: a .pt or .safetensors file or its content: a state dict, or a checkpoint
            that holds one, as `ema_model` and `net_model` or by other names or prefixes.
        config: as for `official_config`.
        group: which network of a checkpoint with several to take; "" takes "ema_model", which the
            reference evaluates, or else "net_model".

    Returns:
        The network in evaluation mode on the CPU, in the dtype of the weights.

    Raises:
        FileNotFoundError: there is no such file.
        TypeError, ValueError: one sentence with the file or name, what it is and what is needed.
    """
    unet = official_config(config)
    state = read_state_dict(
        "official DDSM state dict",
        path_or_state_dict,
        official_state_dict_shapes(config),
        optional=(TIME_TABLE,),  # a constant that the network computes as the reference does
        groups=CHECKPOINT_GROUPS,
        wanted=group,
    )
    names = official_names(unet)
    return network_of(unet, {our: state[its] for our, its in names.items() if its in state})


def to_official_state_dict(net: SlimmableNetwork) -> dict[str, Tensor]:
    """Return the weights under the reference's names, as its `load_state_dict` takes them.

    Args:
        net: a network whose slicing equals the reference's.

    Returns:
        Detached tensors that share memory with `net`; the frozen time table is included, of 1000
        steps where `net` keeps none.

    Raises:
        TypeError: `net` is no `SlimmableNetwork` of a `UNetConfig`.
        ValueError: the network slices differently, so the reference would compute something else.
    """
    config = getattr(net, "config", None)
    if not isinstance(net, SlimmableNetwork) or not isinstance(config, UNetConfig):
        raise TypeRefusal(
            f"to_official_state_dict: got {type(net).__name__} of {type(config).__name__}; "
            "need a SlimmableNetwork of a UNetConfig"
        )
    needs = {"norm": "fixed_groups", "concat_slicing": "prefix", "image_channels": 3,
             "head_channels": None}  # fmt: skip
    for name, needed in needs.items():
        value = getattr(config, name)
        if value != needed:
            raise Refusal(
                f"to_official_state_dict: {name} is {value!r}; need {needed!r}, as in the "
                "reference's network"
            )
    ours = net.state_dict()
    state = {official: ours[our] for our, official in official_names(config).items()}
    if TIME_TABLE not in state:
        t = torch.arange(DEFAULTS["T"], device="cpu")
        table = sinusoidal_embedding(t, config.ch)  # [T, ch]
        weight = net.get_parameter("head.weight")
        state = {TIME_TABLE: table.to(device=weight.device, dtype=weight.dtype), **state}
    return state
