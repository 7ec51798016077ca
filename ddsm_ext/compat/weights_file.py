"""Foreign weights, from their file into a network."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.serialization import safe_globals

from ddsm_ext.graph.config import NetworkConfig
from ddsm_ext.io.weights import check_tensors, load_file
from ddsm_ext.models.network import SlimmableNetwork
from ddsm_ext.settings import Refusal, TypeRefusal

# What torch puts into names where it wraps a module: anywhere, as any module may be wrapped
_WRAPPERS = re.compile(
    r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)


class NumPyValue:
    """Stands for a number or an array of NumPy in a torch file; nothing of NumPy's is called."""

    def __init__(self, *args: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


_NUMPY_NAMES = ["numpy.dtype", "numpy.ndarray", *(
    f"numpy.{core}.multiarray.{name}" for core in ("core", "_core")
    for name in ("scalar", "_reconstruct")
)]  # fmt: skip


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
        source: a .safetensors file, any other name of a torch file of tensors and plain values, or
            what it holds: a state dict, or a checkpoint of several. Its names may all begin with
            what a wrapper put there: `module.`, `_orig_mod.`, `model.`, one in another.
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
        with safe_globals([(NumPyValue, numpy_name) for numpy_name in _NUMPY_NAMES]):
            name, content = os.fspath(source), load_file(Path(source))
    else:
        raise TypeRefusal(f"{kind}: got {type(source).__name__}; need a path or a state dict")
    state = _unwrapped(_pick(name, content, groups, wanted), shapes)
    check_tensors(name, state, shapes, optional=optional)
    check_finite(name, state)
    return state


def check_finite(what: str, tensors: Mapping[str, Tensor]) -> None:
    """Refuse weights that a float32 network cannot compute with.

    Args:
        what: what errors call the tensors.
        tensors: by name.

    Raises:
        ValueError: one is NaN, infinite or beyond the range of float32; the sentence names it.
    """
    for name, tensor in tensors.items():
        if not bool(tensor.float().isfinite().all()):
            raise Refusal(
                f"{what}: {name} has values that are not finite in float32; need finite weights"
            )


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
    """Names and tensors of one network, as they are there."""
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
        if value.is_floating_point():
            state[name] = value
        elif value.ndim:  # a single one counts, such as n_averaged of torch's AveragedModel
            raise Refusal(f"{source}: {name} is {value.dtype}; need floating-point weights")
    return state


def _unwrapped(
    state: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Tensor]:
    """The tensors by the names that they had before their network was wrapped.

    What all names begin with is a wrapper's if the network has a name without it.
    """
    plain = {_WRAPPERS.sub("", name): tensor for name, tensor in state.items()}
    if len(plain) < len(state):  # two of one name, of which neither is chosen
        return dict(state)
    parts = zip(*(name.split(".") for name in plain), strict=False)
    shared = itertools.takewhile(lambda each: len(set(each)) == 1, parts)
    prefix = "".join(f"{part}." for part, *_ in shared)
    if not any(name.removeprefix(prefix) in shapes for name in plain):
        return plain
    return {name.removeprefix(prefix): tensor for name, tensor in plain.items()}
