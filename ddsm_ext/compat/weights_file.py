"""Foreign weights, from their file into a network."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddsm_ext.graph.config import NetworkConfig
from ddsm_ext.io.weights import check_tensors, load_file
from ddsm_ext.models.network import SlimmableNetwork
from ddsm_ext.settings import Refusal, TypeRefusal


def read_state_dict(
    kind: str,
    source: str | os.PathLike[str] | Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    optional: tuple[str, ...] = (),
    groups: tuple[str, ...] = (),
    wanted: str = "",
) -> dict[str, Tensor]:
    """Return the tensors of one network, of exactly the expected names and shapes.

    Args:
        kind: what errors call a `source` that is no file.
        source: a .safetensors file, any other name of a torch file of tensors only, or what it
            holds: a state dict, whose names may begin with DataParallel's `module.`, or a
            checkpoint of several.
        shapes: name -> shape.
        optional: names that may be missing.
        groups: keys of a checkpoint that hold state dicts.
        wanted: the group to take from a checkpoint; another one is used only if it is the only
            one there.

    Raises:
        FileNotFoundError: there is no such file.
        TypeError, ValueError: one sentence with the file or name, what it is and what is needed.
    """
    if isinstance(source, Mapping):
        name, content = kind, source
    elif isinstance(source, (str, os.PathLike)):
        name, content = os.fspath(source), load_file(Path(source))
    else:
        raise TypeRefusal(f"{kind}: got {type(source).__name__}; need a path or a state dict")
    state = _pick(name, content, groups, wanted)
    check_tensors(name, state, shapes, optional=optional)
    return state


def network_of(config: NetworkConfig, tensors: Mapping[str, Tensor]) -> SlimmableNetwork:
    """Return a network of these weights in evaluation mode: in their dtype, or float32 of several.

    Args:
        config: the network.
        tensors: its parameters, and perhaps its frozen table, by name.
    """
    # Initial values are overwritten: a private generator leaves the caller's random state alone.
    net = SlimmableNetwork(config, generator=torch.Generator(), dtype=torch.float32)
    dtypes = {tensors[name].dtype for name, _ in net.named_parameters()}
    net.to(dtypes.pop() if len(dtypes) == 1 else torch.float32)
    net.load_state_dict(tensors, strict=False)
    return net.eval()


def _pick(
    source: str, content: Mapping[str, Any], groups: tuple[str, ...], wanted: str
) -> dict[str, Tensor]:
    """Names and tensors of one network, without DataParallel's prefix."""
    present = [group for group in groups if isinstance(content.get(group), Mapping)]
    if present:
        content = content[wanted if wanted in present or len(present) > 1 else present[0]]
    if not content:
        raise Refusal(f"{source} is empty; need a state dict of names and tensors")
    state = {}
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            what = f"entry {name!r} is a {type(value).__name__}"
            other = f", or a checkpoint with {' or '.join(groups)}" if groups else ""
            raise Refusal(f"{source}: {what}; need a state dict of names and tensors{other}")
        if not value.is_floating_point():
            raise Refusal(f"{source}: {name} is {value.dtype}; need floating-point weights")
        state[name.removeprefix("module.")] = value
    return state
