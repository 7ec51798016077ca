"""Tensors by name: read from files as data, never as code; checked against a network; copied."""

from __future__ import annotations

import hashlib
import math
import pickle
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from ddsm_ext.io.files import (
    naming,
    one_line,
    open_regular,
    parse_json,
    read_bytes,
    read_json,
)
from ddsm_ext.settings import Refusal, is_int

if TYPE_CHECKING:
    from torch import Tensor

INDEX_ENDING = ".safetensors.index.json"
_LARGEST_HEADER = 100_000_000  # bytes, as the format limits it
_DTYPE_BYTES = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2,
    "U16": 2, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip


def parse_safetensors(data: bytes, name: str) -> dict[str, Tensor]:
    """Tensors of a safetensors file, on the CPU; `name` says in errors where it came from.

    Raises:
        ValueError: it is none.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(data)
    except SafetensorError as error:
        text = f"{name} is no whole safetensors file ({one_line(error)}); need tensors by name"
        raise Refusal(text) from None
    except KeyError as error:
        raise Refusal(f"{name}: holds numbers of type {error}; need ones that torch has") from None


def load_file(path: Path) -> Mapping[str, Any]:
    """Content of a safetensors file or of a torch file of plain values.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged or foreign, or holds Python objects.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise FileNotFoundError(f"{path} {what}; need a .pt or .safetensors file")
    what = "file of weights"
    with naming(path, f"need a {what} that can be read"), open_regular(path, what) as file:
        head = file.read(9)  # known by content: its name may end in anything
        file.seek(0)
        named = path.suffix.lower() == ".safetensors"
        if head[8:] == b"{" or (named and not head.startswith((b"PK\3\4", b"\x80\2"))):
            # read, as an error of the disk ends a process that has mapped it
            return parse_safetensors(file.read(), str(path))
        return load_torch(file, str(path))


def check_not_pickled(file: Path) -> None:
    """Refuse weights that are there as a pickle (.bin) alone; `file` is where they would be."""
    if not file.is_file() and file.with_suffix(".bin").is_file():
        raise Refusal(
            f"{file.parent}: holds its weights as a pickle; need {file.name}, as diffusers' "
            "`save_pretrained` writes it today"
        )


def load_torch(source: BinaryIO, name: str) -> Mapping[str, Any]:
    """Content of a torch file of plain values, on the CPU.

    Args:
        source: the file.
        name: says in errors where it came from.

    Raises:
        ValueError: it is damaged or foreign, or holds Python objects.
    """
    import torch

    try:
        content = torch.load(source, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        named = f" ({found[1][:80]})" if found else ""
        raise Refusal(
            f"{name} is refused: it is damaged, or holds Python objects{named}, which may run code "
            "when loaded; need tensors and plain values only"
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError,
            AttributeError) as error:  # fmt: skip
        if isinstance(error, OSError) and error.errno is not None:
            raise  # a file that cannot be read is no damaged one
        # What torch's readers raise on truncated or foreign bytes.
        raise Refusal(
            f"{name} is no whole torch file ({one_line(error)}); need a state dict"
        ) from None
    if not isinstance(content, Mapping):
        raise Refusal(f"{name} holds a {type(content).__name__}; need a state dict")
    return content


def load_shards(index: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Join the safetensors files beside an index, each with a part of a network's weights.

    The index has the form that the Hugging Face libraries write: `NAME.safetensors.index.json` with
    "metadata" and "weight_map" (tensor -> file). Where the metadata have "sha256" (file -> digest),
    as those of `benchmarks/gpu_train.sh`, the files are checked.

    Args:
        index: the index file.

    Returns:
        tensors by name, on the CPU, and the index's metadata.

    Raises:
        FileNotFoundError: the index or a file that it names is missing.
        ValueError: one of them is damaged, names a file elsewhere, or belongs to another index.
    """
    index = Path(index)
    content = read_json(index)
    if not isinstance(content, dict) or not isinstance(content.get("weight_map"), dict):
        raise Refusal(f"{index}: has no weight_map; need an index of safetensors files")
    weight_map, metadata = content["weight_map"], content.get("metadata") or {}
    digests = metadata.get("sha256", {}) if isinstance(metadata, dict) else None
    if not isinstance(digests, dict):
        raise Refusal(f"{index}: metadata or its sha256 is no JSON object; need names and values")
    for file in weight_map.values():
        if file in ("", "..") or Path(str(file)).name != file:
            raise Refusal(f"{index}: names the file {file!r}; need names without a folder")
    tensors: dict[str, Tensor] = {}
    for file in dict.fromkeys(weight_map.values()):
        path = index.parent / file
        data = read_bytes(path, "file that the index names")
        if file in digests and hashlib.sha256(data).hexdigest() != digests[file]:
            raise Refusal(f"{path}: does not match its SHA-256 in the index; need the same save's")
        held = parse_safetensors(data, str(path))
        wanted = {name for name, where in weight_map.items() if where == file}
        if odd := held.keys() ^ wanted:
            raise Refusal(
                f"{index}: {min(odd)} is in the index or in the files alone; need both, for {file}"
            )
        tensors |= held
    return {name: tensors[name] for name in weight_map}, metadata


def check_tensors(
    what: str,
    tensors: Mapping[str, Tensor],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    optional: tuple[str, ...] = (),
) -> None:
    """Refuse tensors that are not exactly those of a network.

    Args:
        what: what errors call the tensors.
        tensors: by name.
        shapes: name -> shape of the network's.
        optional: names that may be missing.

    Raises:
        ValueError: one sentence with the first name or shape that differs.
    """
    missing = [name for name in shapes if name not in tensors and name not in optional]
    unknown = [name for name in tensors if name not in shapes]
    if missing or unknown:
        kind, names = ("lacks", missing) if missing else ("has an unknown", unknown)
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        raise Refusal(
            f"{what} {kind} {names[0]!r}{more}; need exactly the {len(shapes)} names of the network"
        )
    for name, tensor in tensors.items():
        if tuple(tensor.shape) != tuple(shapes[name]):
            raise Refusal(
                f"{what}: {name} has shape {list(tensor.shape)}; need {list(shapes[name])}, that "
                "of the network"
            )


def copy_tensors(source: Mapping[str, Tensor], target: Mapping[str, Tensor], what: str) -> None:
    """Copy tensors by name into existing ones of the same shape; nothing is copied on error.

    Args:
        source: saved tensors.
        target: tensors that receive them, e.g. a `state_dict()`.
        what: what errors call the saved tensors.

    Raises:
        ValueError: names or shapes differ.
    """
    import torch

    check_tensors(what, source, {name: tensor.shape for name, tensor in target.items()})
    with torch.no_grad():
        for name, tensor in target.items():
            tensor.copy_(source[name])


class Place(NamedTuple):
    """Where a tensor lies in a safetensors file."""

    dtype: str  # as the file says it, e.g. "F32"
    shape: tuple[int, ...]
    start: int  # bytes from the begin of the file
    stop: int


def tensor_places(file: BinaryIO, name: str) -> tuple[dict[str, Place], dict[str, str]]:
    """Where the tensors of a safetensors file lie, and its metadata; no tensor is read.

    Args:
        file: the file, at its begin.
        name: says in errors where it came from.

    Raises:
        ValueError: it is none, or is cut off.
    """
    need = "need a whole safetensors file"
    size = file.seek(0, 2)
    file.seek(0)
    (length,) = struct.unpack("<Q", file.read(8).ljust(8, b"\xff"))
    if length > min(_LARGEST_HEADER, size - 8):
        raise Refusal(f"{name}: has no header of a safetensors file; {need}")
    header = parse_json(file.read(length), name, "header of a safetensors file")
    places, metadata = {}, {}
    try:
        for key, row in header.items():
            if key == "__metadata__":
                metadata = {str(k): str(v) for k, v in row.items()}
                continue
            first, last = row["data_offsets"]
            dtype, shape = row["dtype"], tuple(row["shape"])
            if not all(is_int(number, 0) for number in (first, last, *shape)):
                raise ValueError
            start, stop = 8 + length + first, 8 + length + last
            if stop - start != math.prod(shape) * _DTYPE_BYTES[dtype] or stop > size:
                raise ValueError
            places[key] = Place(dtype, shape, start, stop)
    except (AttributeError, KeyError, TypeError, ValueError):
        raise Refusal(f"{name}: its header is not that of its tensors; {need}") from None
    return places, metadata
