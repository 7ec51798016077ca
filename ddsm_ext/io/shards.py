"""A network's weights in several safetensors files, joined by their index.

The index has the form that the Hugging Face libraries write: `NAME.safetensors.index.json` with
"metadata" and "weight_map" (tensor -> file). Where the metadata have "sha256" (file -> digest), as
those of `benchmarks/gpu_train.sh`, the files are checked.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddsm_ext.io.files import parse_safetensors, read_bytes, read_json
from ddsm_ext.settings import Refusal

if TYPE_CHECKING:
    from torch import Tensor

INDEX_ENDING = ".safetensors.index.json"


def load_shards(index: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Join the safetensors files beside an index.

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
    digests = metadata.get("sha256", {})
    tensors: dict[str, Tensor] = {}
    for file in dict.fromkeys(weight_map.values()):
        if Path(str(file)).name != file:
            raise Refusal(f"{index}: names the file {file!r}; need names without a folder")
        path = index.parent / file
        data = read_bytes(path, "file that the index names")
        if file in digests and hashlib.sha256(data).hexdigest() != digests[file]:
            raise Refusal(f"{path}: does not match its SHA-256 in the index; need the same save's")
        tensors |= parse_safetensors(data, str(path))
    if tensors.keys() != weight_map.keys():
        name = min(tensors.keys() ^ weight_map.keys())
        raise Refusal(f"{index}: {name} is in the index or in the files alone; need both")
    return {name: tensors[name] for name in weight_map}, metadata
