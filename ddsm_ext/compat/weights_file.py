"""Foreign weights, from their file into a network."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.serialization import safe_globals

from ddsm_ext.graph.config import NetworkConfig
from ddsm_ext.io.weights import check_tensors, load_file
from ddsm_ext.models.network import SlimmableNetwork
from ddsm_ext.settings import Refusal, TypeRefusal

# What torch puts into names where it wraps a module: anywhere, as any module may be wrapped. A
# `module.` that names begin with tells networks apart and is left to `_parts`.
_WRAPPERS = re.compile(
    r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
    r"|(?<=\.)module\."
)
log = logging.getLogger(__name__)
_DEPTH = 3  # of mappings within a checkpoint that are looked through


class NumPyValue:
    """Stands for a number or an array of NumPy in a torch file; nothing of NumPy's is called."""

    def __init__(self, *args: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...

    def __repr__(self) -> str:
        return "of NumPy"


class Callback:
    """Stands for a class of Lightning's, by which its checkpoints name what callbacks kept."""


_CALLBACK_NAMES = [
    f"{package}.callbacks.model_checkpoint.ModelCheckpoint"
    for package in ("pytorch_lightning", "lightning.pytorch")
]
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
            what it holds: the names and tensors of the network, in a mapping of their own (of
            whatever name) or under a prefix, with anything beside them. Wrappers of torch may have
            put their names into the network's.
        shapes: name -> shape.
        optional: names that may be missing.
        groups: usual names of a network within a checkpoint, of which the first is taken.
        wanted: the name of the one to take, where there are several: a key, a prefix, or both
            joined by dots. One of `groups` that is missing gives way to a network without such a
            name.

    Raises:
        FileNotFoundError: there is no such file.
        TypeError, ValueError: one sentence with the file or name, what it is and what is needed.
    """
    if isinstance(source, Mapping):
        name, content = kind, source
    elif isinstance(source, (str, os.PathLike)):
        name, content = os.fspath(source), open_weights(Path(source))
    else:
        raise TypeRefusal(f"{kind}: got {type(source).__name__}; need a path or a state dict")
    required = frozenset(shapes) - set(optional)
    state = _tensors(name, _pick(name, content, required, groups, wanted), shapes, groups)
    check_tensors(name, state, shapes, optional=optional)
    _check_finite(name, state)
    return state


def open_weights(path: Path) -> Mapping[str, Any]:
    """Return what a file of weights holds; objects known by name are stood in for, none is made.

    Raises:
        FileNotFoundError: there is no such file.
        TypeError, ValueError: it is damaged, or holds more than tensors and plain values.
    """
    stand_ins: list[Any] = [(NumPyValue, name) for name in _NUMPY_NAMES]
    with safe_globals([*stand_ins, *((Callback, name) for name in _CALLBACK_NAMES)]):
        return load_file(path)


def _check_finite(what: str, tensors: Mapping[str, Tensor]) -> None:
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
    source: str,
    content: Mapping[str, Any],
    required: frozenset[str],
    groups: tuple[str, ...],
    wanted: str,
) -> Mapping[str, Any]:
    """Entries of one network by its own names, or what comes next to them for errors to name."""
    place = ""
    if isinstance(content.get(wanted), Mapping):
        content, place = content[wanted], f"{wanted}."
    parts = list(_parts(content, required, place))
    whole = {where: entries for where, entries, count in parts if count == len(required)}
    for name in [wanted] if wanted else groups:
        asked = [where for where in whole if where == name]
        asked = asked or [where for where in whole if name in where.split(".")]
        if len(asked) == 1:
            if not wanted and name != groups[0]:
                log.info("%s: has no %s weights, those of %s are taken", source, groups[0], name)
            return whole[asked[0]]
        lacking = [part for part in parts if name in part[0].split(".")]
        if lacking and not asked:  # errors name what it lacks, rather than another takes its place
            return max(lacking, key=lambda part: part[2])[1]
    if len(whole) > 1:
        names = " and ".join(map(repr, whole))
        raise Refusal(
            f"{source} holds {len(whole)} sets of the network's weights, {names}; need the name of "
            "one as group (--group)"
        )
    if whole:
        (where,) = whole
        if wanted and (wanted not in groups or {*groups}.intersection(where.split("."))):
            there = f", {where!r}" if where else ""
            raise Refusal(
                f"{source}: group is {wanted!r}; need none, as there is one network alone{there}"
            )
        return whole[where]
    if parts:
        return max(parts, key=lambda part: part[2])[1]
    named = [group for group in groups if isinstance(content.get(group), Mapping)]
    return content[named[0]] if named else content


def _parts(
    content: Mapping[str, Any], required: frozenset[str], place: str, depth: int = _DEPTH
) -> Iterator[tuple[str, dict[str, Any], int]]:
    """Places with most of a network's names, their entries by these, and how many they are.

    A place is the keys on the way and the prefix of the names; entries without it are left out.
    """
    plain = _plain(content)
    found: Counter[str] = Counter()
    for name, value in plain.items():
        if isinstance(value, Tensor | NumPyValue):  # names of sizes or moments are no weights
            starts = [0, *(dot.end() for dot in re.finditer(r"\.", name))]
            found.update(name[:start] for start in starts if name[start:] in required)
    for prefix, count in found.items():
        if 2 * count > len(required):
            under = {n.removeprefix(prefix): v for n, v in plain.items() if n.startswith(prefix)}
            yield f"{place}{prefix}".rstrip("."), under, count
    for key, value in content.items():
        if depth and isinstance(key, str) and isinstance(value, Mapping):
            yield from _parts(value, required, f"{place}{key}.", depth - 1)


def _plain(content: Mapping[str, Any]) -> dict[str, Any]:
    """The entries by the names that they had before parts of their network were wrapped."""
    named = {name: value for name, value in content.items() if isinstance(name, str)}
    plain = {_WRAPPERS.sub("", name): value for name, value in named.items()}
    return plain if len(plain) == len(named) else named  # of two of one name neither is chosen


def _tensors(
    source: str,
    entries: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    groups: tuple[str, ...],
) -> dict[str, Tensor]:
    """The entries, each a tensor that a network can take as its weight."""
    if not entries:
        raise Refusal(f"{source} is empty; need a state dict of names and tensors")
    state = {}
    for name, value in entries.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            kind = "NumPy value" if isinstance(value, NumPyValue) else type(value).__name__
            other = f", or a checkpoint with {' or '.join(groups)}" if groups else ""
            raise Refusal(
                f"{source}: entry {name!r} is a {kind}; need a state dict of names and tensors"
                f"{other}"
            )
        if value.is_meta or value.is_nested or value.layout != torch.strided:
            kind = "meta" if value.is_meta else "nested" if value.is_nested else str(value.layout)
            raise Refusal(f"{source}: {name} is a {kind} tensor; need a dense one with values")
        if value.is_floating_point():
            state[name] = value
        elif value.ndim or name in shapes:  # a single one counts, such as torch's n_averaged
            raise Refusal(f"{source}: {name} is {value.dtype}; need floating-point weights")
    return state
