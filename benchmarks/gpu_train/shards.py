"""Writes a network's weights as several small safetensors files and the index that joins them.

`ddsm_ext.io.load_shards` describes the index and reads it. The files are named by their content,
too: `NAME-1a2b3c4d-00001-of-00003.safetensors`.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddsm_ext.io.files import write_atomic, write_json
from ddsm_ext.io.weights import INDEX_ENDING

if TYPE_CHECKING:
    from torch import Tensor

_HEADER_BYTES = 1 << 16  # most that safetensors adds to a file of a few hundred tensors


def save_shards(
    index: str | Path,
    tensors: Mapping[str, Tensor],
    *,
    max_bytes: int,
    about: Mapping[str, Any] | None = None,
) -> Path:
    """Write tensors as files of at most `max_bytes`, then the index, then remove those it replaced.

    Whenever it is interrupted, the index names whole files: those of before or the new ones.

    Args:
        index: `FOLDER/NAME.safetensors.index.json`.
        tensors: by name, in the order in which they fill the files.
        max_bytes: most bytes of a file.
        about: JSON values to keep in the index's metadata beside "total_size" and "sha256".

    Returns:
        path of the index.

    Raises:
        ValueError: another ending, no tensors, or one that fits no file.
    """
    from safetensors.torch import save

    index = Path(index)
    groups = _groups(tensors, max_bytes - _HEADER_BYTES)
    files, digests, weight_map = [], {}, {}
    for number, names in enumerate(groups, 1):
        data = save({name: tensors[name].detach().cpu().contiguous() for name in names})
        digest = hashlib.sha256(data).hexdigest()
        # Named by its content: a file that the present index names is never written over.
        file = f"{_stem(index)}-{digest[:8]}-{number:05d}-of-{len(groups):05d}.safetensors"
        files.append((file, data))
        digests[file] = digest
        weight_map |= dict.fromkeys(names, file)
    for file, data in files:
        write_atomic(index.parent / file, data)
    total = sum(t.numel() * t.element_size() for t in tensors.values())
    metadata = {**(about or {}), "total_size": total, "sha256": digests}
    write_json(index, {"metadata": metadata, "weight_map": weight_map})
    shard = re.compile(re.escape(_stem(index)) + r"-[0-9a-f]{8}-\d{5}-of-\d{5}\.safetensors")
    for old in index.parent.iterdir():
        if shard.fullmatch(old.name) and old.name not in digests:
            with contextlib.suppress(OSError):
                old.unlink()
    return index


def _stem(index: Path) -> str:
    if not index.name.endswith(INDEX_ENDING):
        raise ValueError(f"{index}: need a name that ends in {INDEX_ENDING}")
    return index.name.removesuffix(INDEX_ENDING)


def _groups(tensors: Mapping[str, Tensor], room: int) -> list[list[str]]:
    """Names for each file, in order, each file as full as `room` bytes allow."""
    if not tensors:
        raise ValueError("save_shards: there are no tensors; need at least one")
    groups: list[list[str]] = []
    left = 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        if size > room:
            raise ValueError(
                f"save_shards: {name} takes {size} bytes; need max_bytes >= {size + _HEADER_BYTES}"
            )
        if not groups or size > left:
            groups.append([])
            left = room
        groups[-1].append(name)
        left -= size
    return groups
