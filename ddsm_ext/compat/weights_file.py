"""Reads the tensors of a foreign weights file; no code in a file is ever run."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ddsm_ext.graph.config import NetworkConfig
from ddsm_ext.models.network import SlimmableNetwork


def read_weights_file(path: str | os.PathLike[str]) -> Mapping[str, Any]:
    """Read a `.safetensors` file, or any other name as a torch file of tensors only.

    Args:
        path: the file.

    Returns:
        What the file holds: names to tensors, or to groups of them; tensors are on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, of another kind, or holds more than tensors and plain
            values.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise FileNotFoundError(f"{path} {what}; need a .pt or .safetensors file")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} is no whole safetensors file: {_first_line(error)}") from None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ValueError(
            f"{path} is refused: it is damaged, or holds Python objects, which may run code when "
            "loaded; need tensors and plain values only"
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, TypeError,
            AttributeError, UnicodeDecodeError) as error:  # fmt: skip
        # What torch's readers raise on truncated or foreign bytes.
        raise ValueError(f"{path} is no whole torch file: {_first_line(error)}") from None
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}; need a state dict")
    return content


def named_content(
    caller: str, kind: str, source: str | os.PathLike[str] | Mapping[str, Any]
) -> tuple[str, Mapping[str, Any]]:
    """Return what errors call a weights file or its content, and the content.

    Args:
        caller: the function that was given `source`.
        kind: what it takes a mapping for.
        source: path of the file, or what it holds.

    Raises:
        FileNotFoundError, ValueError: as `read_weights_file`.
        TypeError: `source` is neither.
    """
    if isinstance(source, Mapping):
        return kind, source
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source), read_weights_file(source)
    raise TypeError(f"{caller}: got {type(source).__name__}; need a path or a state dict")


def empty_network(config: NetworkConfig, tensors: Iterable[Tensor]) -> SlimmableNetwork:
    """Return a network to load tensors into: of their dtype, or float32 if they have several."""
    dtypes = {tensor.dtype for tensor in tensors}
    dtype = next(iter(dtypes)) if len(dtypes) == 1 else torch.float32
    # Initial values are overwritten: a private generator leaves the caller's random state alone.
    return SlimmableNetwork(config, generator=torch.Generator()).to(dtype)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def pick_state_dict(
    source: str, content: Mapping[str, Any], groups: tuple[str, ...], wanted: str
) -> dict[str, Tensor]:
    """Return names and tensors of one network, without DataParallel's `module.` prefix.

    Args:
        source: what the errors call the content.
        content: a raw state dict, or a checkpoint whose keys in `groups` hold state dicts.
        groups: keys that mark a checkpoint; (): a raw state dict only.
        wanted: the group to take from a checkpoint; another one is used only if it is the only
            one there.

    Raises:
        ValueError: the content is neither, or a value is no floating-point tensor.
    """
    present = [group for group in groups if isinstance(content.get(group), Mapping)]
    if present:
        content = content[wanted if wanted in present or len(present) > 1 else present[0]]
    if not content:
        raise ValueError(f"{source} is empty; need a state dict of names and tensors")
    state = {}
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            what = f"entry {name!r} is a {type(value).__name__}"
            other = f", or a checkpoint with {' or '.join(groups)}" if groups else ""
            raise ValueError(f"{source}: {what}; need a state dict of names and tensors{other}")
        if not value.is_floating_point():
            raise ValueError(f"{source}: {name} is {value.dtype}; need floating-point weights")
        state[name.removeprefix("module.")] = value
    return state


def check_names_and_shapes(
    source: str,
    state: Mapping[str, Tensor],
    shapes: Mapping[str, tuple[int, ...]],
    optional: tuple[str, ...] = (),
) -> None:
    """Refuse a state dict whose names or shapes differ from the expected ones.

    Raises:
        ValueError: one sentence with the first difference and the count of its kind.
    """
    missing = [name for name in shapes if name not in state and name not in optional]
    unexpected = [name for name in state if name not in shapes]
    if missing or unexpected:
        kind, names = ("lacks", missing) if missing else ("has the unexpected", unexpected)
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        raise ValueError(
            f"{source} {kind} {names[0]}{more}; need exactly the {len(shapes)} names that the "
            "config gives"
        )
    for name, shape in shapes.items():
        if name in state and tuple(state[name].shape) != tuple(shape):
            raise ValueError(
                f"{source}: {name} has shape {list(state[name].shape)}; the config needs "
                f"{list(shape)}"
            )
